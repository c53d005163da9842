//! Tasks: one run of a service's container on one node.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    ContainerSpec, Endpoint, Labels, Meta, Network, Node, PortConfig, ResourceRequirements,
    Service, is_default, nanos, null_as_default,
};
use crate::{id::Id, time::Timestamp};

/// How far a task has come; numbers as swarmkit's `TaskState`. It only ever grows.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
#[repr(u16)]
pub enum TaskState {
    /// Made by an orchestrator.
    #[default]
    New = 0,
    /// Has its addresses and ports; waits for a node.
    Pending = 64,
    /// Has a node.
    Assigned = 192,
    /// The node has taken it.
    Accepted = 256,
    /// The node fetches the image, makes the sandbox and the container.
    Preparing = 320,
    /// All is made; waits until its desired state is Running.
    Ready = 384,
    /// The process is being started.
    Starting = 448,
    /// It runs.
    Running = 512,
    /// It ended with exit code 0.
    Complete = 576,
    /// It was stopped on request.
    Shutdown = 640,
    /// It ended with an error.
    Failed = 704,
    /// It could not be prepared.
    Rejected = 768,
    /// Only as desired state: stop it and forget it.
    Remove = 800,
    /// Its node has been gone for so long that nobody waits for it.
    Orphaned = 832,
}

impl TaskState {
    /// Whether nothing more will happen to a task in this state.
    #[must_use]
    pub fn is_terminal(self) -> bool {
        self > TaskState::Running
    }

    /// Every state, in order.
    pub const ALL: [TaskState; 14] = [
        TaskState::New,
        TaskState::Pending,
        TaskState::Assigned,
        TaskState::Accepted,
        TaskState::Preparing,
        TaskState::Ready,
        TaskState::Starting,
        TaskState::Running,
        TaskState::Complete,
        TaskState::Shutdown,
        TaskState::Failed,
        TaskState::Rejected,
        TaskState::Remove,
        TaskState::Orphaned,
    ];
}

/// A task as the store has it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Task {
    /// Identity.
    #[serde(rename = "ID")]
    pub id: Id<Task>,
    /// Version and times.
    pub meta: Meta,
    /// What it runs: a copy of the service's template at the time it was made.
    pub spec: TaskSpec,
    /// Version of the service's spec that `spec` was copied from.
    pub spec_version: u64,
    /// Its service.
    #[serde(rename = "ServiceID")]
    pub service_id: Id<Service>,
    /// Name of the service, for container and DNS names.
    pub service_name: String,
    /// Labels of the service, for the container's labels.
    pub service_labels: Labels,
    /// Its slot, from 1, or from 0 for a replicated job; 0 for a task that belongs to a node.
    pub slot: u64,
    /// The node that runs it, once one is chosen; for a global service, from the beginning.
    #[serde(rename = "NodeID")]
    pub node_id: Option<Id<Node>>,
    /// What the node has observed.
    pub status: TaskStatus,
    /// What the managers want: Ready, Running, Complete, Shutdown or Remove.
    pub desired_state: TaskState,
    /// Its addresses, the ingress network first.
    pub networks: Vec<NetworkAttachment>,
    /// The service's endpoint when it was allocated.
    pub endpoint: Endpoint,
    /// Desired state Running is not given before this moment (restart delay).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_before: Option<Timestamp>,
    /// The task whose place this one takes; it must have stopped before this one runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub predecessor: Option<Id<Task>>,
    /// When the managers heard that it runs, by the leader's clock; absent if it never did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running_since: Option<Timestamp>,
    /// The run of the job that it is part of; absent from tasks of services that are no jobs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job_iteration: Option<u64>,
}

impl Task {
    /// Whether the managers want it: to be prepared, to run, or to run to its end.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        self.desired_state <= TaskState::Complete
    }

    /// Whether it is wanted and has not ended.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.is_wanted() && !self.status.state.is_terminal()
    }

    /// Whether its node has ever been told of it. Before that nothing of it runs, and once it is not wanted
    /// nothing of it will.
    #[must_use]
    pub fn is_assigned(&self) -> bool {
        self.status.state >= TaskState::Assigned
    }

    /// The desired state of a task that may run: a job's task shall come to its end.
    #[must_use]
    pub fn goal(&self) -> TaskState {
        match self.job_iteration {
            Some(_) => TaskState::Complete,
            None => TaskState::Running,
        }
    }

    /// `<service>.<slot or node id>`, the same for all tasks of a slot.
    #[must_use]
    pub fn slot_name(&self) -> String {
        match (self.slot, &self.node_id) {
            (0, Some(node)) => format!("{}.{node}", self.service_name),
            (slot, _) => format!("{}.{slot}", self.service_name),
        }
    }

    /// `<service>.<slot or node id>.<task id>`, the name of its container.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}.{}", self.slot_name(), self.id)
    }
}

