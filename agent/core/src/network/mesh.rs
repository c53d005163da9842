//! The inputs: the mesh map of the managers, the sandboxes of this node, the node itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

use serde::{Deserialize, Serialize};

use super::address::{Ipv4Net, Mac};
use crate::{
    api::{Network, Node, Protocol, Service, Task},
    id::Id,
};

/// UDP port of VXLAN unless the cluster says otherwise (RFC 7348).
pub const VXLAN_PORT: u16 = 4789;

/// What the managers stream to a node: the networks that it takes part in, complete.
///
/// Versions grow; a node refuses a lower one, so that a manager that lags cannot take it back.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MeshMap {
    /// The raft index of the state that this was computed from.
    pub version: u64,
    /// The nodes that the endpoints below live on, and those with an ingress address.
    pub nodes: BTreeMap<Id<Node>, MeshNode>,
    /// The ingress network, and each network with a task on this node.
    pub networks: BTreeMap<Id<Network>, MeshNetwork>,
}

/// A peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeshNode {
    /// Its name, for people.
    pub hostname: String,
    /// Where its VXLAN packets come from and go to.
    pub vtep: IpAddr,
    /// False while it is suspected or down: its endpoints get weight 0 but keep their identity.
    pub alive: bool,
}

/// One overlay network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeshNetwork {
    /// Name, unique in the cluster: `my-demo`.
    pub name: String,
    /// VXLAN network identifier, 24 bits.
    pub vni: u32,
    /// Its subnet, host part zero.
    pub subnet: Ipv4Net,
    /// Address of the bridge, the same on each node.
    pub gateway: Ipv4Addr,
    /// No way to the outside.
    pub internal: bool,
    /// The routing mesh's own network.
    pub ingress: bool,
    /// UDP port of the VXLAN packets.
    pub vxlan_port: u16,
    /// MTU of its interfaces in bytes: the underlay's less 50.
    pub mtu: u32,
    /// The address of each node itself (ingress only): source of the mesh traffic of that node.
    pub node_addresses: BTreeMap<Id<Node>, Ipv4Addr>,
    /// Tasks on it.
    pub endpoints: BTreeMap<Id<Task>, MeshEndpoint>,
    /// Services on it.
    pub services: BTreeMap<Id<Service>, MeshService>,
}

/// A task on a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeshEndpoint {
    /// The container's name, `whoami.1.<task id>`.
    pub name: String,
    /// Its service; none for a stand-alone container.
    pub service_id: Option<Id<Service>>,
    /// The node that it runs on.
    pub node_id: Id<Node>,
    /// Its address on the network.
    pub address: Ipv4Addr,
    /// Whether load balancers and DNS may give it new connections.
    pub in_service: bool,
    /// Further names of this task alone.
    pub aliases: Vec<String>,
}

impl MeshEndpoint {
    /// Its MAC address, which follows from its address.
    #[must_use]
    pub const fn mac(&self) -> Mac {
        Mac::of(self.address)
    }
}

/// A service on a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeshService {
    /// Its name, `whoami`.
    pub name: String,
    /// Further names on this network.
    pub aliases: Vec<String>,
    /// Its virtual address; none with endpoint mode dnsrr.
    pub vip: Option<Ipv4Addr>,
    /// The firewall mark that stands for (service, network); from 256, unique in the cluster.
    /// 0 when there is no VIP.
    pub mark: u32,
    /// Published ports (ingress network only).
    pub ports: Vec<MeshPort>,
}

/// A published port of the routing mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct MeshPort {
    /// Transport protocol.
    pub protocol: Protocol,
    /// Port on every node.
    pub published: u16,
    /// Port in the container.
    pub target: u16,
}

/// The network namespace of one of this node's containers.
///
/// The set of sandboxes is complete: the namespace of a container that is not in it is removed. After a
/// restart the running containers must therefore be known before the first pass.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sandbox {
    /// 64 hexadecimal digits; the first twelve name the namespace.
    pub container_id: String,
    /// Name of the container.
    pub name: String,
    /// Its host name, the short container id unless the spec says otherwise.
    pub hostname: String,
    /// The task that it runs; none for a stand-alone container.
    pub task_id: Option<Id<Task>>,
    /// The service of the task.
    pub service_id: Option<Id<Service>>,
    /// Its address on `docker_gwbridge`, see [`NodeNet::free_gateway_address`]. Unused when all
    /// its networks are internal.
    pub gateway_address: Option<Ipv4Addr>,
    /// Overlay networks in the order of the task: the ingress network first.
    pub attachments: Vec<Attachment>,
    /// The ports that the task was made with; they are redirected on its ingress address.
    pub ports: Vec<MeshPort>,
    /// Where its questions about names outside the swarm go; none means the node's own name servers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub name_servers: Vec<IpAddr>,
}

/// One overlay network of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// The network.
    pub network_id: Id<Network>,
    /// The sandbox's address on it.
    pub address: Ipv4Addr,
}

impl Sandbox {
    /// The first twelve digits of the container id: name of the namespace and usual host name.
    #[must_use]
    pub fn short_id(&self) -> &str {
        self.container_id.get(..12).unwrap_or(&self.container_id)
    }

    /// The first of its networks that `mesh` does not know yet. The container must not start before
    /// there is none, or it would start without that interface.
    #[must_use]
    pub fn missing_network(&self, mesh: &MeshMap) -> Option<&Id<Network>> {
        self.attachments
            .iter()
            .map(|attachment| &attachment.network_id)
            .find(|id| !mesh.networks.contains_key(id))
    }
}

