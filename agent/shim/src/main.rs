//! `skep-shim <directory> [<descriptor>]`: the parent of one container.
//!
//! It makes the container with libcontainer, keeps its standard input and output, writes its log, reaps what dies and
//! writes down how, and answers on a socket. It outlives skepd, so it is small, has one thread and depends on nothing
//! that skepd does. What the two say to each other is in `protocol.rs`.

mod causes;
mod client;
mod container;
mod event_loop;
mod exec;
mod log;
mod program;
#[expect(
    unreachable_pub,
    reason = "skep-host publishes a type of this file; here it is all private"
)]
#[path = "../../host/src/container/protocol.rs"]
mod protocol;
mod startup;
mod stdio;

use std::path::PathBuf;
use std::process::ExitCode;

/// Why something was not done, in one line: it goes to skepd, which adds the container's name.
type Result<T> = std::result::Result<T, String>;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let dir = arguments.next().map(PathBuf::from);
    let provided = arguments.next().map(|number| number.to_str()?.parse().ok());
    let (Some(dir), None | Some(Some(3..))) = (dir, provided) else {
        complain("usage: skep-shim DIRECTORY [DESCRIPTOR]; it is started by skepd");
        return ExitCode::from(2);
    };
    match startup::start(&dir, provided.flatten()) {
        Ok(event_loop) => match event_loop.run() {
            Ok(()) => ExitCode::SUCCESS,
            Err(why) => {
                complain(&why);
                ExitCode::FAILURE
            }
        },
        // skepd has been told already.
        Err(_) => ExitCode::FAILURE,
    }
}

/// Says a line on standard error, which is skepd's.
fn complain(line: &str) {
    use std::io::Write;
    // Nobody is left to tell if this fails.
    let _ = writeln!(std::io::stderr().lock(), "skep-shim: {line}");
}

/// Adds what was tried to an error.
trait Trying<T> {
    fn trying(self, what: &str) -> Result<T>;
}

impl<T, E: std::fmt::Display> Trying<T> for std::result::Result<T, E> {
    fn trying(self, what: &str) -> Result<T> {
        self.map_err(|error| format!("{what}: {error}"))
    }
}

/// The wall clock in Unix nanoseconds.
fn now() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since
        .ok()
        .and_then(|duration| u64::try_from(duration.as_nanos()).ok())
        .unwrap_or(0)
}
