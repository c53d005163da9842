//! The objects of a cluster, in the shape in which Docker's Engine API serves them.
//!
//! One set of types serves the store, the Engine API and D-Bus: a field has one name everywhere.
//! A field that Docker clients send and Skep does not support yet is present here, so that
//! validation can refuse it by name; an unknown field is refused by serde, by name too.

pub mod cluster;
pub mod container;
pub mod dependency;
pub mod network;
pub mod node;
pub mod protobuf;
pub mod request;
pub mod service;
pub mod subnet;
pub mod task;

pub use cluster::{Cluster, ClusterSpec, JoinTokens, RootCa};
pub use container::{ContainerSpec, Mount, MountType, ResourceRequirements, Resources};
pub use dependency::{
    Config, ConfigReference, ConfigSpec, DependencyId, FileTarget, Payload, Secret,
    SecretReference, SecretSpec,
};
pub use network::{DriverState, Ipam, IpamConfig, Network, NetworkSpec};
pub use node::{
    Availability, EngineDescription, ManagerStatus, Membership, Node, NodeDescription, NodeNetwork,
    NodeSpec, NodeState, NodeStatus, Platform, Reachability, Role,
};
pub use request::{ApiError, ClusterRequest, ClusterResponse, Filters};
pub use service::{
    Endpoint, EndpointMode, EndpointSpec, JobStatus, ModeKind, PortConfig, Protocol, PublishMode,
    Service, ServiceMode, ServiceSpec, SlotKey, UpdateConfig, UpdateStatus, VirtualIp,
};
pub use subnet::{InvalidSubnet, Subnet};
pub use task::{
    ContainerStatus, NetworkAttachment, NetworkAttachmentConfig, Placement, PlacementPreference,
    RestartPolicy, SpreadOver, Task, TaskSpec, TaskState, TaskStatus,
};

use serde::{Deserialize, Serialize};

use crate::time::Timestamp;

/// What every object of the store carries.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Meta {
    /// The raft index of the entry that wrote the object last. A writer names the version it read;
    /// a write on another version is refused («update out of sequence»).
    pub version: u64,
    /// When the object was made; set by the proposer.
    pub created_at: Timestamp,
    /// When it was written last; set by the proposer.
    pub updated_at: Timestamp,
}

/// Key to value texts, in key order.
pub type Labels = std::collections::BTreeMap<String, String>;

/// `skip_serializing_if` for fields that Docker omits when they have their zero value.
pub(crate) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// How many bytes a value takes in the log and in snapshots, where all is JSON.
pub(crate) fn encoded_len(value: &impl Serialize) -> usize {
    serde_json::to_vec(value).map_or(usize::MAX, |bytes| bytes.len())
}

/// Durations as Docker's API has them: a count of nanoseconds.
pub mod nanos {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer, de};

    /// Writes nanoseconds.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(u64::try_from(value.as_nanos()).unwrap_or(u64::MAX))
    }

    /// Reads nanoseconds; a negative count is refused.
    ///
    /// # Errors
    /// When the value is not a whole, non-negative number.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        let count = i64::deserialize(deserializer)?;
        u64::try_from(count).map(Duration::from_nanos).map_err(|_| {
            de::Error::custom(format!(
                "duration {count} is negative: give nanoseconds, 0 or more"
            ))
        })
    }

    /// The same for an optional field.
    pub mod option {
        use std::time::Duration;

        use serde::{Deserialize, Deserializer, Serializer};

        /// Writes nanoseconds or null.
        ///
        /// # Errors
        /// Those of the serializer.
        pub fn serialize<S: Serializer>(
            value: &Option<Duration>,
            serializer: S,
        ) -> Result<S::Ok, S::Error> {
            match value {
                Some(value) => super::serialize(value, serializer),
                None => serializer.serialize_none(),
            }
        }

        /// Reads nanoseconds or null.
        ///
        /// # Errors
        /// When the value is not a whole, non-negative number.
        pub fn deserialize<'de, D: Deserializer<'de>>(
            deserializer: D,
        ) -> Result<Option<Duration>, D::Error> {
            #[derive(Deserialize)]
            struct Nanos(#[serde(with = "super")] Duration);
            Ok(Option::<Nanos>::deserialize(deserializer)?.map(|Nanos(value)| value))
        }
    }
}

/// Lists and maps that clients of Go send as `null` when they are empty.
pub(crate) fn null_as_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}
