//! `io.skep.Tasks1`.

use zbus::{Connection, interface, message::Header};

use super::{error::Error, only_root};
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
}
