//! Services: what shall run, how often, and how it is reached.

use std::{net::Ipv4Addr, time::Duration};

use serde::{Deserialize, Serialize};

use super::{
    Labels, Meta, Network, Node, Task, TaskSpec, TaskState, is_default, nanos, null_as_default,
};
use crate::{id::Id, time::Timestamp};

/// A service as the store has it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Service {
    /// Identity.
    #[serde(rename = "ID")]
    pub id: Id<Service>,
    /// Version and times.
    pub meta: Meta,
    /// What the user asked for.
    pub spec: ServiceSpec,
    /// What the user asked for before, for a rollback.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub previous_spec: Option<ServiceSpec>,
    /// The version of the object when its task template was changed last.
    pub spec_version: u64,
    /// Addresses and ports given by the allocator.
    pub endpoint: Endpoint,
    /// How the last update went.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub update_status: Option<UpdateStatus>,
    /// Which run of a job this is; absent from services that are no jobs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job_status: Option<JobStatus>,
    /// The user has removed it; it goes when its tasks are gone.
    pub pending_delete: bool,
}

impl Service {
    /// How many tasks it shall have, if it is replicated.
    #[must_use]
    pub fn replicas(&self) -> u64 {
        let replicated = self.spec.mode.replicated.as_ref();
        replicated.and_then(|mode| mode.replicas).unwrap_or(1)
    }

    /// The run that a job is in; `None` for a service that is no job.
    #[must_use]
    pub fn iteration(&self) -> Option<u64> {
        self.job_status.as_ref().map(|job| job.job_iteration)
    }

    /// The slot of one of its tasks.
    #[must_use]
    pub fn slot_of(&self, task: &Task) -> SlotKey {
        match (self.spec.mode.kind(), &task.node_id) {
            (ModeKind::Global | ModeKind::GlobalJob, Some(node)) => SlotKey::Node(node.clone()),
            (_, _) => SlotKey::Number(task.slot),
        }
    }

    /// Whether a task belongs to what the service does now: to the run that it is in, if it is a job.
    #[must_use]
    pub fn is_current(&self, task: &Task) -> bool {
        task.job_iteration == self.iteration()
    }

    /// Whether a task has done its part of the run that the job is in. It counts for good, and must not be
    /// forgotten before that run is over, or its part would be done again.
    #[must_use]
    pub fn counts(&self, task: &Task) -> bool {
        self.iteration().is_some()
            && self.is_current(task)
            && task.status.state == TaskState::Complete
    }

    /// Whether it publishes a port through the routing mesh.
    #[must_use]
    pub fn is_on_ingress(&self) -> bool {
        let ports = self.spec.endpoint_spec.iter().flat_map(|spec| &spec.ports);
        ports
            .into_iter()
            .any(|port| port.publish_mode == PublishMode::Ingress)
    }
}

/// `ServiceSpec` of the Engine API.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default, deny_unknown_fields)]
pub struct ServiceSpec {
    /// Name, a DNS label of at most 63 characters, unique in the cluster.
    pub name: String,
    /// Labels of the service.
    #[serde(deserialize_with = "null_as_default")]
    pub labels: Labels,
    /// What each task is.
    pub task_template: TaskSpec,
    /// How many tasks.
    pub mode: ServiceMode,
    /// How an update proceeds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub update_config: Option<UpdateConfig>,
    /// How a rollback proceeds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollback_config: Option<UpdateConfig>,
    /// How it is reached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint_spec: Option<EndpointSpec>,
    /// The old place of `TaskTemplate.Networks`, still sent by clients before API 1.44.
    #[serde(
        skip_serializing_if = "is_default",
        deserialize_with = "null_as_default"
    )]
    pub networks: Vec<super::NetworkAttachmentConfig>,
}

/// What the tasks of a service that take each other's place have in common.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum SlotKey {
    /// The number of a replica, from 1, or of a replicated job's part, from 0.
    Number(u64),
    /// The node, for services that run once on each.
    Node(Id<Node>),
}

/// Which run of a job this is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct JobStatus {
    /// How often the service was updated: each update runs the job again, from 0.
    pub job_iteration: u64,
    /// When this run was asked for.
    pub last_execution: Timestamp,
}

/// How many tasks a service has. Exactly one field is set; none means one replica.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default, deny_unknown_fields)]
pub struct ServiceMode {
    /// A number of equal tasks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replicated: Option<Replicated>,
    /// One task on each eligible node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub global: Option<Global>,
    /// Tasks that run to their end, a number of times.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replicated_job: Option<ReplicatedJob>,
    /// A task that runs to its end on each eligible node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub global_job: Option<Global>,
}

/// The modes of services.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModeKind {
    /// A number of equal tasks.
    Replicated,
    /// One task on each eligible node.
    Global,
    /// Tasks that run to their end, a number of times.
    ReplicatedJob,
    /// A task that runs to its end on each eligible node.
    GlobalJob,
}

