//! What the host needs to make one container: data only, decided before anything is touched.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use oci_spec::runtime::Spec;
use serde::{Deserialize, Serialize};

use crate::api::DependencyId;

/// The id of a container: 64 lower-case hexadecimal digits, as Docker's.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ContainerId(String);

impl ContainerId {
    /// The id made of 32 bytes of entropy.
    pub fn from_entropy(entropy: [u8; 32]) -> Self {
        Self(data_encoding::HEXLOWER.encode(&entropy))
    }

    /// Parses an id; `None` unless it is exactly 64 lower-case hexadecimal digits.
    pub fn parse(text: &str) -> Option<Self> {
        let well_formed = text.len() == 64
            && text
                .bytes()
                .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        well_formed.then(|| Self(text.to_owned()))
    }

    /// All 64 digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first 12 digits: the container's hostname and the id in tables.
    pub fn short(&self) -> &str {
        &self.0[..12]
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for ContainerId {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text).ok_or_else(|| format!("not a container id: {text:?}"))
    }
}

impl From<ContainerId> for String {
    fn from(id: ContainerId) -> Self {
        id.0
    }
}

/// Everything about one container that was decided. The host adds only what it must look up in the
/// mounted root: the numbers of the user, the home directory and the place of the root itself.
///
/// Kept as JSON beside the running container, so that a restarted skepd knows what it adopts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ContainerPlan {
    /// The container's id; directories, cgroup and socket are named by it.
    pub id: ContainerId,
    /// The name in `ps`: `web.1.<task id>`, or of the operator's choice.
    pub name: String,
    /// The image as the user wrote it, for `ps`.
    pub image: String,
    /// The image's id (`sha256:…` of its configuration): its layers are the root.
    pub image_id: String,
    /// Docker labels, with the `com.docker.swarm.*` ones of a task.
    pub labels: BTreeMap<String, String>,
    /// Unix nanoseconds at which the container was decided.
    pub created_at: u64,
    /// The OCI runtime specification without `process.user`'s numbers.
    pub spec: Spec,
    /// The user in Docker's form (`name`, `uid`, `name:group`, `uid:gid`, or empty for root).
    pub user: String,
    /// Names of extra groups of the process (`--group`), looked up in the image.
    pub groups: Vec<String>,
    /// Contents of the files that are bound over the image's own.
    pub files: EtcFiles,
    /// Local volumes to make before the container is.
    pub volumes: Vec<VolumeUse>,
    /// Secrets and configs as files; their mounts are already in the specification.
    #[serde(default)]
    pub provided: Vec<ProvidedFile>,
    /// How standard input and output are joined.
    pub stdio: Stdio,
    /// How the json-file log is bounded.
    pub log: LogLimits,
    /// The signal that asks the main process to stop.
    pub stop_signal: i32,
    /// Nanoseconds between the stop signal and SIGKILL.
    pub stop_grace: u64,
}

/// Contents of `/etc/hosts`, `/etc/hostname` and `/etc/resolv.conf`; `None` leaves the image's own file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EtcFiles {
    /// `/etc/hosts`.
    pub hosts: Option<String>,
    /// `/etc/hostname`.
    pub hostname: Option<String>,
    /// `/etc/resolv.conf`.
    pub resolv_conf: Option<String>,
}

/// A local volume that a container uses; its bind mount is already in the specification.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeUse {
    /// The volume's name, a single path component.
    pub name: String,
    /// Where the container sees it.
    pub destination: PathBuf,
    /// Whether an empty volume first takes a copy of what the image has at the destination.
    pub copy: bool,
    /// Whether the volume has no name of its own and goes with the container.
    pub anonymous: bool,
}

/// The directory of a container's secrets and configs, in its own directory on the tmpfs. What is in it only the
/// container and its shim can see.
pub const PROVIDED: &str = "provided";

/// A file with a secret or config. Its content is not in the plan, which is written down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProvidedFile {
    /// The name of the file in [`PROVIDED`].
    pub name: String,
    /// What it is the content of.
    pub dependency: DependencyId,
    /// Number of its owner.
    pub uid: u32,
    /// Number of its group.
    pub gid: u32,
    /// Permission bits.
    pub mode: u32,
}

/// How standard input and output of the main process are joined.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stdio {
    /// A terminal instead of three pipes.
    pub tty: bool,
    /// Standard input stays open for an attached client; otherwise it is `/dev/null`.
    pub open_stdin: bool,
}

/// Bounds of a container's json-file log. Docker's own default has no bound; ours has, since a node
/// whose disk is full of logs helps nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLimits {
    /// Bytes after which a file is rotated.
    pub max_size: u64,
    /// Number of files kept, the current one included; 0 writes no log (driver `none`).
    pub max_files: u32,
}

impl Default for LogLimits {
    fn default() -> Self {
        Self {
            max_size: 10 * 1024 * 1024,
            max_files: 3,
        }
    }
}
