//! Raft and Control: what managers say to one another.

use async_trait::async_trait;
use openraft::error::{Fatal, RaftError};
use serde::{Serialize, de::DeserializeOwned};
use skep_core::{
    api::{ApiError, ClusterRequest},
    manager::role,
    wire::skep::{self, RaftMessage, control_response},
};
use tonic::{Request, Response, Status};

use super::{
    gate::Peer,
    services::skep::{control_server::Control, raft_server::Raft},
    status::propose_status,
};
use crate::{
    manager::Manager,
    raft::{Member, raft_id},
};

/// The two services.
#[derive(Clone)]
pub struct ManagersService(pub Manager);

fn read<T: DeserializeOwned>(message: &RaftMessage) -> Result<T, Status> {
    serde_json::from_slice(&message.document)
        .map_err(|error| Status::invalid_argument(format!("document: {error}")))
}

/// openraft's own refusals travel in the answer; a stopped raft is an error of the call.
fn write<T, E>(result: Result<T, RaftError<u64, E>>) -> Result<Response<RaftMessage>, Status>
where
    T: Serialize,
    E: Serialize,
{
    if let Err(RaftError::Fatal(error)) = &result {
        return Err(stopped(error));
    }
    let document =
        serde_json::to_vec(&result).map_err(|error| Status::internal(error.to_string()))?;
    let lineage = String::new();
    Ok(Response::new(RaftMessage { document, lineage }))
}

fn stopped(error: &Fatal<u64>) -> Status {
    Status::unavailable(format!("consensus has stopped on this manager: {error}"))
}

impl ManagersService {
    /// Refuses managers of another raft group: those that were left behind when one went on alone.
    async fn check_lineage(&self, message: &RaftMessage) -> Result<(), Status> {
        match self.0.raft().is_of_group(&message.lineage).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(Status::failed_precondition(
                "another raft group: the swarm was made anew from one of its managers (--force-new-cluster)",
            )),
            Err(error) => Err(Status::unavailable(error)),
        }
    }
}

#[async_trait]
impl Raft for ManagersService {
    async fn append(&self, request: Request<RaftMessage>) -> Result<Response<RaftMessage>, Status> {
        self.check_lineage(request.get_ref()).await?;
        let raft = self.0.raft().raft();
        write(raft.append_entries(read(request.get_ref())?).await)
    }

    async fn vote(&self, request: Request<RaftMessage>) -> Result<Response<RaftMessage>, Status> {
        self.check_lineage(request.get_ref()).await?;
        let raft = self.0.raft().raft();
        write(raft.vote(read(request.get_ref())?).await)
    }

    async fn snapshot(
        &self,
        request: Request<RaftMessage>,
    ) -> Result<Response<RaftMessage>, Status> {
        self.check_lineage(request.get_ref()).await?;
        let raft = self.0.raft().raft();
        write(raft.install_snapshot(read(request.get_ref())?).await)
    }
}

#[async_trait]
impl Control for ManagersService {
    async fn request(
        &self,
        request: Request<skep::ControlRequest>,
    ) -> Result<Response<skep::ControlResponse>, Status> {
        let peer = Peer::node(&request)?;
        role::may_take_part(&self.0.view(), &peer.node_id).map_err(forbidden)?;
        let request: ClusterRequest = serde_json::from_slice(&request.get_ref().document)
            .map_err(|error| Status::invalid_argument(format!("document: {error}")))?;
        let answer = self.0.request(&request).await.map_err(propose_status)?;
        let result = match answer {
            Ok(response) => {
                let document = serde_json::to_vec(&response)
                    .map_err(|error| Status::internal(error.to_string()))?;
                control_response::Result::Document(document)
            }
            Err(error) => control_response::Result::Error(write_error(&error)),
        };
        Ok(Response::new(skep::ControlResponse {
            result: Some(result),
            version: self.0.view().version(),
        }))
    }

