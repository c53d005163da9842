//! The swarm as the rest of the daemon sees it: one handle, whatever this node's part in it is.
//!
//! Behind it, [`membership`] is the one task that changes what this node is: it makes, joins, resumes and
//! leaves swarms.

pub mod api_certificate;
mod founding;
mod joining;
mod logs;
pub mod membership;
mod node;
mod renewal;
mod request;

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};
use skep_core::{
    api::{
        ApiError, Availability, ClusterRequest, ClusterResponse, ClusterSpec, Node,
        NodeDescription, Role,
    },
    id::Id,
    manager::logs::Selection,
    store::View,
    wire::unlock::UnlockKey,
};
use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    management::port::{ClusterPort, LogsRequest, TaskLogStream},
    manager::Manager,
    raft::Published,
    rpc::dial::Dialer,
};

/// How a new swarm is made: the body of `POST /swarm/init`, without what Skep refuses.
#[derive(Debug, Clone, Default)]
pub struct InitParams {
    /// The address by which the others reach this node; `skep.advertise=` or the only address of the
    /// machine when absent.
    pub advertise_addr: Option<IpAddr>,
    /// Settings of the cluster.
    pub spec: ClusterSpec,
    /// Pools of subnets for overlays, `a.b.c.d/n`; 10.0.0.0/8 when empty.
    pub default_addr_pool: Vec<String>,
    /// Prefix length of an overlay's subnet; 24 when 0.
    pub subnet_size: u8,
    /// UDP port of the VXLAN; 4789 when 0.
    pub data_path_port: u16,
    /// Whether this node takes tasks.
    pub availability: Availability,
    /// Go on alone with the state of this manager, after the majority of the managers was lost.
    pub force_new_cluster: bool,
}

/// How a node joins a swarm: the body of `POST /swarm/join`, without what Skep refuses.
#[derive(Clone, Default)]
pub struct JoinParams {
    /// Managers to ask, `address[:port]`; the port is 2377 when it is left out.
    pub remote_addrs: Vec<String>,
    /// A complete `SWMTKN-1-…` token.
    pub join_token: String,
    /// As in [`InitParams`].
    pub advertise_addr: Option<IpAddr>,
    /// Whether this node takes tasks.
    pub availability: Availability,
}

impl std::fmt::Debug for JoinParams {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Tokens stay out of logs.
        f.debug_struct("JoinParams")
            .field("remote_addrs", &self.remote_addrs)
            .field("advertise_addr", &self.advertise_addr)
            .field("availability", &self.availability)
            .finish_non_exhaustive()
    }
}

/// This node's part in a swarm; names as `Swarm.LocalNodeState` of `GET /info`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LocalNodeState {
    /// In no swarm.
    #[default]
    Inactive,
    /// Joining: waits for its certificate or its first session.
    Pending,
    /// In a swarm.
    Active,
    /// A manager whose disk is locked: an operator has to unlock it.
    Locked,
    /// In a swarm, or on the way into one, and it cannot go on by itself: see `error`.
    Error,
}

/// What this node knows of its swarm.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SwarmStatus {
    /// Its part in it.
    pub state: LocalNodeState,
    /// This node's id, once a manager has given one.
    pub node_id: Option<Id<Node>>,
    /// This node's role.
    pub role: Role,
    /// The address that this node advertises.
    pub node_addr: Option<IpAddr>,
    /// Why it is in state `Error`, or what the last attempt to join met; one line, empty when all is well.
    pub error: String,
    /// The managers: node id (empty while not known) and `address:port`.
    pub managers: Vec<(String, String)>,
}

/// Gives what the node says of itself.
pub type Describe = Arc<dyn Fn() -> NodeDescription + Send + Sync>;

/// The swarm, from any front door. Cheap to clone.
#[derive(Clone)]
pub struct ClusterHandle {
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
}

/// What [`membership`] shows to handles.
struct Shared {
    published: Arc<Published>,
    version: watch::Sender<u64>,
    status: watch::Sender<SwarmStatus>,
    manager: Mutex<Option<(Manager, Dialer)>>,
}

/// What a front door asks of [`membership`].
enum Command {
    Init(Box<InitParams>, oneshot::Sender<Result<Id<Node>, ApiError>>),
    Join(JoinParams, oneshot::Sender<Result<Id<Node>, ApiError>>),
    Leave(bool, oneshot::Sender<Result<(), ApiError>>),
    Unlock(UnlockKey, oneshot::Sender<Result<(), ApiError>>),
}

impl Shared {
    fn new() -> Self {
        Self {
            published: Arc::new(watch::Sender::new(None)),
            version: watch::Sender::new(0),
            status: watch::Sender::new(SwarmStatus::default()),
            manager: Mutex::new(None),
        }
    }

    fn manager(&self) -> MutexGuard<'_, Option<(Manager, Dialer)>> {
        self.manager.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClusterHandle {
    /// Carries out one request, on the leader if need be. It answers when the result is committed and
    /// shows in [`ClusterHandle::view`].
    ///
    /// # Errors
    /// What the request was refused for, or `Unavailable` on a worker or without a leader.
    pub async fn request(&self, request: ClusterRequest) -> Result<ClusterResponse, ApiError> {
        request::carry_out(&self.shared, &request).await
    }

    /// The cluster's objects; `None` unless this node is a manager.
    #[must_use]
    pub fn view(&self) -> Option<View> {
        self.shared.published.borrow().clone()
    }

    /// The version of [`ClusterHandle::view`]; changes after each commit. 0 on a worker.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.shared.version.subscribe()
    }

