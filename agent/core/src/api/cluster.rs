//! The cluster object: one per swarm.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Labels, Meta, is_default, nanos, null_as_default};
use crate::{id::Id, time::Timestamp, wire::unlock::UnlockKey};

/// The cluster as the store has it.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Cluster {
    /// Identity; the organisation of every node certificate.
    #[serde(rename = "ID")]
    pub id: Id<Cluster>,
    /// Version and times.
    pub meta: Meta,
    /// What the operator wants.
    pub spec: ClusterSpec,
    /// The certificate authority and the join tokens.
    pub root_ca: RootCa,
    /// UDP port of the VXLAN; 4789 unless chosen at init.
    pub data_path_port: u16,
    /// Pools from which overlays get their subnets, `a.b.c.d/n`.
    pub default_addr_pool: Vec<String>,
    /// Prefix length of an overlay's subnet.
    pub subnet_size: u8,
    /// Subnet of the ingress network, `a.b.c.d/n`.
    pub ingress_subnet: String,
    /// What managers lock their disks with; none without autolock. Only managers see it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unlock_key: Option<UnlockKey>,
    /// Nodes that were removed and when: their certificates are refused.
    #[serde(default)]
    pub removed_nodes: std::collections::BTreeMap<Id<super::Node>, Timestamp>,
}

/// `Spec` of the swarm in the Engine API.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default, deny_unknown_fields)]
pub struct ClusterSpec {
    /// Always `default`.
    pub name: String,
    /// Labels of the swarm.
    #[serde(deserialize_with = "null_as_default")]
    pub labels: Labels,
    /// Task history.
    pub orchestration: Orchestration,
    /// Kept for clients; raft is tuned by Skep.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub raft: Option<Value>,
    /// Heartbeats of nodes.
    pub dispatcher: Dispatcher,
    /// Certificates of nodes.
    #[serde(rename = "CAConfig")]
    pub ca_config: CaConfig,
    /// Defaults for tasks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task_defaults: Option<Value>,
    /// Autolock; off when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encryption_config: Option<EncryptionConfig>,
}

impl ClusterSpec {
    /// Whether managers start locked.
    #[must_use]
    pub fn locks_managers(&self) -> bool {
        let encryption = self.encryption_config.as_ref();
        encryption.is_some_and(|config| config.auto_lock_managers)
    }
}

/// Task history.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default, deny_unknown_fields)]
pub struct Orchestration {
    /// Ended tasks kept per slot; 5 when absent, all when negative.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task_history_retention_limit: Option<i64>,
}

/// Heartbeats of nodes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default, deny_unknown_fields)]
pub struct Dispatcher {
    /// Time between two heartbeats; 5 s when 0.
    #[serde(with = "nanos")]
    pub heartbeat_period: Duration,
}

/// Certificates of nodes.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default, deny_unknown_fields)]
pub struct CaConfig {
    /// Life of a node certificate; 90 days when 0, at least one hour.
    #[serde(with = "nanos")]
    pub node_cert_expiry: Duration,
    /// External authorities; not supported yet.
    #[serde(
        rename = "ExternalCAs",
        skip_serializing_if = "is_default",
        deserialize_with = "null_as_default"
    )]
    pub external_cas: Vec<Value>,
    /// Rotation by the client; not supported yet.
    #[serde(rename = "SigningCACert", skip_serializing_if = "is_default")]
    pub signing_ca_cert: String,
    /// Rotation by the client; not supported yet.
    #[serde(rename = "SigningCAKey", skip_serializing_if = "is_default")]
    pub signing_ca_key: String,
    /// Rotation by the client; not supported yet.
    #[serde(skip_serializing_if = "is_default")]
    pub force_rotate: u64,
}

/// Autolock.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default, deny_unknown_fields)]
pub struct EncryptionConfig {
    /// Whether managers start locked.
    pub auto_lock_managers: bool,
}

/// The cluster's certificate authority and its join tokens.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RootCa {
    /// PEM of the root certificate, exactly the bytes that tokens pin.
    pub certificate: String,
    /// PEM of the root key.
    pub key: String,
    /// The tokens.
    pub join_tokens: JoinTokens,
}

/// Join tokens, complete `SWMTKN-1-…` texts.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct JoinTokens {
    /// Joins as worker.
    pub worker: String,
    /// Joins as manager.
    pub manager: String,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Keys and tokens stay out of logs.
        f.debug_struct("Cluster")
            .field("id", &self.id)
            .field("meta", &self.meta)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::ClusterSpec;

    /// What `docker swarm init` of 20.10 to 26.1 sends, every field of its types present.
    const SENT: &str = r#"{"Name": "default", "Labels": null,
        "Orchestration": {"TaskHistoryRetentionLimit": 5},
        "Raft": {"SnapshotInterval": 10000, "KeepOldSnapshots": 0, "LogEntriesForSlowFollowers": 500,
            "ElectionTick": 10, "HeartbeatTick": 1},
        "Dispatcher": {"HeartbeatPeriod": 5000000000},
        "CAConfig": {"NodeCertExpiry": 7776000000000000, "ExternalCAs": null, "SigningCACert": "",
            "SigningCAKey": "", "ForceRotate": 0},
        "TaskDefaults": {"LogDriver": {"Name": "json-file"}},
        "EncryptionConfig": {"AutoLockManagers": false}}"#;

    #[test]
    fn what_docker_sends_is_known_and_survives_the_store() {
        let spec: ClusterSpec = serde_json::from_str(SENT).unwrap();
        assert_eq!(spec.orchestration.task_history_retention_limit, Some(5));
        let stored = serde_json::to_string(&spec).unwrap();
        assert_eq!(serde_json::from_str::<ClusterSpec>(&stored).unwrap(), spec);
        let stored = serde_json::to_string(&ClusterSpec::default()).unwrap();
        assert!(serde_json::from_str::<ClusterSpec>(&stored).is_ok());
    }

    #[test]
    fn an_unknown_field_is_named() {
        for (text, name) in [
            (r#"{"Lables": {}}"#, "Lables"),
            (r#"{"Orchestration": {"History": 1}}"#, "History"),
            (r#"{"Dispatcher": {"Period": 1}}"#, "Period"),
            (r#"{"CAConfig": {"Expiry": 1}}"#, "Expiry"),
            (r#"{"EncryptionConfig": {"AutoLock": true}}"#, "AutoLock"),
        ] {
            let error = serde_json::from_str::<ClusterSpec>(text).unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
        }
    }
}
