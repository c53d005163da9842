//! `io.skep.Nodes1`.

use zbus::{Connection, interface, message::Header, object_server::SignalEmitter};

use super::{error::Error, only_root};
use crate::management::{Management, params::Params};

/// The nodes of the swarm.
pub(super) struct Nodes(pub(super) Management);

#[interface(name = "io.skep.Nodes1")]
impl Nodes {
    /// Those that match; parameter `filters`.
    async fn list(
        &self,
        params: String,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<String, Error> {
        only_root(connection, &header).await?;
        Ok(self.0.node_list(&Params::from_json(&params)?)?.to_string())
    }

    /// One, by id, name or prefix of an id.
    async fn inspect(
        &self,
        reference: String,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<String, Error> {
        only_root(connection, &header).await?;
        Ok(self.0.node_inspect(&reference)?.to_string())
    }

    /// Changes one; parameter `version`.
    async fn update(
        &self,
        reference: String,
        params: String,
        body: String,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<String, Error> {
        only_root(connection, &header).await?;
        Ok(self
            .0
            .node_update(&reference, &Params::from_json(&params)?, body.as_bytes())
            .await?
            .to_string())
    }

    /// Removes one; parameter `force`.
    async fn remove(
        &self,
        reference: String,
        params: String,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<String, Error> {
        only_root(connection, &header).await?;
        Ok(self
            .0
            .node_remove(&reference, &Params::from_json(&params)?)
            .await?
            .to_string())
    }

    /// One was made, changed or removed: `action` is `create`, `update` or `remove`.
    #[zbus(signal)]
    pub(super) async fn changed(
        emitter: &SignalEmitter<'_>,
        action: &str,
        id: &str,
        name: &str,
    ) -> zbus::Result<()>;
}