    /// The node that leads, as far as this manager knows.
    #[must_use]
    pub fn leader(&self) -> Option<Id<Node>> {
        let manager = self.shared.manager();
        let leader = manager.as_ref()?.0.raft().leader()?;
        leader.node_id.parse().ok()
    }

    /// This node's part in a swarm.
    #[must_use]
    pub fn status(&self) -> SwarmStatus {
        self.shared.status.borrow().clone()
    }

    /// Changes of [`ClusterHandle::status`].
    #[must_use]
    pub fn watch_status(&self) -> watch::Receiver<SwarmStatus> {
        self.shared.status.subscribe()
    }

    /// Makes a new swarm with this node as its first manager.
    ///
    /// # Errors
    /// `Unavailable` if the node is in a swarm already, `Invalid` for a parameter.
    pub async fn swarm_init(&self, params: InitParams) -> Result<Id<Node>, ApiError> {
        self.command(|answer| Command::Init(Box::new(params), answer))
            .await
    }

    /// Joins a swarm. Returns when the first session with a manager stands, or after 20 s with
    /// `Unavailable` while the attempts go on in the background, as Docker does.
    ///
    /// # Errors
    /// `Unavailable` if the node is in a swarm already, `Invalid` for a token or address.
    pub async fn swarm_join(&self, params: JoinParams) -> Result<Id<Node>, ApiError> {
        self.command(|answer| Command::Join(params, answer)).await
    }

    /// Leaves the swarm: stops what it runs for it and forgets its identity.
    ///
    /// # Errors
    /// `Unavailable` when in no swarm, or on a manager without `force`.
    pub async fn swarm_leave(&self, force: bool) -> Result<(), ApiError> {
        self.command(|answer| Command::Leave(force, answer)).await
    }

    /// Unlocks this manager.
    ///
    /// # Errors
    /// `Unauthorized` for another key, `Conflict` when it is not locked, `Unavailable` when it cannot go on.
    pub async fn swarm_unlock(&self, key: UnlockKey) -> Result<(), ApiError> {
        self.command(|answer| Command::Unlock(key, answer)).await
    }

    async fn command<T>(
        &self,
        make: impl FnOnce(oneshot::Sender<Result<T, ApiError>>) -> Command,
    ) -> Result<T, ApiError> {
        let (answer, result) = oneshot::channel();
        let stopping = || ApiError::Unavailable("this node is shutting down".to_owned());
        let sent = self.commands.send(make(answer)).await;
        sent.map_err(|_| stopping())?;
        result.await.unwrap_or_else(|_| Err(stopping()))
    }
}

#[async_trait::async_trait]
impl ClusterPort for ClusterHandle {
    fn status(&self) -> SwarmStatus {
        ClusterHandle::status(self)
    }

    fn view(&self) -> Option<View> {
        ClusterHandle::view(self)
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.subscribe()
    }

    async fn request(&self, request: ClusterRequest) -> Result<ClusterResponse, ApiError> {
        ClusterHandle::request(self, request).await
    }

    async fn init(&self, params: InitParams) -> Result<Id<Node>, ApiError> {
        self.swarm_init(params).await
    }

    async fn join(&self, params: JoinParams) -> Result<Id<Node>, ApiError> {
        self.swarm_join(params).await
    }

    async fn leave(&self, force: bool) -> Result<(), ApiError> {
        self.swarm_leave(force).await
    }

    async fn logs(
        &self,
        selection: Selection,
        request: LogsRequest,
    ) -> Result<TaskLogStream, ApiError> {
        logs::read(&self.shared, selection, request).await
    }

    async fn unlock(&self, key: UnlockKey) -> Result<(), ApiError> {
        self.swarm_unlock(key).await
    }
}

/// Docker's words, which clients know, for a cluster request on a worker or outside a swarm; on a manager that
/// cannot manage, the cause.
pub(crate) fn not_a_manager(status: &SwarmStatus) -> ApiError {
    let words = match status.state {
        LocalNodeState::Inactive => {
            "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" to connect \
             this node to swarm and try again."
        }
        LocalNodeState::Locked => membership::recovery::LOCKED,
        LocalNodeState::Pending => "This node is still joining the swarm: try again in a moment.",
        LocalNodeState::Error if status.role == Role::Manager => {
            let error = &status.error;
            return ApiError::Unavailable(format!("This manager does not manage: {error}"));
        }
        LocalNodeState::Active | LocalNodeState::Error => {
            "This node is not a swarm manager. Worker nodes can't be used to view or modify cluster state. \
             Please run this command on a manager node or promote the current node to a manager."
        }
    };
    ApiError::Unavailable(words.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_cannot_manage_says_why() {
        let said = |state, role| {
            let status = SwarmStatus {
                state,
                role,
                error: "the log is damaged".to_owned(),
                ..SwarmStatus::default()
            };
            not_a_manager(&status).to_string()
        };
        let outside = said(LocalNodeState::Inactive, Role::Worker);
        assert!(outside.contains("docker swarm init"), "{outside}");
        let worker = said(LocalNodeState::Active, Role::Worker);
        assert!(worker.contains("Worker nodes"), "{worker}");
        let locked = said(LocalNodeState::Locked, Role::Manager);
        assert!(locked.contains("needs to be unlocked"), "{locked}");
        let broken = said(LocalNodeState::Error, Role::Manager);
        assert!(broken.contains("the log is damaged"), "{broken}");
    }

    #[test]
    fn a_token_is_not_shown() {
        let params = JoinParams {
            join_token: "SWMTKN-1-secret".to_owned(),
            ..JoinParams::default()
        };
        assert!(!format!("{params:?}").contains("secret"));
    }
}
