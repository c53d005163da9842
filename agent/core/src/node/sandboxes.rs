//! What the worker must know of the rest of the node: the sandboxes of its tasks and their place in the mesh.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    path::Path,
    sync::Arc,
};

use super::network::NetworkLoop;
use crate::{
    api::{PublishMode, Task},
    id::Id,
    network::{
        MeshMap, NetState, NodeNet, Sandbox,
        mesh::{Attachment, MeshPort},
    },
    time::Timestamp,
    worker::{
        Environment, NetworkFact, TaskFacts, Worker,
        container::plan::ContainerPlan,
        container::{self, Layout},
        effect::{Container, PulledImage, container_id},
    },
};

/// The annotation of a container's specification that holds its [`Sandbox`] as JSON, so that a restarted
/// skepd knows the network of what it adopts.
const SANDBOX_ANNOTATION: &str = "io.skep.sandbox";

/// Where network namespaces are mounted by name.
const NAMESPACES: &str = "/run/skep/netns";

/// The network side of this node's tasks.
#[derive(Debug)]
pub(super) struct Surroundings {
    pub(super) node: NodeNet,
    pub(super) mesh: Option<Arc<MeshMap>>,
    /// The version of the mesh that every live node's kernel has.
    pub(super) settled: u64,
    /// The sandboxes of all living containers and of those about to be made, by container id.
    pub(super) sandboxes: Arc<BTreeMap<String, Sandbox>>,
    /// The sandboxes that the kernel has.
    ready: BTreeSet<String>,
    /// Why the kernel has not got the others.
    trouble: Option<String>,
    /// For tasks that are not in service: the first version of the mesh without them.
    gone_at: BTreeMap<Id<Task>, u64>,
}

impl Surroundings {
    pub(super) fn new(node: NodeNet, mesh: Option<Arc<MeshMap>>, worker: &Worker) -> Self {
        let mut around = Self {
            node,
            mesh: None,
            settled: 0,
            sandboxes: Arc::default(),
            ready: BTreeSet::new(),
            trouble: None,
            gone_at: BTreeMap::new(),
        };
        if let Some(mesh) = mesh {
            around.take_mesh(mesh, worker);
        }
        around.refresh(worker);
        around
    }

    /// Takes a map unless it is older than the one that is known. True if it was taken.
    pub(super) fn take_mesh(&mut self, mesh: Arc<MeshMap>, worker: &Worker) -> bool {
        if self
            .mesh
            .as_ref()
            .is_some_and(|known| known.version > mesh.version)
        {
            tracing::debug!(
                version = mesh.version,
                "an older map of the networks is refused"
            );
            return false;
        }
        let in_service: BTreeSet<_> = mesh
            .networks
            .values()
            .flat_map(|network| &network.endpoints)
            .filter(|(_, endpoint)| endpoint.in_service)
            .map(|(task, _)| task)
            .collect();
        let before = std::mem::take(&mut self.gone_at);
        for task in worker.task_ids().filter(|task| !in_service.contains(task)) {
            let version = before.get(task).copied().unwrap_or(mesh.version);
            self.gone_at.insert(task.clone(), version);
        }
        self.mesh = Some(mesh);
        true
    }

    /// Forgets the map: the next one is taken whatever its version.
    pub(super) fn forget_mesh(&mut self) {
        self.mesh = None;
        self.settled = 0;
        self.gone_at.clear();
    }

    /// Forgets the swarm.
    pub(super) fn leave(&mut self) {
        self.node.node_id = None;
        self.mesh = Some(Arc::default());
        self.settled = 0;
        self.gone_at.clear();
    }

    /// Whether a manager has ever sent a map.
    pub(super) fn has_mesh(&self) -> bool {
        self.mesh.as_ref().is_some_and(|mesh| mesh.version > 0)
    }

    /// The map to make the kernel by; none while containers run on networks that no map describes.
    pub(super) fn mesh_to_use(&self) -> Option<Arc<MeshMap>> {
        let attached = |sandbox: &Sandbox| !sandbox.attachments.is_empty();
        match &self.mesh {
            Some(mesh) => Some(Arc::clone(mesh)),
            None if self.sandboxes.values().any(attached) => None,
            None => Some(Arc::default()),
        }
    }

    /// Computes the sandboxes anew; true if they have changed.
    pub(super) fn refresh(&mut self, worker: &Worker) -> bool {
        let mut sandboxes: BTreeMap<String, Sandbox> = worker
            .living()
            .filter_map(adopted)
            .map(|sandbox| (sandbox.container_id.clone(), sandbox))
            .collect();
        let mut taken: BTreeSet<Ipv4Addr> = sandboxes
            .values()
            .filter_map(|s| s.gateway_address)
            .collect();
        for task in worker.sandboxes_to_make() {
            let id = container_id(&task.id).to_string();
            let held = self
                .sandboxes
                .get(&id)
                .and_then(|sandbox| sandbox.gateway_address);
            let gateway = held
                .filter(|address| !taken.contains(address))
                .or_else(|| self.node.free_gateway_address(&taken));
            taken.extend(gateway);
            sandboxes.insert(id, sandbox_of(task, gateway));
        }
        let changed = sandboxes != *self.sandboxes;
        if changed {
            self.sandboxes = Arc::new(sandboxes);
        }
        changed
    }

