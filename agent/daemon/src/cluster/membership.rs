//! The one task that changes what this node is: it resumes, makes, joins and leaves swarms.

pub(super) mod recovery;
mod requests;

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use skep_core::{
    api::{ApiError, Availability, Node},
    id::Id,
    node::Input,
    rng::Rng,
    system::config::{Config, Start},
};
use skep_host::{clock, entropy, machine, storage};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::sleep,
};
use tokio_util::sync::CancellationToken;

use super::{
    ClusterHandle, Command, Describe, InitParams, JoinParams, LocalNodeState, Shared, SwarmStatus,
    api_certificate::ApiCertificate,
    joining::Joining,
    node::{Log, Parting, Running, is_manager, start_manager, take_part},
    renewal::Renewal,
};
use crate::{
    identity::{
        NodeIdentity, Vault,
        storage::{Managers, Settings},
        tls::CertificateCell,
    },
    manager::Manager,
    ports::{self, Ports},
    raft::StartError,
    rpc::{
        CLUSTER_PORT,
        join::JoinFailure,
        log_publisher,
        session::{Event, NodeLink},
    },
};

/// Requests of front doors that wait.
const COMMANDS: usize = 8;
/// How often the API certificate is looked at.
const API_CHECK: Duration = Duration::from_secs(30);

/// What the task needs of the rest of the daemon.
pub struct MembershipParts {
    /// The node's configuration.
    pub config: Arc<Config>,
    /// Folder of the state that outlives a reboot.
    pub state: PathBuf,
    /// The port on which managers listen.
    pub ports: Arc<Ports>,
    /// The node's machine.
    pub link: NodeLink,
    /// Gives what the node says of itself.
    pub describe: Describe,
    /// Where what managers say of logs goes.
    pub log_orders: mpsc::Sender<log_publisher::Order>,
    /// The certificate of 2376, to be kept up to date.
    pub api: ApiCertificate,
    /// Ends it.
    pub stop: CancellationToken,
}

/// The task.
pub struct Membership {
    parts: Parts,
    shared: Arc<Shared>,
    vault: Vault,
    commands: mpsc::Receiver<Command>,
    running: Option<Running>,
    link: Option<NodeLink>,
    joining: Option<Joining>,
    entering: Option<Entering>,
    renewal: Renewal,
    /// The lock is not changed before this moment, after an attempt that failed.
    lock_pause: Option<tokio::time::Instant>,
    rng: Rng,
}

/// [`MembershipParts`] without what the task takes out of it.
struct Parts {
    config: Arc<Config>,
    state: PathBuf,
    ports: Arc<Ports>,
    describe: Describe,
    log_orders: mpsc::Sender<log_publisher::Order>,
    api: ApiCertificate,
    stop: CancellationToken,
}

/// Who waits for this node's first session.
struct Entering {
    answer: oneshot::Sender<Result<Id<Node>, ApiError>>,
    node_id: Id<Node>,
    deadline: tokio::time::Instant,
}

/// Something for the task to do.
enum Turn {
    Stop,
    Command(Command),
    Event(Event),
    Joined(Result<(NodeIdentity, String), String>),
    JoinTooLong,
    EnterTooLong,
    RenewalDue,
    Renewed(Result<NodeIdentity, JoinFailure>),
    Lock,
    CheckApi,
}

/// Makes the task and the handle on it.
///
/// # Errors
/// When the folder of identities cannot be used.
pub fn membership(
    parts: MembershipParts,
) -> Result<(ClusterHandle, Membership), crate::identity::IdentityError> {
    let vault = Vault::open(&parts.state.join("identity"))?;
    let shared = Arc::new(Shared::new());
    let (sender, commands) = mpsc::channel(COMMANDS);
    let handle = ClusterHandle {
        shared: Arc::clone(&shared),
        commands: sender,
    };
    let membership = Membership {
        parts: Parts {
            config: parts.config,
            state: parts.state,
            ports: parts.ports,
            describe: parts.describe,
            log_orders: parts.log_orders,
            api: parts.api,
            stop: parts.stop,
        },
        shared,
        vault,
        commands,
        running: None,
        link: Some(parts.link),
        joining: None,
        entering: None,
        renewal: Renewal::default(),
        lock_pause: None,
        rng: Rng::seeded(entropy::bits64()?),
    };
    Ok((handle, membership))
}

