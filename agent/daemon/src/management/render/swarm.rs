//! `Swarm` documents and the public part of the cluster's certificate authority.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use skep_core::api::{Cluster, RootCa};
use x509_parser::pem::parse_x509_pem;

use super::object;
use crate::management::document;

/// The cluster as `info` shows it: without the join tokens.
pub fn cluster(cluster: &Cluster) -> Value {
    let mut out = object(cluster.id.as_str(), &cluster.meta);
    out.insert("Spec".to_owned(), spec(cluster));
    out.insert("TLSInfo".to_owned(), tls_info(&cluster.root_ca));
    out.insert("RootRotationInProgress".to_owned(), json!(false));
    out.insert("DataPathPort".to_owned(), json!(cluster.data_path_port));
    out.insert(
        "DefaultAddrPool".to_owned(),
        json!(cluster.default_addr_pool),
    );
    out.insert("SubnetSize".to_owned(), json!(cluster.subnet_size));
    Value::Object(out)
}

/// The cluster as `GET /swarm` shows it to an operator.
pub fn swarm(cluster_object: &Cluster) -> Value {
    let mut out = cluster(cluster_object);
    if let Value::Object(fields) = &mut out {
        let tokens = document::json(&cluster_object.root_ca.join_tokens);
        fields.insert("JoinTokens".to_owned(), tokens);
    }
    out
}

/// The settings with what Skep fixes itself written out, since clients show it.
fn spec(cluster: &Cluster) -> Value {
    let history = cluster.spec.orchestration.task_history_retention_limit;
    let heartbeat = or_default(
        cluster.spec.dispatcher.heartbeat_period.as_nanos(),
        5_000_000_000,
    );
    let expiry = or_default(
        cluster.spec.ca_config.node_cert_expiry.as_nanos(),
        90 * 24 * 3_600 * 1_000_000_000,
    );
    json!({
        "Name": "default",
        "Labels": cluster.spec.labels,
        "Orchestration": { "TaskHistoryRetentionLimit": history.unwrap_or(5) },
        "Raft": raft(),
        "Dispatcher": { "HeartbeatPeriod": heartbeat },
        "CAConfig": { "NodeCertExpiry": expiry },
        "TaskDefaults": {},
        "EncryptionConfig": { "AutoLockManagers": cluster.spec.locks_managers() },
    })
}

/// Docker's raft settings; shown, since clients print them, and not used.
pub fn raft() -> Value {
    json!({
        "SnapshotInterval": 10_000,
        "KeepOldSnapshots": 0,
        "LogEntriesForSlowFollowers": 500,
        "ElectionTick": 10,
        "HeartbeatTick": 1,
    })
}

fn or_default(nanos: u128, default: u64) -> u64 {
    match u64::try_from(nanos) {
        Ok(0) => default,
        Ok(nanos) => nanos,
        Err(_) => u64::MAX,
    }
}

/// `TLSInfo`: the root certificate, and its subject and public key in DER as Docker shows them. An
/// unreadable certificate gives the certificate alone.
pub fn tls_info(root: &RootCa) -> Value {
    let (subject, key) = subject_and_key(&root.certificate).unwrap_or_default();
    json!({
        "TrustRoot": root.certificate,
        "CertIssuerSubject": subject,
        "CertIssuerPublicKey": key,
    })
}

fn subject_and_key(pem: &str) -> Option<(String, String)> {
    let (_, pem) = parse_x509_pem(pem.as_bytes()).ok()?;
    let certificate = pem.parse_x509().ok()?;
    Some((
        STANDARD.encode(certificate.subject().as_raw()),
        STANDARD.encode(certificate.public_key().raw),
    ))
}
