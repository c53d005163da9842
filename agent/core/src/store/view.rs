//! The state at one version, with its indexes.

use std::sync::Arc;

use imbl::{OrdMap, OrdSet};

use super::{Change, Object, ObjectId, Proposal};
use crate::{
    api::{
        Cluster, Config, DependencyId, Network, Node, Protocol, PublishMode, Secret, Service, Task,
    },
    id::Id,
};

/// The state of the cluster at one version. Clones share everything, and a clone never changes
/// under its reader.
#[derive(Debug, Clone, Default)]
pub struct View {
    pub(super) version: u64,
    pub(super) cluster: Option<Arc<Cluster>>,
    pub(super) nodes: OrdMap<Id<Node>, Arc<Node>>,
    pub(super) services: OrdMap<Id<Service>, Arc<Service>>,
    pub(super) networks: OrdMap<Id<Network>, Arc<Network>>,
    pub(super) tasks: OrdMap<Id<Task>, Arc<Task>>,
    pub(super) secrets: OrdMap<Id<Secret>, Arc<Secret>>,
    pub(super) configs: OrdMap<Id<Config>, Arc<Config>>,
    pub(super) index: Indexes,
}

/// What is looked up by something else than an id. A function of the tables.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Indexes {
    /// Lower-case names of services that are not being removed.
    pub(super) service_names: OrdMap<String, Id<Service>>,
    /// Lower-case names of networks.
    pub(super) network_names: OrdMap<String, Id<Network>>,
    /// Lower-case names of secrets.
    pub(super) secret_names: OrdMap<String, Id<Secret>>,
    /// Lower-case names of configs.
    pub(super) config_names: OrdMap<String, Id<Config>>,
    /// Published ports of services that are not being removed.
    pub(super) ports: OrdMap<(Protocol, u16), Id<Service>>,
    pub(super) tasks_of_service: OrdMap<Id<Service>, OrdSet<Id<Task>>>,
    pub(super) tasks_on_node: OrdMap<Id<Node>, OrdSet<Id<Task>>>,
}

impl View {
    /// The raft index of the last entry that was applied; 0 for the empty state.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The cluster; absent before the swarm is initialised.
    #[must_use]
    pub fn cluster(&self) -> Option<&Arc<Cluster>> {
        self.cluster.as_ref()
    }

    /// The node with this id.
    #[must_use]
    pub fn node(&self, id: &Id<Node>) -> Option<&Arc<Node>> {
        self.nodes.get(id)
    }

    /// Every node, in order of ids.
    pub fn nodes(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.nodes.values()
    }

    /// The service with this id, also while it is being removed.
    #[must_use]
    pub fn service(&self, id: &Id<Service>) -> Option<&Arc<Service>> {
        self.services.get(id)
    }

    /// The service with this name, whatever its case; not one that is being removed.
    #[must_use]
    pub fn service_named(&self, name: &str) -> Option<&Arc<Service>> {
        let id = self.index.service_names.get(&name.to_ascii_lowercase())?;
        self.services.get(id)
    }

