//! Managers that are locked, and a manager that goes on alone.

use std::{net::SocketAddr, time::Duration};

use skep_core::{
    api::{ApiError, Node},
    id::Id,
    manager::lock,
    wire::unlock::UnlockKey,
};
use skep_host::clock;
use tokio::time::{Instant, sleep_until};

use super::Membership;
use crate::{
    cluster::{
        InitParams, LocalNodeState, Shared, SwarmStatus,
        node::{Parting, is_manager},
        not_a_manager,
        renewal::Renewal,
    },
    identity::{IdentityError, NodeIdentity, Vault, storage::LockedNode},
    raft::recover,
    rpc::CLUSTER_PORT,
};

/// Docker's words, which clients know.
pub(crate) const LOCKED: &str = "Swarm is encrypted and needs to be unlocked before it can be used. Please use \
    \"docker swarm unlock\" to unlock it.";
/// Pause after a lock that could not be changed.
const RETRY: Duration = Duration::from_secs(30);

/// Another lock for this manager, and the version of the cluster that wants it.
type Wanted = (Option<UnlockKey>, u64);

fn wanted(shared: &Shared, vault: &Vault) -> Option<Wanted> {
    let state = shared.published.borrow();
    let (own, version) = vault.lock();
    let cluster = state.as_ref()?.cluster()?;
    lock::wanted(cluster, own.as_ref(), version)
}

/// Waits until the cluster wants another lock for this manager, or a change of its lock has to be finished.
pub(super) async fn lock_changed(shared: &Shared, vault: &Vault, not_before: Option<Instant>) {
    if let Some(at) = not_before {
        sleep_until(at).await;
    }
    let mut states = shared.published.subscribe();
    loop {
        // Only a manager at work has a state.
        let manages = states.borrow_and_update().is_some();
        if manages && (vault.is_rotating() || wanted(shared, vault).is_some()) {
            return;
        }
        if states.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

impl Membership {
    /// A manager that cannot begin before an operator has unlocked it. Its containers go on.
    pub(super) fn wait_for_key(&self, node: LockedNode) {
        tracing::warn!(node.id = %node.node_id, "this manager is locked: use swarm unlock");
        let managers = self.vault.managers().unwrap_or_default().managers;
        let node_addr = self.advertise(None);
        self.set_status(|status| {
            *status = SwarmStatus {
                state: LocalNodeState::Locked,
                node_id: Some(node.node_id),
                role: node.role,
                node_addr,
                error: LOCKED.to_owned(),
                managers,
            };
        });
    }

    pub(super) async fn unlock(&mut self, key: UnlockKey) -> Result<(), ApiError> {
        let status = self.shared.status.borrow().clone();
        match status.state {
            LocalNodeState::Locked => {}
            LocalNodeState::Inactive => {
                let why = "This node is not part of a swarm".to_owned();
                return Err(ApiError::Unavailable(why));
            }
            LocalNodeState::Pending | LocalNodeState::Active | LocalNodeState::Error => {
                return Err(ApiError::Conflict("swarm is not locked".to_owned()));
            }
        }
        let identity = self.vault.unlock(key).map_err(|error| {
            if matches!(error, IdentityError::WrongKey) {
                let why = "swarm could not be unlocked: invalid key provided";
                return ApiError::Unauthorized(why.to_owned());
            }
            ApiError::Unavailable(error.to_string())
        })?;
        tracing::info!(node.id = %identity.node_id, "this manager was unlocked");
        self.resume(identity, None).await;
        match self.running {
            Some(_) => Ok(()),
            None => Err(ApiError::Unavailable(format!(
                "swarm component could not be started: {}",
                self.shared.status.borrow().error
            ))),
        }
    }

    /// Locks this manager's disk as the cluster wants it, with a new key for its log. Each step can be done again:
    /// what a crash leaves is finished by the next life.
    pub(super) async fn follow_lock(&mut self) {
        let Some(manager) = self.running.as_ref().and_then(|it| it.manager.clone()) else {
            return;
        };
        let wanted = wanted(&self.shared, &self.vault);
        if wanted.is_none() && !self.vault.is_rotating() {
            return;
        }
        let locks = wanted.as_ref().is_some_and(|(key, _)| key.is_some());
        let change = async {
            let keys = match wanted {
                Some((key, version)) => self.vault.set_lock(key, version),
                None => self.vault.log_keys(),
            };
            let keys = keys.map_err(|error| error.to_string())?;
            let rotated = manager.raft().rotate(&keys).await;
            rotated.map_err(|error| error.to_string())?;
            let dropped = self.vault.drop_old_log_keys();
            dropped.map_err(|error| error.to_string())
        };
        match change.await {
            Ok(_) => {
                self.lock_pause = None;
                tracing::info!(locked = locks, "the disk of this manager has a new key");
            }
            Err(error) => {
                self.lock_pause = Some(Instant::now() + RETRY);
                tracing::error!(%error, "the lock of this manager could not be changed, trying again: {error}");
            }
        }
    }

    /// Goes on alone with the state of this manager: `swarm init --force-new-cluster`. Settings of the swarm stay what
    /// they are.
    pub(super) async fn go_on_alone(&mut self, params: InitParams) -> Result<Id<Node>, ApiError> {
        let identity = self.manager_to_go_on()?;
        for (given, field) in [
            (!params.default_addr_pool.is_empty(), "DefaultAddrPool"),
            (params.data_path_port != 0, "DataPathPort"),
        ] {
            if given {
                let why = "the swarm keeps what it has: leave it out with --force-new-cluster";
                return Err(ApiError::Invalid {
                    field: field.to_owned(),
                    why: why.to_owned(),
                });
            }
        }
        let Some(advertise) = self.advertise(params.advertise_addr) else {
            return Err(ApiError::Invalid {
                field: "AdvertiseAddr".to_owned(),
                why: "this machine has no address to choose: give one".to_owned(),
            });
        };
        let keys = self.vault.log_keys();
        let keys = keys.map_err(|error| ApiError::Unavailable(error.to_string()))?;
        if let Some(running) = self.running.take() {
            self.link = running.stop(&self.shared, Parting::Pause).await;
        }
        self.shared.published.send_replace(None);
        self.renewal = Renewal::default();
        let folder = self.parts.state.join("raft");
        let addr = SocketAddr::new(advertise, CLUSTER_PORT).to_string();
        let own = identity.node_id.clone();
        let alone = recover::alone(&folder, &keys, &own, &addr, clock::timestamp()).await;
        if alone.is_ok() {
            self.save_managers(&[]);
            self.remember(Some(advertise), params.availability);
        }
        self.resume(identity, Some(advertise)).await;
        alone.map_err(|error| ApiError::Unavailable(error.to_string()))?;
        match self.running {
            Some(_) => Ok(own),
            None => Err(ApiError::Unavailable(
                self.shared.status.borrow().error.clone(),
            )),
        }
    }

    fn manager_to_go_on(&self) -> Result<NodeIdentity, ApiError> {
        match self.vault.node() {
            Ok(Some(identity)) if is_manager(&identity) => Ok(identity),
            Ok(Some(_)) => Err(not_a_manager(&self.shared.status.borrow())),
            Ok(None) => Err(ApiError::Unavailable(
                "This node is not part of a swarm: there is nothing to make a new cluster from. Leave out \
                 --force-new-cluster to make an empty one."
                    .to_owned(),
            )),
            Err(IdentityError::Locked) => Err(ApiError::Unavailable(LOCKED.to_owned())),
            Err(error) => Err(ApiError::Unavailable(error.to_string())),
        }
    }
}
