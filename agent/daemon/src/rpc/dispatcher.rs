//! The Dispatcher service: sessions, heartbeats, assignments, reports.

use std::{pin::Pin, time::Duration};

use async_trait::async_trait;
use futures_util::Stream;
use serde::{Deserialize, Serialize};
use skep_core::{
    api::{Config, Node, NodeDescription, Role, Secret, Task, protobuf},
    id::Id,
    manager::dispatcher::{self, AssignmentChange, AssignmentSet},
    store::{Proposal, View},
    wire::{skep, swarmkit as pb},
};
use skep_host::clock;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::{
    gate::Peer,
    services::{skep::membership_server::Membership, swarmkit::dispatcher_server::Dispatcher},
    status::{call_status, propose_status, refused_status},
};
use crate::{identity::PeerIdentity, manager::Manager};

/// Messages on their way to a node that is slow to take them.
const BACKLOG: usize = 4;
/// Statuses in one call.
const MAX_REPORTS: usize = 4096;
/// Weight of each manager, as swarmkit gives it.
const WEIGHT: i64 = 10;
/// Changes that come within this time travel in one message.
const GATHER: Duration = Duration::from_millis(20);
/// The header with what swarmkit's description has no field for: JSON of [`MoreDescription`].
pub const DESCRIPTION_HEADER: &str = "skep-description-bin";
/// IPv4 ranges that a node may name.
const MAX_ROUTES: usize = 64;

type MessageStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What a Skep node says of itself beside swarmkit's description.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MoreDescription {
    /// See [`NodeDescription::routes`].
    pub routes: Vec<String>,
    /// See [`NodeDescription::machine_id`].
    pub machine_id: String,
}

/// The service.
#[derive(Clone)]
pub struct DispatcherService(pub Manager);

#[async_trait]
impl Dispatcher for DispatcherService {
    type SessionStream = MessageStream<pb::SessionMessage>;
    type AssignmentsStream = MessageStream<pb::AssignmentsMessage>;