/// This node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeNet {
    /// Its id; none before it has joined a swarm.
    pub node_id: Option<Id<Node>>,
    /// Its advertised address: source of its VXLAN packets.
    pub vtep: IpAddr,
    /// Address and prefix of `docker_gwbridge`.
    pub gateway_bridge: Ipv4Net,
    /// Where questions about names outside the swarm go.
    pub name_servers: Vec<IpAddr>,
}

impl NodeNet {
    /// Docker's default for `docker_gwbridge`: 172.18.0.1/16.
    pub const DEFAULT_GATEWAY_BRIDGE: Ipv4Net =
        Ipv4Net::host(Ipv4Addr::new(172, 18, 0, 1)).widened(16);

    /// The address of the ingress sandbox on the gateway bridge: the one after the gateway.
    #[must_use]
    pub fn ingress_gateway_address(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.gateway_bridge.addr().to_bits().wrapping_add(1))
    }

    /// The lowest address of the gateway bridge that is neither reserved nor `taken`.
    #[must_use]
    pub fn free_gateway_address(&self, taken: &BTreeSet<Ipv4Addr>) -> Option<Ipv4Addr> {
        let net = self.gateway_bridge;
        let first = net.network().addr().to_bits().checked_add(1)?;
        (first..net.broadcast().to_bits())
            .map(Ipv4Addr::from_bits)
            .find(|addr| {
                *addr != net.addr()
                    && *addr != self.ingress_gateway_address()
                    && !taken.contains(addr)
            })
    }
}

/// What is wrong with a mesh map.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("mesh map: network {network}: {field} {why}")]
pub struct InvalidMesh {
    /// Name of the network.
    pub network: String,
    /// The field.
    pub field: &'static str,
    /// What is wrong and what was wanted.
    pub why: String,
}

impl MeshMap {
    /// Checks what the rest of this module builds on: numbers in range, addresses inside their subnet and
    /// used once, subnets and VNIs that no other network has. A map that fails is not used at all.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn validate(&self) -> Result<(), InvalidMesh> {
        let mut vnis = BTreeSet::new();
        let mut marks = BTreeSet::new();
        for network in self.networks.values() {
            let invalid = |field, why| {
                Err(InvalidMesh {
                    network: network.name.clone(),
                    field,
                    why,
                })
            };
            if network.vni == 0 || network.vni >= 1 << 24 || !vnis.insert(network.vni) {
                return invalid(
                    "vni",
                    format!("{} is out of range or used twice", network.vni),
                );
            }
            if !(576..=65_485).contains(&network.mtu) {
                return invalid("mtu", format!("{} is not within 576-65485", network.mtu));
            }
            if network.vxlan_port == 0 {
                return invalid("vxlan_port", "is 0".to_owned());
            }
            if let Some(other) = self.overlapping(network) {
                return invalid(
                    "subnet",
                    format!("{} overlaps that of {other}", network.subnet),
                );
            }
            if let Err((field, addr)) = network.check_addresses() {
                return invalid(
                    field,
                    format!("{addr} is outside {} or used twice", network.subnet),
                );
            }
            for service in network.services.values().filter(|s| s.vip.is_some()) {
                if service.mark == 0 || !marks.insert(service.mark) {
                    return invalid("mark", format!("{} is 0 or used twice", service.mark));
                }
            }
        }
        Ok(())
    }

    fn overlapping(&self, network: &MeshNetwork) -> Option<&str> {
        self.networks
            .values()
            .find(|other| other.vni != network.vni && other.subnet.overlaps(network.subnet))
            .map(|other| other.name.as_str())
    }
}

impl MeshNetwork {
    fn check_addresses(&self) -> Result<(), (&'static str, Ipv4Addr)> {
        let gateway = [("gateway", self.gateway)].into_iter();
        let nodes = self.node_addresses.values().map(|a| ("node_addresses", *a));
        let tasks = self.endpoints.values().map(|e| ("endpoints", e.address));
        let vips = self
            .services
            .values()
            .filter_map(|s| s.vip)
            .map(|a| ("vip", a));
        let mut seen = BTreeSet::new();
        for (field, addr) in gateway.chain(nodes).chain(tasks).chain(vips) {
            if !self.subnet.contains(addr) || !seen.insert(addr) {
                return Err((field, addr));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> NodeNet {
        NodeNet {
            node_id: None,
            vtep: IpAddr::V4(Ipv4Addr::LOCALHOST),
            gateway_bridge: NodeNet::DEFAULT_GATEWAY_BRIDGE,
            name_servers: Vec::new(),
        }
    }

    #[test]
    fn gateway_addresses_are_given_from_the_lowest() {
        let mut taken = BTreeSet::new();
        for last in 3..=5 {
            let addr = node().free_gateway_address(&taken).unwrap();
            assert_eq!(addr, Ipv4Addr::new(172, 18, 0, last));
            taken.insert(addr);
        }
        taken.remove(&Ipv4Addr::new(172, 18, 0, 4));
        assert_eq!(
            node().free_gateway_address(&taken),
            Some(Ipv4Addr::new(172, 18, 0, 4))
        );
    }

    #[test]
    fn a_full_gateway_bridge_gives_nothing() {
        let mut small = node();
        small.gateway_bridge = "192.168.5.1/30".parse().unwrap();
        assert_eq!(small.free_gateway_address(&BTreeSet::new()), None);
        small.gateway_bridge = "192.168.5.1/29".parse().unwrap();
        assert_eq!(
            small.free_gateway_address(&BTreeSet::new()),
            Some(Ipv4Addr::new(192, 168, 5, 3))
        );
    }
}
