//! A whole state as one document, for raft snapshots.

use std::{borrow::Cow, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{Object, View};
use crate::api::{Cluster, Config, Network, Node, Secret, Service, Task};

/// The form of the document; a reader refuses one that it does not know.
const FORMAT: u32 = 1;

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Document<'a> {
    format: u32,
    version: u64,
    cluster: Option<Arc<Cluster>>,
    nodes: Cow<'a, [Arc<Node>]>,
    services: Cow<'a, [Arc<Service>]>,
    networks: Cow<'a, [Arc<Network>]>,
    tasks: Cow<'a, [Arc<Task>]>,
    #[serde(default)]
    secrets: Cow<'a, [Arc<Secret>]>,
    #[serde(default)]
    configs: Cow<'a, [Arc<Config>]>,
}

/// Why a snapshot could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// Not the JSON document that [`View::to_snapshot`] writes.
    #[error("the snapshot is damaged or not a snapshot")]
    Malformed(#[source] serde_json::Error),
    /// Written by a later version of the program.
    #[error("the snapshot has format {0}, this program reads format {FORMAT}: update the program")]
    Format(u32),
}

impl View {
    /// The state as a JSON document. Indexes are left out: they follow from the tables.
    ///
    /// # Errors
    /// When an object can't be written as JSON.
    pub fn to_snapshot(&self) -> Result<Vec<u8>, SnapshotError> {
        let document = Document {
            format: FORMAT,
            version: self.version,
            cluster: self.cluster.clone(),
            nodes: self.nodes.values().cloned().collect(),
            services: self.services.values().cloned().collect(),
            networks: self.networks.values().cloned().collect(),
            tasks: self.tasks.values().cloned().collect(),
            secrets: self.secrets.values().cloned().collect(),
            configs: self.configs.values().cloned().collect(),
        };
        serde_json::to_vec(&document).map_err(SnapshotError::Malformed)
    }

    /// The state that [`View::to_snapshot`] wrote.
    ///
    /// # Errors
    /// When the bytes are no snapshot or one of a later format.
    pub fn from_snapshot(bytes: &[u8]) -> Result<Self, SnapshotError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Head {
            format: u32,
        }
        let head: Head = serde_json::from_slice(bytes).map_err(SnapshotError::Malformed)?;
        if head.format != FORMAT {
            return Err(SnapshotError::Format(head.format));
        }
        let document: Document<'_> =
            serde_json::from_slice(bytes).map_err(SnapshotError::Malformed)?;
        let mut view = View {
            version: document.version,
            cluster: document.cluster,
            ..View::default()
        };
        let nodes = document.nodes.iter().cloned().map(Object::Node);
        let services = document.services.iter().cloned().map(Object::Service);
        let networks = document.networks.iter().cloned().map(Object::Network);
        let tasks = document.tasks.iter().cloned().map(Object::Task);
        let secrets = document.secrets.iter().cloned().map(Object::Secret);
        let configs = document.configs.iter().cloned().map(Object::Config);
        let dependencies = secrets.chain(configs);
        let objects = nodes.chain(services).chain(networks).chain(tasks);
        for object in objects.chain(dependencies) {
            view.insert(object);
        }
        Ok(view)
    }
}
