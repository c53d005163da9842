//! Signals: `Changed(action, id, name)` on a resource's interface for each change that this node sees.

use zbus::{Connection, object_server::SignalEmitter};

use super::{
    OBJECT_PATH, configs::Configs, networks::Networks, nodes::Nodes, secrets::Secrets,
    services::Services,
};
use crate::management::{
    Management,
    events::{self, Event},
};

/// Sends a signal for each change, until the daemon stops.
pub(super) async fn send(connection: Connection, management: Management) {
    let Ok(emitter) = SignalEmitter::new(&connection, OBJECT_PATH) else {
        return;
    };
    let mut changes = management.changes();
    let mut seen = management.view().unwrap_or_default();
    while changes.changed().await.is_ok() {
        let now = management.view().unwrap_or_default();
        for event in events::between(&seen, &now) {
            if let Err(error) = signal(&emitter, &event).await {
                tracing::debug!(%error, "cannot send a signal");
            }
        }
        seen = now;
    }
}

async fn signal(emitter: &SignalEmitter<'_>, event: &Event) -> zbus::Result<()> {
    let (action, id, name) = (event.action, event.id.as_str(), event.name.as_str());
    match event.kind {
        "service" => Services::changed(emitter, action, id, name).await,
        "node" => Nodes::changed(emitter, action, id, name).await,
        "secret" => Secrets::changed(emitter, action, id, name).await,
        "config" => Configs::changed(emitter, action, id, name).await,
        _ => Networks::changed(emitter, action, id, name).await,
    }
}
