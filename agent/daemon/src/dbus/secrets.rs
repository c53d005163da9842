//! `io.skep.Secrets1`.

use zbus::{Connection, interface, message::Header, object_server::SignalEmitter};

use super::{error::Error, only_root};
use crate::management::{Management, params::Params};

/// The secrets of the swarm.
pub(super) struct Secrets(pub(super) Management);

#[interface(name = "io.skep.Secrets1")]
impl Secrets {
    /// Those that match; parameter `filters`.
    async fn list(
        &self,
        params: String,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<String, Error> {
        only_root(connection, &header).await?;
        Ok(self
            .0
            .secret_list(&Params::from_json(&params)?)?
            .to_string())
    }

    /// One, by id, name or prefix of an id.
    async fn inspect(
        &self,
        reference: String,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<String, Error> {
        only_root(connection, &header).await?;
        Ok(self.0.secret_inspect(&reference)?.to_string())
    }

    /// Makes one.
    async fn create(
        &self,
        body: String,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<String, Error> {
        only_root(connection, &header).await?;
        Ok(self.0.secret_create(body.as_bytes()).await?.to_string())
    }

    /// Changes the labels of one; parameter `version`.
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
            .secret_update(&reference, &Params::from_json(&params)?, body.as_bytes())
            .await?
            .to_string())
    }

    /// Removes one.
    async fn remove(
        &self,
        reference: String,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<String, Error> {
        only_root(connection, &header).await?;
        Ok(self.0.secret_remove(&reference).await?.to_string())
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
