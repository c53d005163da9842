//! What a task runs: the container part of a task's spec, field by field as Docker has it.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{ConfigReference, Labels, SecretReference, is_default, nanos, null_as_default};

/// `TaskTemplate.ContainerSpec`. The fields that end in `: Option<Value>` are known to Docker and not
/// supported here yet: validation refuses them by name unless they are absent or empty.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default, deny_unknown_fields)]
pub struct ContainerSpec {
    /// Image reference, with a digest once the client has resolved it.
    pub image: String,
    /// Labels of the container.
    #[serde(
        skip_serializing_if = "is_default",
        deserialize_with = "null_as_default"
    )]
    pub labels: Labels,
    /// Replaces the image's entrypoint.
    #[serde(
        skip_serializing_if = "is_default",
        deserialize_with = "null_as_default"
    )]
    pub command: Vec<String>,
    /// Replaces the image's command.
    #[serde(
        skip_serializing_if = "is_default",
        deserialize_with = "null_as_default"
    )]
    pub args: Vec<String>,
    /// Host name inside; the 12-digit container id when empty.
    #[serde(skip_serializing_if = "is_default")]
    pub hostname: String,
    /// `KEY=value` texts over the image's own.
    #[serde(
        skip_serializing_if = "is_default",
        deserialize_with = "null_as_default"
    )]
    pub env: Vec<String>,
    /// Working directory; the image's when empty.
    #[serde(skip_serializing_if = "is_default")]
    pub dir: String,
    /// `user[:group]`, names or numbers; the image's when empty.
    #[serde(skip_serializing_if = "is_default")]
    pub user: String,
    /// Additional groups.
    #[serde(
        skip_serializing_if = "is_default",
        deserialize_with = "null_as_default"
    )]
    pub groups: Vec<String>,
    /// Privilege settings (SELinux, seccomp, AppArmor, no-new-privileges).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub privileges: Option<Value>,
    /// Allocate a terminal.
    #[serde(rename = "TTY", skip_serializing_if = "is_default")]
    pub tty: bool,
    /// Keep standard input open.
    #[serde(skip_serializing_if = "is_default")]
    pub open_stdin: bool,
    /// Mount the root file system read-only.
    #[serde(skip_serializing_if = "is_default")]
    pub read_only: bool,
    /// Bind mounts, volumes and tmpfs.
    #[serde(
        skip_serializing_if = "is_default",
        deserialize_with = "null_as_default"
    )]
    pub mounts: Vec<Mount>,
    /// Signal that asks the process to stop; the image's or SIGTERM when empty.
    #[serde(skip_serializing_if = "is_default")]
    pub stop_signal: String,
    /// How long after that signal SIGKILL follows; 10 s when absent.
    #[serde(skip_serializing_if = "Option::is_none", with = "nanos::option")]
    pub stop_grace_period: Option<Duration>,
    /// Health check of the container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<Value>,
    /// Extra lines of `/etc/hosts`, each `IP name…`.
    #[serde(
        skip_serializing_if = "is_default",
        deserialize_with = "null_as_default"
    )]
    pub hosts: Vec<String>,
    /// Resolver settings.
    #[serde(rename = "DNSConfig", skip_serializing_if = "Option::is_none")]
    pub dns_config: Option<DnsConfig>,
    /// References to secrets.
    #[serde(
        skip_serializing_if = "is_default",
        deserialize_with = "null_as_default"
    )]
    pub secrets: Vec<SecretReference>,
    /// References to configs.
    #[serde(
        skip_serializing_if = "is_default",
        deserialize_with = "null_as_default"
    )]
    pub configs: Vec<ConfigReference>,
    /// Windows only; `default` and empty are accepted.
    #[serde(skip_serializing_if = "is_default")]
    pub isolation: String,
    /// Run an init process as PID 1 of the container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init: Option<bool>,
    /// Namespaced sysctls.
    #[serde(
        skip_serializing_if = "is_default",
        deserialize_with = "null_as_default"
    )]
    pub sysctls: BTreeMap<String, String>,
    /// Capabilities over Docker's default set, with or without `CAP_`.
    #[serde(
        skip_serializing_if = "is_default",
        deserialize_with = "null_as_default"
    )]
    pub capability_add: Vec<String>,
    /// Capabilities taken from Docker's default set.
    #[serde(
        skip_serializing_if = "is_default",
        deserialize_with = "null_as_default"
    )]
    pub capability_drop: Vec<String>,
    /// Resource limits of the process.
    #[serde(
        skip_serializing_if = "is_default",
        deserialize_with = "null_as_default"
    )]
    pub ulimits: Vec<Ulimit>,
    /// Adjustment of the out-of-memory score, -1000 to 1000.
    #[serde(skip_serializing_if = "is_default")]
    pub oom_score_adj: i64,
}

