//! A node's identity on its disk: one file per thing that must change as a whole.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use skep_core::{
    api::{Availability, Cluster, Node, Role},
    id::Id,
    wire::unlock::UnlockKey,
};
use skep_host::storage;
use zeroize::{Zeroize, Zeroizing};

use super::{
    IdentityError,
    lock::{Held, Kept, LogKeys, NodeFile},
};

/// What makes this machine a node of its swarm.
#[derive(Clone, PartialEq, Eq)]
pub struct NodeIdentity {
    /// This node.
    pub node_id: Id<Node>,
    /// Its swarm.
    pub cluster_id: Id<Cluster>,
    /// The role of the certificate.
    pub role: Role,
    /// PEM of the node's private key.
    pub key: String,
    /// PEM of the node's certificate chain, leaf first.
    pub certificate: String,
    /// PEM of the cluster's root certificate, exactly as tokens pin it.
    pub root: String,
}

impl Drop for NodeIdentity {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

impl std::fmt::Debug for NodeIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Keys stay out of logs.
        f.debug_struct("NodeIdentity")
            .field("node_id", &self.node_id)
            .field("role", &self.role)
            .finish_non_exhaustive()
    }
}

/// A join that was begun: a node that loses power goes on with the id that it was given, instead of
/// leaving a second node behind in the managers' store.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joining {
    /// The node id that the managers have given.
    pub node_id: Id<Node>,
    /// PEM of the key.
    pub key: String,
    /// PEM of the request.
    pub request: String,
    /// PEM of the root that was pinned.
    pub root: String,
    /// What the operator asked for.
    #[serde(default)]
    pub wish: JoinWish,
}

/// What a join was begun for: another wish is another join, or a node that was to be a manager would quietly
/// become the worker of an earlier try.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinWish {
    /// SHA-256 of the join token, whose secret is in no file.
    pub token_sha256: [u8; 32],
    /// Whether the node takes tasks.
    pub availability: Availability,
}

/// How to reach managers, kept up to date by sessions.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Managers {
    /// Node id (empty while unknown) and `address:port`.
    pub managers: Vec<(String, String)>,
}

/// How this node came into its swarm, when nothing on the command line says it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// The address that was chosen at init or join by an operator.
    pub advertise: Option<std::net::IpAddr>,
    /// Asked for at join.
    pub availability: Availability,
}

/// The certificate of the management endpoint.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiIdentity {
    /// PEM of the key.
    pub key: String,
    /// PEM of the chain.
    pub certificate: String,
    /// The names that it was made for: other names need another one.
    pub names: Vec<String>,
    /// Whether the cluster's authority has signed it.
    pub by_cluster: bool,
}

/// A manager whose secrets are locked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockedNode {
    /// The node.
    pub node_id: Id<Node>,
    /// The role of its certificate.
    pub role: Role,
}

/// The folder with all of it, and in memory what opens it: clones share that.
///
/// A node's secrets are its private key and, on a manager, the keys of its log ([`LogKeys`]). They are in one file, so
/// that one write locks, unlocks or rotates all of them.
#[derive(Debug, Clone)]
pub struct Vault {
    folder: PathBuf,
    held: Arc<Mutex<Held>>,
}

const NODE: &str = "node.json";
const JOINING: &str = "joining.json";
const MANAGERS: &str = "managers.json";
const SETTINGS: &str = "settings.json";
const API: &str = "api.json";

impl Vault {
    /// Opens the folder, making it if need be.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn open(folder: &Path) -> Result<Self, IdentityError> {
        storage::private_folder(folder)?;
        Ok(Self {
            folder: folder.to_owned(),
            held: Arc::default(),
        })
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The node's identity, if it has one.
    ///
    /// # Errors
    /// When the file is damaged, and [`IdentityError::Locked`].
    pub fn node(&self) -> Result<Option<NodeIdentity>, IdentityError> {
        let Some(file) = self.read::<NodeFile>(NODE)? else {
            return Ok(None);
        };
        file.open(&mut self.held()).map(Some)
    }

    /// The node whose secrets are locked, and which was not unlocked since the daemon has started.
    ///
    /// # Errors
    /// When the file is damaged.
    pub fn locked(&self) -> Result<Option<LockedNode>, IdentityError> {
        let Some(file) = self.read::<NodeFile>(NODE)? else {
            return Ok(None);
        };
        let locked = matches!(file.secrets, Kept::Locked(_)) && self.held().unlock_key.is_none();
        Ok(locked.then_some(LockedNode {
            node_id: file.node_id,
            role: file.role,
        }))
    }

    /// Unlocks the node's secrets, for as long as the daemon lives.
    ///
    /// # Errors
    /// [`IdentityError::WrongKey`], and when the file is damaged or not there.
    pub fn unlock(&self, key: UnlockKey) -> Result<NodeIdentity, IdentityError> {
        let file = self.read::<NodeFile>(NODE)?;
        let missing = || IdentityError::malformed(NODE, "it is not there");
        let mut held = Held {
            unlock_key: Some(key),
            ..Held::default()
        };
        let identity = file.ok_or_else(missing)?.open(&mut held)?;
        *self.held() = held;
        Ok(identity)
    }

