//! A node's life with its managers: one session after another, for as long as it is a node.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use skep_core::{
    api::{NodeDescription, Role, Task, TaskStatus, protobuf},
    id::Id,
    node::Input,
    rng::Rng,
    wire::{
        skep::{self},
        swarmkit as pb,
    },
};
use tokio::{
    sync::{Notify, mpsc, watch},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Status, metadata::MetadataValue};

use super::{
    MAX_CLIENT_MESSAGE,
    dial::{DialError, Dialer, MANAGER, own_address},
    dispatcher::{DESCRIPTION_HEADER, MoreDescription},
    log_publisher::{self, follow_orders},
    services::{
        skep::membership_client::MembershipClient, swarmkit::dispatcher_client::DispatcherClient,
    },
    streams::{follow_assignments, follow_mesh, heartbeats, send_reports},
};
use crate::identity::{NodeIdentity, tls, tls::CertificateCell};

/// Time for one call, and for the first message of a session.
pub(super) const CALL: Duration = Duration::from_secs(5);
/// The longest pause between two sessions.
const MAX_BACKOFF: Duration = Duration::from_secs(8);
/// What each failure adds to the pause.
const BACKOFF_STEP: Duration = Duration::from_millis(100);
/// Pause after a refusal.
const REFUSED: Duration = Duration::from_secs(10);

/// Statuses of one message, with its number.
pub type Report = (u64, Vec<(Id<Task>, TaskStatus)>);

/// The node's machine, as the session reaches it.
pub struct NodeLink {
    /// What the machine hears.
    pub inputs: mpsc::Sender<Input>,
    /// What it reports.
    pub reports: mpsc::Receiver<Report>,
    /// It wants the assignments from the beginning.
    pub reopen: Arc<Notify>,
    /// The version of the mesh that its kernel equals.
    pub mesh_applied: watch::Receiver<u64>,
}

/// The other end of a [`NodeLink`].
#[derive(Clone)]
pub struct Uplink {
    /// Takes reports.
    pub reports: mpsc::Sender<Report>,
    /// Asks for the assignments from the beginning.
    pub reopen: Arc<Notify>,
    /// Takes versions of the mesh.
    pub mesh_applied: watch::Sender<u64>,
}

/// A link and its other end, given where the machine takes its inputs.
#[must_use]
pub fn link(inputs: mpsc::Sender<Input>) -> (NodeLink, Uplink) {
    let (report, reports) = mpsc::channel(64);
    let (applied, mesh_applied) = watch::channel(0);
    let reopen = Arc::new(Notify::new());
    let node = NodeLink {
        inputs,
        reports,
        reopen: Arc::clone(&reopen),
        mesh_applied,
    };
    let uplink = Uplink {
        reports: report,
        reopen,
        mesh_applied: applied,
    };
    (node, uplink)
}

/// What a session tells the rest of the daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A session stands.
    Begun,
    /// It is lost; one line.
    Lost(String),
    /// The managers that there are, complete: node id and `address:port`.
    Managers(Vec<(String, String)>),
    /// The managers want the node to get a new certificate: its role has changed, or the authority has.
    Renew,
    /// The managers say that this node is no longer of the swarm; nothing follows.
    Removed(String),
}

/// What a session needs to know.
pub struct SessionParts {
    /// Who this node is.
    pub identity: NodeIdentity,
    /// Its certificate, as it is now.
    pub cell: Arc<CertificateCell>,
    /// The address that it advertises.
    pub advertise: Option<IpAddr>,
    /// What it says of itself.
    pub describe: Arc<dyn Fn() -> NodeDescription + Send + Sync>,
    /// Where what managers say of logs goes.
    pub log_orders: mpsc::Sender<log_publisher::Order>,
    /// Managers to begin with.
    pub managers: Vec<(String, String)>,
    /// Where events go.
    pub events: mpsc::Sender<Event>,
    /// Ends the session.
    pub stop: CancellationToken,
    /// Whether the node then takes its leave. Not on a restart of the daemon: its tasks go on.
    pub leaves: Arc<AtomicBool>,
    /// Draws pauses.
    pub rng: Rng,
}

/// Why a session ended.
pub(super) enum End {
    Stopped,
    Removed(String),
    /// Refused for a reason that does not go away soon.
    Refused(String),
    Failed(String),
}

