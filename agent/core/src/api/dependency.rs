//! Secrets and configs: what a task depends on besides its image, and how a service refers to it.

use std::{
    fmt,
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::Value;

use super::{ContainerSpec, Labels, Meta, is_default, null_as_default};
use crate::id::Id;

/// Bytes from which on a secret is too large.
pub const MAX_SECRET: usize = 500 * 1024;
/// Bytes from which on a config is too large.
pub const MAX_CONFIG: usize = 1000 * 1024;
/// Bytes of all secrets and configs of one task: they stay in its node's memory.
pub const MAX_TASK_CONTENT: usize = 16 * 1024 * 1024;

/// A secret as the store has it. What leaves the store for a user is rendered without its data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Secret {
    /// Identity.
    #[serde(rename = "ID")]
    pub id: Id<Secret>,
    /// Version and times.
    pub meta: Meta,
    /// What the user gave.
    pub spec: SecretSpec,
}

/// The body of `POST /secrets/create`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default, deny_unknown_fields)]
pub struct SecretSpec {
    /// Name, unique among the secrets of the cluster.
    pub name: String,
    /// Labels of the secret; all of it that an update may change.
    #[serde(deserialize_with = "null_as_default")]
    pub labels: Labels,
    /// The content.
    #[serde(
        skip_serializing_if = "is_default",
        deserialize_with = "null_as_default"
    )]
    pub data: Payload,
    /// A plugin that holds the content; not supported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub driver: Option<Value>,
    /// Templates in the content; not supported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub templating: Option<Value>,
}

/// A config as the store has it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Config {
    /// Identity.
    #[serde(rename = "ID")]
    pub id: Id<Config>,
    /// Version and times.
    pub meta: Meta,
    /// What the user gave.
    pub spec: ConfigSpec,
}

/// The body of `POST /configs/create`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default, deny_unknown_fields)]
pub struct ConfigSpec {
    /// Name, unique among the configs of the cluster.
    pub name: String,
    /// Labels of the config; all of it that an update may change.
    #[serde(deserialize_with = "null_as_default")]
    pub labels: Labels,
    /// The content.
    #[serde(
        skip_serializing_if = "is_default",
        deserialize_with = "null_as_default"
    )]
    pub data: Payload,
    /// Templates in the content; not supported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub templating: Option<Value>,
}

/// The content of a secret or a config; base64 in documents. Cheap to clone, and never part of a log
/// line: its debug form says how long it is and nothing else.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Payload(Arc<[u8]>);

impl Payload {
    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// How many bytes it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether it is the same, in a time that does not tell how much of it is.
    #[must_use]
    pub fn is_same(&self, other: &Payload) -> bool {
        let pairs = self.0.iter().zip(other.0.iter());
        let differing = pairs.fold(0, |differing, (a, b)| differing | (a ^ b));
        self.len() == other.len() && std::hint::black_box(differing) == 0
    }
}

impl From<Vec<u8>> for Payload {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes.into())
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Payload({} bytes)", self.len())
    }
}

impl Serialize for Payload {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&data_encoding::BASE64.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Payload {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = data_encoding::BASE64.decode(text.as_bytes());
        // The error may say where it is wrong, but not what stands there.
        let bytes = bytes.map_err(|error| {
            let at = error.position;
            de::Error::custom(format!(
                "illegal base64 data at input byte {at}: give it in base64 with padding"
            ))
        })?;
        Ok(bytes.into())
    }
}

/// Names a secret or a config.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum DependencyId {
    /// A secret.
    Secret(Id<Secret>),
    /// A config.
    Config(Id<Config>),
}

impl fmt::Display for DependencyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DependencyId::Secret(id) => write!(f, "secret {id}"),
            DependencyId::Config(id) => write!(f, "config {id}"),
        }
    }
}

/// `ContainerSpec.Secrets[…]`: a service uses a secret. Id and name must both be right.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default, deny_unknown_fields)]
pub struct SecretReference {
    /// The file in the container.
    pub file: Option<FileTarget>,
    /// Id of the secret.
    #[serde(rename = "SecretID")]
    pub secret_id: String,
    /// Name of the secret.
    pub secret_name: String,
}

/// `ContainerSpec.Configs[…]`: a service uses a config. Id and name must both be right.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default, deny_unknown_fields)]
pub struct ConfigReference {
    /// The file in the container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<FileTarget>,
    /// For the container's runtime instead of a file; not supported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runtime: Option<Value>,
    /// Id of the config.
    #[serde(rename = "ConfigID")]
    pub config_id: String,
    /// Name of the config.
    pub config_name: String,
}

/// The file in which a container finds a secret or a config.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default, deny_unknown_fields)]
pub struct FileTarget {
    /// Its path: absolute, or below `/run/secrets` for a secret and below `/` for a config.
    pub name: String,
    /// Number of its owner; 0 when empty.
    #[serde(rename = "UID")]
    pub uid: String,
    /// Number of its group; 0 when empty.
    #[serde(rename = "GID")]
    pub gid: String,
    /// Permission bits.
    pub mode: u32,
}

impl Default for FileTarget {
    fn default() -> Self {
        Self {
            name: String::new(),
            uid: "0".to_owned(),
            gid: "0".to_owned(),
            mode: 0o444,
        }
    }
}

/// Which of the two a reference is to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A secret.
    Secret,
    /// A config.
    Config,
}