    /// Becomes a node, or renews what it is. A join that was begun is over then.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn set_node(&self, identity: &NodeIdentity) -> Result<(), IdentityError> {
        let mut held = self.held();
        if identity.role == Role::Worker {
            // A worker has no log, and its key is never locked.
            *held = Held::default();
        }
        self.write(NODE, &NodeFile::seal(identity, &held)?)?;
        drop(held);
        self.remove(JOINING)
    }

    /// The keys of the manager's log; drawn, and kept before anything is sealed with them, if there are none.
    ///
    /// # Errors
    /// When the kernel gives no randomness or the file system refuses.
    pub fn log_keys(&self) -> Result<LogKeys, IdentityError> {
        let node = self.node()?;
        let mut held = self.held();
        if held.log_keys.is_empty() {
            held.log_keys.draw()?;
            // Before a swarm is made there is no file yet: the keys go into it with the identity.
            if let Some(identity) = node {
                self.write(NODE, &NodeFile::seal(&identity, &held)?)?;
            }
        }
        Ok(held.log_keys.clone())
    }

    /// What the secrets are locked with, and the version of the cluster that says so.
    #[must_use]
    pub fn lock(&self) -> (Option<UnlockKey>, u64) {
        let held = self.held();
        (held.unlock_key.clone(), held.lock_version)
    }

    /// Whether the log has an old key, see [`Vault::drop_old_log_keys`].
    #[must_use]
    pub fn is_rotating(&self) -> bool {
        self.held().log_keys.is_rotating()
    }

    /// Locks the secrets with another key, or with none, and adds a key for the log: what the old ones have sealed must
    /// be sealed again, then [`Vault::drop_old_log_keys`].
    ///
    /// # Errors
    /// When the file cannot be written; all is then as it was.
    pub fn set_lock(&self, key: Option<UnlockKey>, version: u64) -> Result<LogKeys, IdentityError> {
        self.change(|held| {
            held.unlock_key = key;
            held.lock_version = version;
            // With two keys a rotation is under way, which takes the newest one.
            match held.log_keys.is_rotating() {
                true => Ok(()),
                false => held.log_keys.draw(),
            }
        })
    }

    /// Forgets all keys of the log but the newest.
    ///
    /// # Errors
    /// When the file cannot be written; all is then as it was.
    pub fn drop_old_log_keys(&self) -> Result<LogKeys, IdentityError> {
        self.change(|held| {
            held.log_keys.keep_newest();
            Ok(())
        })
    }

    fn change(
        &self,
        change: impl FnOnce(&mut Held) -> Result<(), IdentityError>,
    ) -> Result<LogKeys, IdentityError> {
        let missing = || IdentityError::malformed(NODE, "it is not there");
        let identity = self.node()?.ok_or_else(missing)?;
        let mut held = self.held();
        let mut next = held.clone();
        change(&mut next)?;
        self.write(NODE, &NodeFile::seal(&identity, &next)?)?;
        *held = next;
        Ok(held.log_keys.clone())
    }

    /// The join that was begun.
    ///
    /// # Errors
    /// When the file is damaged.
    pub fn joining(&self) -> Result<Option<Joining>, IdentityError> {
        self.read(JOINING)
    }

    /// Remembers, or with `None` forgets, a join that was begun.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn set_joining(&self, joining: Option<&Joining>) -> Result<(), IdentityError> {
        match joining {
            Some(joining) => self.write(JOINING, joining),
            None => self.remove(JOINING),
        }
    }

    /// The managers that are known.
    ///
    /// # Errors
    /// When the file is damaged.
    pub fn managers(&self) -> Result<Managers, IdentityError> {
        Ok(self.read(MANAGERS)?.unwrap_or_default())
    }

    /// Remembers managers.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn set_managers(&self, managers: &Managers) -> Result<(), IdentityError> {
        self.write(MANAGERS, managers)
    }

    /// How this node came into its swarm.
    ///
    /// # Errors
    /// When the file is damaged.
    pub fn settings(&self) -> Result<Settings, IdentityError> {
        Ok(self.read(SETTINGS)?.unwrap_or_default())
    }

    /// Remembers how this node came into its swarm.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn set_settings(&self, settings: &Settings) -> Result<(), IdentityError> {
        self.write(SETTINGS, settings)
    }

    /// The certificate of the management endpoint.
    ///
    /// # Errors
    /// When the file is damaged.
    pub fn api(&self) -> Result<Option<ApiIdentity>, IdentityError> {
        self.read(API)
    }

    /// Remembers the certificate of the management endpoint.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn set_api(&self, api: &ApiIdentity) -> Result<(), IdentityError> {
        self.write(API, api)
    }

    /// Forgets the swarm. The key goes first: half a removal leaves no node behind.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn forget(&self) -> Result<(), IdentityError> {
        for name in [NODE, JOINING, MANAGERS, SETTINGS, API] {
            self.remove(name)?;
        }
        *self.held() = Held::default();
        Ok(())
    }

    fn read<T: DeserializeOwned>(&self, name: &'static str) -> Result<Option<T>, IdentityError> {
        let Some(bytes) = storage::read(&self.folder.join(name))?.map(Zeroizing::new) else {
            return Ok(None);
        };
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|error| IdentityError::malformed(name, error))
    }

    fn write<T: Serialize>(&self, name: &'static str, value: &T) -> Result<(), IdentityError> {
        let bytes = serde_json::to_vec(value).map(Zeroizing::new);
        let bytes = bytes.map_err(|error| IdentityError::malformed(name, error))?;
        Ok(storage::replace(&self.folder.join(name), &bytes)?)
    }

    fn remove(&self, name: &str) -> Result<(), IdentityError> {
        Ok(storage::remove_file(&self.folder.join(name))?)
    }
}
