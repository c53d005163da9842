//! What an operator or the configuration asks of the task: to make a swarm, to join one, to leave it.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use skep_core::{
    api::{ApiError, ClusterRequest, Node, NodeSpec, Role},
    id::Id,
    manager::{Ctx, found},
    node::Input,
    store::View,
    wire::token::JoinToken,
};
use skep_host::{clock, machine, storage};
use tokio::{sync::oneshot, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{Entering, Membership};
use crate::{
    cluster::{
        InitParams, JoinParams, LocalNodeState, SwarmStatus, founding,
        joining::{Joining, attempts},
        node::{Parting, is_manager},
        renewal::Renewal,
        request,
    },
    identity::{NodeIdentity, tls::CertificateCell},
    manager::Manager,
    ports,
    rpc::session::Event,
};

/// Docker's `swarm join` waits so long for the first session.
const JOIN_PATIENCE: Duration = Duration::from_secs(20);
/// How long a manager that leaves waits until the others have taken it out of the raft group; an election may come between.
const STEP_DOWN_PATIENCE: Duration = Duration::from_secs(15);
/// How long a command that was carried out waits for the first session.
const ENTER_PATIENCE: Duration = Duration::from_secs(5);

impl Membership {
    /// Takes back an init that has failed: nothing half-done stays.
    async fn undo_init(&self, manager: Option<(Manager, CancellationToken)>) {
        self.stop_manager(manager).await;
        self.parts.ports.close(ports::CLUSTER);
        if let Err(error) = storage::remove_folder(&self.parts.state.join("raft")) {
            tracing::warn!(
                error = error.chain(),
                "the log of a swarm that was not made stays"
            );
        }
        let saved = !matches!(self.vault.node(), Ok(None));
        if saved && let Err(error) = self.vault.forget() {
            tracing::warn!(%error, "the identity of a swarm that was not made stays: {error}");
        }
    }

    fn refuse_if_member(&self) -> Result<(), ApiError> {
        // A node in error has not left: its identity is not replaced behind the operator's back.
        let known = !matches!(self.vault.node(), Ok(None));
        if self.running.is_some() || self.joining.is_some() || known {
            return Err(ApiError::Unavailable(
                "This node is already part of a swarm. Use \"docker swarm leave\" to leave this swarm and join another one."
                    .to_owned(),
            ));
        }
        Ok(())
    }

    pub(super) async fn init(&mut self, params: InitParams) -> Result<Id<Node>, ApiError> {
        self.refuse_if_member()?;
        let advertise = self
            .advertise(params.advertise_addr)
            .ok_or_else(|| ApiError::Invalid {
                field: "AdvertiseAddr".to_owned(),
                why: "this machine has no address to choose: give one".to_owned(),
            })?;
        let failed =
            |why: String| ApiError::Unavailable(format!("the swarm could not be made: {why}"));
        let (identity, foundation) =
            founding::foundation(&self.parts.config, params.clone(), advertise)
                .map_err(|error| failed(error.to_string()))?;
        let node_id = identity.node_id.clone();
        let ctx = Ctx::new(clock::timestamp(), self.rng.fork("found"));
        let proposal = found::found(foundation, &ctx)?;
        let raft = self.parts.state.join("raft");
        storage::remove_folder(&raft).map_err(|error| failed(error.chain()))?;
        let cell = Arc::new(CertificateCell::default());
        cell.set(&identity.certificate, &identity.key)
            .map_err(|error| failed(error.to_string()))?;
        let manager = match self.manager(&identity, &cell).await {
            Ok(manager) => manager,
            Err(error) => {
                self.undo_init(None).await;
                return Err(failed(error.to_string()));
            }
        };
        if let Err(error) =
            founding::begin(&self.vault, &manager.0, &identity, advertise, proposal).await
        {
            self.undo_init(Some(manager)).await;
            return Err(failed(error));
        }
        self.remember(Some(advertise), params.availability);
        tracing::info!(node.id = %node_id, "a swarm was made, this node is its first manager");
        self.start(identity, cell, advertise, Some(manager), Vec::new())
            .await;
        // Who hears that the swarm is made may rely on its lock.
        self.follow_lock().await;
        Ok(node_id)
    }

    pub(super) fn start_join(
        &mut self,
        params: JoinParams,
        waiting: Option<oneshot::Sender<Result<Id<Node>, ApiError>>>,
    ) {
        if let Err(error) = self.check_join(&params) {
            match waiting {
                Some(waiting) => {
                    let _ = waiting.send(Err(error));
                }
                None => {
                    tracing::error!(%error, "this node cannot join: {error}");
                    self.set_error(error.to_string());
                }
            }
            return;
        }
        self.set_status(|status| {
            *status = SwarmStatus {
                state: LocalNodeState::Pending,
                ..SwarmStatus::default()
            };
        });
        let advertise = params.advertise_addr.or(self.parts.config.advertise);
        self.remember(advertise, params.availability);
        let attempts = attempts(
            self.vault.clone(),
            params,
            advertise,
            Arc::clone(&self.shared),
            self.rng.fork("join"),
        );
        self.joining = Some(Joining {
            attempts: tokio::spawn(attempts),
            advertise,
            waiting,
            deadline: tokio::time::Instant::now() + JOIN_PATIENCE,
        });
    }

    fn check_join(&self, params: &JoinParams) -> Result<(), ApiError> {
        self.refuse_if_member()?;
        JoinToken::parse(&params.join_token).map_err(|error| ApiError::Invalid {
            field: "JoinToken".to_owned(),
            why: error.to_string(),
        })?;
        if params.remote_addrs.is_empty() {
            return Err(ApiError::Invalid {
                field: "RemoteAddrs".to_owned(),
                why: "give the address of a manager".to_owned(),
            });
        }
        Ok(())
    }

    pub(super) async fn joined(&mut self, result: Result<(NodeIdentity, String), String>) {
        let Some(joining) = self.joining.take() else {
            return;
        };
        let (identity, addr) = match result {
            Ok(joined) => joined,
            Err(error) => {
                tracing::error!(%error, "this node could not join: {error}");
                self.set_error(error.clone());
                if let Some(waiting) = joining.waiting {
                    let _ = waiting.send(Err(ApiError::Unavailable(error)));
                }
                return;
            }
        };
        let node_id = identity.node_id.clone();
        tracing::info!(node.id = %node_id, "this node has joined a swarm");
        self.save_managers(&[(String::new(), addr.clone())]);
        let towards = addr
            .parse::<SocketAddr>()
            .ok()
            .and_then(|peer| machine::address_towards(peer.ip()));
        let advertise = joining.advertise.or(towards);
        if advertise.is_some() {
            let availability = self.vault.settings().unwrap_or_default().availability;
            self.remember(advertise, availability);
        }
        self.resume(identity, None).await;
        let done = match self.running {
            Some(_) => Ok(node_id),
            None => Err(ApiError::Unavailable(
                self.shared.status.borrow().error.clone(),
            )),
        };
        self.answer_in_session(joining.waiting, done);
    }

    /// Answers who has made or joined a swarm when the first session stands: what they ask next should see
    /// this node in it.
    pub(super) fn answer_in_session(
        &mut self,
        answer: Option<oneshot::Sender<Result<Id<Node>, ApiError>>>,
        done: Result<Id<Node>, ApiError>,
    ) {
        let Some(answer) = answer else { return };
        match done {
            Ok(node_id) => {
                self.entering = Some(Entering {
                    answer,
                    node_id,
                    deadline: tokio::time::Instant::now() + ENTER_PATIENCE,
                });
            }
            Err(error) => drop(answer.send(Err(error))),
        }
    }

    pub(super) fn entered(&mut self) {
        if let Some(entering) = self.entering.take() {
            let _ = entering.answer.send(Ok(entering.node_id));
        }
    }

    /// The caller hears that it takes long; the attempts go on.
    pub(super) fn join_too_long(&mut self) {
        let waiting = self.joining.as_mut().and_then(|it| it.waiting.take());
        let Some(waiting) = waiting else { return };
        let last = self.shared.status.borrow().error.clone();
        let why = format!(
            "Timeout was reached before node joined. The attempt to join the swarm will continue in the background. \
             Use the \"docker info\" command to see the current swarm status of your node. Last: {last}"
        );
        let _ = waiting.send(Err(ApiError::Unavailable(why)));
    }

    /// A manager that leaves gives up its place among the managers first: one that only vanished would be missing in
    /// every majority from then on. The last manager has nobody to give it up to.
    async fn step_down(&mut self) -> Result<(), ApiError> {
        let Some(running) = self.running.as_mut() else {
            return Ok(());
        };
        let view = running.manager.as_ref().map(Manager::view);
        let others = view
            .iter()
            .flat_map(View::nodes)
            .any(|node| node.id != running.identity.node_id && node.manager_status.is_some());
        let own = view
            .as_ref()
            .and_then(|view| view.node(&running.identity.node_id));
        let Some(own) = own.filter(|_| others) else {
            return Ok(());
        };
        let demote = ClusterRequest::NodeUpdate {
            node: own.id.to_string(),
            version: own.meta.version,
            spec: NodeSpec {
                role: Role::Worker,
                ..own.spec.clone()
            },
        };
        request::carry_out(&self.shared, &demote).await?;
        // Out of the group: the managers want it to get a worker's certificate.
        let events = &mut running.events;
        let out = async {
            loop {
                match events.recv().await {
                    Some(Event::Renew | Event::Removed(_)) | None => return,
                    Some(Event::Begun | Event::Lost(_) | Event::Managers(_)) => {}
                }
            }
        };
        let slow = |_| ApiError::Unavailable("the managers took too long to let it go".to_owned());
        timeout(STEP_DOWN_PATIENCE, out).await.map_err(slow)
    }

    pub(super) async fn leave(&mut self, force: bool) -> Result<(), ApiError> {
        let known = self.vault.node().ok().flatten();
        let state = self.shared.status.borrow().state;
        let stuck = matches!(state, LocalNodeState::Error | LocalNodeState::Locked);
        if state == LocalNodeState::Locked && !force {
            return Err(ApiError::Unavailable(
                "Swarm is encrypted and locked. Please unlock it first or use `--force` to ignore this message."
                    .to_owned(),
            ));
        }
        if self.running.is_none() && self.joining.is_none() && known.is_none() && !stuck {
            let why = "This node is not part of a swarm".to_owned();
            return Err(ApiError::Unavailable(why));
        }
        let manages = known.is_some_and(|identity| is_manager(&identity));
        if manages && !force {
            return Err(ApiError::Unavailable(
                "You are attempting to leave the swarm on a node that is participating as a manager. Removing the last \
                 manager erases all current state of the swarm. Use `--force` to ignore this message."
                    .to_owned(),
            ));
        }
        if let Some(joining) = self.joining.take() {
            joining.attempts.abort();
        }
        if let Err(error) = self.step_down().await {
            tracing::warn!(%error, "this manager leaves by force, the others go on counting it: {error}");
        }
        if let Some(running) = self.running.take() {
            self.link = running.stop(&self.shared, Parting::Leave).await;
        }
        self.parts.ports.close(ports::CLUSTER);
        self.renewal = Renewal::default();
        if let Some(link) = &self.link {
            let _ = link.inputs.send(Input::Left).await;
        }
        let forgotten = self.vault.forget();
        let removed = storage::remove_folder(&self.parts.state.join("raft"));
        self.shared.published.send_replace(None);
        self.shared.status.send_replace(SwarmStatus::default());
        tracing::info!("this node has left its swarm");
        let failed = |why: String| {
            ApiError::Unavailable(format!("the node left, but its files stay: {why}"))
        };
        forgotten.map_err(|error| failed(error.to_string()))?;
        removed.map_err(|error| failed(error.chain()))
    }
}