    /// Every service, in order of ids, also those that are being removed.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values()
    }

    /// The network with this id.
    #[must_use]
    pub fn network(&self, id: &Id<Network>) -> Option<&Arc<Network>> {
        self.networks.get(id)
    }

    /// The network with this name, whatever its case.
    #[must_use]
    pub fn network_named(&self, name: &str) -> Option<&Arc<Network>> {
        let id = self.index.network_names.get(&name.to_ascii_lowercase())?;
        self.networks.get(id)
    }

    /// Every network, in order of ids.
    pub fn networks(&self) -> impl Iterator<Item = &Arc<Network>> {
        self.networks.values()
    }

    /// The routing mesh's own network.
    #[must_use]
    pub fn ingress(&self) -> Option<&Arc<Network>> {
        self.networks.values().find(|network| network.spec.ingress)
    }

    /// The task with this id.
    #[must_use]
    pub fn task(&self, id: &Id<Task>) -> Option<&Arc<Task>> {
        self.tasks.get(id)
    }

    /// Every task, in order of ids.
    pub fn tasks(&self) -> impl Iterator<Item = &Arc<Task>> {
        self.tasks.values()
    }

    /// The tasks of a service, in order of ids; history included.
    pub fn tasks_of_service(&self, id: &Id<Service>) -> impl Iterator<Item = &Arc<Task>> {
        let ids = self.index.tasks_of_service.get(id);
        ids.into_iter()
            .flatten()
            .filter_map(|id| self.tasks.get(id))
    }

    /// The tasks that are assigned to a node, in order of ids; history included.
    pub fn tasks_on_node(&self, id: &Id<Node>) -> impl Iterator<Item = &Arc<Task>> {
        let ids = self.index.tasks_on_node.get(id);
        ids.into_iter()
            .flatten()
            .filter_map(|id| self.tasks.get(id))
    }

    /// The secret with this id.
    #[must_use]
    pub fn secret(&self, id: &Id<Secret>) -> Option<&Arc<Secret>> {
        self.secrets.get(id)
    }

    /// The secret with this name, whatever its case.
    #[must_use]
    pub fn secret_named(&self, name: &str) -> Option<&Arc<Secret>> {
        let id = self.index.secret_names.get(&name.to_ascii_lowercase())?;
        self.secrets.get(id)
    }

    /// Every secret, in order of ids.
    pub fn secrets(&self) -> impl Iterator<Item = &Arc<Secret>> {
        self.secrets.values()
    }

    /// The config with this id.
    #[must_use]
    pub fn config(&self, id: &Id<Config>) -> Option<&Arc<Config>> {
        self.configs.get(id)
    }

    /// The config with this name, whatever its case.
    #[must_use]
    pub fn config_named(&self, name: &str) -> Option<&Arc<Config>> {
        let id = self.index.config_names.get(&name.to_ascii_lowercase())?;
        self.configs.get(id)
    }

    /// Every config, in order of ids.
    pub fn configs(&self) -> impl Iterator<Item = &Arc<Config>> {
        self.configs.values()
    }

    /// The names of the services that refer to a secret or config, in their order; not those that are being
    /// removed.
    #[must_use]
    pub fn users_of(&self, dependency: &DependencyId) -> Vec<String> {
        let refers = |service: &&Arc<Service>| {
            let container = service.spec.task_template.container_spec.iter();
            let mut references = container.flat_map(|container| container.references());
            references.any(|one| one.dependency().as_ref() == Some(dependency))
        };
        let services = self.services().filter(|service| !service.pending_delete);
        let users = services.filter(refers);
        let mut names: Vec<String> = users.map(|service| service.spec.name.clone()).collect();
        names.sort();
        names
    }

    /// The service that holds a published port of the routing mesh.
    #[must_use]
    pub fn port_holder(&self, protocol: Protocol, port: u16) -> Option<&Arc<Service>> {
        let id = self.index.ports.get(&(protocol, port))?;
        self.services.get(id)
    }

    /// The version of an object, 0 if there is no such object.
    #[must_use]
    pub fn version_of(&self, object: &ObjectId) -> u64 {
        self.object(object).map_or(0, |object| object.version())
    }

    /// The object with this id.
    #[must_use]
    pub fn object(&self, id: &ObjectId) -> Option<Object> {
        match id {
            ObjectId::Cluster => self.cluster.clone().map(Object::Cluster),
            ObjectId::Network(id) => self.networks.get(id).cloned().map(Object::Network),
            ObjectId::Node(id) => self.nodes.get(id).cloned().map(Object::Node),
            ObjectId::Service(id) => self.services.get(id).cloned().map(Object::Service),
            ObjectId::Task(id) => self.tasks.get(id).cloned().map(Object::Task),
            ObjectId::Secret(id) => self.secrets.get(id).cloned().map(Object::Secret),
            ObjectId::Config(id) => self.configs.get(id).cloned().map(Object::Config),
        }
    }

    /// A planner's scratch copy moves on as if the proposal had been committed: objects keep the
    /// version that was read, so that what comes out at the end can still be checked against it.
    pub(crate) fn stage(&mut self, proposal: &Proposal) {
        for change in &proposal.changes {
            match change {
                Change::Put(object) => self.insert(object.clone()),
                Change::Delete { object, .. } => self.remove(object),
                Change::TaskStatus { task, status, .. } => {
                    if let Some(task) = self.tasks.get(task) {
                        let mut task = Task::clone(task);
                        task.status = status.clone();
                        self.insert(Object::Task(Arc::new(task)));
                    }
                }
            }
        }
    }

    /// Puts an object in the place of the one with its id. Indexes are touched only if they change.
    pub(super) fn insert(&mut self, object: Object) {
        match object {
            Object::Cluster(cluster) => self.cluster = Some(cluster),
            Object::Node(node) => {
                self.nodes.insert(node.id.clone(), node);
            }
            Object::Network(network) => {
                let old = self
                    .networks
                    .insert(network.id.clone(), Arc::clone(&network));
                if let Some(old) = old {
                    self.index.drop_network(&old);
                }
                self.index.add_network(&network);
            }
            Object::Service(service) => {
                let old = self
                    .services
                    .insert(service.id.clone(), Arc::clone(&service));
                if let Some(old) = old {
                    self.index.drop_service(&old);
                }
                self.index.add_service(&service);
            }
            Object::Task(task) => {
                let old = self.tasks.insert(task.id.clone(), Arc::clone(&task));
                let place = |task: &Task| (task.service_id.clone(), task.node_id.clone());
                match old {
                    Some(old) if place(&old) == place(&task) => {}
                    Some(old) => {
                        self.index.drop_task(&old);
                        self.index.add_task(&task);
                    }
                    None => self.index.add_task(&task),
                }
            }
            Object::Secret(secret) => {
                let old = self.secrets.insert(secret.id.clone(), Arc::clone(&secret));
                if let Some(old) = old {
                    let name = old.spec.name.to_ascii_lowercase();
                    self.index.secret_names.remove(&name);
                }
                let name = secret.spec.name.to_ascii_lowercase();
                self.index.secret_names.insert(name, secret.id.clone());
            }
            Object::Config(config) => {
                let old = self.configs.insert(config.id.clone(), Arc::clone(&config));
                if let Some(old) = old {
                    let name = old.spec.name.to_ascii_lowercase();
                    self.index.config_names.remove(&name);
                }
                let name = config.spec.name.to_ascii_lowercase();
                self.index.config_names.insert(name, config.id.clone());
            }
        }
    }

    pub(super) fn remove(&mut self, object: &ObjectId) {
        match object {
            ObjectId::Cluster => self.cluster = None,
            ObjectId::Node(id) => {
                self.nodes.remove(id);
            }
            ObjectId::Network(id) => {
                if let Some(network) = self.networks.remove(id) {
                    self.index.drop_network(&network);
                }
            }
            ObjectId::Service(id) => {
                if let Some(service) = self.services.remove(id) {
                    self.index.drop_service(&service);
                }
            }
            ObjectId::Task(id) => {
                if let Some(task) = self.tasks.remove(id) {
                    self.index.drop_task(&task);
                }
            }
            ObjectId::Secret(id) => {
                if let Some(secret) = self.secrets.remove(id) {
                    let name = secret.spec.name.to_ascii_lowercase();
                    self.index.secret_names.remove(&name);
                }
            }
            ObjectId::Config(id) => {
                if let Some(config) = self.configs.remove(id) {
                    let name = config.spec.name.to_ascii_lowercase();
                    self.index.config_names.remove(&name);
                }
            }
        }
    }
}

