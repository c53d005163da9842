//! What rtnetlink says of a namespace, in the words of the core.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "the kernel tells of a link a hundred things, of which we need ten"
)]

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, Ipv4Addr},
};

use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
    link::{
        InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoVxlan, LinkAttribute, LinkExtentMask,
        LinkFlags, LinkInfo, LinkMessage,
    },
    neighbour::{
        NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
    },
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteType},
};
use skep_core::network::{
    address::{Ipv4Net, Mac},
    state::{BridgePort, Link, LinkKind, LinkName, Namespace, Ns, Route, Station, Vxlan},
};

use super::route::{PEER_ALIAS, RouteSocket};

/// Devices that the kernel makes in every namespace and that cannot be removed.
const FALLBACK_DEVICES: [&str; 10] = [
    "tunl0",
    "sit0",
    "gre0",
    "gretap0",
    "erspan0",
    "ip_vti0",
    "ip6tnl0",
    "ip6_vti0",
    "ip6gre0",
    "ip6gretap0",
];

/// A link with the numbers that only mean something together with other links.
#[derive(Debug)]
pub(crate) struct SeenLink {
    pub(crate) name: String,
    pub(crate) index: u32,
    pub(crate) link: Link,
    /// Index of the bridge it is a port of.
    bridge: Option<u32>,
    /// Index of a pair's other end in its namespace.
    pub(crate) peer_index: Option<u32>,
}

/// A namespace as rtnetlink tells it, pairs not yet joined.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) links: Vec<SeenLink>,
    /// The rest, with no links in it.
    pub(crate) namespace: Namespace,
}

/// Looks at a namespace. In the host's, routes and ARP entries are not ours to see.
pub(crate) async fn observe(socket: &RouteSocket, ns: &Ns) -> io::Result<Seen> {
    let mut query = LinkMessage::default();
    query.attributes = vec![LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats])];
    let mut seen = Seen::default();
    for message in socket.dump(RouteNetlinkMessage::GetLink(query)).await? {
        if let RouteNetlinkMessage::NewLink(message) = message {
            seen.links.extend(link(&message));
        }
    }
    let mut query = AddressMessage::default();
    query.header.family = AddressFamily::Inet;
    for message in socket.dump(RouteNetlinkMessage::GetAddress(query)).await? {
        if let RouteNetlinkMessage::NewAddress(message) = message {
            seen.add_address(&message);
        }
    }
    name_bridges(&mut seen.links);
    let mut query = NeighbourMessage::default();
    query.header.family = AddressFamily::Bridge;
    for message in socket
        .dump(RouteNetlinkMessage::GetNeighbour(query))
        .await?
    {
        if let RouteNetlinkMessage::NewNeighbour(message) = message {
            seen.add_bridge_entry(&message);
        }
    }
    if *ns != Ns::Host {
        observe_inet(socket, &mut seen).await?;
        seen.links.retain(|one| one.changeable());
    }
    Ok(seen)
}

async fn observe_inet(socket: &RouteSocket, seen: &mut Seen) -> io::Result<()> {
    let mut query = NeighbourMessage::default();
    query.header.family = AddressFamily::Inet;
    for message in socket
        .dump(RouteNetlinkMessage::GetNeighbour(query))
        .await?
    {
        if let RouteNetlinkMessage::NewNeighbour(message) = message {
            seen.add_neighbour(&message);
        }
    }
    let mut query = RouteMessage::default();
    query.header.address_family = AddressFamily::Inet;
    for message in socket.dump(RouteNetlinkMessage::GetRoute(query)).await? {
        if let RouteNetlinkMessage::NewRoute(message) = message {
            seen.add_route(&message);
        }
    }
    Ok(())
}

impl SeenLink {
    /// Not one of the kernel's own, nor a network card that somebody put here.
    fn changeable(&self) -> bool {
        let own = FALLBACK_DEVICES.contains(&self.name.as_str());
        !own && self.link.kind != LinkKind::Other(String::new())
    }
}

