//! Refusals as gRPC has them.

use skep_core::manager::dispatcher::Refused;
use tonic::{Code, Status};

use crate::{manager::CallError, raft::ProposeError};

pub(super) fn propose_status(error: ProposeError) -> Status {
    match error {
        ProposeError::NotLeader(Some(leader)) => {
            Status::unavailable(format!("the leader is at {}", leader.addr))
        }
        ProposeError::NotLeader(None) => Status::unavailable("there is no leader"),
        ProposeError::Busy | ProposeError::Stopped(_) => Status::unavailable(error.to_string()),
    }
}

pub(super) fn call_status(error: CallError) -> Status {
    match error {
        CallError::Refused(refused) => refused_status(&refused),
        CallError::NotLeader => Status::unavailable("this manager does not lead"),
    }
}

pub(super) fn refused_status(refused: &Refused) -> Status {
    let code = match refused {
        Refused::UnknownNode(_) => Code::NotFound,
        Refused::Removed(_) | Refused::ForeignTask { .. } => Code::PermissionDenied,
        Refused::InvalidSession | Refused::InvalidReport { .. } => Code::InvalidArgument,
        Refused::TooFrequent => Code::Unavailable,
        Refused::DuplicateMachine { .. } => Code::AlreadyExists,
    };
    Status::new(code, refused.to_string())
}
