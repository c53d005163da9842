//! Objects as swarmkit's messages, and back.
//!
//! Encoding cannot fail and sets whatever a Docker node dereferences. Decoding refuses by name what
//! Skep cannot honour or what no honest peer sends. What swarmkit's messages have no field for
//! (firewall marks, the store's own bookkeeping of a task) does not travel in them.

mod container;
mod dependency;
mod mount;
mod network;
mod node;
mod task;

use std::time::Duration;

pub use dependency::{config, read_config, read_secret, secret};
pub use node::{
    certificate, certificate_state, description, node, read_availability, read_description,
};
pub use task::{read_status, read_task, status, task};

use crate::{time::Timestamp, wire::swarmkit as pb};

/// A message that Skep does not take.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {why}")]
pub struct MessageError {
    /// The field, in the protocol's words.
    pub field: &'static str,
    /// What is wrong with it.
    pub why: String,
}

impl MessageError {
    fn new(field: &'static str, why: impl Into<String>) -> Self {
        Self {
            field,
            why: why.into(),
        }
    }

    fn unsupported(field: &'static str) -> Self {
        Self::new(field, "is not supported by Skep yet")
    }
}

/// Refuses `field` by name when `present`.
fn refuse(present: bool, field: &'static str) -> Result<(), MessageError> {
    if present {
        Err(MessageError::unsupported(field))
    } else {
        Ok(())
    }
}

/// A moment as protobuf has it.
#[must_use]
pub fn timestamp(moment: Timestamp) -> prost_types::Timestamp {
    let nanos = moment.0.rem_euclid(1_000_000_000);
    prost_types::Timestamp {
        seconds: moment.unix_seconds(),
        nanos: i32::try_from(nanos).unwrap_or(0),
    }
}

/// The moment of a message; 1970 when it has none.
#[must_use]
pub fn read_timestamp(message: Option<&prost_types::Timestamp>) -> Timestamp {
    let (seconds, nanos) = message.map_or((0, 0), |moment| (moment.seconds, moment.nanos));
    Timestamp(i128::from(seconds) * 1_000_000_000 + i128::from(nanos.clamp(0, 999_999_999)))
}

/// A time as protobuf has it.
#[must_use]
pub fn duration(value: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(value.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(value.subsec_nanos()).unwrap_or(0),
    }
}

/// A time from a peer.
///
/// # Errors
/// When it is negative.
pub fn read_duration(
    message: &prost_types::Duration,
    field: &'static str,
) -> Result<Duration, MessageError> {
    match (u64::try_from(message.seconds), u32::try_from(message.nanos)) {
        (Ok(seconds), Ok(nanos)) if nanos < 1_000_000_000 => Ok(Duration::new(seconds, nanos)),
        _ => Err(MessageError::new(field, "is negative or not normal")),
    }
}

fn id<K>(text: &str, field: &'static str) -> Result<crate::id::Id<K>, MessageError> {
    text.parse()
        .map_err(|error: crate::id::InvalidId| MessageError::new(field, error.to_string()))
}

fn meta(meta: &super::Meta) -> pb::Meta {
    pb::Meta {
        version: Some(pb::Version {
            index: meta.version,
        }),
        created_at: Some(timestamp(meta.created_at)),
        updated_at: Some(timestamp(meta.updated_at)),
    }
}

fn read_meta(message: Option<&pb::Meta>) -> super::Meta {
    let Some(message) = message else {
        return super::Meta::default();
    };
    super::Meta {
        version: message.version.as_ref().map_or(0, |version| version.index),
        created_at: read_timestamp(message.created_at.as_ref()),
        updated_at: read_timestamp(message.updated_at.as_ref()),
    }
}

#[cfg(test)]
mod tests;