impl ModeKind {
    /// The name by which filters and flags know it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            ModeKind::Replicated => "replicated",
            ModeKind::Global => "global",
            ModeKind::ReplicatedJob => "replicated-job",
            ModeKind::GlobalJob => "global-job",
        }
    }

    /// Whether its tasks are to end.
    #[must_use]
    pub fn is_job(self) -> bool {
        matches!(self, ModeKind::ReplicatedJob | ModeKind::GlobalJob)
    }
}

impl ServiceMode {
    /// Which mode it is.
    #[must_use]
    pub fn kind(&self) -> ModeKind {
        if self.global.is_some() {
            ModeKind::Global
        } else if self.replicated_job.is_some() {
            ModeKind::ReplicatedJob
        } else if self.global_job.is_some() {
            ModeKind::GlobalJob
        } else {
            ModeKind::Replicated
        }
    }
}

/// Modes `global` and `global-job`, which have no settings.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Global {}

/// Mode `replicated-job`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default, deny_unknown_fields)]
pub struct ReplicatedJob {
    /// How many tasks run at a time; 1 when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_concurrent: Option<u64>,
    /// How many tasks must end well; as many as run at a time when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_completions: Option<u64>,
}

impl ReplicatedJob {
    /// How many tasks run at a time.
    #[must_use]
    pub fn concurrent(&self) -> u64 {
        self.max_concurrent.unwrap_or(1)
    }

    /// How many tasks must end well.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.total_completions.unwrap_or_else(|| self.concurrent())
    }
}

/// Mode `replicated`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default, deny_unknown_fields)]
pub struct Replicated {
    /// How many tasks; 1 when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replicas: Option<u64>,
}

/// How an update or a rollback proceeds.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default, deny_unknown_fields)]
pub struct UpdateConfig {
    /// How many tasks at a time; 0 is all. Docker's client sends 1 by default.
    pub parallelism: u64,
    /// Pause between groups.
    #[serde(with = "nanos", skip_serializing_if = "is_default")]
    pub delay: Duration,
    /// `pause`, `continue` or `rollback`; empty is `pause`.
    pub failure_action: String,
    /// How long after its start a task's failure counts against the update; 5 s when 0.
    #[serde(with = "nanos")]
    pub monitor: Duration,
    /// The share of failed tasks that is tolerated, 0 to 1.
    pub max_failure_ratio: f32,
    /// `stop-first` or `start-first`; empty is `stop-first`.
    pub order: String,
}

/// How an update went.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct UpdateStatus {
    /// `updating`, `completed`, `paused`, `rollback_started`, `rollback_paused` or `rollback_completed`.
    pub state: String,
    /// When it began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// When it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<Timestamp>,
    /// What to tell the user.
    pub message: String,
}

/// How a service is reached: the user's wish.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default, deny_unknown_fields)]
pub struct EndpointSpec {
    /// Virtual address or DNS round robin.
    pub mode: EndpointMode,
    /// Published ports.
    #[serde(
        skip_serializing_if = "is_default",
        deserialize_with = "null_as_default"
    )]
    pub ports: Vec<PortConfig>,
}

/// How a service's name resolves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum EndpointMode {
    /// To one virtual address.
    #[default]
    #[serde(rename = "vip", alias = "")]
    Vip,
    /// To the tasks' own addresses.
    #[serde(rename = "dnsrr")]
    DnsRr,
}

/// One published port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default, deny_unknown_fields)]
pub struct PortConfig {
    /// A name for it; informative.
    #[serde(skip_serializing_if = "is_default")]
    pub name: String,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Port in the container.
    pub target_port: u16,
    /// Port on the nodes; 0 lets the allocator choose.
    #[serde(skip_serializing_if = "is_default")]
    pub published_port: u16,
    /// On every node, or on those that run a task.
    pub publish_mode: PublishMode,
}

/// Transport protocols of published ports.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    #[default]
    #[serde(alias = "")]
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// The lower-case name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        }
    }
}

/// Where a published port is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PublishMode {
    /// On every node, through the routing mesh.
    #[default]
    #[serde(alias = "")]
    Ingress,
    /// On the nodes that run a task.
    Host,
}

/// How a service is reached: what the allocator gave.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Endpoint {
    /// The wish that this fulfils.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spec: Option<EndpointSpec>,
    /// Published ports, all numbers filled in.
    pub ports: Vec<PortConfig>,
    /// One per network, the ingress network first.
    #[serde(rename = "VirtualIPs")]
    pub virtual_ips: Vec<VirtualIp>,
}

/// The virtual address of a service on one network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct VirtualIp {
    /// The network.
    #[serde(rename = "NetworkID")]
    pub network_id: Id<Network>,
    /// The address; its prefix is the network's.
    pub addr: Ipv4Addr,
    /// The firewall mark that stands for (service, network) in IPVS, from 256, unique in the cluster.
    pub mark: u32,
}
