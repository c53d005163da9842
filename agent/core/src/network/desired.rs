//! What this node's kernel must look like.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

use super::{
    address::{Ipv4Net, Mac},
    balancing,
    mesh::{Attachment, MeshMap, MeshNetwork, MeshService, NodeNet, Sandbox},
    rules,
    state::{
        BridgePort, GATEWAY_BRIDGE, GATEWAY_PORT_PREFIX, INGRESS_SANDBOX, IpvsKey, IpvsService,
        Link, LinkKind, LinkName, Namespace, NetState, Ns, OVERLAY_BRIDGE, OVERLAY_PORT_PREFIX,
        OVERLAY_VXLAN, Route, Station, Table, Vxlan,
    },
};
use crate::{api::Network, id::Id};

/// MTU of `lo`, the kernel's own.
const LOOPBACK_MTU: u32 = 65_536;
/// MTU of the gateway bridge and the links to it.
const GATEWAY_MTU: u32 = 1_500;

/// Everything that the state of this node's network follows from.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// From the managers; must have passed [`MeshMap::validate`].
    pub mesh: &'a MeshMap,
    /// This node.
    pub node: &'a NodeNet,
    /// The containers of this node by container id: all of them.
    pub sandboxes: &'a BTreeMap<String, Sandbox>,
}

/// The namespace of an overlay network: `1-` and ten digits of its id.
#[must_use]
pub fn overlay_ns(id: &Id<Network>) -> Ns {
    Ns::Named(format!("1-{}", &id.as_str()[..10]))
}

/// The namespace of a sandbox: its short container id.
#[must_use]
pub fn sandbox_ns(sandbox: &Sandbox) -> Ns {
    Ns::Named(sandbox.short_id().to_owned())
}

/// The namespaces that change when this sandbox comes or goes.
#[must_use]
pub fn sandbox_scope(sandbox: &Sandbox) -> BTreeSet<Ns> {
    let overlays = sandbox
        .attachments
        .iter()
        .map(|attachment| overlay_ns(&attachment.network_id));
    overlays.chain([Ns::Host, sandbox_ns(sandbox)]).collect()
}

/// The state that the kernel must have.
#[must_use]
pub fn desired(inputs: &Inputs<'_>) -> NetState {
    let mut state = NetState::default();
    let ingress = inputs.ingress();
    state.namespaces.insert(Ns::Host, inputs.host(ingress));
    for (id, network) in inputs.present_networks() {
        state
            .namespaces
            .insert(overlay_ns(id), inputs.overlay(network));
    }
    let mut join = Joining {
        state: &mut state,
        inputs,
        balancers: BTreeMap::new(),
    };
    if let Some(ingress) = ingress {
        join.ingress_sandbox(ingress);
    }
    for sandbox in inputs.sandboxes.values() {
        join.sandbox(sandbox);
    }
    state
}

/// The ingress network with this node's own address on it.
#[derive(Clone, Copy)]
struct Ingress<'a> {
    id: &'a Id<Network>,
    network: &'a MeshNetwork,
    address: Ipv4Addr,
}

/// One overlay interface of a sandbox.
pub(super) struct Interface<'a> {
    /// `eth<n>` in the order of the attachments, which is fixed for the life of the sandbox.
    pub(super) link: String,
    /// Its network's id.
    pub(super) id: &'a Id<Network>,
    /// Its network.
    pub(super) network: &'a MeshNetwork,
    /// Its address there.
    pub(super) address: Ipv4Addr,
}

impl<'a> Inputs<'a> {
    fn interfaces(&self, sandbox: &'a Sandbox) -> Vec<Interface<'a>> {
        let numbered = sandbox.attachments.iter().enumerate();
        numbered
            .filter_map(|(index, attachment)| {
                Some(Interface {
                    link: format!("eth{index}"),
                    id: &attachment.network_id,
                    network: self.mesh.networks.get(&attachment.network_id)?,
                    address: attachment.address,
                })
            })
            .collect()
    }

    fn ingress(&self) -> Option<Ingress<'a>> {
        let own = self.node.node_id.as_ref()?;
        let (id, network) = self.mesh.networks.iter().find(|(_, n)| n.ingress)?;
        let address = *network.node_addresses.get(own)?;
        Some(Ingress {
            id,
            network,
            address,
        })
    }

