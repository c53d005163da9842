//! The replicated state of the cluster: what raft applies, and nothing that raft does not apply.
//!
//! [`View`] is the state at one version: immutable, cheap to clone, read from any thread. An
//! [`Entry`] (one raft entry) holds proposals; a [`Proposal`] is atomic: all its changes or none.
//! Each change names the version of the object that its author has read, so a stale, repeated or
//! reordered proposal is refused instead of doing harm. [`Store::apply`] depends on the entry, its
//! index and the state before it, and on nothing else: every manager computes the same state.

mod apply;
mod snapshot;
mod view;

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};

pub(crate) use apply::in_use;
pub use apply::{Applied, ApplyError};
pub use snapshot::SnapshotError;
pub use view::View;

use crate::{
    api::{Cluster, Config, Network, Node, Secret, Service, Task, TaskStatus},
    id::Id,
};

/// One raft entry: proposals that share one write to disk.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Entry {
    /// In order; each succeeds or fails for itself.
    pub proposals: Vec<Proposal>,
}

/// Changes that are done all or not at all.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Proposal {
    /// In order.
    pub changes: Vec<Change>,
}

impl Proposal {
    /// A proposal of these changes.
    #[must_use]
    pub fn of(changes: impl IntoIterator<Item = Change>) -> Self {
        Self {
            changes: changes.into_iter().collect(),
        }
    }
}

/// One change of one object.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Change {
    /// Writes an object. Its `meta.version` is the version that the author has read, 0 for an object
    /// that must not exist yet; the write gives it the index of the raft entry.
    Put(Object),
    /// Removes an object.
    Delete {
        /// Which.
        object: ObjectId,
        /// The version that the author has read.
        version: u64,
    },
    /// What a node has observed of a task of its own. Needs no version, since observed state only
    /// grows: an older or repeated report changes nothing, and one for a task that is gone is ignored.
    TaskStatus {
        /// The task.
        task: Id<Task>,
        /// The node that reports; the task must be assigned to it.
        node: Id<Node>,
        /// What it has seen.
        status: TaskStatus,
    },
}

impl Change {
    /// The object that it changes.
    #[must_use]
    pub fn object(&self) -> ObjectId {
        match self {
            Change::Put(object) => object.id(),
            Change::Delete { object, .. } => object.clone(),
            Change::TaskStatus { task, .. } => ObjectId::Task(task.clone()),
        }
    }

    /// Writes this cluster object.
    #[must_use]
    pub fn put_cluster(cluster: Cluster) -> Self {
        Change::Put(Object::Cluster(Arc::new(cluster)))
    }

    /// Writes this node.
    #[must_use]
    pub fn put_node(node: Node) -> Self {
        Change::Put(Object::Node(Arc::new(node)))
    }

    /// Writes this service.
    #[must_use]
    pub fn put_service(service: Service) -> Self {
        Change::Put(Object::Service(Arc::new(service)))
    }

    /// Writes this network.
    #[must_use]
    pub fn put_network(network: Network) -> Self {
        Change::Put(Object::Network(Arc::new(network)))
    }

    /// Writes this secret.
    #[must_use]
    pub fn put_secret(secret: Secret) -> Self {
        Change::Put(Object::Secret(Arc::new(secret)))
    }

    /// Writes this config.
    #[must_use]
    pub fn put_config(config: Config) -> Self {
        Change::Put(Object::Config(Arc::new(config)))
    }

    /// Writes this task.
    #[must_use]
    pub fn put_task(task: Task) -> Self {
        Change::Put(Object::Task(Arc::new(task)))
    }
}

/// An object of the store.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Object {
    /// The cluster itself; there is one.
    Cluster(Arc<Cluster>),
    /// A node.
    Node(Arc<Node>),
    /// A service.
    Service(Arc<Service>),
    /// A network.
    Network(Arc<Network>),
    /// A task.
    Task(Arc<Task>),
    /// A secret.
    Secret(Arc<Secret>),
    /// A config.
    Config(Arc<Config>),
}

impl Object {
    /// Which object it is.
    #[must_use]
    pub fn id(&self) -> ObjectId {
        match self {
            Object::Cluster(_) => ObjectId::Cluster,
            Object::Node(node) => ObjectId::Node(node.id.clone()),
            Object::Service(service) => ObjectId::Service(service.id.clone()),
            Object::Network(network) => ObjectId::Network(network.id.clone()),
            Object::Task(task) => ObjectId::Task(task.id.clone()),
            Object::Secret(secret) => ObjectId::Secret(secret.id.clone()),
            Object::Config(config) => ObjectId::Config(config.id.clone()),
        }
    }

    /// The version that its author has read.
    #[must_use]
    pub fn version(&self) -> u64 {
        match self {
            Object::Cluster(cluster) => cluster.meta.version,
            Object::Node(node) => node.meta.version,
            Object::Service(service) => service.meta.version,
            Object::Network(network) => network.meta.version,
            Object::Task(task) => task.meta.version,
            Object::Secret(secret) => secret.meta.version,
            Object::Config(config) => config.meta.version,
        }
    }
}

/// Names an object of the store.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ObjectId {
    /// The cluster itself.
    Cluster,
    /// A network.
    Network(Id<Network>),
    /// A node.
    Node(Id<Node>),
    /// A service.
    Service(Id<Service>),
    /// A task.
    Task(Id<Task>),
    /// A secret.
    Secret(Id<Secret>),
    /// A config.
    Config(Id<Config>),
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ObjectId::Cluster => f.write_str("cluster"),
            ObjectId::Network(id) => write!(f, "network {id}"),
            ObjectId::Node(id) => write!(f, "node {id}"),
            ObjectId::Service(id) => write!(f, "service {id}"),
            ObjectId::Task(id) => write!(f, "task {id}"),
            ObjectId::Secret(id) => write!(f, "secret {id}"),
            ObjectId::Config(id) => write!(f, "config {id}"),
        }
    }
}

/// The state machine: the current [`View`] and the way to the next.
#[derive(Debug, Default)]
pub struct Store {
    view: View,
}

impl Store {
    /// Goes on from a state, such as a restored snapshot.
    #[must_use]
    pub fn from_view(view: View) -> Self {
        Self { view }
    }

    /// The state now. Cheap: shares everything.
    #[must_use]
    pub fn view(&self) -> View {
        self.view.clone()
    }

    /// Applies the raft entry at `index`: one result per proposal, in order. An index that was applied
    /// already changes nothing. A refused proposal leaves no trace. Never panics on any entry.
    pub fn apply(&mut self, index: u64, entry: &Entry) -> Vec<Result<Applied, ApplyError>> {
        apply::entry(&mut self.view, index, entry)
    }
}

#[cfg(test)]
mod tests;
