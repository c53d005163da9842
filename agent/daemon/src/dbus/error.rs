//! Errors of the agent as D-Bus has them.

use skep_core::api::ApiError;

/// The error for an object that is not there.
pub const NOT_FOUND: &str = "io.skep.Error.NotFound";

/// One D-Bus error name for each kind of [`ApiError`].
#[derive(Debug, zbus::DBusError)]
#[zbus(prefix = "io.skep.Error")]
pub(super) enum Error {
    /// An error of the bus itself.
    #[zbus(error)]
    Bus(zbus::Error),
    /// No such object.
    NotFound(String),
    /// More than one object matches.
    Ambiguous(String),
    /// A value that can't be taken.
    Invalid(String),
    /// Known to Docker, not supported yet.
    Unsupported(String),
    /// The name, port or subnet is taken.
    Conflict(String),
    /// The object was changed since it was read.
    OutOfSequence(String),
    /// Not now.
    Precondition(String),
    /// What proves the right to ask is wrong.
    Unauthorized(String),
    /// Refused for who asks or what is asked for.
    Forbidden(String),
    /// This node is not a manager, or there is no leader.
    Unavailable(String),
}

impl From<ApiError> for Error {
    fn from(error: ApiError) -> Self {
        let text = error.to_string();
        match error {
            ApiError::NotFound { .. } => Self::NotFound(text),
            ApiError::Ambiguous { .. } => Self::Ambiguous(text),
            ApiError::Invalid { .. } => Self::Invalid(text),
            ApiError::Unsupported(_) => Self::Unsupported(text),
            ApiError::Conflict(_) => Self::Conflict(text),
            ApiError::OutOfSequence => Self::OutOfSequence(text),
            ApiError::Precondition(_) => Self::Precondition(text),
            ApiError::Unauthorized(_) => Self::Unauthorized(text),
            ApiError::Forbidden(_) => Self::Forbidden(text),
            ApiError::Unavailable(_) => Self::Unavailable(text),
        }
    }
}
