//! What the node's machine wants done on this host, done: through skep-host, a bounded number at a time of each kind, with
//! the result back as an input. Nothing here decides anything.

mod convert;
mod namespaces;
mod network;

use std::{path::PathBuf, sync::Arc};

use skep_core::{
    node::{Input, Names, Output, Saved},
    worker::{
        container::image::Reference,
        container::plan::{ContainerId, ContainerPlan},
        dependencies::Contents,
        effect::{Effect, EffectId, EffectResult, PulledImage},
    },
};
use skep_host::{HostError, container::Containers, network::NetHost, storage};
use tokio::{
    runtime::Handle,
    sync::{Semaphore, mpsc, watch},
};

pub use self::namespaces::KeptNamespaces;
use self::{
    convert::{container, failure, pull_failure},
    network::Command,
};
use crate::dns_server::DnsServers;

/// Images that are pulled at a time.
const PULLS: usize = 3;
/// Containers that are made, started or removed at a time.
const MAKES: usize = 8;
/// Short calls at a time: signals, sockets, looks.
const CALLS: usize = 32;

/// The parts of the host that effects go through.
pub struct Host {
    /// Containers, with the images they are made from.
    pub containers: Containers,
    /// Name servers in sandboxes.
    pub dns: DnsServers,
    /// The file of what outlives a reboot.
    pub saved: PathBuf,
}

/// Begins effects and sends their results.
pub struct Effects {
    work: Arc<Work>,
    runtime: Handle,
    names: watch::Sender<Option<Names>>,
    network: mpsc::Sender<Command>,
}

struct Work {
    host: Host,
    inputs: mpsc::Sender<Input>,
    pulls: Semaphore,
    makes: Semaphore,
    calls: Semaphore,
}

impl Effects {
    /// Effects on this host, carried out on `runtime`, whose results go to `inputs`. Changes of the kernel's network that
    /// others make go there too.
    ///
    /// # Errors
    /// When no thread can be had.
    pub fn new(
        host: Host,
        network: (NetHost, KeptNamespaces),
        inputs: mpsc::Sender<Input>,
        runtime: Handle,
    ) -> Result<Self, HostError> {
        let network = network::start(network, inputs.clone())?;
        let work = Arc::new(Work {
            host,
            inputs,
            pulls: Semaphore::new(PULLS),
            makes: Semaphore::new(MAKES),
            calls: Semaphore::new(CALLS),
        });
        let (names, published) = watch::channel(None);
        runtime.spawn(publish(Arc::clone(&work), published));
        Ok(Self {
            work,
            runtime,
            names,
            network,
        })
    }

    /// What names are answered from.
    #[must_use]
    pub fn names(&self) -> watch::Receiver<Option<Names>> {
        self.names.subscribe()
    }

    /// Begins an output that is for this host; gives back one that is for the managers. Never waits.
    pub fn begin(&self, output: Output) -> Option<Output> {
        let work = Arc::clone(&self.work);
        match output {
            Output::Effect(id, effect) => drop(self.runtime.spawn(work.effect(id, effect))),
            Output::Observe(scope) => self.network(Command::Observe(scope), work),
            Output::Apply(ops) => self.network(Command::Apply(ops), work),
            Output::Save(saved) => drop(self.runtime.spawn(work.save(saved))),
            Output::Names(names) => drop(self.names.send_replace(Some(names))),
            other
            @ (Output::Status { .. } | Output::ReopenAssignments | Output::MeshApplied(_)) => {
                return Some(other);
            }
        }
        None
    }

    fn network(&self, command: Command, work: Arc<Work>) {
        if let Err(error) = self.network.try_send(command) {
            // The machine has one thing under way at a time: this is the end of the thread, and a bug.
            tracing::error!(%error, "the kernel's network cannot be reached: {error}");
            self.runtime.spawn(async move {
                let lost = "the thread of the kernel's network has ended".to_owned();
                work.tell(Input::NetworkSeen(Err(lost.clone()))).await;
                work.tell(Input::NetworkApplied(vec![lost])).await;
            });
        }
    }
}

/// One after the other, and only the newest: names are published in their order.
async fn publish(work: Arc<Work>, mut names: watch::Receiver<Option<Names>>) {
    while names.changed().await.is_ok() {
        let newest = names.borrow_and_update().clone();
        if let Some(newest) = newest {
            work.host.dns.publish(newest);
        }
    }
}

