//! A node's identity on its disk: one file per thing that must change as a whole.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use skep_core::{
    api::{Availability, Cluster, Node, Role},
    id::Id,
};
use skep_host::storage;

use super::IdentityError;

/// What makes this machine a node of its swarm.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
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

/// The folder with all of it.
#[derive(Debug, Clone)]
pub struct Vault {
    folder: PathBuf,
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
        })
    }

    /// The node's identity, if it has one.
    ///
    /// # Errors
    /// When the file is damaged.
    pub fn node(&self) -> Result<Option<NodeIdentity>, IdentityError> {
        self.read(NODE)
    }

    /// Becomes a node, or renews what it is. A join that was begun is over then.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn set_node(&self, identity: &NodeIdentity) -> Result<(), IdentityError> {
        self.write(NODE, identity)?;
        self.remove(JOINING)
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
        Ok(())
    }

    fn read<T: DeserializeOwned>(&self, name: &'static str) -> Result<Option<T>, IdentityError> {
        let Some(bytes) = storage::read(&self.folder.join(name))? else {
            return Ok(None);
        };
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|error| IdentityError::malformed(name, error))
    }

    fn write<T: Serialize>(&self, name: &'static str, value: &T) -> Result<(), IdentityError> {
        let bytes =
            serde_json::to_vec(value).map_err(|error| IdentityError::malformed(name, error))?;
        Ok(storage::replace(&self.folder.join(name), &bytes)?)
    }

    fn remove(&self, name: &str) -> Result<(), IdentityError> {
        Ok(storage::remove_file(&self.folder.join(name))?)
    }
}