/// Resolver settings of a container.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default, deny_unknown_fields)]
pub struct DnsConfig {
    /// Name servers that the node asks for this container.
    #[serde(
        skip_serializing_if = "is_default",
        deserialize_with = "null_as_default"
    )]
    pub nameservers: Vec<String>,
    /// Search domains.
    #[serde(
        skip_serializing_if = "is_default",
        deserialize_with = "null_as_default"
    )]
    pub search: Vec<String>,
    /// Resolver options.
    #[serde(
        skip_serializing_if = "is_default",
        deserialize_with = "null_as_default"
    )]
    pub options: Vec<String>,
}

/// One limit of `setrlimit(2)`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default, deny_unknown_fields)]
pub struct Ulimit {
    /// Name as `ulimit` has it: `nofile`, `nproc` …
    pub name: String,
    /// Hard limit; -1 is unlimited.
    pub hard: i64,
    /// Soft limit; -1 is unlimited.
    pub soft: i64,
}

/// One mount of a container.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default, deny_unknown_fields)]
pub struct Mount {
    /// What is mounted.
    #[serde(rename = "Type")]
    pub kind: MountType,
    /// Path on the node (bind) or volume name; empty for tmpfs and anonymous volumes.
    #[serde(skip_serializing_if = "is_default")]
    pub source: String,
    /// Absolute path in the container.
    pub target: String,
    /// Mount read-only.
    #[serde(skip_serializing_if = "is_default")]
    pub read_only: bool,
    /// Ignored on Linux by Docker too.
    #[serde(skip_serializing_if = "is_default")]
    pub consistency: String,
    /// Options of a bind mount.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bind_options: Option<Value>,
    /// Options of a volume.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume_options: Option<Value>,
    /// Options of a tmpfs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tmpfs_options: Option<TmpfsOptions>,
}

/// Options of a tmpfs mount.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default, deny_unknown_fields)]
pub struct TmpfsOptions {
    /// Size limit in bytes; 0 is half of the memory.
    #[serde(skip_serializing_if = "is_default")]
    pub size_bytes: i64,
    /// Permission bits; 0 is 01777.
    #[serde(skip_serializing_if = "is_default")]
    pub mode: u32,
}

/// Kinds of mounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MountType {
    /// A path of the node.
    #[default]
    Bind,
    /// A volume of the node.
    Volume,
    /// Memory.
    Tmpfs,
    /// A named pipe (Windows).
    Npipe,
    /// A CSI volume.
    Cluster,
    /// An image.
    Image,
}

/// CPU, memory and process counts.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default, deny_unknown_fields)]
pub struct Resources {
    /// CPU time in billionths of a core.
    #[serde(rename = "NanoCPUs", skip_serializing_if = "is_default")]
    pub nano_cpus: i64,
    /// Memory in bytes.
    #[serde(skip_serializing_if = "is_default")]
    pub memory_bytes: i64,
    /// Number of processes; only as a limit. 0 is unlimited.
    #[serde(skip_serializing_if = "is_default")]
    pub pids: i64,
    /// User-defined resources.
    #[serde(
        skip_serializing_if = "is_default",
        deserialize_with = "null_as_default"
    )]
    pub generic_resources: Vec<Value>,
}

/// Limits that the kernel enforces and reservations that the scheduler counts.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default, deny_unknown_fields)]
pub struct ResourceRequirements {
    /// Upper bounds at run time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<Resources>,
    /// What a node must have free.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reservations: Option<Resources>,
    /// Swap, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap_bytes: Option<i64>,
    /// Swappiness, 0 to 100.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_swappiness: Option<i64>,
}