impl From<DialError> for End {
    fn from(error: DialError) -> Self {
        End::Failed(error.to_string())
    }
}

impl From<Status> for End {
    fn from(status: Status) -> Self {
        let line = status.message().to_owned();
        if status.code() == Code::PermissionDenied && line.contains("was removed") {
            End::Removed(line)
        } else if status.code() == Code::AlreadyExists {
            End::Refused(format!("the manager refuses the session: {line}"))
        } else {
            End::Failed(format!("the manager ends the session: {line}"))
        }
    }
}

/// A node's sessions.
pub struct Sessions {
    parts: SessionParts,
    dialer: Dialer,
    /// The manager to try next.
    next: usize,
    begun: bool,
    last_session: String,
}

impl Sessions {
    /// Prepares sessions of a node.
    ///
    /// # Errors
    /// When the root certificate is damaged.
    pub fn new(parts: SessionParts) -> Result<Self, crate::identity::IdentityError> {
        let tls = tls::cluster_client(&parts.identity.root, Some(Arc::clone(&parts.cell)))?;
        let dialer = Dialer::new(tls, MANAGER, parts.advertise);
        Ok(Self {
            parts,
            dialer,
            next: 0,
            begun: false,
            last_session: String::new(),
        })
    }

    /// Keeps a session until the node stops or is removed. Gives the link back for what comes next.
    pub async fn run(mut self, mut link: NodeLink) -> NodeLink {
        let mut backoff = Duration::ZERO;
        let stop = self.parts.stop.clone();
        if let Some(advertise) = self.parts.advertise {
            tokio::select! {
                () = own_address(advertise) => {}
                () = stop.cancelled() => return link,
            }
        }
        loop {
            self.begun = false;
            let end = tokio::select! {
                end = self.one(&mut link) => end,
                () = stop.cancelled() => End::Stopped,
            };
            if self.begun {
                backoff = Duration::ZERO;
                self.send(&link, Input::SessionLost).await;
            }
            match end {
                End::Stopped => {
                    self.take_leave().await;
                    return link;
                }
                End::Removed(line) => {
                    tracing::error!(node.id = %self.parts.identity.node_id, "{line}: its tasks end");
                    self.event(Event::Removed(line)).await;
                    return link;
                }
                End::Refused(line) => {
                    tracing::error!(error = %line, "no session with a manager");
                    self.event(Event::Lost(line)).await;
                    // A manager counts attempts, and would soon answer nothing else.
                    if !self.pause(REFUSED, &mut link).await {
                        return link;
                    }
                }
                End::Failed(line) => {
                    tracing::warn!(error = %line, "no session with a manager");
                    self.event(Event::Lost(line)).await;
                }
            }
            backoff = MAX_BACKOFF.min(backoff * 2 + BACKOFF_STEP);
            self.next = self.next.wrapping_add(1);
            let span = u64::try_from(backoff.as_millis()).unwrap_or(u64::MAX);
            let wait = Duration::from_millis(self.parts.rng.below(span + 1));
            if !self.pause(wait, &mut link).await {
                return link;
            }
        }
    }

