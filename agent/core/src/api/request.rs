//! The one interface behind D-Bus, the CLI and the Engine API: requests to the cluster's store.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    ClusterSpec, Config, ConfigSpec, Network, NetworkSpec, NodeSpec, Secret, SecretSpec, Service,
    ServiceSpec,
};
use crate::{id::Id, wire::unlock::UnlockKey};

/// A request to the cluster. References are what the user typed: an id, an unambiguous prefix of
/// one, or a name. Lists and single objects are read from a `View`; only changes come this way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum ClusterRequest {
    /// Makes a service.
    ServiceCreate(Box<ServiceSpec>),
    /// Changes a service, from the version that the user has read.
    ServiceUpdate {
        /// Which.
        service: String,
        /// The version that the new spec is based on.
        version: u64,
        /// The new spec; ignored when `rollback` is set.
        spec: Box<ServiceSpec>,
        /// Back to the previous spec.
        rollback: bool,
    },
    /// Removes a service.
    ServiceRemove(String),
    /// Makes a network.
    NetworkCreate(Box<NetworkSpec>),
    /// Removes a network.
    NetworkRemove(String),
    /// Makes a secret.
    SecretCreate(Box<SecretSpec>),
    /// Changes the labels of a secret.
    SecretUpdate {
        /// Which.
        secret: String,
        /// The version that the new spec is based on.
        version: u64,
        /// The new spec.
        spec: Box<SecretSpec>,
    },
    /// Removes a secret.
    SecretRemove(String),
    /// Makes a config.
    ConfigCreate(Box<ConfigSpec>),
    /// Changes the labels of a config.
    ConfigUpdate {
        /// Which.
        config: String,
        /// The version that the new spec is based on.
        version: u64,
        /// The new spec.
        spec: Box<ConfigSpec>,
    },
    /// Removes a config.
    ConfigRemove(String),
    /// Changes role, availability or labels of a node.
    NodeUpdate {
        /// Which.
        node: String,
        /// The version that the new spec is based on.
        version: u64,
        /// The new spec.
        spec: NodeSpec,
    },
    /// Removes a node.
    NodeRemove {
        /// Which.
        node: String,
        /// Even if it is up.
        force: bool,
    },
    /// Changes the cluster's settings or rotates tokens.
    ClusterUpdate {
        /// The version that the new spec is based on.
        version: u64,
        /// The new spec.
        spec: Box<ClusterSpec>,
        /// A new worker token, drawn by the front door from the kernel: the complete text.
        new_worker_token: Option<String>,
        /// A new manager token.
        new_manager_token: Option<String>,
        /// A key drawn by the front door from the kernel, taken if managers need another one than they have.
        drawn_unlock_key: UnlockKey,
        /// Whether managers need another one although they have one.
        rotate_unlock_key: bool,
    },
}

/// What came of a [`ClusterRequest`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum ClusterResponse {
    /// A service was made.
    ServiceCreated(Id<Service>),
    /// A network was made.
    NetworkCreated(Id<Network>),
    /// A secret was made.
    SecretCreated(Id<Secret>),
    /// A config was made.
    ConfigCreated(Id<Config>),
    /// Done; there is nothing to say but these warnings.
    Done {
        /// For the user.
        warnings: Vec<String>,
    },
}

impl ClusterResponse {
    /// The id of what was made, if something was.
    #[must_use]
    pub fn created(&self) -> Option<&str> {
        match self {
            ClusterResponse::ServiceCreated(id) => Some(id.as_str()),
            ClusterResponse::NetworkCreated(id) => Some(id.as_str()),
            ClusterResponse::SecretCreated(id) => Some(id.as_str()),
            ClusterResponse::ConfigCreated(id) => Some(id.as_str()),
            ClusterResponse::Done { .. } => None,
        }
    }
}

/// Why a request was refused. Maps one to one to HTTP status codes and D-Bus error names.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApiError {
    /// No such object (404).
    #[error("{kind} {reference} not found")]
    NotFound {
        /// `service`, `node`, `network`, `task` …
        kind: &'static str,
        /// What the user typed.
        reference: String,
    },
    /// More than one object matches (400).
    #[error("{kind} {reference} is ambiguous ({matches} matches found)")]
    Ambiguous {
        /// The kind of object.
        kind: &'static str,
        /// What the user typed.
        reference: String,
        /// How many match.
        matches: usize,
    },
    /// A value that can't be taken (400).
    #[error("invalid {field}: {why}")]
    Invalid {
        /// The field as the API names it, such as `EndpointSpec.Ports[0].TargetPort`.
        field: String,
        /// The value and what to do.
        why: String,
    },
    /// Known to Docker, not supported by Skep yet (501).
    #[error("{0} is not supported by Skep yet")]
    Unsupported(String),
    /// The name, port or subnet is taken (409).
    #[error("{0}")]
    Conflict(String),
    /// The object was changed since it was read (500, as Docker answers).
    #[error("update out of sequence")]
    OutOfSequence,
    /// Not now: in use, last manager, node is up … (400, `FailedPrecondition`).
    #[error("{0}")]
    Precondition(String),
    /// What proves the right to ask is wrong (401).
    #[error("{0}")]
    Unauthorized(String),
    /// Refused for who asks or what is asked for (403).
    #[error("{0}")]
    Forbidden(String),
    /// This node is not a manager, or there is no leader (503).
    #[error("{0}")]
    Unavailable(String),
}

/// `filters` of list requests: key to accepted values; a value matches if any of its key's does.
pub type Filters = BTreeMap<String, Vec<String>>;
