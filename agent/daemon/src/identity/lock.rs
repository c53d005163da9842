//! The secrets of a node, and the key that locks them on a manager of a swarm with autolock.
//!
//! The unlock key is the cluster's and never on a disk but inside the log, which is sealed. From it follows the key
//! that the secrets are sealed with; they are the node's private key and the keys of its log.

use std::collections::BTreeMap;

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use skep_core::{
    api::{Cluster, Node, Role},
    id::Id,
    wire::unlock::UnlockKey,
};
use zeroize::{Zeroize, Zeroizing};

use super::{IdentityError, NodeIdentity};
use crate::seal::{Key, Sealer};

/// What the key that follows from the unlock key is for.
const PURPOSE: &str = "skep: secrets of a manager";
const FILE: &str = "node.json";

/// The keys of a manager's log by their numbers. New records are sealed with the newest; there is a second one only
/// while what an old one has sealed is being sealed again.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LogKeys(BTreeMap<u32, Key>);

impl LogKeys {
    /// Adds a new key.
    ///
    /// # Errors
    /// When the kernel gives no randomness.
    pub fn draw(&mut self) -> Result<(), IdentityError> {
        let last = self.0.last_key_value().map_or(0, |(number, _)| *number);
        let used_up = || IdentityError::malformed(FILE, "the numbers of its keys are used up");
        let number = last.checked_add(1).ok_or_else(used_up)?;
        self.0.insert(number, Key::draw()?);
        Ok(())
    }

    /// By number, the newest last.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &Key)> {
        self.0.iter().map(|(number, key)| (*number, key))
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether there is more than one.
    #[must_use]
    pub fn is_rotating(&self) -> bool {
        self.0.len() > 1
    }

    pub(super) fn keep_newest(&mut self) {
        while self.is_rotating() {
            self.0.pop_first();
        }
    }
}

/// What the daemon holds in memory of a node's secrets.
#[derive(Debug, Clone, Default)]
pub(super) struct Held {
    pub(super) unlock_key: Option<UnlockKey>,
    pub(super) lock_version: u64,
    pub(super) log_keys: LogKeys,
}

/// A node as its file has it.
#[derive(Serialize, Deserialize)]
pub(super) struct NodeFile {
    pub(super) node_id: Id<Node>,
    cluster_id: Id<Cluster>,
    pub(super) role: Role,
    certificate: String,
    root: String,
    /// The version of the cluster that the lock follows: an older one, which a log that is read again from its last
    /// snapshot goes through, does not change it.
    lock_version: u64,
    pub(super) secrets: Kept,
}

/// The secrets as they are kept.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Kept {
    /// Readable.
    Open(Secrets),
    /// Sealed, in base 64.
    Locked(String),
}

#[derive(Serialize, Deserialize)]
pub(super) struct Secrets {
    /// PEM of the node's private key.
    key: String,
    log_keys: LogKeys,
}

impl Drop for Secrets {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

impl NodeFile {
    /// The file of a node with these secrets.
    pub(super) fn seal(identity: &NodeIdentity, held: &Held) -> Result<Self, IdentityError> {
        let secrets = Secrets {
            key: identity.key.clone(),
            log_keys: held.log_keys.clone(),
        };
        let secrets = match &held.unlock_key {
            None => Kept::Open(secrets),
            Some(key) => {
                let damaged =
                    |error: &dyn ToString| IdentityError::malformed(FILE, error.to_string());
                let plain = serde_json::to_vec(&secrets).map(Zeroizing::new);
                let plain = plain.map_err(|error| damaged(&error))?;
                let context = context(&identity.node_id, &identity.cluster_id);
                let sealed = sealer(key)?.seal(context.as_bytes(), &plain);
                Kept::Locked(STANDARD.encode(sealed.map_err(|error| damaged(&error))?))
            }
        };
        Ok(Self {
            node_id: identity.node_id.clone(),
            cluster_id: identity.cluster_id.clone(),
            role: identity.role,
            certificate: identity.certificate.clone(),
            root: identity.root.clone(),
            lock_version: held.lock_version,
            secrets,
        })
    }