    /// Waits, and meanwhile says of each report that no manager has taken it.
    async fn pause(&self, wait: Duration, link: &mut NodeLink) -> bool {
        let stop = self.parts.stop.clone();
        let refuse = async {
            while let Some((batch, _)) = link.reports.recv().await {
                let accepted = false;
                let _ = link
                    .inputs
                    .send(Input::StatusDone { batch, accepted })
                    .await;
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = sleep(wait) => true,
            () = refuse => true,
            () = stop.cancelled() => false,
        }
    }

    async fn event(&self, event: Event) {
        // Nobody listens only when the daemon stops.
        let _ = self.parts.events.send(event).await;
    }

    async fn send(&self, link: &NodeLink, input: Input) {
        let _ = link.inputs.send(input).await;
    }

    /// One session, from dialling to its end.
    async fn one(&mut self, link: &mut NodeLink) -> End {
        match self.attempt(link).await {
            Ok(never) => never,
            Err(end) => end,
        }
    }

    async fn attempt(&mut self, link: &mut NodeLink) -> Result<End, End> {
        let count = self.parts.managers.len();
        let addr = match count {
            0 => return Err(End::Failed("no manager is known".to_owned())),
            count => self.parts.managers[self.next % count].1.clone(),
        };
        let channel = self.dialer.dial(&addr).await?;
        let mut client =
            DispatcherClient::new(channel.clone()).max_decoding_message_size(MAX_CLIENT_MESSAGE);
        let description = (self.parts.describe)();
        let request = session_request(&description, &self.last_session)?;
        let silent = |_| End::Failed(format!("the manager at {addr} does not answer"));
        let mut messages = timeout(CALL, client.session(request))
            .await
            .map_err(silent)??
            .into_inner();
        let first = timeout(CALL, messages.message()).await.map_err(silent)??;
        let first = first.ok_or_else(|| End::Failed("the manager ended the session".to_owned()))?;
        let session = first.session_id.clone();
        self.last_session.clone_from(&session);
        self.begun = true;
        tracing::info!(manager.addr = %addr, "in session with a manager");
        let own = self.parts.identity.node_id.clone();
        self.send(link, Input::SessionBegun(own)).await;
        self.event(Event::Begun).await;
        self.take_message(first).await;
        let NodeLink {
            inputs,
            reports,
            reopen,
            mesh_applied,
        } = link;
        let describe = Arc::clone(&self.parts.describe);
        let node = self.parts.identity.node_id.clone();
        let orders = self.parts.log_orders.clone();
        let ended = tokio::select! {
            end = heartbeats(client.clone(), &session, describe, description) => end,
            end = follow_assignments(client.clone(), &session, inputs, reopen) => end,
            end = send_reports(client.clone(), &session, inputs, reports) => end,
            end = follow_orders(channel.clone(), node, &orders) => end,
            end = follow_mesh(channel, inputs, mesh_applied) => end,
            end = self.follow_messages(&mut messages) => end,
        };
        Err(ended)
    }

    async fn follow_messages(
        &mut self,
        messages: &mut tonic::Streaming<pb::SessionMessage>,
    ) -> End {
        loop {
            match messages.message().await {
                Ok(Some(message)) => self.take_message(message).await,
                Ok(None) => return End::Failed("the manager ended the session".to_owned()),
                Err(status) => return status.into(),
            }
        }
    }

    /// The list of managers replaces the known one; the node object says what the node shall be now.
    async fn take_message(&mut self, message: pb::SessionMessage) {
        let managers: Vec<(String, String)> = message
            .managers
            .into_iter()
            .filter_map(|weighted| weighted.peer)
            .map(|peer| (peer.node_id, peer.addr))
            .collect();
        if !managers.is_empty() && managers != self.parts.managers {
            self.parts.managers.clone_from(&managers);
            self.event(Event::Managers(managers)).await;
        }
        let Some(node) = message.node else {
            return;
        };
        let wanted = match node.role() {
            pb::NodeRole::Manager => Role::Manager,
            pb::NodeRole::Worker => Role::Worker,
        };
        let state = node.certificate.and_then(|certificate| certificate.status);
        let rotate = pb::issuance_status::State::Rotate;
        if wanted != self.parts.identity.role || state.is_some_and(|it| it.state() == rotate) {
            self.event(Event::Renew).await;
        }
    }

    /// Says good-bye, so that the managers need not wait for silence.
    async fn take_leave(&self) {
        let leaves = self.parts.leaves.load(Ordering::Acquire);
        if !leaves || !self.begun || self.parts.managers.is_empty() {
            return;
        }
        let addr = &self.parts.managers[self.next % self.parts.managers.len()].1;
        let leave = async {
            let channel = self.dialer.dial(addr).await.ok()?;
            let session_id = self.last_session.clone();
            let request = skep::LeaveRequest { session_id };
            MembershipClient::new(channel).leave(request).await.ok()
        };
        let _ = timeout(Duration::from_secs(2), leave).await;
    }
}

fn session_request(
    description: &NodeDescription,
    last_session: &str,
) -> Result<Request<pb::SessionRequest>, End> {
    let mut request = Request::new(pb::SessionRequest {
        description: Some(protobuf::description(description)),
        session_id: last_session.to_owned(),
    });
    let more = MoreDescription {
        routes: description.routes.clone(),
        machine_id: description.machine_id.clone(),
    };
    let bytes = serde_json::to_vec(&more).map_err(|error| End::Failed(error.to_string()))?;
    let header = MetadataValue::from_bytes(&bytes);
    request
        .metadata_mut()
        .insert_bin(DESCRIPTION_HEADER, header);
    Ok(request)
}
