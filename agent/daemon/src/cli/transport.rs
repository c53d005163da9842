//! The way from the command line to a node: one set of operations and documents, carried by D-Bus on the
//! node or by the Engine API from elsewhere.

use std::collections::BTreeMap;

use anyhow::Result;
use async_trait::async_trait;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};

/// One operation: its name on D-Bus (`io.skep.<resource>1.<member>`) and in the Engine API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Operation {
    /// The D-Bus interface's own part: `Services`.
    pub(super) resource: &'static str,
    /// The D-Bus method.
    pub(super) member: &'static str,
    /// The HTTP method.
    pub(super) method: &'static str,
    /// The path; `{}` stands for the reference.
    pub(super) path: &'static str,
}

const fn operation(
    resource: &'static str,
    member: &'static str,
    method: &'static str,
    path: &'static str,
) -> Operation {
    Operation {
        resource,
        member,
        method,
        path,
    }
}

/// `version`.
pub(super) const VERSION: Operation = operation("System", "Version", "GET", "/version");
/// `info`.
pub(super) const INFO: Operation = operation("System", "Info", "GET", "/info");
/// `debug`; a stream.
pub(super) const DEBUG: Operation = operation("System", "Debug", "POST", "/skep/debug");
/// `swarm init`.
pub(super) const SWARM_INIT: Operation = operation("Swarm", "Init", "POST", "/swarm/init");
/// `swarm join`.
pub(super) const SWARM_JOIN: Operation = operation("Swarm", "Join", "POST", "/swarm/join");
/// `swarm leave`.
pub(super) const SWARM_LEAVE: Operation = operation("Swarm", "Leave", "POST", "/swarm/leave");
/// The cluster with its tokens.
pub(super) const SWARM_INSPECT: Operation = operation("Swarm", "Inspect", "GET", "/swarm");
/// Settings and tokens.
pub(super) const SWARM_UPDATE: Operation = operation("Swarm", "Update", "POST", "/swarm/update");
/// The key that unlocks managers.
pub(super) const SWARM_UNLOCK_KEY: Operation =
    operation("Swarm", "UnlockKey", "GET", "/swarm/unlockkey");
/// `swarm unlock`.
pub(super) const SWARM_UNLOCK: Operation = operation("Swarm", "Unlock", "POST", "/swarm/unlock");
/// `node ls`.
pub(super) const NODE_LIST: Operation = operation("Nodes", "List", "GET", "/nodes");
/// `node inspect`.
pub(super) const NODE_INSPECT: Operation = operation("Nodes", "Inspect", "GET", "/nodes/{}");
/// `node update`, `promote` and `demote`.
pub(super) const NODE_UPDATE: Operation = operation("Nodes", "Update", "POST", "/nodes/{}/update");
/// `node rm`.
pub(super) const NODE_REMOVE: Operation = operation("Nodes", "Remove", "DELETE", "/nodes/{}");
/// `service ls`.
pub(super) const SERVICE_LIST: Operation = operation("Services", "List", "GET", "/services");
/// `service inspect`.
pub(super) const SERVICE_INSPECT: Operation =
    operation("Services", "Inspect", "GET", "/services/{}");
/// `service create`.
pub(super) const SERVICE_CREATE: Operation =
    operation("Services", "Create", "POST", "/services/create");
/// `service update`.
pub(super) const SERVICE_UPDATE: Operation =
    operation("Services", "Update", "POST", "/services/{}/update");
/// `service rm`.
pub(super) const SERVICE_REMOVE: Operation =
    operation("Services", "Remove", "DELETE", "/services/{}");
/// `service logs`; a stream.
pub(super) const SERVICE_LOGS: Operation =
    operation("Services", "Logs", "GET", "/services/{}/logs");
/// `service logs` of one task; a stream.
pub(super) const TASK_LOGS: Operation = operation("Tasks", "Logs", "GET", "/tasks/{}/logs");
/// The tasks.
pub(super) const TASK_LIST: Operation = operation("Tasks", "List", "GET", "/tasks");
/// `network ls`.
pub(super) const NETWORK_LIST: Operation = operation("Networks", "List", "GET", "/networks");
/// `network inspect`.
pub(super) const NETWORK_INSPECT: Operation =
    operation("Networks", "Inspect", "GET", "/networks/{}");
