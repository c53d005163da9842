//! The agent on D-Bus: `io.skep` on the system bus, one object with an interface per resource. Methods
//! take and give the JSON documents of the Engine API as texts; only root may call them.
//!
//! The interfaces are written down in `systemd/dbus/`; a test compares them with what is served.

mod configs;
mod containers;
mod error;
mod events;
mod images;
mod networks;
mod nodes;
mod secrets;
mod services;
mod stream;
mod swarm;
mod system;
mod tasks;

#[cfg(test)]
pub(crate) mod tests;

use zbus::{Connection, connection::Builder, message::Header};

use crate::management::Management;
use error::Error;
pub use error::NOT_FOUND;

/// The agent's name on the system bus.
pub const BUS_NAME: &str = "io.skep";
/// The one object that has every interface.
pub const OBJECT_PATH: &str = "/io/skep";

/// Serves the agent on the system bus until the connection is dropped.
///
/// # Errors
/// When there is no bus, or the name is taken.
pub async fn serve(management: Management) -> zbus::Result<Connection> {
    serve_on(system_bus(), management).await
}

/// A connection to the system bus. The library's default is below `/var/run`, a link that an image
/// without systemd-tmpfiles does not have.
pub fn system_bus<'a>() -> Builder<'a> {
    Builder::address("unix:path=/run/dbus/system_bus_socket")
}

async fn serve_on(bus: Builder<'_>, management: Management) -> zbus::Result<Connection> {
    let connection = bus
        .serve_at(OBJECT_PATH, swarm::Swarm(management.clone()))
        .serve_at(OBJECT_PATH, nodes::Nodes(management.clone()))
        .serve_at(OBJECT_PATH, services::Services(management.clone()))
        .serve_at(OBJECT_PATH, tasks::Tasks(management.clone()))
        .serve_at(OBJECT_PATH, networks::Networks(management.clone()))
        .serve_at(OBJECT_PATH, secrets::Secrets(management.clone()))
        .serve_at(OBJECT_PATH, configs::Configs(management.clone()))
        .serve_at(OBJECT_PATH, containers::Containers(management.clone()))
        .serve_at(OBJECT_PATH, images::Images(management.clone()))
        .serve_at(OBJECT_PATH, system::System(management.clone()))
        .name(BUS_NAME)
        .build()
        .await?;
    tokio::spawn(events::send(connection.clone(), management));
    Ok(connection)
}

/// Refuses everybody but root. The policy of the bus does the same; this holds where it is missing. Who
/// calls is known to the bus itself, not said by the caller.
async fn only_root(connection: &Connection, header: &Header<'_>) -> Result<u32, Error> {
    let uid = caller(connection, header).await;
    match uid {
        Some(0) => Ok(0),
        Some(uid) => Err(Error::Forbidden(format!(
            "only root may manage this node, and the caller is uid {uid}"
        ))),
        None => Err(Error::Forbidden(
            "the bus does not know the caller's uid".to_owned(),
        )),
    }
}

async fn caller(connection: &Connection, header: &Header<'_>) -> Option<u32> {
    let sender = header.sender()?.to_owned();
    let bus = zbus::fdo::DBusProxy::new(connection).await.ok()?;
    let credentials = bus.get_connection_credentials(sender.into()).await.ok()?;
    credentials.unix_user_id()
}