impl Work {
    async fn tell(&self, input: Input) {
        if self.inputs.send(input).await.is_err() {
            tracing::debug!("a result after the end of the node's loop");
        }
    }

    async fn effect(self: Arc<Self>, id: EffectId, effect: Effect) {
        let result = match effect {
            Effect::Pull(reference) => self.pull(&reference).await,
            Effect::OpenDns(id) => self.call(async { self.host.dns.open(&id).await }).await,
            Effect::Signal(id, signal) => self.call(self.host.containers.signal(&id, signal)).await,
            Effect::Create(plan, contents) => self.create(&plan, &contents).await,
            Effect::Start(id) => self.start(&id).await,
            Effect::Delete(id) => self.delete(&id).await,
            Effect::Watch(id) => self.watch(&id).await,
            Effect::List => self.list().await,
        };
        if let EffectResult::Failed(error) = &result {
            tracing::debug!(effect = id.0, %error, error.temporary, "an effect failed");
        }
        self.tell(Input::EffectDone(id, result)).await;
    }

    async fn pull(&self, reference: &Reference) -> EffectResult {
        let _turn = self.pulls.acquire().await;
        match self.host.containers.pull(reference, None, &|_| {}).await {
            Ok(image) => EffectResult::Pulled(PulledImage {
                id: image.id,
                config: image.config,
            }),
            Err(error) => EffectResult::Failed(pull_failure(reference, &error)),
        }
    }

    async fn create(&self, plan: &ContainerPlan, contents: &Contents) -> EffectResult {
        let _turn = self.makes.acquire().await;
        match self.host.containers.create(plan, contents).await {
            Ok(status) => EffectResult::Container(Some(container(status))),
            Err(error) => EffectResult::Failed(failure(&error)),
        }
    }

    async fn start(&self, id: &ContainerId) -> EffectResult {
        let _turn = self.makes.acquire().await;
        match self.host.containers.start(id).await {
            Ok(()) => self.look(id).await,
            Err(error) => EffectResult::Failed(failure(&error)),
        }
    }

    async fn delete(&self, id: &ContainerId) -> EffectResult {
        let _turn = self.makes.acquire().await;
        match self.host.containers.delete(id).await {
            Ok(()) => EffectResult::Container(None),
            Err(error) => EffectResult::Failed(failure(&error)),
        }
    }

    /// Waits as long as the container lives: one of these is under way for each.
    async fn watch(&self, id: &ContainerId) -> EffectResult {
        match self.host.containers.wait(id).await {
            Ok(_) => self.look(id).await,
            // It may have been removed meanwhile; the look tells.
            Err(error) if !error.temporary => self.look(id).await,
            Err(error) => EffectResult::Failed(failure(&error)),
        }
    }

    async fn look(&self, id: &ContainerId) -> EffectResult {
        match self.host.containers.status(id).await {
            Ok(status) => EffectResult::Container(status.map(container)),
            Err(error) => EffectResult::Failed(failure(&error)),
        }
    }

    async fn list(&self) -> EffectResult {
        let _turn = self.calls.acquire().await;
        match self.host.containers.list().await {
            Ok(list) => EffectResult::Containers(list.into_iter().map(container).collect()),
            Err(error) => EffectResult::Failed(failure(&error)),
        }
    }

    async fn call(&self, call: impl Future<Output = Result<(), HostError>>) -> EffectResult {
        let _turn = self.calls.acquire().await;
        match call.await {
            Ok(()) => EffectResult::Done,
            Err(error) => EffectResult::Failed(failure(&error)),
        }
    }

    async fn save(self: Arc<Self>, saved: Box<Saved>) {
        let path = self.host.saved.clone();
        let write = move || -> Result<(), String> {
            let bytes = serde_json::to_vec(&saved).map_err(|error| error.to_string())?;
            storage::replace(&path, &bytes).map_err(|error| error.chain())
        };
        let result = tokio::task::spawn_blocking(write).await;
        let result = result.unwrap_or_else(|error| Err(error.to_string()));
        self.tell(Input::SavedDone(result)).await;
    }
}

/// Every container of the host, as the machine has them.
///
/// # Errors
/// When the host cannot say.
pub async fn list(
    containers: &Containers,
) -> Result<Vec<skep_core::worker::effect::Container>, HostError> {
    Ok(containers
        .list()
        .await?
        .into_iter()
        .map(container)
        .collect())
}