    /// The networks with somebody of this node on them.
    fn present_networks(&self) -> BTreeMap<&'a Id<Network>, &'a MeshNetwork> {
        let attached = self.sandboxes.values().flat_map(|s| &s.attachments);
        let ids = attached.map(|attachment| &attachment.network_id);
        ids.chain(self.ingress().map(|ingress| ingress.id))
            .filter_map(|id| self.mesh.networks.get_key_value(id))
            .collect()
    }

    fn host(&self, ingress: Option<Ingress<'_>>) -> Namespace {
        let mut host = Namespace::default();
        let net = self.node.gateway_bridge;
        host.links
            .insert(GATEWAY_BRIDGE.to_owned(), bridge(net, GATEWAY_MTU));
        host.table = Some(Table::Is(rules::host(self, ingress.map(|i| i.network))));
        host.set([
            ("net/ipv4/ip_forward", "1"),
            // Answers to connections that began at 127.0.0.1 come back over the bridge.
            ("net/ipv4/conf/docker_gwbridge/route_localnet", "1"),
            ("net/ipv4/conf/docker_gwbridge/rp_filter", "2"),
            ("net/ipv6/conf/docker_gwbridge/disable_ipv6", "1"),
            // One table for the whole kernel: an entry per remote endpoint and network.
            ("net/ipv4/neigh/default/gc_thresh1", "8192"),
            ("net/ipv4/neigh/default/gc_thresh2", "49152"),
            ("net/ipv4/neigh/default/gc_thresh3", "65536"),
        ]);
        host
    }

    /// The namespace of an overlay network, without the ports of its sandboxes.
    fn overlay(&self, network: &MeshNetwork) -> Namespace {
        let mut overlay = Namespace::default();
        let mut br0 = bridge(network.subnet.with_addr(network.gateway), network.mtu);
        if !network.ingress {
            // TCP and UDP to a VIP never get here: they are balanced in the client's namespace. The
            // bridge answers what is left, ping.
            let vips = network.services.values().filter_map(|service| service.vip);
            br0.addresses.extend(vips.map(Ipv4Net::host));
        }
        overlay.links.insert("lo".to_owned(), loopback());
        overlay.links.insert(OVERLAY_BRIDGE.to_owned(), br0);
        overlay.links.insert(
            OVERLAY_VXLAN.to_owned(),
            Link {
                kind: LinkKind::Vxlan(Vxlan {
                    vni: network.vni,
                    port: network.vxlan_port,
                    local: self.node.vtep,
                    learning: false,
                    proxy: true,
                    detached: true,
                }),
                mac: None,
                mtu: network.mtu,
                up: true,
                port: Some(port(OVERLAY_BRIDGE, Isolation::Open)),
                addresses: BTreeSet::new(),
            },
        );
        for (address, vtep) in self.remote(network) {
            let mac = Mac::of(address);
            let vxlan = OVERLAY_VXLAN.to_owned();
            overlay.neighbours.insert((vxlan.clone(), address), mac);
            overlay.fdb.insert((vxlan.clone(), mac), vtep);
            overlay.stations.insert(station(&vxlan, mac));
        }
        overlay.set([
            ("net/ipv4/ip_forward", "0"),
            ("net/ipv6/conf/default/disable_ipv6", "1"),
        ]);
        overlay
    }

    /// Addresses of a network that are behind another node, with its VTEP. What a sandbox of this
    /// node has is here, whatever a map says that may be behind.
    fn remote(&self, network: &MeshNetwork) -> BTreeMap<Ipv4Addr, IpAddr> {
        let own = self.node.node_id.as_ref();
        let tasks = network.endpoints.values().map(|e| (&e.node_id, e.address));
        let nodes = network.node_addresses.iter().map(|(id, addr)| (id, *addr));
        let local: BTreeSet<Ipv4Addr> = self
            .sandboxes
            .values()
            .flat_map(|sandbox| &sandbox.attachments)
            .map(|attachment| attachment.address)
            .filter(|address| network.subnet.contains(*address))
            .collect();
        tasks
            .chain(nodes)
            .filter(|(id, address)| Some(*id) != own && !local.contains(address))
            .filter_map(|(id, address)| Some((address, self.mesh.nodes.get(id)?.vtep)))
            .filter(|(_, vtep)| *vtep != self.node.vtep)
            .collect()
    }