fn link(message: &LinkMessage) -> Option<SeenLink> {
    let mut seen = SeenLink {
        name: String::new(),
        index: message.header.index,
        link: Link {
            kind: LinkKind::Other(String::new()),
            mac: None,
            mtu: 0,
            up: message.header.flags.contains(LinkFlags::Up),
            port: None,
            addresses: BTreeSet::new(),
        },
        bridge: None,
        peer_index: None,
    };
    let mut alias = None;
    let mut detached = false;
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => seen.name.clone_from(name),
            LinkAttribute::Address(bytes) => seen.link.mac = mac(bytes),
            LinkAttribute::Mtu(mtu) => seen.link.mtu = *mtu,
            LinkAttribute::Controller(index) => seen.bridge = Some(*index),
            LinkAttribute::Link(index) => seen.peer_index = Some(*index),
            LinkAttribute::LinkNetNsId(_) => detached = true,
            LinkAttribute::IfAlias(text) => alias = Some(text.as_str()),
            LinkAttribute::LinkInfo(infos) => read_infos(infos, &mut seen.link),
            _ => {}
        }
    }
    if message.header.flags.contains(LinkFlags::Loopback) {
        seen.link.kind = LinkKind::Loopback;
    }
    match &mut seen.link.kind {
        LinkKind::Veth(peer) => *peer = alias.and_then(peer_of),
        LinkKind::Vxlan(vxlan) => vxlan.detached = detached,
        LinkKind::Loopback | LinkKind::Bridge | LinkKind::Other(_) => {}
    }
    (!seen.name.is_empty()).then_some(seen)
}

fn read_infos(infos: &[LinkInfo], link: &mut Link) {
    for info in infos {
        match info {
            LinkInfo::Kind(InfoKind::Bridge) => link.kind = LinkKind::Bridge,
            LinkInfo::Kind(InfoKind::Veth) => link.kind = LinkKind::Veth(None),
            LinkInfo::Kind(InfoKind::Vxlan) => {}
            LinkInfo::Kind(other) => link.kind = LinkKind::Other(other.to_string()),
            LinkInfo::Data(InfoData::Vxlan(data)) => link.kind = LinkKind::Vxlan(vxlan(data)),
            LinkInfo::PortData(InfoPortData::BridgePort(data)) => {
                link.port = Some(bridge_port(data));
            }
            _ => {}
        }
    }
}

fn vxlan(data: &[InfoVxlan]) -> Vxlan {
    let mut vxlan = Vxlan {
        vni: 0,
        port: 0,
        local: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        learning: false,
        proxy: false,
        detached: false,
    };
    for one in data {
        match one {
            InfoVxlan::Id(vni) => vxlan.vni = *vni,
            InfoVxlan::Port(port) => vxlan.port = *port,
            InfoVxlan::Local(addr) => vxlan.local = IpAddr::V4(*addr),
            InfoVxlan::Local6(addr) => vxlan.local = IpAddr::V6(*addr),
            InfoVxlan::Learning(on) => vxlan.learning = *on,
            InfoVxlan::Proxy(on) => vxlan.proxy = *on,
            _ => {}
        }
    }
    vxlan
}

/// The bridge's name is filled in when all links are known.
fn bridge_port(data: &[InfoBridgePort]) -> BridgePort {
    let mut port = BridgePort {
        bridge: String::new(),
        learning: true,
        isolated: false,
    };
    for one in data {
        match one {
            InfoBridgePort::Learning(on) => port.learning = *on,
            InfoBridgePort::Isolated(on) => port.isolated = *on,
            _ => {}
        }
    }
    port
}

fn name_bridges(links: &mut [SeenLink]) {
    let names: BTreeMap<u32, String> = links
        .iter()
        .map(|one| (one.index, one.name.clone()))
        .collect();
    for one in links {
        let bridge = one.bridge.and_then(|index| names.get(&index));
        match (&mut one.link.port, bridge) {
            (Some(port), Some(name)) => port.bridge.clone_from(name),
            (port, _) => *port = None,
        }
    }
}

fn peer_of(alias: &str) -> Option<LinkName> {
    let (ns, name) = alias.strip_prefix(PEER_ALIAS)?.split_once('/')?;
    let host = Ns::Host.to_string();
    let ns = if ns == host {
        Ns::Host
    } else {
        Ns::Named(ns.to_owned())
    };
    Some(LinkName {
        ns,
        name: name.to_owned(),
    })
}

/// Joins pairs across namespaces: an end keeps the peer that its alias names only when that end is
/// there and points back. Peers in namespaces that were not looked at are believed.
pub(crate) fn join_pairs(all: &mut BTreeMap<Ns, Seen>) {
    let indexes: BTreeMap<(Ns, String), (u32, Option<u32>)> = all
        .iter()
        .flat_map(|(ns, seen)| {
            let place = |one: &SeenLink| (ns.clone(), one.name.clone());
            seen.links
                .iter()
                .map(move |one| (place(one), (one.index, one.peer_index)))
        })
        .collect();
    let looked_at: BTreeSet<Ns> = all.keys().cloned().collect();
    for one in all.values_mut().flat_map(|seen| &mut seen.links) {
        let LinkKind::Veth(peer) = &mut one.link.kind else {
            continue;
        };
        let mutual = |name: &LinkName| match indexes.get(&(name.ns.clone(), name.name.clone())) {
            Some((index, back)) => Some(*index) == one.peer_index && *back == Some(one.index),
            None => !looked_at.contains(&name.ns),
        };
        if peer.as_ref().is_some_and(|name| !mutual(name)) {
            *peer = None;
        }
    }
}