    /// Notes which sandboxes the kernel has.
    pub(super) fn judge(&mut self, network: &NetworkLoop, desired: &NetState, exact: bool) {
        self.ready = self
            .sandboxes
            .values()
            .filter(|sandbox| exact || network.has(sandbox, desired))
            .map(|sandbox| sandbox.container_id.clone())
            .collect();
        self.trouble = network.error().map(str::to_owned);
    }

    fn network_fact(&self, task: &Id<Task>) -> NetworkFact {
        let id = container_id(task).to_string();
        let Some(sandbox) = self.sandboxes.get(&id) else {
            return NetworkFact::Waiting("it is not made yet".to_owned());
        };
        let Some(mesh) = self.mesh_to_use() else {
            return NetworkFact::Waiting("no manager has sent a map of the networks".to_owned());
        };
        if let Some(network) = sandbox.missing_network(&mesh) {
            return NetworkFact::Waiting(format!("network {network} is not known on this node"));
        }
        if sandbox.gateway_address.is_none() {
            return NetworkFact::Waiting(format!(
                "no address is left on {}",
                self.node.gateway_bridge
            ));
        }
        if self.ready.contains(&id) {
            return NetworkFact::Ready;
        }
        NetworkFact::Waiting(match &self.trouble {
            Some(trouble) => format!("it could not be made: {trouble}"),
            None => "its interfaces are not in place".to_owned(),
        })
    }

    fn left_mesh(&self, task: &Id<Task>) -> bool {
        let attached = self
            .sandboxes
            .get(container_id(task).as_str())
            .is_some_and(|sandbox| !sandbox.attachments.is_empty());
        !attached
            || self
                .gone_at
                .get(task)
                .is_some_and(|version| self.settled >= *version)
    }
}

impl Environment for Surroundings {
    fn facts(&self, task: &Id<Task>) -> TaskFacts {
        TaskFacts {
            network: self.network_fact(task),
            left_mesh: self.left_mesh(task),
        }
    }

    fn plan(
        &self,
        task: &Task,
        image: &PulledImage,
        wall: Timestamp,
    ) -> Result<ContainerPlan, String> {
        let id = container_id(&task.id);
        let sandbox = self
            .sandboxes
            .get(id.as_str())
            .ok_or("its sandbox is not made")?;
        let namespace = Path::new(NAMESPACES).join(sandbox.short_id());
        let addresses: Vec<IpAddr> = sandbox
            .attachments
            .iter()
            .map(|one| one.address.into())
            .collect();
        let mut plan = container::from_task(
            task,
            &container::Surroundings {
                id,
                now: wall,
                layout: &Layout::default(),
                image_id: &image.id,
                image: &image.config,
                network: Some(&namespace),
                addresses: &addresses,
            },
        )
        .map_err(|error| error.to_string())?;
        let record = serde_json::to_string(sandbox).map_err(|error| error.to_string())?;
        let mut annotations = plan.spec.annotations().clone().unwrap_or_default();
        annotations.insert(SANDBOX_ANNOTATION.to_owned(), record);
        plan.spec.set_annotations(Some(annotations));
        Ok(plan)
    }
}

/// The sandbox that a container was made with.
fn adopted(container: &Container) -> Option<Sandbox> {
    let annotations = container.plan.spec.annotations().as_ref()?;
    serde_json::from_str(annotations.get(SANDBOX_ANNOTATION)?).ok()
}

/// The sandbox of a task whose container is not made yet.
fn sandbox_of(task: &Task, gateway_address: Option<Ipv4Addr>) -> Sandbox {
    let id = container_id(&task.id);
    let hostname = task
        .spec
        .container_spec
        .as_ref()
        .map(|spec| spec.hostname.clone())
        .filter(|hostname| !hostname.is_empty());
    let attachments = task.networks.iter().filter_map(|network| {
        let address = network
            .addresses
            .iter()
            .find_map(|text| text.split('/').next()?.parse().ok())?;
        Some(Attachment {
            network_id: network.network_id.clone(),
            address,
        })
    });
    let published = task
        .endpoint
        .ports
        .iter()
        .filter(|port| port.publish_mode == PublishMode::Ingress);
    let dns = task
        .spec
        .container_spec
        .as_ref()
        .and_then(|spec| spec.dns_config.as_ref());
    Sandbox {
        name_servers: dns.map_or_else(Vec::new, |dns| {
            let servers = dns.nameservers.iter();
            servers.filter_map(|server| server.parse().ok()).collect()
        }),
        hostname: hostname.unwrap_or_else(|| id.short().to_owned()),
        container_id: id.to_string(),
        name: task.name(),
        task_id: Some(task.id.clone()),
        service_id: Some(task.service_id.clone()),
        gateway_address,
        attachments: attachments.collect(),
        ports: published
            .map(|port| MeshPort {
                protocol: port.protocol,
                published: port.published_port,
                target: port.target_port,
            })
            .collect(),
    }
}