    async fn join_raft(
        &self,
        request: Request<skep::JoinRaftRequest>,
    ) -> Result<Response<skep::JoinRaftResponse>, Status> {
        let peer = Peer::node(&request)?;
        let message = request.into_inner();
        let id = raft_id(&peer.node_id);
        if message.raft_id != id {
            return Err(Status::invalid_argument("raft_id: it is not this node's"));
        }
        let member = Member {
            node_id: peer.node_id.to_string(),
            addr: message.addr,
        };
        let raft = self.0.raft();
        let view = raft.linearizable().await.map_err(propose_status)?;
        role::may_take_part(&view, &peer.node_id).map_err(forbidden)?;
        raft.add_member(id, member).await.map_err(propose_status)?;
        tracing::info!(node.id = %peer.node_id, "a manager takes part in consensus");
        Ok(Response::new(skep::JoinRaftResponse {}))
    }
}

fn forbidden(error: ApiError) -> Status {
    Status::permission_denied(error.to_string())
}

/// An error of the API as its name and parts.
fn write_error(error: &ApiError) -> skep::ControlError {
    let (name, parts) = match error {
        ApiError::NotFound { kind, reference } => {
            ("NotFound", vec![(*kind).to_owned(), reference.clone()])
        }
        ApiError::Ambiguous {
            kind,
            reference,
            matches,
        } => (
            "Ambiguous",
            vec![(*kind).to_owned(), reference.clone(), matches.to_string()],
        ),
        ApiError::Invalid { field, why } => ("Invalid", vec![field.clone(), why.clone()]),
        ApiError::Unsupported(what) => ("Unsupported", vec![what.clone()]),
        ApiError::Conflict(why) => ("Conflict", vec![why.clone()]),
        ApiError::OutOfSequence => ("OutOfSequence", Vec::new()),
        ApiError::Precondition(why) => ("Precondition", vec![why.clone()]),
        ApiError::Unauthorized(why) => ("Unauthorized", vec![why.clone()]),
        ApiError::Forbidden(why) => ("Forbidden", vec![why.clone()]),
        ApiError::Unavailable(why) => ("Unavailable", vec![why.clone()]),
    };
    skep::ControlError {
        name: name.to_owned(),
        parts,
    }
}

/// The kinds of objects that errors name.
const KINDS: [&str; 8] = [
    "service", "node", "network", "secret", "config", "task", "cluster", "object",
];

/// The reverse. What a later version may say is at least shown.
#[must_use]
pub fn read_error(error: skep::ControlError) -> ApiError {
    let name = error.name;
    let mut parts = error.parts.into_iter();
    let mut next = || parts.next().unwrap_or_default();
    let kind = |text: String| {
        let known = KINDS.into_iter().find(|kind| *kind == text);
        known.unwrap_or("object")
    };
    match name.as_str() {
        "NotFound" => ApiError::NotFound {
            kind: kind(next()),
            reference: next(),
        },
        "Ambiguous" => ApiError::Ambiguous {
            kind: kind(next()),
            reference: next(),
            matches: next().parse().unwrap_or(2),
        },
        "Invalid" => ApiError::Invalid {
            field: next(),
            why: next(),
        },
        "Unsupported" => ApiError::Unsupported(next()),
        "Conflict" => ApiError::Conflict(next()),
        "OutOfSequence" => ApiError::OutOfSequence,
        "Precondition" => ApiError::Precondition(next()),
        "Unauthorized" => ApiError::Unauthorized(next()),
        "Forbidden" => ApiError::Forbidden(next()),
        "Unavailable" => ApiError::Unavailable(next()),
        other => ApiError::Unavailable(format!("{other}: {}", next())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_survive_the_way_to_a_follower() {
        let text = || "x".to_owned();
        let errors = [
            ApiError::NotFound {
                kind: "service",
                reference: text(),
            },
            ApiError::NotFound {
                kind: "secret",
                reference: text(),
            },
            ApiError::Ambiguous {
                kind: "config",
                reference: text(),
                matches: 3,
            },
            ApiError::Invalid {
                field: text(),
                why: text(),
            },
            ApiError::Unsupported(text()),
            ApiError::Conflict(text()),
            ApiError::OutOfSequence,
            ApiError::Precondition(text()),
            ApiError::Unauthorized(text()),
            ApiError::Forbidden(text()),
            ApiError::Unavailable(text()),
        ];
        for error in errors {
            assert_eq!(read_error(write_error(&error)), error);
        }
    }
}
