//! `io.skep.Images1`.

use zbus::{Connection, interface, message::Header};

use super::{error::Error, only_root};
use crate::management::Management;

/// Images of this node and of registries.
pub(super) struct Images(pub(super) Management);

#[interface(name = "io.skep.Images1")]
impl Images {
    /// Those of this node.
    async fn list(
        &self,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<String, Error> {
        only_root(connection, &header).await?;
        Ok(self.0.image_list().await?.to_string())
    }

    /// What its registry says of an image.
    async fn resolve(
        &self,
        reference: String,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<String, Error> {
        only_root(connection, &header).await?;
        Ok(self.0.image_resolve(&reference).await?.to_string())
    }
}