impl Membership {
    /// Runs until the daemon stops.
    pub async fn run(mut self) {
        tokio::spawn(follow_version(Arc::clone(&self.shared)));
        self.begin().await;
        loop {
            self.refresh_api().await;
            match self.turn().await {
                Turn::Stop => break,
                Turn::Command(Command::Init(params, answer)) => {
                    let done = match params.force_new_cluster {
                        true => self.go_on_alone(*params).await,
                        false => self.init(*params).await,
                    };
                    self.answer_in_session(Some(answer), done);
                }
                Turn::Command(Command::Join(params, answer)) => {
                    self.start_join(params, Some(answer))
                }
                Turn::Command(Command::Leave(force, answer)) => {
                    let done = self.leave(force).await;
                    let _ = answer.send(done);
                }
                Turn::Command(Command::Unlock(key, answer)) => {
                    let done = self.unlock(key).await;
                    let _ = answer.send(done);
                }
                Turn::Event(event) => self.event(event).await,
                Turn::Joined(result) => self.joined(result).await,
                Turn::JoinTooLong => self.join_too_long(),
                Turn::EnterTooLong => self.entered(),
                Turn::RenewalDue => self.start_renewal(),
                Turn::Renewed(result) => self.renewed(result).await,
                Turn::Lock => self.follow_lock().await,
                Turn::CheckApi => {}
            }
        }
        if let Some(joining) = self.joining.take() {
            joining.attempts.abort();
        }
        if let Some(running) = self.running.take() {
            running.stop(&self.shared, Parting::Pause).await;
        }
    }

