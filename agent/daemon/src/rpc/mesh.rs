//! `skep.v1.Mesh.Watch`: the map of a node's networks, complete and then by differences.

use std::pin::Pin;

use async_trait::async_trait;
use futures_util::Stream;
use skep_core::{
    api::Node,
    id::Id,
    manager::mesh::MeshDelta,
    network::MeshMap,
    wire::skep::{self, mesh_request, mesh_response},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{gate::Peer, services::skep::mesh_server::Mesh};
use crate::manager::{
    Manager,
    mesh_hub::{Snapshot, Watching},
};

/// Messages on their way to a node that is slow to take them; later states are gathered meanwhile.
const BACKLOG: usize = 4;

/// The service.
#[derive(Clone)]
pub struct MeshService(pub Manager);

type Sender = mpsc::Sender<Result<skep::MeshResponse, Status>>;

#[async_trait]
impl Mesh for MeshService {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<skep::MeshResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<Streaming<skep::MeshRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let node = Peer::node(&request)?.node_id;
        let (sender, receiver) = mpsc::channel(BACKLOG);
        let stopped = self.0.stopped().clone();
        let work = follow(self.0.clone(), node, request.into_inner(), sender);
        tokio::spawn(async move {
            tokio::select! {
                () = stopped.cancelled() => {}
                () = work => {}
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

async fn follow(
    manager: Manager,
    node: Id<Node>,
    mut requests: Streaming<skep::MeshRequest>,
    sender: Sender,
) {
    let watching = manager.mesh.open();
    let mut latest = manager.mesh.subscribe();
    let mut settled = manager.mesh.settled();
    let mut sent: Option<MeshMap> = None;
    settled.mark_changed();
    loop {
        let snapshot = latest.borrow_and_update().clone();
        if !look(&node, &snapshot, &mut sent, &watching, &sender).await {
            return;
        }
        tokio::select! {
            () = sender.closed() => return,
            changed = latest.changed() => if changed.is_err() { return },
            request = requests.message() => match request {
                Ok(Some(request)) => take(request, &watching),
                Ok(None) | Err(_) => return,
            },
            changed = settled.changed() => {
                let version = *settled.borrow_and_update();
                let message = mesh_response::Kind::Settled(version);
                if changed.is_err() || !send(&sender, message).await { return }
            }
        }
    }
}

/// Sends what the node does not have yet. Returns whether somebody listens.
async fn look(
    node: &Id<Node>,
    snapshot: &Snapshot,
    sent: &mut Option<MeshMap>,
    watching: &Watching,
    sender: &Sender,
) -> bool {
    let (view, mesh) = &**snapshot;
    let version = view.version();
    if version == 0 || view.node(node).is_none() {
        return true;
    }
    let map = mesh.map(view, node);
    let (base, document) = match &sent {
        // Differences start from the map that was sent last, whatever came since without changing it.
        Some(before) => {
            let delta = MeshDelta::between(before, &map);
            if delta.is_empty() {
                watching.looked(version, false);
                return true;
            }
            (before.version, serde_json::to_vec(&delta))
        }
        None => (0, serde_json::to_vec(&map)),
    };
    let document = match document {
        Ok(document) => document,
        Err(error) => {
            tracing::error!(%error, "a map of the mesh cannot be written as JSON: {error}");
            return false;
        }
    };
    watching.looked(version, true);
    *sent = Some(map);
    let update = skep::MeshUpdate {
        version,
        base,
        document,
    };
    send(sender, mesh_response::Kind::Update(update)).await
}

fn take(request: skep::MeshRequest, watching: &Watching) {
    match request.kind {
        Some(mesh_request::Kind::Applied(version)) => watching.applied(version),
        // The first map is complete whatever the node has.
        Some(mesh_request::Kind::Subscribe(_)) | None => {}
    }
}

async fn send(sender: &Sender, kind: mesh_response::Kind) -> bool {
    let message = skep::MeshResponse { kind: Some(kind) };
    sender.send(Ok(message)).await.is_ok()
}