impl Seen {
    fn by_index(&self, index: u32) -> Option<&SeenLink> {
        self.links.iter().find(|one| one.index == index)
    }

    fn add_address(&mut self, message: &AddressMessage) {
        let mut links = self.links.iter_mut();
        let Some(one) = links.find(|one| one.index == message.header.index) else {
            return;
        };
        let local = message
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                AddressAttribute::Local(IpAddr::V4(addr)) => Some(*addr),
                _ => None,
            });
        let address = local.and_then(|addr| Ipv4Net::new(addr, message.header.prefix_len).ok());
        one.link.addresses.extend(address);
    }

    /// Static ARP entries; those that the kernel learns come and go by themselves.
    fn add_neighbour(&mut self, message: &NeighbourMessage) {
        let Some(one) = self.by_index(message.header.ifindex) else {
            return;
        };
        if message.header.state != NeighbourState::Permanent {
            return;
        }
        let name = one.name.clone();
        if let (Some(IpAddr::V4(addr)), Some(mac)) = entry(message) {
            self.namespace.neighbours.insert((name, addr), mac);
        }
    }

    fn add_bridge_entry(&mut self, message: &NeighbourMessage) {
        let Some(one) = self.by_index(message.header.ifindex) else {
            return;
        };
        let header = &message.header;
        let (destination, Some(mac)) = entry(message) else {
            return;
        };
        let multicast = mac.0[0] & 1 == 1;
        if header.flags.contains(NeighbourFlags::Own) {
            let name = one.name.clone();
            if let Some(vtep) = destination {
                self.namespace.fdb.insert((name, mac), vtep);
            }
            return;
        }
        // The kernel has an entry of its own for each port's address and for the bridge's.
        let own = one.link.mac == Some(mac) || one.link.kind == LinkKind::Bridge;
        let local = header.state == NeighbourState::Permanent;
        if multicast || own && local || !local && header.state != NeighbourState::Noarp {
            return;
        }
        let station = Station {
            port: one.name.clone(),
            mac,
            local,
        };
        self.namespace.stations.insert(station);
    }

    fn add_route(&mut self, message: &RouteMessage) {
        let header = &message.header;
        let ours = header.table == RouteHeader::RT_TABLE_MAIN
            && header.kind == RouteType::Unicast
            && header.protocol != RouteProtocol::Kernel;
        if !ours {
            return;
        }
        let mut destination = Ipv4Addr::UNSPECIFIED;
        let mut gateway = None;
        let mut link = None;
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(RouteAddress::Inet(addr)) => destination = *addr,
                RouteAttribute::Gateway(RouteAddress::Inet(addr)) => gateway = Some(*addr),
                RouteAttribute::Oif(index) => link = self.by_index(*index),
                _ => {}
            }
        }
        let destination = Ipv4Net::new(destination, header.destination_prefix_length);
        if let (Some(link), Ok(destination)) = (link, destination) {
            let link = link.name.clone();
            self.namespace.routes.insert(Route {
                destination,
                gateway,
                link,
            });
        }
    }
}

/// The address and the MAC address of an entry.
fn entry(message: &NeighbourMessage) -> (Option<IpAddr>, Option<Mac>) {
    let mut found = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(addr)) => {
                found.0 = Some(IpAddr::V4(*addr));
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(addr)) => {
                found.0 = Some(IpAddr::V6(*addr));
            }
            // The family of a bridge entry says nothing about its destination's: the length does.
            NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => {
                let v4 = <[u8; 4]>::try_from(bytes.as_slice()).map(IpAddr::from);
                let v6 = || <[u8; 16]>::try_from(bytes.as_slice()).map(IpAddr::from);
                found.0 = v4.or_else(|_| v6()).ok();
            }
            NeighbourAttribute::LinkLayerAddress(bytes) => found.1 = mac(bytes),
            _ => {}
        }
    }
    found
}

fn mac(bytes: &[u8]) -> Option<Mac> {
    bytes.try_into().ok().map(Mac)
}
