//! The three-node whoami mesh of the articles, as inputs. For tests here and on real kernels.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
};

use super::{
    address::Ipv4Net,
    desired::Inputs,
    mesh::{
        Attachment, MeshEndpoint, MeshMap, MeshNetwork, MeshNode, MeshPort, MeshService, NodeNet,
        Sandbox, VXLAN_PORT,
    },
};
use crate::{
    api::{Network, Protocol, Task},
    id::Id,
};

/// One node's view.
#[derive(Debug, Clone)]
pub struct Example {
    /// The same on every node.
    pub mesh: MeshMap,
    /// The node that looks.
    pub node: NodeNet,
    /// Its containers.
    pub sandboxes: BTreeMap<String, Sandbox>,
}

impl Example {
    /// The inputs.
    #[must_use]
    pub fn inputs(&self) -> Inputs<'_> {
        Inputs {
            mesh: &self.mesh,
            node: &self.node,
            sandboxes: &self.sandboxes,
        }
    }
}

/// The identifier that a number stands for.
#[must_use]
pub fn id<K>(number: u128) -> Id<K> {
    // The first ten digits name namespaces, so the number goes to the front.
    Id::from_entropy((number + 1) << 100)
}

/// Identifier of the ingress network.
#[must_use]
pub fn ingress() -> Id<Network> {
    id(1)
}

/// Identifier of `my-demo`.
#[must_use]
pub fn my_demo() -> Id<Network> {
    id(2)
}

/// Node `index` (from 0) of three; whoami's three replicas run one on each, `client` on node 0.
/// VTEPs are 192.168.77.11 and on.
#[must_use]
pub fn whoami(index: u8) -> Example {
    let ports = [MeshPort {
        protocol: Protocol::Tcp,
        published: 8000,
        target: 80,
    }];
    let mut example = Example {
        mesh: whoami_mesh(&ports),
        node: NodeNet {
            node_id: Some(id(index.into())),
            vtep: vtep(index),
            gateway_bridge: NodeNet::DEFAULT_GATEWAY_BRIDGE,
            name_servers: vec![IpAddr::V4(Ipv4Addr::new(192, 168, 76, 3))],
        },
        sandboxes: BTreeMap::new(),
    };
    let number = 100 + u64::from(index);
    let both = [ingress(), my_demo()];
    add_sandbox(&mut example, number, 20, &both, &ports);
    if index == 0 {
        add_sandbox(&mut example, 110, 21, &both[1..], &[]);
    }
    example
}

fn whoami_mesh(ports: &[MeshPort]) -> MeshMap {
    let mut nodes = BTreeMap::new();
    let mut mesh = network("ingress", 4096, Ipv4Addr::new(10, 255, 0, 0), 16);
    let mut demo = network("my-demo", 4097, Ipv4Addr::new(10, 0, 1, 0), 24);
    mesh.ingress = true;
    for node in 0..3u8 {
        let peer = MeshNode {
            hostname: format!("node{node}"),
            vtep: vtep(node),
            alive: true,
        };
        nodes.insert(id(node.into()), peer);
        let address = Ipv4Addr::new(10, 255, 0, 2 + node);
        mesh.node_addresses.insert(id(node.into()), address);
        let task: Id<Task> = id(100 + u128::from(node));
        let name = format!("whoami.{}.{task}", node + 1);
        for (network, address) in [
            (&mut mesh, Ipv4Addr::new(10, 255, 0, 6 + node)),
            (&mut demo, Ipv4Addr::new(10, 0, 1, 6 + node)),
        ] {
            let endpoint = endpoint(&name, 20, node, address);
            network.endpoints.insert(task.clone(), endpoint);
        }
    }
    let task: Id<Task> = id(110);
    let name = format!("client.1.{task}");
    let client = endpoint(&name, 21, 0, Ipv4Addr::new(10, 0, 1, 3));
    demo.endpoints.insert(task, client);
    let ports = ports.to_vec();
    let mesh_vip = service("whoami", Ipv4Addr::new(10, 255, 0, 5), 256, ports);
    mesh.services.insert(id(20), mesh_vip);
    let demo_vip = service("whoami", Ipv4Addr::new(10, 0, 1, 5), 257, Vec::new());
    demo.services.insert(id(20), demo_vip);
    let client_vip = service("client", Ipv4Addr::new(10, 0, 1, 2), 258, Vec::new());
    demo.services.insert(id(21), client_vip);
    MeshMap {
        version: 7,
        nodes,
        networks: BTreeMap::from([(ingress(), mesh), (my_demo(), demo)]),
    }
}

fn add_sandbox(
    example: &mut Example,
    number: u64,
    service: u128,
    networks: &[Id<Network>],
    ports: &[MeshPort],
) {
    let task = id(u128::from(number));
    let container_id = format!("{number:012x}{:052x}", 0);
    let taken = example
        .sandboxes
        .values()
        .filter_map(|s| s.gateway_address)
        .collect();
    let attachments: Vec<_> = networks
        .iter()
        .filter_map(|network_id| {
            let address = example
                .mesh
                .networks
                .get(network_id)?
                .endpoints
                .get(&task)?
                .address;
            Some(Attachment {
                network_id: network_id.clone(),
                address,
            })
        })
        .collect();
    let name = networks.iter().find_map(|id| {
        Some(
            example
                .mesh
                .networks
                .get(id)?
                .endpoints
                .get(&task)?
                .name
                .clone(),
        )
    });
    let sandbox = Sandbox {
        name: name.unwrap_or_default(),
        hostname: container_id[..12].to_owned(),
        task_id: Some(task),
        service_id: Some(id(service)),
        gateway_address: example.node.free_gateway_address(&taken),
        attachments,
        ports: ports.to_vec(),
        name_servers: Vec::new(),
        container_id: container_id.clone(),
    };
    example.sandboxes.insert(container_id, sandbox);
}

fn vtep(node: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(192, 168, 77, 11 + node))
}

fn network(name: &str, vni: u32, subnet: Ipv4Addr, prefix: u8) -> MeshNetwork {
    MeshNetwork {
        name: name.to_owned(),
        vni,
        subnet: Ipv4Net::host(subnet).widened(prefix),
        gateway: Ipv4Addr::from_bits(subnet.to_bits() + 1),
        internal: false,
        ingress: false,
        vxlan_port: VXLAN_PORT,
        mtu: 1450,
        node_addresses: BTreeMap::new(),
        endpoints: BTreeMap::new(),
        services: BTreeMap::new(),
    }
}

fn endpoint(name: &str, service: u128, node: u8, address: Ipv4Addr) -> MeshEndpoint {
    MeshEndpoint {
        name: name.to_owned(),
        service_id: Some(id(service)),
        node_id: id(node.into()),
        address,
        in_service: true,
        aliases: Vec::new(),
    }
}

fn service(name: &str, vip: Ipv4Addr, mark: u32, ports: Vec<MeshPort>) -> MeshService {
    MeshService {
        name: name.to_owned(),
        aliases: Vec::new(),
        vip: Some(vip),
        mark,
        ports,
    }
}