    /// Whether a sandbox has a way out. Networks that the map does not know yet count as ways out
    /// only once it does.
    #[must_use]
    pub fn has_gateway(&self, sandbox: &Sandbox) -> bool {
        let open = |attachment: &Attachment| {
            let network = self.mesh.networks.get(&attachment.network_id);
            network.is_some_and(|network| !network.internal)
        };
        sandbox.attachments.is_empty() || sandbox.attachments.iter().any(open)
    }
}

/// Adds sandboxes, with their ports in the namespaces that they join.
struct Joining<'s, 'a> {
    state: &'s mut NetState,
    inputs: &'s Inputs<'a>,
    /// The same for every sandbox on a network.
    balancers: BTreeMap<Id<Network>, BTreeMap<IpvsKey, IpvsService>>,
}

impl Joining<'_, '_> {
    fn ingress_sandbox(&mut self, ingress: Ingress<'_>) {
        let ns = Ns::Named(INGRESS_SANDBOX.to_owned());
        let mut sandbox = Namespace::default();
        sandbox.links.insert("lo".to_owned(), loopback());
        sandbox.ipvs = balancing::balancers(self.inputs, ingress.network);
        sandbox.table = Some(Table::Is(rules::ingress(ingress.network, ingress.address)));
        sandbox.set(BALANCER_SETTINGS);
        sandbox.set([
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv4/conf/all/rp_filter", "2"),
            ("net/ipv6/conf/default/disable_ipv6", "1"),
        ]);
        self.state.namespaces.insert(ns.clone(), sandbox);
        self.join_overlay(&ns, "eth0", ingress.id, ingress.network, ingress.address);
        let vips = ingress.network.services.values().filter_map(|s| s.vip);
        if let Some(eth0) = self.link(&ns, "eth0") {
            eth0.addresses.extend(vips.map(Ipv4Net::host));
        }
        let address = self.inputs.node.ingress_gateway_address();
        self.join_gateway(&ns, "eth1", address, Isolation::Open);
    }

    fn sandbox(&mut self, sandbox: &Sandbox) {
        let ns = sandbox_ns(sandbox);
        if self.state.namespaces.contains_key(&ns) {
            return;
        }
        let inputs = self.inputs;
        let networks = inputs.interfaces(sandbox);
        let mut namespace = Namespace::default();
        namespace
            .links
            .insert("lo".to_owned(), own_vips(sandbox, &networks));
        for one in networks.iter().filter(|one| !one.network.ingress) {
            let all = self.balancers.entry(one.id.clone());
            let all = all.or_insert_with(|| balancing::balancers(inputs, one.network));
            namespace.ipvs.extend(all.clone());
        }
        let table = rules::sandbox(sandbox, &networks);
        namespace.table = (!table.chains.is_empty()).then_some(Table::Is(table));
        namespace.set(BALANCER_SETTINGS);
        namespace.set(SANDBOX_SETTINGS);
        self.state.namespaces.insert(ns.clone(), namespace);
        for one in &networks {
            self.join_overlay(&ns, &one.link, one.id, one.network, one.address);
        }
        // One from before the bridge got another subnet would lead nowhere.
        let reachable = |address: &Ipv4Addr| inputs.node.gateway_bridge.contains(*address);
        if let Some(address) = sandbox.gateway_address.filter(reachable)
            && inputs.has_gateway(sandbox)
        {
            let name = format!("eth{}", sandbox.attachments.len());
            self.join_gateway(&ns, &name, address, Isolation::Isolated);
        }
    }

    fn join_overlay(
        &mut self,
        ns: &Ns,
        link: &str,
        id: &Id<Network>,
        network: &MeshNetwork,
        address: Ipv4Addr,
    ) {
        let overlay = LinkName {
            ns: overlay_ns(id),
            name: format!("{OVERLAY_PORT_PREFIX}{ns}"),
        };
        let inside = network.subnet.with_addr(address);
        let place = port(OVERLAY_BRIDGE, Isolation::Open);
        self.pair(ns, link, overlay, place, inside, network.mtu);
    }

    fn join_gateway(&mut self, ns: &Ns, link: &str, address: Ipv4Addr, isolation: Isolation) {
        let net = self.inputs.node.gateway_bridge;
        let host = LinkName {
            ns: Ns::Host,
            name: format!("{GATEWAY_PORT_PREFIX}{ns}"),
        };
        let place = port(GATEWAY_BRIDGE, isolation);
        self.pair(ns, link, host, place, net.with_addr(address), GATEWAY_MTU);
        if let Some(namespace) = self.state.namespaces.get_mut(ns) {
            namespace.routes.insert(Route {
                destination: Ipv4Net::host(Ipv4Addr::UNSPECIFIED).widened(0),
                gateway: Some(net.addr()),
                link: link.to_owned(),
            });
        }
    }