/// The ports of the routing mesh that a service claims: those its user chose and those it was given.
pub(super) fn claimed_ports(service: &Service) -> impl Iterator<Item = (Protocol, u16)> {
    let wished = service
        .spec
        .endpoint_spec
        .iter()
        .flat_map(|spec| &spec.ports);
    wished
        .chain(&service.endpoint.ports)
        .filter(|port| port.publish_mode == PublishMode::Ingress && port.published_port != 0)
        .map(|port| (port.protocol, port.published_port))
}

impl Indexes {
    fn add_network(&mut self, network: &Network) {
        let name = network.spec.name.to_ascii_lowercase();
        self.network_names.insert(name, network.id.clone());
    }

    fn drop_network(&mut self, network: &Network) {
        self.network_names
            .remove(&network.spec.name.to_ascii_lowercase());
    }

    fn add_service(&mut self, service: &Service) {
        if service.pending_delete {
            return;
        }
        let name = service.spec.name.to_ascii_lowercase();
        self.service_names.insert(name, service.id.clone());
        for port in claimed_ports(service) {
            self.ports.insert(port, service.id.clone());
        }
    }

    fn drop_service(&mut self, service: &Service) {
        if service.pending_delete {
            return;
        }
        self.service_names
            .remove(&service.spec.name.to_ascii_lowercase());
        for port in claimed_ports(service) {
            self.ports.remove(&port);
        }
    }

    fn add_task(&mut self, task: &Task) {
        let of_service = self.tasks_of_service.entry(task.service_id.clone());
        of_service.or_default().insert(task.id.clone());
        if let Some(node) = &task.node_id {
            let on_node = self.tasks_on_node.entry(node.clone());
            on_node.or_default().insert(task.id.clone());
        }
    }

    fn drop_task(&mut self, task: &Task) {
        drop_member(&mut self.tasks_of_service, &task.service_id, &task.id);
        if let Some(node) = &task.node_id {
            drop_member(&mut self.tasks_on_node, node, &task.id);
        }
    }
}

fn drop_member<K: Ord + Clone>(
    index: &mut OrdMap<K, OrdSet<Id<Task>>>,
    key: &K,
    member: &Id<Task>,
) {
    let Some(members) = index.get_mut(key) else {
        return;
    };
    members.remove(member);
    if members.is_empty() {
        index.remove(key);
    }
}
