//! Subnets and addresses.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use crate::{
    api::{IpamConfig, Network, NetworkAttachment, NetworkSpec, NodeDescription, Subnet},
    id::Id,
    network::mesh::NodeNet,
    store::View,
};

/// The addresses of one network.
#[derive(Debug)]
pub(super) struct Pool {
    subnet: Subnet,
    /// The part of the subnet from which addresses are given.
    range: Subnet,
    used: BTreeSet<u32>,
    last: Option<u32>,
}

impl Pool {
    fn new(network: &Network) -> Option<Self> {
        let state = network.state.as_ref()?;
        let subnet = Subnet::around(state.subnet, state.prefix);
        let config = config(&network.spec);
        let range = config.and_then(|config| config.ip_range.parse().ok());
        let mut used: BTreeSet<u32> = [state.gateway, subnet.network(), subnet.broadcast()]
            .map(u32::from)
            .into();
        let aside = config.iter().flat_map(|it| it.auxiliary_addresses.values());
        let aside = aside.filter_map(|address| address.parse::<Ipv4Addr>().ok());
        used.extend(aside.map(u32::from));
        Some(Self {
            subnet,
            range: range.unwrap_or(subnet),
            used,
            last: state.last_given.map(u32::from),
        })
    }

    pub(super) fn subnet(&self) -> Subnet {
        self.subnet
    }

    /// The next free address behind the one given last, from the start again after the end: an address
    /// that was freed rests for as long as possible.
    pub(super) fn give(&mut self) -> Option<Ipv4Addr> {
        let (first, end) = (self.range.network(), self.range.broadcast());
        let (first, end) = (u32::from(first), u32::from(end));
        let behind = self.last.and_then(|last| last.checked_add(1));
        let start = behind
            .filter(|it| (first..=end).contains(it))
            .unwrap_or(first);
        let free = free_in(&self.used, start, end);
        let address = free.or_else(|| free_in(&self.used, first, start))?;
        self.used.insert(address);
        self.last = Some(address);
        Some(address.into())
    }

    pub(super) fn take_back(&mut self, address: Ipv4Addr) {
        self.used.remove(&u32::from(address));
    }
}

/// The first number from `start` to `end` that is not in `used`; visits only used ones.
fn free_in(used: &BTreeSet<u32>, start: u32, end: u32) -> Option<u32> {
    let mut candidate = start;
    for taken in used.range(start..=end) {
        if *taken != candidate {
            break;
        }
        candidate = candidate.checked_add(1)?;
    }
    (candidate <= end).then_some(candidate)
}

/// The pool of each network that has a subnet, with all that is in use now.
pub(super) fn pools<'a>(
    view: &View,
    networks: impl Iterator<Item = &'a Network>,
) -> BTreeMap<Id<Network>, Pool> {
    let mut pools: BTreeMap<Id<Network>, Pool> = networks
        .filter_map(|network| Some((network.id.clone(), Pool::new(network)?)))
        .collect();
    let mut mark = |network: &Id<Network>, address: Ipv4Addr| {
        if let Some(pool) = pools.get_mut(network) {
            pool.used.insert(address.into());
        }
    };
    for vip in view.services().flat_map(|it| &it.endpoint.virtual_ips) {
        mark(&vip.network_id, vip.addr);
    }
    for address in view.nodes().flat_map(|node| &node.networks) {
        mark(&address.network_id, address.addr);
    }
    let holding = view.tasks().filter(|task| !task.status.state.is_terminal());
    for attachment in holding.flat_map(|task| &task.networks) {
        for address in addresses(attachment) {
            mark(&attachment.network_id, address);
        }
    }
    pools
}

/// The addresses of an attachment without their prefix lengths.
pub(crate) fn addresses(attachment: &NetworkAttachment) -> impl Iterator<Item = Ipv4Addr> {
    let texts = attachment.addresses.iter();
    texts.filter_map(|text| text.split('/').next()?.parse().ok())
}

fn config(spec: &NetworkSpec) -> Option<&IpamConfig> {
    spec.ipam.as_ref().and_then(|ipam| ipam.config.first())
}

/// The gateway that the user chose, or the first address.
pub(super) fn gateway(spec: &NetworkSpec, subnet: Subnet) -> Ipv4Addr {
    let chosen = config(spec).and_then(|config| config.gateway.parse().ok());
    chosen.or_else(|| subnet.nth(1)).unwrap_or(subnet.network())
}

/// The range through which the containers of every node go out. A network in it would take their way, or
/// lose its own.
pub(crate) fn gateway_range() -> Subnet {
    let bridge = NodeNet::DEFAULT_GATEWAY_BRIDGE;
    Subnet::around(bridge.addr(), bridge.prefix())
}

/// The first range of the cluster's pools that no network, no pool of the mesh, no node itself and no route
/// of any node uses.
pub(super) fn free_subnet<'a>(
    view: &View,
    networks: impl Iterator<Item = &'a Network>,
) -> Option<Subnet> {
    let cluster = view.cluster()?;
    let mut taken: Vec<Subnet> = networks.filter_map(Network::subnet).collect();
    taken.extend(cluster.ingress_subnet.parse::<Subnet>().ok());
    taken.push(gateway_range());
    let described = view.nodes().filter_map(|node| node.description.as_ref());
    taken.extend(described.flat_map(routes_of));
    let pools = cluster.default_addr_pool.iter();
    let pools = pools.filter_map(|pool| pool.parse::<Subnet>().ok());
    pools
        .into_iter()
        .find_map(|pool| free_within(pool, cluster.subnet_size, &taken))
}

/// The ranges that a node reaches by routes of its own; the default route is none.
pub(crate) fn routes_of(description: &NodeDescription) -> impl Iterator<Item = Subnet> {
    let routes = description.routes.iter();
    routes
        .filter_map(|route| Subnet::parse_around(route).ok())
        .filter(|route| route.prefix() > 0)
}

fn free_within(pool: Subnet, size: u8, taken: &[Subnet]) -> Option<Subnet> {
    if size < pool.prefix() || size > 30 {
        return None;
    }
    let mut candidate = Subnet::around(pool.network(), size);
    loop {
        let Some(hit) = taken.iter().find(|taken| taken.overlaps(&candidate)) else {
            return Some(candidate);
        };
        let end = u32::from(hit.broadcast()).max(candidate.broadcast().into());
        let next = end.checked_add(1)?;
        candidate = Subnet::around(next.into(), size);
        if !pool.encloses(&candidate) {
            return None;
        }
    }
}
