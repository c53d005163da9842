//! The maps of the mesh, made once per state for all nodes that watch this manager.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use skep_core::{
    manager::mesh::{Mesh, WatcherId, Watchers},
    store::View,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::raft::Published;

/// A state and every network of it.
pub type Snapshot = Arc<(View, Mesh)>;

/// The hub. Cheap to clone.
#[derive(Clone)]
pub struct MeshHub {
    latest: watch::Receiver<Snapshot>,
    watchers: Arc<Mutex<Watchers>>,
    settled: watch::Sender<u64>,
}

/// One open stream; dropping it closes it.
pub struct Watching {
    hub: MeshHub,
    id: WatcherId,
}

impl MeshHub {
    /// Makes maps of what is published until `stop`.
    #[must_use]
    pub fn start(published: &Arc<Published>, stop: &CancellationToken) -> Self {
        let (sender, latest) = watch::channel(Snapshot::default());
        let hub = Self {
            latest,
            watchers: Arc::default(),
            settled: watch::Sender::new(0),
        };
        let (states, stop) = (published.subscribe(), stop.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = follow(states, sender) => {}
            }
        });
        hub
    }

    /// The latest maps.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Snapshot> {
        self.latest.clone()
    }

    /// The version that all watching nodes have made true.
    #[must_use]
    pub fn settled(&self) -> watch::Receiver<u64> {
        self.settled.subscribe()
    }

    /// A node begins to watch.
    #[must_use]
    pub fn open(&self) -> Watching {
        let id = self.watchers().open();
        Watching {
            hub: self.clone(),
            id,
        }
    }

    fn watchers(&self) -> MutexGuard<'_, Watchers> {
        self.watchers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Watchers)) {
        let settled = {
            let mut watchers = self.watchers();
            change(&mut watchers);
            watchers.settled()
        };
        if let Some(settled) = settled {
            self.settled.send_if_modified(|known| {
                let grows = *known < settled;
                *known = settled.max(*known);
                grows
            });
        }
    }
}

impl Watching {
    /// The node's map was computed for this version, and sent unless it was the same.
    pub fn looked(&self, version: u64, sent: bool) {
        let id = self.id;
        self.hub.change(|all| all.looked(id, version, sent));
    }

    /// The node's kernel equals this version.
    pub fn applied(&self, version: u64) {
        let id = self.id;
        self.hub.change(|all| all.applied(id, version));
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        let id = self.id;
        self.hub.change(|all| all.close(id));
    }
}

async fn follow(mut states: watch::Receiver<Option<View>>, sender: watch::Sender<Snapshot>) {
    loop {
        let view = states.borrow_and_update().clone();
        if let Some(view) = view {
            let made = tokio::task::spawn_blocking(move || {
                let mesh = Mesh::of(&view);
                Arc::new((view, mesh))
            });
            if let Ok(snapshot) = made.await {
                sender.send_replace(snapshot);
            }
        }
        if states.changed().await.is_err() {
            return;
        }
    }
}
