//! `io.skep.Swarm1`.

use zbus::{Connection, interface, message::Header};

use super::{error::Error, only_root};
use crate::management::{Management, params::Params};

/// The swarm itself.
pub(super) struct Swarm(pub(super) Management);

#[interface(name = "io.skep.Swarm1")]
impl Swarm {
    /// Makes a new swarm: the body of `POST /swarm/init`; the id of this node.
    async fn init(
        &self,
        body: String,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<String, Error> {
        only_root(connection, &header).await?;
        Ok(self.0.swarm_init(body.as_bytes()).await?.to_string())
    }

    /// Joins a swarm: the body of `POST /swarm/join`.
    async fn join(
        &self,
        body: String,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<String, Error> {
        only_root(connection, &header).await?;
        Ok(self.0.swarm_join(body.as_bytes()).await?.to_string())
    }

    /// Leaves it; parameter `force`.
    async fn leave(
        &self,
        params: String,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<String, Error> {
        only_root(connection, &header).await?;
        Ok(self
            .0
            .swarm_leave(&Params::from_json(&params)?)
            .await?
            .to_string())
    }

    /// The cluster with its join tokens.
    async fn inspect(
        &self,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<String, Error> {
        only_root(connection, &header).await?;
        Ok(self.0.swarm_inspect()?.to_string())
    }

    /// The key that unlocks managers: `{"UnlockKey":"SWMKEY-1-…"}`.
    async fn unlock_key(
        &self,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<String, Error> {
        only_root(connection, &header).await?;
        Ok(self.0.swarm_unlock_key()?.to_string())
    }

    /// Unlocks this manager: the body of `POST /swarm/unlock`.
    async fn unlock(
        &self,
        body: String,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<String, Error> {
        only_root(connection, &header).await?;
        Ok(self.0.swarm_unlock(body.as_bytes()).await?.to_string())
    }

    /// Changes settings; parameters `version`, `rotateWorkerToken`, `rotateManagerToken`, `rotateManagerUnlockKey`.
    async fn update(
        &self,
        params: String,
        body: String,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<String, Error> {
        only_root(connection, &header).await?;
        Ok(self
            .0
            .swarm_update(&Params::from_json(&params)?, body.as_bytes())
            .await?
            .to_string())
    }
}
