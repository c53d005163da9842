//! The cluster's settings and tokens.

use std::time::Duration;

use super::{done, invalid, is_empty, names, unsupported};
use crate::{
    api::{ApiError, Cluster, ClusterResponse, ClusterSpec},
    manager::Ctx,
    store::{Change, Proposal, View},
    wire::unlock::UnlockKey,
};

const MIN_CERT_EXPIRY: Duration = Duration::from_secs(3600);
const MIN_HEARTBEAT: Duration = Duration::from_millis(100);
const MAX_HEARTBEAT: Duration = Duration::from_secs(600);

/// What shall be another one.
pub(super) struct Rotation<'a> {
    pub(super) worker_token: Option<&'a str>,
    pub(super) manager_token: Option<&'a str>,
    /// The unlock key, if another one is needed.
    pub(super) drawn_unlock_key: &'a UnlockKey,
    pub(super) unlock_key: bool,
}

/// Changes the settings and rotates tokens and the unlock key.
pub(super) fn update(
    view: &View,
    version: u64,
    spec: &ClusterSpec,
    rotation: &Rotation<'_>,
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
    cluster.unlock_key = unlock_key(cluster.unlock_key.as_ref(), spec, rotation)?;
    if let Some(token) = rotation.worker_token {
        token.clone_into(&mut cluster.root_ca.join_tokens.worker);
    }
    if let Some(token) = rotation.manager_token {
        token.clone_into(&mut cluster.root_ca.join_tokens.manager);
    }
    cluster.meta.updated_at = ctx.now;
    Ok((Proposal::of([Change::put_cluster(cluster)]), done()))
}

/// The key that managers lock their disks with from now on.
fn unlock_key(
    current: Option<&UnlockKey>,
    spec: &ClusterSpec,
    rotation: &Rotation<'_>,
) -> Result<Option<UnlockKey>, ApiError> {
    match (spec.locks_managers(), current) {
        (false, _) if rotation.unlock_key => Err(ApiError::Precondition(
            "cannot rotate because autolock is not turned on".to_owned(),
        )),
        (false, _) => Ok(None),
        (true, Some(current)) if !rotation.unlock_key => Ok(Some(current.clone())),
        (true, _) => Ok(Some(rotation.drawn_unlock_key.clone())),
    }
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
            "TaskDefaults",
            spec.task_defaults.as_ref().is_some_and(|it| !is_empty(it)),
        ),
    ];
    match flags.into_iter().find(|(_, set)| *set) {
        Some((field, _)) => Err(unsupported(field)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        api::{ClusterRequest, cluster::EncryptionConfig},
        testing::bench::Bench,
    };

    /// Asks for autolock, or not, with a key that was drawn; what the cluster has then.
    fn update(
        bench: &mut Bench,
        autolock: bool,
        drawn: u8,
        rotate: bool,
    ) -> Result<Option<UnlockKey>, ApiError> {
        let view = bench.view();
        let cluster = view.cluster().unwrap();
        let encryption = EncryptionConfig {
            auto_lock_managers: autolock,
        };
        let request = ClusterRequest::ClusterUpdate {
            version: cluster.meta.version,
            spec: Box::new(ClusterSpec {
                encryption_config: Some(encryption),
                ..cluster.spec.clone()
            }),
            new_worker_token: None,
            new_manager_token: None,
            drawn_unlock_key: UnlockKey::new([drawn; 32]),
            rotate_unlock_key: rotate,
        };
        bench.request(&request)?;
        Ok(bench.view().cluster().unwrap().unlock_key.clone())
    }

    #[test]
    fn autolock_takes_a_drawn_key_and_keeps_it_until_it_is_rotated_or_turned_off() {
        let mut bench = Bench::new(1);
        let key = |byte| Ok(Some(UnlockKey::new([byte; 32])));
        assert_eq!(update(&mut bench, false, 1, false), Ok(None));
        assert_eq!(update(&mut bench, true, 2, false), key(2));
        assert_eq!(update(&mut bench, true, 3, false), key(2));
        assert_eq!(update(&mut bench, true, 4, true), key(4));
        assert_eq!(update(&mut bench, false, 5, false), Ok(None));
        let refused = update(&mut bench, false, 6, true).unwrap_err().to_string();
        assert!(refused.contains("autolock is not turned on"), "{refused}");
        assert_eq!(update(&mut bench, true, 7, false), key(7));
    }

    #[test]
    fn a_request_does_not_show_the_key() {
        let request = ClusterRequest::ClusterUpdate {
            version: 1,
            spec: Box::default(),
            new_worker_token: None,
            new_manager_token: None,
            drawn_unlock_key: UnlockKey::new([0xa5; 32]),
            rotate_unlock_key: true,
        };
        let shown = format!("{request:?}");
        assert!(
            !shown.contains("165") && !shown.contains("SWMKEY"),
            "{shown}"
        );
    }
}