    async fn turn(&mut self) -> Turn {
        let renewal_due = self.renewal.due;
        let due = async {
            match renewal_due {
                Some(at) => sleep(at.since(clock::timestamp())).await,
                None => std::future::pending().await,
            }
        };
        let manages = self.running.as_ref().is_some_and(|it| it.manager.is_some());
        let event = async {
            match &mut self.running {
                Some(running) => match running.events.recv().await {
                    Some(event) => event,
                    None => std::future::pending().await,
                },
                None => std::future::pending().await,
            }
        };
        let deadline = self.joining.as_ref().and_then(|joining| {
            let waits = joining.waiting.is_some();
            waits.then_some(joining.deadline)
        });
        let too_long = async {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        let entering = self.entering.as_ref().map(|entering| entering.deadline);
        let enter_too_long = async {
            match entering {
                Some(deadline) => tokio::time::sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        let lock = async {
            match manages {
                true => recovery::lock_changed(&self.shared, &self.vault, self.lock_pause).await,
                false => std::future::pending().await,
            }
        };
        let attempts = self.joining.as_mut().map(|joining| &mut joining.attempts);
        tokio::select! {
            () = self.parts.stop.cancelled() => Turn::Stop,
            command = self.commands.recv() => command.map_or(Turn::Stop, Turn::Command),
            event = event => Turn::Event(event),
            result = ended(attempts) => Turn::Joined(result.unwrap_or_else(|error| Err(error.to_string()))),
            () = too_long => Turn::JoinTooLong,
            () = enter_too_long => Turn::EnterTooLong,
            result = ended(self.renewal.work.as_mut()) => Turn::Renewed(
                result.unwrap_or_else(|error| Err(JoinFailure::Temporary(error.to_string()))),
            ),
            () = due => Turn::RenewalDue,
            () = lock => Turn::Lock,
            () = sleep(API_CHECK) => Turn::CheckApi,
        }
    }

    /// Goes on where the last life ended, or does what the configuration says.
    async fn begin(&mut self) {
        if let Ok(Some(node)) = self.vault.locked() {
            return self.wait_for_key(node);
        }
        match self.vault.node() {
            Ok(Some(identity)) => self.resume(identity, None).await,
            Ok(None) => self.begin_anew().await,
            Err(error) => {
                // A damaged identity is not replaced by a new one behind the operator's back.
                tracing::error!(%error, "the identity of this node cannot be read: leave the swarm and join it again: {error}");
                self.set_error(error.to_string());
            }
        }
    }

    async fn begin_anew(&mut self) {
        let config = Arc::clone(&self.parts.config);
        match &config.start {
            Start::Wait => tracing::info!("this node is in no swarm and waits for an operator"),
            Start::Init => {
                let begun = self.init(InitParams::default()).await;
                if let Err(error) = begun {
                    tracing::error!(%error, "the swarm could not be made: {error}");
                    self.set_error(error.to_string());
                }
            }
            Start::Join { token, managers } => {
                let params = JoinParams {
                    remote_addrs: managers.clone(),
                    join_token: token.clone(),
                    ..JoinParams::default()
                };
                self.start_join(params, None);
            }
        }
    }

    fn set_status(&self, change: impl FnOnce(&mut SwarmStatus)) {
        self.shared.status.send_modify(change);
    }

    fn set_error(&self, error: String) {
        self.set_status(|status| {
            status.state = LocalNodeState::Error;
            status.error = error;
        });
    }

    /// The address that others know this node by.
    fn advertise(&self, chosen: Option<IpAddr>) -> Option<IpAddr> {
        let saved = self.vault.settings().unwrap_or_default().advertise;
        let config = self.parts.config.advertise;
        chosen
            .or(config)
            .or(saved)
            .or_else(machine::default_address)
            .or_else(|| machine::addresses().into_iter().next())
    }

    /// Goes on as the node of this identity, at this address if one was chosen.
    async fn resume(&mut self, identity: NodeIdentity, chosen: Option<IpAddr>) {
        tracing::info!(node.id = %identity.node_id, "this node goes on in its swarm");
        let Some(advertise) = self.advertise(chosen) else {
            let line = "this machine has no address to advertise: give skep.advertise=";
            return self.set_error(line.to_owned());
        };
        let cell = Arc::new(CertificateCell::default());
        let set = cell.set(&identity.certificate, &identity.key);
        if let Err(error) = set {
            return self.set_error(error.to_string());
        }
        let managers = self.vault.managers().unwrap_or_default().managers;
        let manager = match is_manager(&identity) {
            true => match self.manager(&identity, &cell).await {
                Ok(manager) => Some(manager),
                Err(error) => {
                    tracing::error!(%error, "this manager does not manage: {error}");
                    return self.cannot_manage(&identity, advertise, managers, error.to_string());
                }
            },
            false => {
                // A manager that was demoted: its log would bring it back as one that it is not.
                if let Err(error) = storage::remove_folder(&self.parts.state.join("raft")) {
                    tracing::warn!(error = error.chain(), "the log of a former manager stays");
                }
                None
            }
        };
        self.start(identity, cell, advertise, manager, managers)
            .await;
    }

    /// A manager that cannot manage stays in error: sessions would only hide the cause. The node can be asked
    /// for it, and can leave its swarm.
    fn cannot_manage(
        &self,
        identity: &NodeIdentity,
        advertise: IpAddr,
        managers: Vec<(String, String)>,
        error: String,
    ) {
        self.set_status(|status| {
            *status = SwarmStatus {
                state: LocalNodeState::Error,
                node_id: Some(identity.node_id.clone()),
                role: identity.role,
                node_addr: Some(advertise),
                error,
                managers,
            };
        });
    }

    async fn manager(
        &self,
        identity: &NodeIdentity,
        cell: &Arc<CertificateCell>,
    ) -> Result<(Manager, CancellationToken), StartError> {
        let keys = self.vault.log_keys();
        let log = Log {
            folder: self.parts.state.join("raft"),
            keys: keys.map_err(|error| StartError(error.to_string()))?,
        };
        start_manager(identity, cell, &log, &self.parts.ports, &self.shared).await
    }

    /// Begins sessions. A manager that is not in consensus yet asks to be.
    async fn start(
        &mut self,
        identity: NodeIdentity,
        cell: Arc<CertificateCell>,
        advertise: IpAddr,
        manager: Option<(Manager, CancellationToken)>,
        mut managers: Vec<(String, String)>,
    ) {
        if let Some((manager, stop)) = &manager {
            let own = SocketAddr::new(advertise, CLUSTER_PORT).to_string();
            managers.retain(|(id, _)| *id != identity.node_id.as_str());
            if manager.raft().is_member().await {
                managers.insert(0, (identity.node_id.to_string(), own));
            } else {
                let stop = stop.clone();
                let (identity, cell) = (identity.clone(), Arc::clone(&cell));
                let known = managers.clone();
                tokio::spawn(take_part(identity, cell, advertise, known, stop));
            }
        }
        self.set_status(|status| {
            *status = SwarmStatus {
                state: LocalNodeState::Pending,
                node_id: Some(identity.node_id.clone()),
                role: identity.role,
                node_addr: Some(advertise),
                error: String::new(),
                managers: managers.clone(),
            };
        });
        self.renewal.plan(&identity, &mut self.rng);
        let Some(link) = self.link.take() else {
            self.stop_manager(manager).await;
            return self.set_error("the node's machine is gone".to_owned());
        };
        let told = (
            Arc::clone(&self.parts.describe),
            self.parts.log_orders.clone(),
        );
        let begun = manager.clone();
        match Running::start(identity, cell, advertise, manager, managers, told, link) {
            Ok(running) => self.running = Some(running),
            Err((link, error)) => {
                self.link = Some(link);
                self.stop_manager(begun).await;
                self.set_error(error);
            }
        }
    }

    /// Stops a manager that has become part of no [`Running`].
    async fn stop_manager(&self, manager: Option<(Manager, CancellationToken)>) {
        if let Some((manager, stop)) = manager {
            stop.cancel();
            *self.shared.manager() = None;
            manager.raft().stop().await;
            self.shared.published.send_replace(None);
        }
    }

    fn remember(&self, advertise: Option<IpAddr>, availability: Availability) {
        let settings = Settings {
            advertise,
            availability,
        };
        if let Err(error) = self.vault.set_settings(&settings) {
            tracing::warn!(%error, "the address of this node could not be saved: {error}");
        }
    }

    async fn event(&mut self, event: Event) {
        match event {
            Event::Begun => {
                self.set_status(|status| {
                    status.state = LocalNodeState::Active;
                    status.error.clear();
                });
                self.entered();
            }
            Event::Lost(error) => self.set_status(|status| status.error = error),
            Event::Managers(managers) => {
                self.save_managers(&managers);
                self.set_status(|status| status.managers = managers);
            }
            Event::Renew => self.start_renewal(),
            Event::Removed(error) => {
                if let Some(running) = self.running.take() {
                    self.link = running.stop(&self.shared, Parting::Pause).await;
                }
                if let Some(link) = &self.link {
                    let _ = link.inputs.send(Input::Left).await;
                }
                self.set_error(format!("{error}: leave the swarm and join it again"));
            }
        }
    }

    fn save_managers(&self, managers: &[(String, String)]) {
        let managers = Managers {
            managers: managers.to_vec(),
        };
        if let Err(error) = self.vault.set_managers(&managers) {
            tracing::warn!(%error, "the list of managers could not be saved: {error}");
        }
    }

    fn start_renewal(&mut self) {
        let managers = self.shared.status.borrow().managers.clone();
        self.renewal.due = None;
        self.renewal.start(self.running.as_ref(), managers);
    }

    async fn renewed(&mut self, result: Result<NodeIdentity, JoinFailure>) {
        self.renewal.work = None;
        let identity = match result {
            Ok(identity) => identity,
            Err(error) => {
                tracing::warn!(%error, "the certificate of this node could not be renewed: {error}");
                self.renewal.retry();
                return;
            }
        };
        if let Err(error) = self.vault.set_node(&identity) {
            tracing::error!(%error, "the new certificate of this node could not be saved: {error}");
        }
        let Some(running) = &mut self.running else {
            return;
        };
        tracing::info!(node.id = %identity.node_id, "the certificate of this node was renewed");
        if running.identity.role == identity.role {
            if let Err(error) = running.cell.set(&identity.certificate, &identity.key) {
                tracing::error!(%error, "the new certificate of this node cannot be used: {error}");
            }
            running.identity = identity.clone();
            self.renewal.plan(&identity, &mut self.rng);
            return;
        }
        // Another role is another life; the tasks do not notice.
        if let Some(running) = self.running.take() {
            self.link = running.stop(&self.shared, Parting::Pause).await;
        }
        self.shared.published.send_replace(None);
        if !is_manager(&identity) {
            self.parts.ports.close(ports::CLUSTER);
        }
        self.resume(identity, None).await;
    }

    /// Keeps the certificate of 2376 true to what this node is.
    async fn refresh_api(&mut self) {
        let locked = self.shared.status.borrow().state == LocalNodeState::Locked;
        if locked && self.parts.api.resume(&self.vault) {
            return;
        }
        let node = self.running.as_ref().map(|running| {
            let managers = self.shared.status.borrow().managers.clone();
            (running, managers)
        });
        let view = self.shared.published.borrow().clone();
        let role = self.running.as_ref().map(|running| running.identity.role);
        let names = self.parts.api.names(&self.parts.config, role);
        self.parts
            .api
            .refresh(&self.vault, node, view.as_ref(), names)
            .await;
    }
}

/// The result of a task that may not be there; a finished one must be taken away.
async fn ended<T>(task: Option<&mut JoinHandle<T>>) -> Result<T, tokio::task::JoinError> {
    match task {
        Some(task) => task.await,
        None => std::future::pending().await,
    }
}

async fn follow_version(shared: Arc<Shared>) {
    let mut states = shared.published.subscribe();
    loop {
        let version = states
            .borrow_and_update()
            .as_ref()
            .map_or(0, |it| it.version());
        shared.version.send_replace(version);
        if states.changed().await.is_err() {
            return;
        }
    }
}