impl Kind {
    /// The word for one.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Secret => "secret",
            Kind::Config => "config",
        }
    }

    /// Below which a target lies that is not absolute.
    fn base(self) -> &'static Path {
        Path::new(match self {
            Kind::Secret => "/run/secrets",
            Kind::Config => "/",
        })
    }
}

/// A reference of either kind.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reference<'a> {
    /// Which.
    pub kind: Kind,
    /// The id as it was given.
    pub id: &'a str,
    /// The name.
    pub name: &'a str,
    /// The file in the container.
    pub file: Option<&'a FileTarget>,
}

impl Reference<'_> {
    /// What it names; none when the id is none.
    #[must_use]
    pub fn dependency(&self) -> Option<DependencyId> {
        match self.kind {
            Kind::Secret => self.id.parse().ok().map(DependencyId::Secret),
            Kind::Config => self.id.parse().ok().map(DependencyId::Config),
        }
    }

    /// The absolute path of the file in the container.
    ///
    /// # Errors
    /// What is wrong with the target, in one line without the field.
    pub fn path(&self) -> Result<PathBuf, String> {
        let name = self.file.map_or("", |file| file.name.as_str());
        if name.is_empty() || name.contains('\0') {
            return Err(format!("invalid target file name {name:?}: give a path"));
        }
        let mut path = self.kind.base().to_owned();
        for part in Path::new(name).components() {
            match part {
                Component::Normal(part) => path.push(part),
                Component::RootDir => path = PathBuf::from("/"),
                Component::CurDir => {}
                Component::ParentDir | Component::Prefix(_) => {
                    return Err(format!("target {name:?}: leave out .."));
                }
            }
        }
        let taken = ["/proc", "/sys", "/dev"];
        if let Some(taken) = taken.iter().find(|taken| path.starts_with(taken)) {
            return Err(format!(
                "target {name:?}: {taken} is the kernel's own: choose another place"
            ));
        }
        if name.ends_with('/') || path == Path::new("/") || path == self.kind.base() {
            return Err(format!(
                "target {name:?} is a directory: give the path of a file"
            ));
        }
        Ok(path)
    }
}

impl ContainerSpec {
    /// Every secret and config that it refers to, secrets first.
    pub fn references(&self) -> impl Iterator<Item = Reference<'_>> {
        let secrets = self.secrets.iter().map(|one| Reference {
            kind: Kind::Secret,
            id: &one.secret_id,
            name: &one.secret_name,
            file: one.file.as_ref(),
        });
        let configs = self.configs.iter().map(|one| Reference {
            kind: Kind::Config,
            id: &one.config_id,
            name: &one.config_name,
            file: one.file.as_ref(),
        });
        secrets.chain(configs)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn path(kind: Kind, name: &str) -> Result<String, String> {
        let file = FileTarget {
            name: name.to_owned(),
            ..FileTarget::default()
        };
        let reference = Reference {
            kind,
            id: "",
            name: "",
            file: Some(&file),
        };
        let path = reference.path()?;
        Ok(path.to_string_lossy().into_owned())
    }

    #[test]
    fn targets_have_their_place() {
        for (kind, name, place) in [
            (Kind::Secret, "db", "/run/secrets/db"),
            (Kind::Secret, "a/./b", "/run/secrets/a/b"),
            (Kind::Secret, "/etc//db.key", "/etc/db.key"),
            (Kind::Config, "site.conf", "/site.conf"),
            (Kind::Config, "/etc/nginx/x", "/etc/nginx/x"),
        ] {
            assert_eq!(path(kind, name).unwrap(), place);
        }
        for name in [
            "",
            ".",
            "/",
            "x/",
            "..",
            "a/../b",
            "/../etc/x",
            "/run/secrets",
            "a\0b",
            "/proc/1/environ",
            "/sys/x",
            "/dev/shm/x",
        ] {
            assert!(path(Kind::Secret, name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn the_debug_form_of_a_secret_has_none_of_it() {
        let secret: SecretSpec = serde_json::from_str(r#"{"Name":"x","Data":"Y2FuYXJ5"}"#).unwrap();
        assert_eq!(secret.data.bytes(), b"canary");
        let shown = format!("{secret:?}");
        assert!(shown.contains("Payload(6 bytes)"), "{shown}");
        assert!(
            !shown.contains("canary") && !shown.contains("Y2Fu"),
            "{shown}"
        );
        let error = serde_json::from_str::<SecretSpec>(r#"{"Data":"hunter2!"}"#);
        let error = error.unwrap_err().to_string();
        assert!(error.contains("input byte 7"), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
    }

    proptest! {
            #[test]
            fn payloads_survive_a_document(bytes: Vec<u8>, other: Vec<u8>) {
                let payload = Payload::from(bytes.clone());
                let text = serde_json::to_string(&payload).unwrap();
                prop_assert_eq!(&serde_json::from_str::<Payload>(&text).unwrap(), &payload);
                prop_assert!(payload.is_same(&Payload::from(bytes.clone())));
                prop_assert_eq!(payload.is_same(&Payload::from(other.clone())), bytes == other);
            }

            /// Whatever the target is, the file is below the container's root.
            #[test]
            fn no_target_leads_out(name in r"[./a\x00]{0,12}") {
                if let Ok(path) = path(Kind::Secret, &name) {
    let up = path.split('/').any(|part| part == "..");
                    prop_assert!(path.starts_with('/') && !up && !path.ends_with('/'), "{}", path);
                }
            }
        }
}