    /// The node, with the key that is held if one is needed; what is held is then what the file has.
    pub(super) fn open(self, held: &mut Held) -> Result<NodeIdentity, IdentityError> {
        let secrets = match self.secrets {
            Kept::Open(secrets) => {
                held.unlock_key = None;
                secrets
            }
            Kept::Locked(sealed) => {
                let key = held.unlock_key.as_ref().ok_or(IdentityError::Locked)?;
                let damaged =
                    |error: &dyn ToString| IdentityError::malformed(FILE, error.to_string());
                let sealed = STANDARD.decode(sealed).map_err(|error| damaged(&error))?;
                let context = context(&self.node_id, &self.cluster_id);
                let plain = sealer(key)?.open(context.as_bytes(), &sealed);
                let plain = plain.map_err(|_| IdentityError::WrongKey)?;
                serde_json::from_slice(&plain).map_err(|error| damaged(&error))?
            }
        };
        held.lock_version = self.lock_version;
        held.log_keys.clone_from(&secrets.log_keys);
        Ok(NodeIdentity {
            node_id: self.node_id,
            cluster_id: self.cluster_id,
            role: self.role,
            key: secrets.key.clone(),
            certificate: self.certificate,
            root: self.root,
        })
    }
}

fn sealer(key: &UnlockKey) -> Result<Sealer, IdentityError> {
    Ok(Sealer::new(Key::new(*key.secret()), PURPOSE)?)
}

/// Whose secrets they are.
fn context(node: &Id<Node>, cluster: &Id<Cluster>) -> String {
    format!("{node} {cluster}")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn identity() -> NodeIdentity {
        NodeIdentity {
            node_id: Id::from_entropy(1),
            cluster_id: Id::from_entropy(2),
            role: Role::Manager,
            key: "PRIVATE".to_owned(),
            certificate: "c".to_owned(),
            root: "r".to_owned(),
        }
    }

    fn held(secret: u8) -> Held {
        let mut held = Held {
            unlock_key: Some(UnlockKey::new([secret; 32])),
            lock_version: 7,
            log_keys: LogKeys::default(),
        };
        held.log_keys.draw().unwrap();
        held
    }

    /// The file as bytes, and what is read from such bytes with a key.
    fn written(held: &Held) -> Vec<u8> {
        serde_json::to_vec(&NodeFile::seal(&identity(), held).unwrap()).unwrap()
    }

    fn read(bytes: &[u8], secret: u8) -> Result<(NodeIdentity, Held), IdentityError> {
        let file: NodeFile =
            serde_json::from_slice(bytes).map_err(|error| IdentityError::malformed(FILE, error))?;
        let mut held = Held {
            unlock_key: Some(UnlockKey::new([secret; 32])),
            ..Held::default()
        };
        let identity = file.open(&mut held)?;
        Ok((identity, held))
    }

    #[test]
    fn locked_secrets_are_not_in_the_file_and_open_with_their_key_only() {
        let held = held(1);
        let bytes = written(&held);
        let text = String::from_utf8(bytes.clone()).unwrap();
        let log_key = serde_json::to_string(&held.log_keys).unwrap();
        assert!(!text.contains("PRIVATE") && !text.contains(&log_key));
        let (opened, again) = read(&bytes, 1).unwrap();
        assert!(opened == identity() && again.lock_version == 7);
        assert_eq!(serde_json::to_string(&again.log_keys).unwrap(), log_key);
        assert!(matches!(read(&bytes, 2), Err(IdentityError::WrongKey)));
        let file: NodeFile = serde_json::from_slice(&bytes).unwrap();
        let opened = file.open(&mut Held::default());
        assert!(matches!(opened, Err(IdentityError::Locked)));
    }

    #[test]
    fn old_keys_of_a_log_go_and_numbers_do_not_come_again() {
        let mut keys = LogKeys::default();
        for number in 1..4 {
            keys.draw().unwrap();
            keys.keep_newest();
            let numbers: Vec<_> = keys.iter().map(|(number, _)| number).collect();
            assert_eq!(numbers, [number]);
        }
    }

    proptest! {
        #[test]
        fn a_file_that_was_changed_or_cut_gives_no_other_secrets(
            at: prop::sample::Index,
            flip in 1..=255u8,
        ) {
            let bytes = written(&held(1));
            let at = at.index(bytes.len());
            prop_assert!(read(&bytes[..at], 1).is_err());
            let mut changed = bytes;
            changed[at] ^= flip;
            // The public parts may be others: a certificate that does not fit the key is found out later.
            if let Ok((opened, _)) = read(&changed, 1) {
                prop_assert_eq!(&opened.key, "PRIVATE");
            }
        }
    }
}
