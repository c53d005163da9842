//! `io.skep.Containers1`.

use zbus::{Connection, OwnedFd, interface, message::Header};

use super::{error::Error, only_root, stream};
use skep_host::clock;

use crate::management::{Management, params::Params};

/// This node's own containers.
pub(super) struct Containers(pub(super) Management);

#[interface(name = "io.skep.Containers1")]
impl Containers {
    /// Those that match; parameters `all`, `filters`, `limit`.
    async fn list(
        &self,
        params: String,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<String, Error> {
        only_root(connection, &header).await?;
        let params = Params::from_json(&params)?;
        let list = self.0.container_list(&params, clock::timestamp()).await?;
        Ok(list.to_string())
    }

    /// One, by id, name or prefix of an id.
    async fn inspect(
        &self,
        reference: String,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<String, Error> {
        only_root(connection, &header).await?;
        Ok(self.0.container_inspect(&reference).await?.to_string())
    }

    /// Its log as a socket with Docker's frames; parameters `stdout`, `stderr`, `follow`, `tail`, `since`,
    /// `until`, `timestamps`.
    async fn logs(
        &self,
        reference: String,
        params: String,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<OwnedFd, Error> {
        only_root(connection, &header).await?;
        let params = Params::from_json(&params)?;
        let frames = self.0.container_log_frames(&reference, &params).await?;
        stream::frames(frames)
    }
}
