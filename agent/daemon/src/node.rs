//! This node's own half of the daemon: host, machine and name servers, put together.

use std::{net::IpAddr, os::fd::OwnedFd, path::PathBuf, sync::Arc, time::Duration};

use skep_core::{
    network::NodeNet,
    node::{Boot, Input, Output, Saved},
    system::config::Config,
};
use skep_host::{
    HostError,
    container::{Containers, Dirs},
    entropy,
    image::{Images, Registries},
    machine,
    netns::{DIRECTORY, Namespaces},
    network::NetHost,
    resolver, storage,
    systemd::ServiceManager,
};
use tokio::{
    runtime::Handle,
    sync::{mpsc, watch},
};

use crate::{
    cluster::SwarmStatus,
    config::Options,
    dns_server::DnsServers,
    effects::{self, Effects, Host, KeptNamespaces},
    event_loop::{self, Watchdog},
    local::{LocalHandle, LocalParts},
    rpc::session::Uplink,
};

/// What this half needs to know of the rest.
pub struct NodeParts {
    /// Where the machine takes its inputs.
    pub inputs: (mpsc::Sender<Input>, mpsc::Receiver<Input>),
    /// Where it speaks to managers.
    pub uplink: Uplink,
    /// This node's part in a swarm.
    pub status: watch::Receiver<SwarmStatus>,
    /// How often the watchdog is fed.
    pub watchdog: Option<Duration>,
}

/// The host, taken up: containers, images, networks and what an earlier life knew.
pub struct NodeHost {
    host: Host,
    network: (NetHost, KeptNamespaces),
    containers: Vec<skep_core::worker::effect::Container>,
    saved: Option<Saved>,
    manager: Arc<ServiceManager>,
    config: Arc<Config>,
    hostname: String,
    state: PathBuf,
}

/// Takes up what is on the host. `descriptors` are those of name servers
/// and namespaces that the service manager kept, by name.
///
/// # Errors
/// When the host lacks something without which no container can run.
pub async fn open(
    options: &Options,
    config: Arc<Config>,
    hostname: String,
    manager: Arc<ServiceManager>,
    descriptors: Vec<(String, OwnedFd)>,
) -> Result<NodeHost, HostError> {
    let registries = Registries {
        mirrors: config.registry_mirrors.clone(),
        insecure: config.insecure_registries.clone(),
    };
    let state = options.state.clone();
    let dirs = Dirs {
        state: state.join("containers"),
        volumes: state.join("volumes"),
        ..Dirs::default()
    };
    let images = Images::open(state.join("images"), registries).await?;
    let containers = Containers::open(dirs, images).await?;
    remove_debug_containers(&containers).await;
    let seed = entropy::bits64()?;
    let (kept, sockets) = KeptNamespaces::adopt(
        Namespaces::new(DIRECTORY),
        Arc::clone(&manager),
        descriptors,
    );
    let dns = DnsServers::new(
        Namespaces::new(DIRECTORY),
        Arc::clone(&manager),
        sockets,
        seed,
    );
    let saved = state.join("node.json");
    Ok(NodeHost {
        network: (NetHost::new()?, kept),
        containers: effects::list(&containers).await?,
        saved: load(&saved),
        host: Host {
            containers,
            dns,
            saved,
        },
        manager,
        config,
        hostname,
        state,
    })
}

impl NodeHost {
    /// Starts the machine.
    ///
    /// # Errors
    /// When no thread can be had.
    pub fn start(self, parts: NodeParts) -> Result<LocalHandle, HostError> {
        let boot = Boot {
            node: node_net(&parts.status.borrow(), &self.config),
            saved: self.saved,
            containers: self.containers,
        };
        let (sender, receiver) = parts.inputs;
        let containers = self.host.containers.clone();
        let effects = Effects::new(self.host, self.network, sender.clone(), Handle::current())?;
        let names = effects.names();
        let managers = Managers {
            uplink: parts.uplink,
            inputs: sender.clone(),
            runtime: Handle::current(),
        };
        let carry_out = move |output| {
            if let Some(output) = effects.begin(output) {
                managers.tell(output);
            }
        };
        let watchdog = Watchdog {
            manager: self.manager,
            period: parts.watchdog,
        };
        event_loop::start(boot, receiver, carry_out, watchdog)?;
        tokio::spawn(tell_addresses(
            parts.status,
            Arc::clone(&self.config),
            sender,
        ));
        Ok(LocalHandle::new(LocalParts {
            containers,
            names,
            config: self.config,
            hostname: self.hostname,
            state: self.state,
        }))
    }
}

