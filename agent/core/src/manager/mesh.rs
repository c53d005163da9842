//! What each node must know of the networks that it takes part in: the map that `Mesh.Watch` streams.
//!
//! The map is a function of the view, computed the same by every manager; its version is the raft
//! index. A node hears a complete map first, then differences.

mod delta;
mod watchers;

use std::{collections::BTreeMap, net::Ipv4Addr};

pub use delta::{Changes, MeshDelta, NetworkDelta, WrongBase};
pub use watchers::{WatcherId, Watchers};

use super::allocator;
use crate::{
    api::{Network, Node, NodeState, Service, Task, TaskState},
    id::Id,
    network::{
        address::Ipv4Net,
        mesh::{MeshEndpoint, MeshMap, MeshNetwork, MeshNode, MeshPort, MeshService, VXLAN_PORT},
    },
    store::View,
};

/// MTU inside an overlay: Ethernet's less what VXLAN takes.
const OVERLAY_MTU: u32 = 1500 - 50;

/// The map of one node. For many nodes at one version, compute [`Mesh::of`] once.
#[must_use]
pub fn map(view: &View, node: &Id<Node>) -> MeshMap {
    Mesh::of(view).map(view, node)
}

/// Every network of the cluster as maps show it.
#[derive(Debug, Clone, Default)]
pub struct Mesh {
    version: u64,
    nodes: BTreeMap<Id<Node>, MeshNode>,
    networks: BTreeMap<Id<Network>, MeshNetwork>,
}

impl Mesh {
    /// All networks at the view's version.
    #[must_use]
    pub fn of(view: &View) -> Self {
        let port = view.cluster().map_or(VXLAN_PORT, |it| it.data_path_port);
        let port = if port == 0 { VXLAN_PORT } else { port };
        let nodes = view
            .nodes()
            .filter_map(|it| Some((it.id.clone(), node(it)?)));
        let networks = view.networks();
        let mut mesh = Self {
            version: view.version(),
            nodes: nodes.collect(),
            networks: networks
                .filter_map(|it| Some((it.id.clone(), network(it, port)?)))
                .collect(),
        };
        mesh.add_node_addresses(view);
        for service in view.services().filter(|service| !service.pending_delete) {
            mesh.add_service(service);
        }
        for task in view.tasks().filter(|task| is_placed(task)) {
            mesh.add_task(task);
        }
        mesh
    }

    /// The version of the state that it was made from.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// What one node must know: the ingress network, the networks of its tasks, and the nodes of both.
    #[must_use]
    pub fn map(&self, view: &View, node: &Id<Node>) -> MeshMap {
        let placed = view.tasks_on_node(node).filter(|task| is_placed(task));
        let joined: std::collections::BTreeSet<&Id<Network>> = placed
            .flat_map(|task| &task.networks)
            .map(|attachment| &attachment.network_id)
            .collect();
        let networks: BTreeMap<_, _> = self
            .networks
            .iter()
            .filter(|(id, network)| network.ingress || joined.contains(id))
            .map(|(id, network)| (id.clone(), network.clone()))
            .collect();
        // Every node has an ingress address, so every node is a peer.
        MeshMap {
            version: self.version,
            nodes: self.nodes.clone(),
            networks,
        }
    }

    fn add_node_addresses(&mut self, view: &View) {
        for node in view.nodes().filter(|it| self.nodes.contains_key(&it.id)) {
            for given in &node.networks {
                if let Some(network) = self.networks.get_mut(&given.network_id) {
                    network.node_addresses.insert(node.id.clone(), given.addr);
                }
            }
        }
    }

    fn add_service(&mut self, service: &Service) {
        for vip in &service.endpoint.virtual_ips {
            let Some(network) = self.networks.get_mut(&vip.network_id) else {
                continue;
            };
            let ports = if network.ingress {
                published(service)
            } else {
                Vec::new()
            };
            let entry = mesh_service(service, &vip.network_id, Some(vip.addr), vip.mark, ports);
            network.services.insert(service.id.clone(), entry);
        }
        // With dnsrr there is no virtual address, but a name all the same.
        for wanted in &service.spec.task_template.networks {
            let Ok(id) = wanted.target.parse::<Id<Network>>() else {
                continue;
            };
            if let Some(network) = self.networks.get_mut(&id) {
                let entry = || mesh_service(service, &id, None, 0, Vec::new());
                let services = &mut network.services;
                services.entry(service.id.clone()).or_insert_with(entry);
            }
        }
    }

    fn add_task(&mut self, task: &Task) {
        let known = task
            .node_id
            .as_ref()
            .filter(|id| self.nodes.contains_key(id));
        let Some(node_id) = known else {
            return;
        };
        let serves = task.status.state == TaskState::Running && task.is_wanted();
        for attachment in &task.networks {
            let Some(network) = self.networks.get_mut(&attachment.network_id) else {
                continue;
            };
            let address: Option<Ipv4Addr> = allocator::addresses(attachment).next();
            let inside = address.filter(|address| network.subnet.contains(*address));
            if let Some(address) = inside {
                let endpoint = MeshEndpoint {
                    name: task.name(),
                    service_id: Some(task.service_id.clone()),
                    node_id: node_id.clone(),
                    address,
                    in_service: serves,
                    aliases: Vec::new(),
                };
                network.endpoints.insert(task.id.clone(), endpoint);
            }
        }
    }
}

/// Whether a task has, or is about to have, interfaces on its node.
fn is_placed(task: &Task) -> bool {
    task.is_assigned() && !task.status.state.is_terminal()
}

fn node(node: &Node) -> Option<MeshNode> {
    let description = node.description.as_ref();
    Some(MeshNode {
        hostname: description.map_or_else(String::new, |it| it.hostname.clone()),
        vtep: node.status.addr?,
        // Between sessions, or before a new leader has heard of it, a node is not dead.
        alive: node.status.state != NodeState::Down,
    })
}

fn network(network: &Network, vxlan_port: u16) -> Option<MeshNetwork> {
    let state = network.state.as_ref()?;
    Some(MeshNetwork {
        name: network.spec.name.clone(),
        vni: state.vni,
        subnet: Ipv4Net::new(state.subnet, state.prefix).ok()?,
        gateway: state.gateway,
        internal: network.spec.internal,
        ingress: network.spec.ingress,
        vxlan_port,
        mtu: OVERLAY_MTU,
        node_addresses: BTreeMap::new(),
        endpoints: BTreeMap::new(),
        services: BTreeMap::new(),
    })
}

fn mesh_service(
    service: &Service,
    network: &Id<Network>,
    vip: Option<Ipv4Addr>,
    mark: u32,
    ports: Vec<MeshPort>,
) -> MeshService {
    let mut joined = service.spec.task_template.networks.iter();
    let joined = joined.find(|it| it.target == network.as_str());
    MeshService {
        name: service.spec.name.clone(),
        aliases: joined.map_or_else(Vec::new, |it| it.aliases.clone()),
        vip,
        mark,
        ports,
    }
}

fn published(service: &Service) -> Vec<MeshPort> {
    use crate::api::PublishMode;
    let ports = service.endpoint.ports.iter();
    let ports = ports.filter(|port| port.publish_mode == PublishMode::Ingress);
    ports
        .filter(|port| port.published_port != 0)
        .map(|port| MeshPort {
            protocol: port.protocol,
            published: port.published_port,
            target: port.target_port,
        })
        .collect()
}