/// `network create`.
pub(super) const NETWORK_CREATE: Operation =
    operation("Networks", "Create", "POST", "/networks/create");
/// `network rm`.
pub(super) const NETWORK_REMOVE: Operation =
    operation("Networks", "Remove", "DELETE", "/networks/{}");
/// `secret ls`.
pub(super) const SECRET_LIST: Operation = operation("Secrets", "List", "GET", "/secrets");
/// `secret inspect`.
pub(super) const SECRET_INSPECT: Operation = operation("Secrets", "Inspect", "GET", "/secrets/{}");
/// `secret create`.
pub(super) const SECRET_CREATE: Operation =
    operation("Secrets", "Create", "POST", "/secrets/create");
/// `secret rm`.
pub(super) const SECRET_REMOVE: Operation = operation("Secrets", "Remove", "DELETE", "/secrets/{}");
/// `config ls`.
pub(super) const CONFIG_LIST: Operation = operation("Configs", "List", "GET", "/configs");
/// `config inspect`.
pub(super) const CONFIG_INSPECT: Operation = operation("Configs", "Inspect", "GET", "/configs/{}");
/// `config create`.
pub(super) const CONFIG_CREATE: Operation =
    operation("Configs", "Create", "POST", "/configs/create");
/// `config rm`.
pub(super) const CONFIG_REMOVE: Operation = operation("Configs", "Remove", "DELETE", "/configs/{}");
/// `ps`.
pub(super) const CONTAINER_LIST: Operation =
    operation("Containers", "List", "GET", "/containers/json");
/// `logs`; a stream.
pub(super) const CONTAINER_LOGS: Operation =
    operation("Containers", "Logs", "GET", "/containers/{}/logs");
/// What a registry says of an image.
pub(super) const IMAGE_RESOLVE: Operation =
    operation("Images", "Resolve", "GET", "/distribution/{}/json");

/// An operation with what it needs. On D-Bus the parts that are there are the arguments, in this order.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Call {
    /// Which operation.
    pub(super) operation: Operation,
    /// What the user typed for an object.
    pub(super) reference: Option<String>,
    /// Parameters: the query of a URL.
    pub(super) params: Option<BTreeMap<String, String>>,
    /// The document: the body of a request.
    pub(super) body: Option<Value>,
}

impl Call {
    /// The operation alone.
    pub(super) fn new(operation: Operation) -> Self {
        Self {
            operation,
            reference: None,
            params: None,
            body: None,
        }
    }

    /// On this object.
    #[must_use]
    pub(super) fn on(mut self, reference: &str) -> Self {
        self.reference = Some(reference.to_owned());
        self
    }

    /// With these parameters, which may be none.
    #[must_use]
    pub(super) fn with<const N: usize>(mut self, params: [(&str, String); N]) -> Self {
        let entries = params.map(|(key, value)| (key.to_owned(), value));
        self.params = Some(BTreeMap::from(entries));
        self
    }

    /// With this document.
    #[must_use]
    pub(super) fn sending(mut self, body: Value) -> Self {
        self.body = Some(body);
        self
    }
}

/// A connection for a stream operation.
pub(super) trait Connection: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Connection for T {}

/// A node, reached one way or another.
#[async_trait]
pub(super) trait Transport: Send + Sync {
    /// Carries out an operation; its answer is a document, null if there is none.
    async fn call(&self, call: Call) -> Result<Value>;

    /// Begins a stream operation.
    async fn open(&self, call: Call) -> Result<Box<dyn Connection>>;

    /// The same way to another node of the swarm.
    async fn to_node(&self, address: &str) -> Result<Box<dyn Transport>>;
}

/// An error that the node answered, told apart from not reaching it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(super) struct Refused {
    /// What the node says.
    pub(super) message: String,
    /// Whether there is no such object.
    pub(super) not_found: bool,
}