/// `TaskTemplate` of a service.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default, deny_unknown_fields)]
pub struct TaskSpec {
    /// What runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container_spec: Option<ContainerSpec>,
    /// Plugin tasks; not supported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plugin_spec: Option<Value>,
    /// Attachment tasks; not supported from outside.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_attachment_spec: Option<Value>,
    /// Limits and reservations.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,
    /// When and how to start again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restart_policy: Option<RestartPolicy>,
    /// Where it may run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub placement: Option<Placement>,
    /// Networks to join.
    #[serde(
        skip_serializing_if = "is_default",
        deserialize_with = "null_as_default"
    )]
    pub networks: Vec<NetworkAttachmentConfig>,
    /// Where its output goes; the node's json-file logs when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_driver: Option<LogDriver>,
    /// A counter: a change replaces every task.
    pub force_update: u64,
    /// `container` or empty.
    #[serde(skip_serializing_if = "is_default")]
    pub runtime: String,
}

/// A log driver and its options.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default, deny_unknown_fields)]
pub struct LogDriver {
    /// Name of the driver.
    pub name: String,
    /// Its options.
    #[serde(
        skip_serializing_if = "is_default",
        deserialize_with = "null_as_default"
    )]
    pub options: Labels,
}

/// When a task that ended is replaced.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default, deny_unknown_fields)]
pub struct RestartPolicy {
    /// After which ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub condition: Option<RestartCondition>,
    /// Pause before the new task runs; 5 s when absent.
    #[serde(skip_serializing_if = "Option::is_none", with = "nanos::option")]
    pub delay: Option<Duration>,
    /// How often at most; unlimited when absent or 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_attempts: Option<u64>,
    /// The time over which attempts are counted; the whole life when absent or 0.
    #[serde(skip_serializing_if = "Option::is_none", with = "nanos::option")]
    pub window: Option<Duration>,
}

/// After which ends a task is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum RestartCondition {
    /// Never.
    #[serde(rename = "none")]
    None,
    /// When it failed.
    #[serde(rename = "on-failure")]
    OnFailure,
    /// Always.
    #[default]
    #[serde(rename = "any", alias = "")]
    Any,
}

/// Where a task may run.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default, deny_unknown_fields)]
pub struct Placement {
    /// `key==value` and `key!=value` texts; all must hold.
    #[serde(
        skip_serializing_if = "is_default",
        deserialize_with = "null_as_default"
    )]
    pub constraints: Vec<String>,
    /// What to spread over, the widest first.
    #[serde(
        skip_serializing_if = "is_default",
        deserialize_with = "null_as_default"
    )]
    pub preferences: Vec<PlacementPreference>,
    /// At most so many tasks of the service on a node; 0 is unlimited.
    #[serde(skip_serializing_if = "is_default")]
    pub max_replicas: u64,
    /// Platforms that the image is for; empty means any.
    #[serde(
        skip_serializing_if = "is_default",
        deserialize_with = "null_as_default"
    )]
    pub platforms: Vec<super::Platform>,
}

/// One preference of a placement.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default, deny_unknown_fields)]
pub struct PlacementPreference {
    /// Spread over the values of a label; the only preference there is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spread: Option<SpreadOver>,
}

/// What tasks are spread over.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default, deny_unknown_fields)]
pub struct SpreadOver {
    /// `node.labels.<key>` or `engine.labels.<key>`.
    pub spread_descriptor: String,
}

/// One network that a task joins.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default, deny_unknown_fields)]
pub struct NetworkAttachmentConfig {
    /// Network id or name.
    pub target: String,
    /// Further DNS names of the service on this network.
    #[serde(
        skip_serializing_if = "is_default",
        deserialize_with = "null_as_default"
    )]
    pub aliases: Vec<String>,
    /// Driver options; not supported.
    #[serde(
        skip_serializing_if = "is_default",
        deserialize_with = "null_as_default"
    )]
    pub driver_opts: Labels,
}

/// One network with the addresses that a task has on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct NetworkAttachment {
    /// The network.
    #[serde(rename = "NetworkID")]
    pub network_id: Id<Network>,
    /// `address/prefix length` texts; one per address family.
    pub addresses: Vec<String>,
    /// DNS names of the service on this network.
    #[serde(default, skip_serializing_if = "is_default")]
    pub aliases: Vec<String>,
}

/// What a node has observed of a task.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct TaskStatus {
    /// When it was observed.
    pub timestamp: Timestamp,
    /// How far it has come.
    pub state: TaskState,
    /// What is going on (`started`, `preparing` …).
    pub message: String,
    /// Why it ended or cannot go on; empty when all is well.
    #[serde(skip_serializing_if = "is_default")]
    pub err: String,
    /// Its container, once there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container_status: Option<ContainerStatus>,
    /// Ports bound on the node (host mode).
    #[serde(skip_serializing_if = "is_default")]
    pub port_status: Vec<PortConfig>,
}

/// What a node has observed of a task's container.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ContainerStatus {
    /// 64 hexadecimal digits.
    #[serde(rename = "ContainerID")]
    pub container_id: String,
    /// Process id on the node; 0 when it does not run.
    #[serde(rename = "PID")]
    pub pid: i32,
    /// Exit code, once it has ended.
    pub exit_code: i32,
}
