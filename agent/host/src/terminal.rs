//! Terminals: secrets that are typed are not shown.

use std::os::fd::AsFd;

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};

use crate::error::{Context, Result};

/// A terminal that does not show what is typed, until it is dropped.
pub struct Hidden<F: AsFd> {
    terminal: F,
    before: Termios,
}

impl<F: AsFd> Hidden<F> {
    /// Stops the echo.
    ///
    /// # Errors
    /// When it is no terminal.
    pub fn new(terminal: F) -> Result<Self> {
        let before = tcgetattr(&terminal).context("read the settings of", "the terminal")?;
        let mut quiet = before.clone();
        quiet.local_modes.remove(LocalModes::ECHO);
        tcsetattr(&terminal, OptionalActions::Flush, &quiet)
            .context("stop the echo of", "the terminal")?;
        Ok(Self { terminal, before })
    }
}

impl<F: AsFd> Drop for Hidden<F> {
    fn drop(&mut self) {
        // The terminal may be gone, and then there is nothing to put back.
        let _ = tcsetattr(&self.terminal, OptionalActions::Flush, &self.before);
    }
}
