//! Which key a manager locks its disk with.

use crate::{api::Cluster, wire::unlock::UnlockKey};

/// The lock that a manager shall have instead of its own, and the version of the cluster that says so. A manager that
/// reads its log again goes through states that are older than the one its lock is of: they change nothing, or a crash
/// in the middle would leave it with a key that nobody keeps any more.
#[must_use]
pub fn wanted(
    cluster: &Cluster,
    own: Option<&UnlockKey>,
    version: u64,
) -> Option<(Option<UnlockKey>, u64)> {
    let newer = cluster.meta.version > version;
    let other = cluster.unlock_key.as_ref() != own;
    (newer && other).then(|| (cluster.unlock_key.clone(), cluster.meta.version))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        api::{ClusterSpec, Meta, RootCa},
        id::Id,
    };

    fn cluster(version: u64, unlock_key: Option<UnlockKey>) -> Cluster {
        Cluster {
            id: Id::from_entropy(1),
            meta: Meta {
                version,
                ..Meta::default()
            },
            spec: ClusterSpec::default(),
            root_ca: RootCa::default(),
            data_path_port: 4789,
            default_addr_pool: Vec::new(),
            subnet_size: 24,
            ingress_subnet: String::new(),
            unlock_key,
            removed_nodes: std::collections::BTreeMap::new(),
        }
    }

    #[test]
    fn a_lock_follows_the_cluster_and_never_goes_back() {
        let key = |byte| Some(UnlockKey::new([byte; 32]));
        let cases = [
            // What the cluster has, at which version; what the manager has, since which version; what it shall take.
            (key(1), 5, None, 0, Some((key(1), 5))),
            (key(2), 6, key(1), 5, Some((key(2), 6))),
            (None, 7, key(2), 6, Some((None, 7))),
            (key(2), 7, key(2), 6, None),
            (key(1), 5, key(2), 6, None),
            (None, 4, key(2), 6, None),
            (None, 4, None, 0, None),
        ];
        for (theirs, at, own, since, expected) in cases {
            let taken = wanted(&cluster(at, theirs), own.as_ref(), since);
            assert_eq!(taken, expected, "{at} {since}");
        }
    }
}
