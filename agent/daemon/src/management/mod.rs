//! What the front doors share: the Engine API, D-Bus and through them the CLI do the same operations
//! on the same documents, so each operation is written once here and each door only parses and
//! renders its own transport.
//!
//! The cluster and this node are reached through the two seams of [`port`].

pub mod configs;
pub mod containers;
pub mod debug;
pub mod document;
pub mod events;
pub mod filter;
pub mod logs;
#[cfg(test)]
pub(crate) mod memory;
pub mod networks;
pub mod nodes;
pub mod params;
pub mod port;
pub mod render;
pub mod secrets;
pub mod services;
pub mod swarm;
pub mod system;
pub mod tasks;

use std::sync::Arc;

use skep_core::{api::ApiError, store::View};
use tokio::sync::watch;

use crate::cluster;
use port::{ClusterPort, LocalPort};

/// The handle that every front door holds.
#[derive(Clone)]
pub struct Management {
    cluster: Arc<dyn ClusterPort>,
    local: Arc<dyn LocalPort>,
}

impl Management {
    /// A handle on the cluster and on this node.
    pub fn new(cluster: Arc<dyn ClusterPort>, local: Arc<dyn LocalPort>) -> Self {
        Self { cluster, local }
    }

    /// The cluster's objects, if this node is a manager.
    ///
    /// # Errors
    /// `Unavailable` on a worker and outside of a swarm, in Docker's words, which clients know.
    pub fn view(&self) -> Result<View, ApiError> {
        self.cluster.view().ok_or_else(|| self.not_a_manager())
    }

    /// Changes whenever the cluster's objects may have.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.cluster.changes()
    }

    fn not_a_manager(&self) -> ApiError {
        cluster::not_a_manager(&self.cluster.status())
    }
}
