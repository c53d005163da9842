//! The one error of this crate.

use std::error::Error;
use std::fmt;

/// An effect that failed: what was tried, on what, and why.
#[derive(Debug)]
pub struct HostError {
    /// What was tried, as a verb phrase: `mount the root of container`.
    pub op: &'static str,
    /// On what: a path, a name, an id.
    pub object: String,
    /// Whether trying again later may succeed with nothing changed.
    pub temporary: bool,
    /// The cause.
    pub source: Box<dyn Error + Send + Sync>,
}

/// The result of an effect.
pub type Result<T> = std::result::Result<T, HostError>;

impl HostError {
    /// An error that trying again will not cure.
    pub fn new(
        op: &'static str,
        object: impl Into<String>,
        source: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> Self {
        Self {
            op,
            object: object.into(),
            temporary: false,
            source: source.into(),
        }
    }

    /// The same error, said to be worth trying again.
    #[must_use]
    pub fn temporary(mut self) -> Self {
        self.temporary = true;
        self
    }

    /// The error and its causes in one line.
    pub fn chain(&self) -> String {
        let mut line = format!("{self}: {}", self.source);
        let mut cause = self.source.source();
        while let Some(error) = cause {
            line.push_str(": ");
            line.push_str(&error.to_string());
            cause = error.source();
        }
        line
    }
}

impl fmt::Display for HostError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {} {}", self.op, self.object)
    }
}

impl Error for HostError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(self.source.as_ref())
    }
}

/// Names what was tried when a system call fails.
pub trait Context<T> {
    /// Wraps the error with the operation and its object.
    fn context(self, op: &'static str, object: impl fmt::Display) -> Result<T>;
}

impl<T, E: Into<Box<dyn Error + Send + Sync>>> Context<T> for std::result::Result<T, E> {
    fn context(self, op: &'static str, object: impl fmt::Display) -> Result<T> {
        self.map_err(|source| HostError::new(op, object.to_string(), source))
    }
}
