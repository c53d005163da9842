//! `io.skep.System1`.

use zbus::{Connection, OwnedFd, interface, message::Header};

use super::{error::Error, only_root, stream};
use crate::management::Management;

/// This node, and its part in a swarm.
pub(super) struct System(pub(super) Management);

#[interface(name = "io.skep.System1")]
impl System {
    /// The versions.
    async fn version(
        &self,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<String, Error> {
        only_root(connection, &header).await?;
        Ok(self.0.version().to_string())
    }

    /// Facts about this node and its swarm.
    async fn info(
        &self,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<String, Error> {
        only_root(connection, &header).await?;
        Ok(self.0.info().await.to_string())
    }

    /// Runs a throw-away privileged container; its streams and exit status come over the socket, in the
    /// frames of `POST /skep/debug`.
    async fn debug(
        &self,
        body: String,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<OwnedFd, Error> {
        let uid = only_root(connection, &header).await?;
        let session = self.0.debug(body.as_bytes(), format!("uid {uid}")).await?;
        stream::debug(session)
    }
}