    async fn session(
        &self,
        request: Request<pb::SessionRequest>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let peer = Peer::of(&request)?;
        let identity = Peer::node(&request)?;
        let description = description(&request)?;
        let addr = peer.addr.ip().to_canonical();
        let session = self
            .0
            .register(identity.node_id.clone(), description, addr)
            .await
            .map_err(call_status)?;
        tracing::info!(node.id = %identity.node_id, node.addr = %addr, "a node has a session");
        let (sender, receiver) = mpsc::channel(BACKLOG);
        let follow = follow_session(self.0.clone(), identity, session.id, sender);
        spawn_until(session.over, self.0.stopped().clone(), follow);
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn heartbeat(
        &self,
        request: Request<pb::HeartbeatRequest>,
    ) -> Result<Response<pb::HeartbeatResponse>, Status> {
        let node = Peer::node(&request)?.node_id;
        let session = request.into_inner().session_id;
        let period = self.0.heartbeat(node, session).await.map_err(call_status)?;
        Ok(Response::new(pb::HeartbeatResponse {
            period: Some(protobuf::duration(period)),
        }))
    }

    async fn update_task_status(
        &self,
        request: Request<pb::UpdateTaskStatusRequest>,
    ) -> Result<Response<pb::UpdateTaskStatusResponse>, Status> {
        let node = Peer::node(&request)?.node_id;
        let message = request.into_inner();
        let check = self.0.check(node.clone(), message.session_id).await;
        check.map_err(call_status)?;
        if message.updates.len() > MAX_REPORTS {
            let why = format!("updates: more than {MAX_REPORTS} in one call");
            return Err(Status::invalid_argument(why));
        }
        let mut reports = Vec::new();
        for update in message.updates {
            let status = protobuf::read_status(update.status.unwrap_or_default())
                .map_err(|error| Status::invalid_argument(error.to_string()))?;
            reports.push((update.task_id, status));
        }
        let view = self.0.view();
        let changes = dispatcher::reports(&view, &node, reports, clock::timestamp())
            .map_err(|refused| refused_status(&refused))?;
        if !changes.is_empty() {
            // Each is independent: one that is refused must not take the others with it.
            let proposals = changes.into_iter().map(|change| Proposal::of([change]));
            let written = self.0.raft().propose_all(proposals.collect()).await;
            written.map_err(propose_status)?;
        }
        Ok(Response::new(pb::UpdateTaskStatusResponse {}))
    }

    async fn assignments(
        &self,
        request: Request<pb::AssignmentsRequest>,
    ) -> Result<Response<Self::AssignmentsStream>, Status> {
        let node = Peer::node(&request)?.node_id;
        let session = request.into_inner().session_id;
        let over = self.0.check(node.clone(), session).await;
        let over = over.map_err(call_status)?;
        let (sender, receiver) = mpsc::channel(BACKLOG);
        let follow = follow_assignments(self.0.clone(), node, sender);
        spawn_until(over, self.0.stopped().clone(), follow);
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

#[async_trait]
impl Membership for DispatcherService {
    async fn leave(
        &self,
        request: Request<skep::LeaveRequest>,
    ) -> Result<Response<skep::LeaveResponse>, Status> {
        let node = Peer::node(&request)?.node_id;
        let session = request.into_inner().session_id;
        self.0
            .leave(node.clone(), session)
            .await
            .map_err(call_status)?;
        tracing::info!(node.id = %node, "a node takes its leave");
        Ok(Response::new(skep::LeaveResponse {}))
    }
}

/// Feeds a stream until the session is over or nobody listens; dropping the sender ends the stream.
fn spawn_until(
    over: CancellationToken,
    stopped: CancellationToken,
    work: impl Future<Output = ()> + Send + 'static,
) {
    tokio::spawn(async move {
        tokio::select! {
            () = over.cancelled() => {}
            () = stopped.cancelled() => {}
            () = work => {}
        }
    });
}

fn description(request: &Request<pb::SessionRequest>) -> Result<NodeDescription, Status> {
    let invalid = |why: String| Status::invalid_argument(why);
    let message = request.get_ref().description.clone().unwrap_or_default();
    let mut description =
        protobuf::read_description(message).map_err(|error| invalid(error.to_string()))?;
    let Some(header) = request.metadata().get_bin(DESCRIPTION_HEADER) else {
        return Ok(description);
    };
    let bytes = header
        .to_bytes()
        .map_err(|error| invalid(error.to_string()))?;
    let more: MoreDescription = serde_json::from_slice(&bytes)
        .map_err(|error| invalid(format!("{DESCRIPTION_HEADER}: {error}")))?;
    if more.routes.len() > MAX_ROUTES || more.machine_id.len() > 64 {
        return Err(invalid(format!("{DESCRIPTION_HEADER}: it is too long")));
    }
    // A route that cannot be read must not keep the node out.
    let is_range = |route: &String| route.parse::<skep_core::api::Subnet>().is_ok();
    description.routes = more.routes.into_iter().filter(is_range).collect();
    description.machine_id = more.machine_id;
    Ok(description)
}

/// Sends a message at once, and whenever what it says has changed.
async fn follow_session(
    manager: Manager,
    identity: PeerIdentity,
    session: String,
    sender: mpsc::Sender<Result<pb::SessionMessage, Status>>,
) {
    let mut states = manager.raft().published().subscribe();
    let mut last = None;
    loop {
        let view = states.borrow_and_update().clone().unwrap_or_default();
        let message = session_message(&view, &identity.node_id, &session);
        if let Some(message) = message.filter(|message| last.as_ref() != Some(message)) {
            last = Some(message.clone());
            if sender.send(Ok(message)).await.is_err() {
                return;
            }
        }
        tokio::select! {
            () = sender.closed() => return,
            changed = states.changed() => if changed.is_err() { return },
        }
    }
}

/// `None` when the node is gone from the store: its session is over soon.
fn session_message(view: &View, node: &Id<Node>, session: &str) -> Option<pb::SessionMessage> {
    let cluster = view.cluster()?;
    let node = view.node(node)?;
    let lookup = |id: &Id<skep_core::api::Network>| view.network(id).map(|it| &**it);
    let mut message = protobuf::node(node, cluster, &lookup);
    // Versions and times change with each heartbeat of the store; a node does not need them.
    message.meta = None;
    message.status = None;
    message.description = None;
    Some(pb::SessionMessage {
        session_id: session.to_owned(),
        node: Some(message),
        managers: managers(view).collect(),
        network_bootstrap_keys: Vec::new(),
        root_ca: cluster.root_ca.certificate.clone().into_bytes(),
    })
}

fn managers(view: &View) -> impl Iterator<Item = pb::WeightedPeer> {
    let managers = view
        .nodes()
        .filter(|node| node.certificate.role == Role::Manager);
    managers.filter_map(|node| {
        let status = node.manager_status.as_ref()?;
        Some(pb::WeightedPeer {
            peer: Some(pb::Peer {
                node_id: node.id.to_string(),
                addr: status.addr.clone(),
            }),
            weight: WEIGHT,
        })
    })
}

/// The complete set first, then what changes.
async fn follow_assignments(
    manager: Manager,
    node: Id<Node>,
    sender: mpsc::Sender<Result<pb::AssignmentsMessage, Status>>,
) {
    let mut states = manager.raft().published().subscribe();
    let mut known: Option<AssignmentSet> = None;
    let mut number = 0u64;
    loop {
        let view = states.borrow_and_update().clone().unwrap_or_default();
        let set = dispatcher::assignments(&view, &node);
        let base = known.take();
        let changes = base.clone().unwrap_or_default().diff(&set);
        if base.is_none() || !changes.is_empty() {
            let mut complete = base.is_none();
            for changes in dispatcher::messages(changes, complete) {
                let message = assignments_message(&view, complete, number, &changes);
                complete = false;
                number += 1;
                if sender.send(Ok(message)).await.is_err() {
                    return;
                }
            }
        }
        known = Some(set);
        tokio::select! {
            () = sender.closed() => return,
            changed = states.changed() => if changed.is_err() { return },
        }
        tokio::time::sleep(GATHER).await;
    }
}

fn assignments_message(
    view: &View,
    complete: bool,
    number: u64,
    changes: &[AssignmentChange],
) -> pb::AssignmentsMessage {
    let kind = match complete {
        true => pb::assignments_message::Type::Complete,
        false => pb::assignments_message::Type::Incremental,
    };
    pb::AssignmentsMessage {
        r#type: kind.into(),
        applies_to: match complete {
            true => String::new(),
            false => number.to_string(),
        },
        results_in: (number + 1).to_string(),
        changes: changes
            .iter()
            .map(|change| assignment(view, change))
            .collect(),
    }
}

fn assignment(view: &View, change: &AssignmentChange) -> pb::AssignmentChange {
    use pb::{
        assignment::Item,
        assignment_change::AssignmentAction::{Remove, Update},
    };
    let lookup = |id: &Id<skep_core::api::Network>| view.network(id).map(|it| &**it);
    let (item, action) = match change {
        AssignmentChange::Update(task) => (Item::Task(protobuf::task(task, &lookup)), Update),
        AssignmentChange::Remove(id) => (Item::Task(removed_task(id)), Remove),
        AssignmentChange::UpdateSecret(secret) => (Item::Secret(protobuf::secret(secret)), Update),
        AssignmentChange::RemoveSecret(id) => (Item::Secret(removed_secret(id)), Remove),
        AssignmentChange::UpdateConfig(config) => (Item::Config(protobuf::config(config)), Update),
        AssignmentChange::RemoveConfig(id) => (Item::Config(removed_config(id)), Remove),
    };
    pb::AssignmentChange {
        assignment: Some(pb::Assignment { item: Some(item) }),
        action: action.into(),
    }
}

/// What is removed has its id and nothing else.
fn removed_task(id: &Id<Task>) -> pb::Task {
    pb::Task {
        id: id.to_string(),
        ..pb::Task::default()
    }
}

fn removed_secret(id: &Id<Secret>) -> pb::Secret {
    pb::Secret {
        id: id.to_string(),
        ..pb::Secret::default()
    }
}

fn removed_config(id: &Id<Config>) -> pb::Config {
    pb::Config {
        id: id.to_string(),
        ..pb::Config::default()
    }
}
