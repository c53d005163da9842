//! Nodes of the cluster.

use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};

use super::{Labels, Meta, Network, Resources, is_default, null_as_default};
use crate::{id::Id, time::Timestamp};

/// A node as the store has it. The id is the identity; addresses are attributes that may change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Node {
    /// Identity; the common name of its certificate.
    #[serde(rename = "ID")]
    pub id: Id<Node>,
    /// Version and times.
    pub meta: Meta,
    /// What the operator wants of it.
    pub spec: NodeSpec,
    /// What it said of itself; absent until its first session.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<NodeDescription>,
    /// Whether it is there.
    pub status: NodeStatus,
    /// Present on managers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub manager_status: Option<ManagerStatus>,
    /// Its certificate request and certificate.
    pub certificate: Certificate,
    /// Its address on each network that needs one per node: the ingress network.
    pub networks: Vec<NodeNetwork>,
}

impl Node {
    /// The role that it has, or shall take next: a manager stays one until it is out of the raft group.
    #[must_use]
    pub fn role(&self) -> Role {
        match self.manager_status {
            Some(_) => Role::Manager,
            None => self.spec.role,
        }
    }
}

/// The address that a node itself has on a network (source of mesh traffic from that node).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct NodeNetwork {
    /// The network.
    #[serde(rename = "NetworkID")]
    pub network_id: Id<Network>,
    /// The address; its prefix is the network's.
    pub addr: Ipv4Addr,
}

/// `NodeSpec` of the Engine API.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default, deny_unknown_fields)]
pub struct NodeSpec {
    /// Optional name; not the host name.
    #[serde(skip_serializing_if = "is_default")]
    pub name: String,
    /// Labels for constraints.
    #[serde(deserialize_with = "null_as_default")]
    pub labels: Labels,
    /// The role it shall have.
    pub role: Role,
    /// Whether it takes tasks.
    pub availability: Availability,
    /// Whether it may join; always accepted.
    #[serde(skip_serializing_if = "is_default")]
    pub membership: Membership,
}

/// Membership of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Membership {
    /// Waits for an operator.
    Pending,
    /// Belongs to the cluster.
    #[default]
    Accepted,
}

/// Roles of nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Runs tasks.
    #[default]
    Worker,
    /// Runs tasks and the control plane.
    Manager,
}

/// Whether a node takes tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Availability {
    /// Takes tasks.
    #[default]
    #[serde(alias = "")]
    Active,
    /// Keeps its tasks and takes no new ones.
    Pause,
    /// Gives its tasks up.
    Drain,
}

/// What a node says of itself.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct NodeDescription {
    /// Host name (`skep.name=`).
    pub hostname: String,
    /// Machine kind.
    pub platform: Platform,
    /// What it has.
    pub resources: Resources,
    /// The agent.
    pub engine: EngineDescription,
    /// IPv4 ranges, `a.b.c.d/n`, that its own routes use; overlays stay out of them.
    #[serde(skip_serializing_if = "is_default")]
    pub routes: Vec<String>,
    /// The machine id, to tell two machines with one identity apart.
    #[serde(skip_serializing_if = "is_default")]
    pub machine_id: String,
}

/// A machine kind.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default, deny_unknown_fields)]
pub struct Platform {
    /// `x86_64`, `aarch64` …
    pub architecture: String,
    /// `linux`.
    #[serde(rename = "OS")]
    pub os: String,
}

/// What a node's agent is and can do.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct EngineDescription {
    /// Version of the agent.
    pub engine_version: String,
    /// Labels of the agent.
    #[serde(skip_serializing_if = "is_default")]
    pub labels: Labels,
    /// (kind, name) of each driver, such as (`Network`, `overlay`).
    #[serde(skip_serializing_if = "is_default")]
    pub plugins: Vec<(String, String)>,
}

/// Whether a node is there.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct NodeStatus {
    /// Its state.
    pub state: NodeState,
    /// Why.
    #[serde(skip_serializing_if = "is_default")]
    pub message: String,
    /// The address that it advertises: VTEP and control plane.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub addr: Option<IpAddr>,
    /// When the state was last changed.
    pub since: Timestamp,
}

/// States of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    /// Not heard of since the leader began.
    #[default]
    Unknown,
    /// Silent.
    Down,
    /// In a session.
    Ready,
    /// Between sessions.
    Disconnected,
}

/// What a manager is in the raft group.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ManagerStatus {
    /// Its id in the raft group.
    pub raft_id: u64,
    /// Whether it leads.
    pub leader: bool,
    /// Whether the leader reaches it.
    pub reachability: Reachability,
    /// `address:2377`.
    pub addr: String,
}

/// Whether a manager is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reachability {
    /// Not known yet.
    #[default]
    Unknown,
    /// It does not answer.
    Unreachable,
    /// It answers.
    Reachable,
}

/// The state of a node's certificate; numbers as swarmkit's `IssuanceStatus.State`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IssuanceState {
    /// None asked for.
    #[default]
    Unknown = 0,
    /// The node has asked for a new one.
    Renew = 1,
    /// Asked for; not signed yet.
    Pending = 2,
    /// Signed.
    Issued = 3,
    /// Refused.
    Failed = 4,
    /// The node shall ask for a new one.
    Rotate = 5,
}

/// A node's certificate request and what came of it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Certificate {
    /// The role that the certificate is for.
    pub role: Role,
    /// PEM of the request.
    #[serde(rename = "CSR", skip_serializing_if = "is_default")]
    pub csr: String,
    /// Its state.
    pub state: IssuanceState,
    /// Why it failed.
    #[serde(skip_serializing_if = "is_default")]
    pub err: String,
    /// PEM chain, leaf first.
    #[serde(skip_serializing_if = "is_default")]
    pub certificate: String,
}
