//! What runs while this machine is a node: its sessions and, on a manager, consensus and 2377.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use skep_core::{api::Role, rng::Rng, wire::skep::JoinRaftRequest};
use skep_host::entropy;
use tokio::{sync::mpsc, task::JoinHandle, time::sleep};
use tokio_util::sync::CancellationToken;

use super::{Describe, Shared};
use crate::{
    identity::{LogKeys, NodeIdentity, tls, tls::CertificateCell},
    manager::Manager,
    ports::{self, Ports},
    raft::{RaftHandle, StartError, raft_id},
    rpc::{
        self, CLUSTER_PORT,
        dial::{Dialer, MANAGER},
        log_publisher, server,
        services::skep::control_client::ControlClient,
        session::{Event, NodeLink, SessionParts, Sessions},
    },
};

/// Events of a session that wait.
const EVENTS: usize = 32;
/// Pause between two attempts to take part in consensus.
const RETRY: Duration = Duration::from_secs(1);

/// The log of a manager.
pub(super) struct Log {
    pub(super) folder: PathBuf,
    pub(super) keys: LogKeys,
}

/// How a node stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Parting {
    /// It goes on soon, and its tasks go on meanwhile.
    Pause,
    /// It leaves the swarm.
    Leave,
}

/// A node at work.
pub(super) struct Running {
    pub(super) identity: NodeIdentity,
    pub(super) cell: Arc<CertificateCell>,
    pub(super) advertise: IpAddr,
    pub(super) events: mpsc::Receiver<Event>,
    pub(super) manager: Option<Manager>,
    stop: CancellationToken,
    leaves: Arc<AtomicBool>,
    sessions: JoinHandle<NodeLink>,
}

impl Running {
    /// Begins sessions by the managers that are known.
    pub(super) fn start(
        identity: NodeIdentity,
        cell: Arc<CertificateCell>,
        advertise: IpAddr,
        manager: Option<(Manager, CancellationToken)>,
        managers: Vec<(String, String)>,
        (describe, log_orders): (Describe, mpsc::Sender<log_publisher::Order>),
        link: NodeLink,
    ) -> Result<Self, (NodeLink, String)> {
        let (sender, events) = mpsc::channel(EVENTS);
        let (manager, stop) = match manager {
            Some((manager, stop)) => (Some(manager), stop),
            None => (None, CancellationToken::new()),
        };
        let seed = entropy::bits64().unwrap_or(0);
        let leaves = Arc::new(AtomicBool::new(false));
        let sessions = Sessions::new(SessionParts {
            identity: identity.clone(),
            cell: Arc::clone(&cell),
            advertise: Some(advertise),
            describe,
            log_orders,
            managers,
            events: sender,
            stop: stop.clone(),
            leaves: Arc::clone(&leaves),
            rng: Rng::seeded(seed),
        });
        let sessions = match sessions {
            Ok(sessions) => tokio::spawn(sessions.run(link)),
            Err(error) => return Err((link, error.to_string())),
        };
        Ok(Self {
            identity,
            cell,
            advertise,
            events,
            manager,
            stop,
            leaves,
            sessions,
        })
    }

    /// Stops all of it and gives the link to the node's machine back. With `Parting::Leave` the managers
    /// hear that the node will not come back.
    pub(super) async fn stop(self, shared: &Shared, parting: Parting) -> Option<NodeLink> {
        let leaves = matches!(parting, Parting::Leave);
        self.leaves.store(leaves, Ordering::Release);
        self.stop.cancel();
        let mut events = self.events;
        let drain = async { while events.recv().await.is_some() {} };
        let (link, ()) = tokio::join!(self.sessions, drain);
        *shared.manager() = None;
        if let Some(manager) = self.manager {
            manager.raft().stop().await;
        }
        link.ok()
    }
}

/// Starts consensus and 2377 on a manager. What was begun when one of them fails is stopped again.
pub(super) async fn start_manager(
    identity: &NodeIdentity,
    cell: &Arc<CertificateCell>,
    log: &Log,
    ports: &Ports,
    shared: &Shared,
) -> Result<(Manager, CancellationToken), StartError> {
    let fail = |error: &dyn std::fmt::Display| StartError(error.to_string());
    let client = tls::cluster_client(&identity.root, Some(Arc::clone(cell)))
        .map_err(|error| fail(&error))?;
    let dialer = Dialer::new(client, MANAGER, None);
    let stop = CancellationToken::new();
    let id = raft_id(&identity.node_id);
    let published = Arc::clone(&shared.published);
    let raft = RaftHandle::start(&log.folder, &log.keys, id, dialer.clone(), published).await?;
    match serve_manager(raft.clone(), identity, cell, ports, shared, &stop) {
        Ok(manager) => {
            *shared.manager() = Some((manager.clone(), dialer));
            Ok((manager, stop))
        }
        Err(error) => {
            // Dropping the token would cancel nothing: the leader's task would go on and hold the log.
            stop.cancel();
            raft.stop().await;
            shared.published.send_replace(None);
            Err(error)
        }
    }
}

/// Starts the manager's tasks and serves 2377 until `stop`.
fn serve_manager(
    raft: RaftHandle,
    identity: &NodeIdentity,
    cell: &Arc<CertificateCell>,
    ports: &Ports,
    shared: &Shared,
    stop: &CancellationToken,
) -> Result<Manager, StartError> {
    let fail = |error: &dyn std::fmt::Display| StartError(error.to_string());
    let manager = Manager::start(raft, stop).map_err(|error| StartError(error.chain()))?;
    let tls =
        tls::cluster_server(&identity.root, Arc::clone(cell)).map_err(|error| fail(&error))?;
    let listener = ports
        .open(ports::CLUSTER, CLUSTER_PORT)
        .map_err(|error| StartError(format!("cannot listen on port {CLUSTER_PORT}: {error}")))?;
    let routes = rpc::routes(&manager);
    let published = Arc::clone(&shared.published);
    tokio::spawn(server::serve(
        listener,
        tls,
        routes,
        published,
        stop.clone(),
    ));
    Ok(manager)
}

/// Asks the managers, until one that leads has agreed, to take this manager into consensus.
pub(super) async fn take_part(
    identity: NodeIdentity,
    cell: Arc<CertificateCell>,
    advertise: IpAddr,
    managers: Vec<(String, String)>,
    stop: CancellationToken,
) {
    let Ok(client) = tls::cluster_client(&identity.root, Some(cell)) else {
        return;
    };
    let dialer = Dialer::new(client, MANAGER, Some(advertise));
    let own = identity.node_id.to_string();
    for (_, addr) in managers.iter().filter(|(id, _)| *id != own).cycle() {
        let request = JoinRaftRequest {
            raft_id: raft_id(&identity.node_id),
            addr: SocketAddr::new(advertise, CLUSTER_PORT).to_string(),
        };
        let ask = async {
            let channel = dialer.dial(addr).await.map_err(|error| error.to_string())?;
            let answer = ControlClient::new(channel).join_raft(request).await;
            answer.map_err(|status| status.message().to_owned())
        };
        tokio::select! {
            () = stop.cancelled() => return,
            answer = ask => match answer {
                Ok(_) => {
                    tracing::info!("this manager takes part in consensus");
                    return;
                }
                Err(error) => tracing::warn!(%error, "this manager does not take part in consensus yet: {error}"),
            },
        }
        sleep(RETRY).await;
    }
}

/// Whether the role makes a node a manager.
pub(super) fn is_manager(identity: &NodeIdentity) -> bool {
    identity.role == Role::Manager
}
