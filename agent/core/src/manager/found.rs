//! A new cluster: its object and its first node.

use std::net::IpAddr;

use super::{Ctx, control};
use crate::{
    api::{
        ApiError, Availability, Cluster, ClusterSpec, ManagerStatus, Meta, Node, NodeSpec,
        NodeStatus, Reachability, Role, RootCa, Subnet,
        node::{Certificate, IssuanceState},
    },
    id::Id,
    network::mesh::VXLAN_PORT,
    store::{Change, Proposal},
    wire::unlock::UnlockKey,
};

/// The subnet of the routing mesh, as the articles have it.
const INGRESS_SUBNET: &str = "10.255.0.0/16";
/// Where overlays get their subnets from.
const ADDRESS_POOL: &str = "10.0.0.0/8";
/// Prefix length of an overlay's subnet.
const SUBNET_SIZE: u8 = 24;

/// What a new cluster is made from. Zero and empty mean Docker's default.
#[derive(Clone)]
pub struct Foundation {
    /// Identity of the cluster.
    pub cluster_id: Id<Cluster>,
    /// Authority and join tokens.
    pub root_ca: RootCa,
    /// Settings.
    pub spec: ClusterSpec,
    /// What managers lock their disks with, if the settings want it.
    pub drawn_unlock_key: UnlockKey,
    /// Pools for overlays, `a.b.c.d/n`.
    pub default_addr_pool: Vec<String>,
    /// Prefix length of an overlay's subnet.
    pub subnet_size: u8,
    /// UDP port of the VXLAN.
    pub data_path_port: u16,
    /// The first node.
    pub node_id: Id<Node>,
    /// PEM of its certificate chain.
    pub certificate: String,
    /// Its number in the raft group.
    pub raft_id: u64,
    /// The address by which others reach it.
    pub addr: IpAddr,
    /// `address:port` of its 2377.
    pub manager_addr: String,
    /// Whether it takes tasks.
    pub availability: Availability,
}

/// The first proposal of a cluster.
///
/// # Errors
/// The field that can't be taken.
pub fn found(from: Foundation, ctx: &Ctx) -> Result<Proposal, ApiError> {
    control::check_cluster_spec(&from.spec)?;
    check_pools(&from)?;
    let meta = Meta {
        version: 0,
        created_at: ctx.now,
        updated_at: ctx.now,
    };
    let mut spec = from.spec;
    let unlock_key = spec.locks_managers().then_some(from.drawn_unlock_key);
    "default".clone_into(&mut spec.name);
    let or = |value: u16, default| if value == 0 { default } else { value };
    let pools = match from.default_addr_pool.is_empty() {
        true => vec![ADDRESS_POOL.to_owned()],
        false => from.default_addr_pool,
    };
    let cluster = Cluster {
        id: from.cluster_id,
        meta: meta.clone(),
        spec,
        root_ca: from.root_ca,
        data_path_port: or(from.data_path_port, VXLAN_PORT),
        default_addr_pool: pools,
        subnet_size: match from.subnet_size {
            0 => SUBNET_SIZE,
            size => size,
        },
        ingress_subnet: INGRESS_SUBNET.to_owned(),
        unlock_key,
        removed_nodes: std::collections::BTreeMap::new(),
    };
    let node = Node {
        id: from.node_id,
        meta,
        spec: NodeSpec {
            role: Role::Manager,
            availability: from.availability,
            ..NodeSpec::default()
        },
        description: None,
        status: NodeStatus {
            addr: Some(from.addr),
            since: ctx.now,
            ..NodeStatus::default()
        },
        manager_status: Some(ManagerStatus {
            raft_id: from.raft_id,
            leader: true,
            reachability: Reachability::Reachable,
            addr: from.manager_addr,
        }),
        certificate: Certificate {
            role: Role::Manager,
            state: IssuanceState::Issued,
            certificate: from.certificate,
            ..Certificate::default()
        },
        networks: Vec::new(),
    };
    Ok(Proposal::of([
        Change::put_cluster(cluster),
        Change::put_node(node),
    ]))
}

fn check_pools(from: &Foundation) -> Result<(), ApiError> {
    let invalid = |field: &str, why: String| {
        Err(ApiError::Invalid {
            field: field.to_owned(),
            why,
        })
    };
    let size = match from.subnet_size {
        0 => SUBNET_SIZE,
        size => size,
    };
    let mut pools: Vec<Subnet> = Vec::new();
    for text in &from.default_addr_pool {
        let pool = match text.parse::<Subnet>() {
            Ok(pool) => pool,
            Err(error) => return invalid("DefaultAddrPool", error.to_string()),
        };
        if pool.prefix() > size {
            let why = format!(
                "{pool} is smaller than one subnet (/{size}): give a larger pool, or smaller subnets"
            );
            return invalid("DefaultAddrPool", why);
        }
        if let Some(other) = pools.iter().find(|other| other.overlaps(&pool)) {
            return invalid("DefaultAddrPool", format!("{pool} overlaps with {other}"));
        }
        pools.push(pool);
    }
    if from.subnet_size != 0 && !(8..=29).contains(&from.subnet_size) {
        let why = format!("{} is not from 8 to 29", from.subnet_size);
        return invalid("SubnetSize", why);
    }
    if from.data_path_port != 0 && !(1024..=49151).contains(&from.data_path_port) {
        let why = format!("{} is not from 1024 to 49151", from.data_path_port);
        return invalid("DataPathPort", why);
    }
    Ok(())
}
