//! The cluster's settings and tokens.

use std::time::Duration;

use super::{done, invalid, is_empty, names, unsupported};
use crate::{
    api::{ApiError, Cluster, ClusterResponse, ClusterSpec},
    manager::Ctx,
    store::{Change, Proposal, View},
};

const MIN_CERT_EXPIRY: Duration = Duration::from_secs(3600);
const MIN_HEARTBEAT: Duration = Duration::from_millis(100);
const MAX_HEARTBEAT: Duration = Duration::from_secs(600);

/// Changes the settings; `tokens` are the new worker and manager tokens, if they are rotated.
pub(super) fn update(
    view: &View,
    version: u64,
    spec: &ClusterSpec,
    tokens: (Option<&str>, Option<&str>),
    ctx: &mut Ctx,
) -> Result<(Proposal, ClusterResponse), ApiError> {
    let Some(cluster) = view.cluster() else {
        return Err(ApiError::Unavailable(
            "this node is not part of a swarm".to_owned(),
        ));
    };
    if cluster.meta.version != version {
        return Err(ApiError::OutOfSequence);
    }
    check_spec(spec)?;
    let mut cluster = Cluster::clone(cluster);
    cluster.spec = spec.clone();
    "default".clone_into(&mut cluster.spec.name);
    let (worker, manager) = tokens;
    if let Some(token) = worker {
        token.clone_into(&mut cluster.root_ca.join_tokens.worker);
    }
    if let Some(token) = manager {
        token.clone_into(&mut cluster.root_ca.join_tokens.manager);
    }
    cluster.meta.updated_at = ctx.now;
    Ok((Proposal::of([Change::put_cluster(cluster)]), done()))
}

/// Whether the settings of a cluster can be honoured; also for `swarm init`.
///
/// # Errors
/// The first field that can't.
pub(crate) fn check_spec(spec: &ClusterSpec) -> Result<(), ApiError> {
    if !["", "default"].contains(&spec.name.as_str()) {
        return Err(invalid(
            "Name",
            format!("swarm spec name must be default, not {:?}", spec.name),
        ));
    }
    names::check_labels("Labels", &spec.labels)?;
    let heartbeat = spec.dispatcher.heartbeat_period;
    if !heartbeat.is_zero() && !(MIN_HEARTBEAT..=MAX_HEARTBEAT).contains(&heartbeat) {
        return Err(invalid(
            "Dispatcher.HeartbeatPeriod",
            format!("{heartbeat:?} is not from 100 ms to 10 min"),
        ));
    }
    let ca = &spec.ca_config;
    let expiry = ca.node_cert_expiry;
    if !expiry.is_zero() && expiry < MIN_CERT_EXPIRY {
        return Err(invalid(
            "CAConfig.NodeCertExpiry",
            format!("minimum allowed certificate expiry time is 1h, not {expiry:?}"),
        ));
    }
    let flags = [
        (
            "CAConfig.ExternalCAs (--external-ca)",
            !ca.external_cas.is_empty(),
        ),
        (
            "CAConfig.SigningCACert (--ca-cert)",
            !ca.signing_ca_cert.is_empty(),
        ),
        (
            "CAConfig.SigningCAKey (--ca-key)",
            !ca.signing_ca_key.is_empty(),
        ),
        (
            "CAConfig.ForceRotate (swarm ca --rotate)",
            ca.force_rotate != 0,
        ),
        (
            "EncryptionConfig.AutoLockManagers (--autolock)",
            spec.encryption_config
                .as_ref()
                .is_some_and(|it| it.auto_lock_managers),
        ),
        (
            "TaskDefaults",
            spec.task_defaults.as_ref().is_some_and(|it| !is_empty(it)),
        ),
    ];
    match flags.into_iter().find(|(_, set)| *set) {
        Some((field, _)) => Err(unsupported(field)),
        None => Ok(()),
    }
}