/// Debug containers belong to the connections of an earlier life, which are gone.
async fn remove_debug_containers(containers: &Containers) {
    for container in containers.list().await.unwrap_or_default() {
        let labels = &container.plan.labels;
        if !labels.contains_key(crate::local::DEBUG_LABEL) {
            continue;
        }
        // Each line that one runs has its counterpart, even if the daemon ended in between.
        let short = container.plan.id.short();
        tracing::info!(target: "audit", container = short, "debug container ends with the daemon");
        if let Err(error) = containers.delete(&container.plan.id).await {
            tracing::warn!(container = container.plan.id.short(), error = %error.chain(), "an old debug container stays: {}", error.chain());
        }
    }
}

/// What an earlier life knew. What cannot be read is as good as nothing: a manager will tell all of it again.
fn load(path: &std::path::Path) -> Option<Saved> {
    let bytes = storage::read(path).map_err(|error| error.chain());
    let read = bytes.and_then(|bytes| {
        let parse =
            |bytes: Vec<u8>| serde_json::from_slice(&bytes).map_err(|error| error.to_string());
        bytes.map(parse).transpose()
    });
    read.unwrap_or_else(|error| {
        tracing::warn!(%error, path = %path.display(), "what this node knew before is lost: {error}");
        None
    })
}

fn node_net(status: &SwarmStatus, config: &Config) -> NodeNet {
    let address = status
        .node_addr
        .or(config.advertise)
        .or_else(machine::default_address);
    NodeNet {
        node_id: status.node_id.clone(),
        vtep: address.unwrap_or(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST)),
        gateway_bridge: NodeNet::DEFAULT_GATEWAY_BRIDGE,
        name_servers: resolver::name_servers(),
    }
}

/// How often the node looks whether its own addresses have changed.
const LOOK: Duration = Duration::from_secs(20);

async fn tell_addresses(
    mut status: watch::Receiver<SwarmStatus>,
    config: Arc<Config>,
    inputs: mpsc::Sender<Input>,
) {
    let mut told = None;
    loop {
        let node = node_net(&status.borrow_and_update(), &config);
        if told.as_ref() != Some(&node) {
            told = Some(node.clone());
            if inputs.send(Input::Address(node)).await.is_err() {
                return;
            }
        }
        // A silent status is no error: name servers may change all the same.
        if let Ok(Err(_)) = tokio::time::timeout(LOOK, status.changed()).await {
            return;
        }
    }
}

/// The managers' end of the machine.
struct Managers {
    uplink: Uplink,
    inputs: mpsc::Sender<Input>,
    runtime: Handle,
}

impl Managers {
    fn tell(&self, output: Output) {
        match output {
            Output::Status { batch, statuses } => self.report(batch, statuses),
            Output::ReopenAssignments => self.uplink.reopen.notify_one(),
            Output::MeshApplied(version) => drop(self.uplink.mesh_applied.send_replace(version)),
            Output::Effect(..)
            | Output::Observe(_)
            | Output::Apply(_)
            | Output::Names(_)
            | Output::Save(_) => {}
        }
    }

    fn report(
        &self,
        batch: u64,
        statuses: Vec<(
            skep_core::id::Id<skep_core::api::Task>,
            skep_core::api::TaskStatus,
        )>,
    ) {
        if self.uplink.reports.try_send((batch, statuses)).is_err() {
            // No session takes it; the machine tries again after a pause.
            let inputs = self.inputs.clone();
            self.runtime.spawn(async move {
                let accepted = false;
                let _ = inputs.send(Input::StatusDone { batch, accepted }).await;
            });
        }
    }
}
