//! `io.skep.Tasks1`.

use zbus::{Connection, OwnedFd, interface, message::Header};

use super::{error::Error, only_root, stream};
use crate::management::{Management, params::Params};

/// The tasks of the swarm.
pub(super) struct Tasks(pub(super) Management);

#[interface(name = "io.skep.Tasks1")]
impl Tasks {
    /// Those that match; parameter `filters`.
    async fn list(
        &self,
        params: String,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<String, Error> {
        only_root(connection, &header).await?;
        Ok(self.0.task_list(&Params::from_json(&params)?)?.to_string())
    }

    /// One, by id, name or prefix of an id.
    async fn inspect(
        &self,
        reference: String,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<String, Error> {
        only_root(connection, &header).await?;
        Ok(self.0.task_inspect(&reference)?.to_string())
    }

    /// Its log as a socket with Docker's frames; parameters as for a service.
    async fn logs(
        &self,
        reference: String,
        params: String,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<OwnedFd, Error> {
        only_root(connection, &header).await?;
        let params = Params::from_json(&params)?;
        stream::frames(self.0.task_log_frames(&reference, &params).await?)
    }
}
