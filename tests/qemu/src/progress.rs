//! What a person sees while a long step runs. Everything goes to stderr: stdout is for results.

use std::time::Instant;

/// Says one line.
pub fn say(text: &str) {
    eprintln!("lab: {text}");
}

/// A long step: said when it begins, and when it ends with its time if it took longer than two seconds.
pub struct Step {
    what: String,
    begun: Instant,
}

impl Step {
    /// Begins a step.
    pub fn begin(what: impl Into<String>) -> Step {
        let what = what.into();
        say(&format!("{what} …"));
        Step {
            what,
            begun: Instant::now(),
        }
    }

    /// Ends the step well.
    pub fn done(self) {
        let seconds = self.begun.elapsed().as_secs_f32();
        if seconds >= 2.0 {
            say(&format!("{}: done in {seconds:.1} s", self.what));
        }
    }
}
