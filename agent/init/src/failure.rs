//! The one thing that can happen to a boot: it cannot go on, and somebody must be told why.

use std::fmt;

/// What could not be done, and what the kernel said to it.
#[derive(Debug)]
pub(crate) struct Failure {
    doing: String,
    why: String,
}

impl Failure {
    /// `doing` ends the sentence "cannot …".
    pub(crate) fn new(doing: impl Into<String>, why: impl fmt::Display) -> Self {
        Self {
            doing: doing.into(),
            why: why.to_string(),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {}: {}", self.doing, self.why)
    }
}

/// The result of a step of the boot.
pub(crate) type Result<T> = std::result::Result<T, Failure>;

/// Names what was being done when something failed.
pub(crate) trait Doing<T> {
    /// Adds the end of the sentence "cannot …".
    fn doing(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: fmt::Display> Doing<T> for std::result::Result<T, E> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|why| Failure::new(what(), why))
    }
}