    /// A pair of links: `name` in `ns` with the address, `outside` as a port of a bridge.
    fn pair(
        &mut self,
        ns: &Ns,
        name: &str,
        outside: LinkName,
        place: BridgePort,
        address: Ipv4Net,
        mtu: u32,
    ) {
        let mac = Mac::of(address.addr());
        let inside = LinkName {
            ns: ns.clone(),
            name: name.to_owned(),
        };
        let end = |peer: &LinkName| Link {
            kind: LinkKind::Veth(Some(peer.clone())),
            mac: None,
            mtu,
            up: true,
            port: None,
            addresses: BTreeSet::new(),
        };
        let mut inner = end(&outside);
        inner.mac = Some(mac);
        inner.addresses.insert(address);
        let mut outer = end(&inside);
        outer.port = Some(place);
        let namespaces = &mut self.state.namespaces;
        if let Some(namespace) = namespaces.get_mut(ns) {
            namespace.links.insert(inside.name, inner);
        }
        if let Some(namespace) = namespaces.get_mut(&outside.ns) {
            namespace.stations.insert(station(&outside.name, mac));
            namespace.links.insert(outside.name, outer);
        }
    }

    fn link(&mut self, ns: &Ns, name: &str) -> Option<&mut Link> {
        self.state.namespaces.get_mut(ns)?.links.get_mut(name)
    }
}

/// IPVS settings: translate with connection tracking, forget servers that are gone at once.
const BALANCER_SETTINGS: [(&str, &str); 4] = [
    ("net/ipv4/vs/conntrack", "1"),
    ("net/ipv4/vs/conn_reuse_mode", "0"),
    ("net/ipv4/vs/expire_nodest_conn", "1"),
    ("net/ipv4/vs/expire_quiescent_template", "1"),
];

const SANDBOX_SETTINGS: [(&str, &str); 6] = [
    // The VIPs on lo are not for neighbours to ask for, nor to be announced.
    ("net/ipv4/conf/all/arp_ignore", "1"),
    ("net/ipv4/conf/all/arp_announce", "2"),
    ("net/ipv4/conf/all/rp_filter", "2"),
    // As Docker: ping and low ports need no capability.
    ("net/ipv4/ping_group_range", "0\t2147483647"),
    ("net/ipv4/ip_unprivileged_port_start", "0"),
    ("net/ipv6/conf/default/disable_ipv6", "1"),
];

impl Namespace {
    fn set<const N: usize>(&mut self, settings: [(&str, &str); N]) {
        let owned = settings.map(|(key, value)| (key.to_owned(), value.to_owned()));
        self.sysctls.extend(owned);
    }
}

/// `lo` with the VIPs of the sandbox's own service, one per network that has it.
fn own_vips(sandbox: &Sandbox, networks: &[Interface<'_>]) -> Link {
    let mut lo = loopback();
    let own = sandbox.service_id.as_ref();
    let services: Vec<&MeshService> = networks
        .iter()
        .filter_map(|one| one.network.services.get(own?))
        .collect();
    lo.addresses
        .extend(services.iter().filter_map(|s| s.vip).map(Ipv4Net::host));
    lo
}

fn loopback() -> Link {
    let localhost = Ipv4Net::host(Ipv4Addr::LOCALHOST).widened(8);
    Link {
        kind: LinkKind::Loopback,
        mac: None,
        mtu: LOOPBACK_MTU,
        up: true,
        port: None,
        addresses: BTreeSet::from([localhost]),
    }
}

/// A bridge with its address and the MAC address that goes with it: fixed, or the kernel would
/// change it with the ports.
fn bridge(address: Ipv4Net, mtu: u32) -> Link {
    Link {
        kind: LinkKind::Bridge,
        mac: Some(Mac::of(address.addr())),
        mtu,
        up: true,
        port: None,
        addresses: BTreeSet::from([address]),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Isolation {
    Open,
    Isolated,
}

fn port(bridge: &str, isolation: Isolation) -> BridgePort {
    BridgePort {
        bridge: bridge.to_owned(),
        learning: false,
        isolated: isolation == Isolation::Isolated,
    }
}

fn station(port: &str, mac: Mac) -> Station {
    Station {
        port: port.to_owned(),
        mac,
        local: false,
    }
}
