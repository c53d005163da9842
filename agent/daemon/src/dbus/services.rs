//! `io.skep.Services1`.

use zbus::{Connection, OwnedFd, interface, message::Header, object_server::SignalEmitter};

use super::{error::Error, only_root, stream};
use crate::management::{Management, params::Params};

/// The services of the swarm.
pub(super) struct Services(pub(super) Management);

#[interface(name = "io.skep.Services1")]
impl Services {
    /// Those that match; parameters `filters`, `status`.
    async fn list(
        &self,
        params: String,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<String, Error> {
        only_root(connection, &header).await?;
        Ok(self
            .0
            .service_list(&Params::from_json(&params)?)?
            .to_string())
    }

    /// One, by id, name or prefix of an id; parameter `insertDefaults`.
    async fn inspect(
        &self,
        reference: String,
        params: String,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<String, Error> {
        only_root(connection, &header).await?;
        Ok(self
            .0
            .service_inspect(&reference, &Params::from_json(&params)?)?
            .to_string())
    }

    /// Makes one.
    async fn create(
        &self,
        body: String,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<String, Error> {
        only_root(connection, &header).await?;
        Ok(self.0.service_create(body.as_bytes()).await?.to_string())
    }

    /// Changes one; parameters `version`, `rollback`.
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
            .service_update(&reference, &Params::from_json(&params)?, body.as_bytes())
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
        Ok(self.0.service_remove(&reference).await?.to_string())
    }

    /// The logs of its tasks, its history included, as a socket with Docker's frames; parameters `stdout`, `stderr`,
    /// `follow`, `tail`, `since`, `timestamps`, `details`.
    async fn logs(
        &self,
        reference: String,
        params: String,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<OwnedFd, Error> {
        only_root(connection, &header).await?;
        let params = Params::from_json(&params)?;
        stream::frames(self.0.service_log_frames(&reference, &params).await?)
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
