//! Which raft group a log is of.
//!
//! A group gets a name when it begins, and another one when a manager goes on alone with its state
//! ([`super::recover`]). Every message of raft carries the name. The managers that were left behind do not know that
//! they are not in the group any more: without it, one of them with a later term could take the log of those who went
//! on back to what it has.

use std::sync::{Mutex, PoisonError};

use redb::Durability;
use skep_core::{api::Cluster, id::Id};
use skep_host::{HostError, entropy};

use super::disk::{Failure, LINEAGE, WeakDisk};

/// The name of this manager's raft group, in memory and in its log.
pub(super) struct Lineage {
    disk: WeakDisk,
    name: Mutex<Option<String>>,
    naming: tokio::sync::Mutex<()>,
}

/// Draws a name.
///
/// # Errors
/// When the kernel gives no randomness.
pub(super) fn draw() -> Result<String, HostError> {
    Ok(Id::<Cluster>::from_entropy(entropy::bits128()?).to_string())
}

impl Lineage {
    /// What the log says.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub(super) fn open(disk: WeakDisk) -> Result<Self, Failure> {
        let name = match disk.upgrade() {
            Some(disk) => disk.meta(LINEAGE)?,
            None => None,
        };
        Ok(Self {
            disk,
            name: Mutex::new(name),
            naming: tokio::sync::Mutex::default(),
        })
    }

    /// The name; empty before this manager is in a group.
    pub(super) fn name(&self) -> String {
        let name = self.name.lock().unwrap_or_else(PoisonError::into_inner);
        name.clone().unwrap_or_default()
    }

    /// Whether a message under this name is of the same group. A manager that is in none yet takes it over.
    ///
    /// # Errors
    /// When the name could not be kept.
    pub(super) async fn meets(&self, theirs: &str) -> Result<bool, Failure> {
        if self.name() == theirs {
            return Ok(!theirs.is_empty());
        }
        let _alone = self.naming.lock().await;
        if !self.name().is_empty() || theirs.is_empty() {
            return Ok(self.name() == theirs && !theirs.is_empty());
        }
        let disk = self.disk.upgrade().ok_or("the log is closed")?;
        disk.set_meta(LINEAGE, &theirs.to_owned(), Durability::Immediate)
            .await?;
        *self.name.lock().unwrap_or_else(PoisonError::into_inner) = Some(theirs.to_owned());
        Ok(true)
    }
}
