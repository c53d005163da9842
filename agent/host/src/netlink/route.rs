//! Links, addresses, routes, neighbours and bridge entries of one namespace: rtnetlink.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "the kernel may answer with kinds of messages that do not concern us"
)]

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr},
    os::fd::{AsRawFd, BorrowedFd},
    time::Duration,
};

use futures_util::StreamExt;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage, AddressScope},
    link::{
        InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth,
        InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
    },
    neighbour::{
        NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
    },
    route::{
        RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope,
        RouteType,
    },
};
use skep_core::network::{
    address::{Ipv4Net, Mac},
    state::{BridgePort, LinkName, Route, Station, Vxlan},
};
use tokio::{runtime::Handle as Runtime, task::JoinHandle, time::timeout};

use crate::{
    error::{Context, Result},
    netns,
};

/// The kernel answers in microseconds; a second means that something is broken.
const DEADLINE: Duration = Duration::from_secs(10);
const CREATE: u16 = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
const REPLACE: u16 = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
const CHANGE: u16 = NLM_F_REQUEST | NLM_F_ACK;

/// What a pair's end says about its peer, in its alias: the kernel itself only tells an index in an
/// unnamed namespace.
pub(crate) const PEER_ALIAS: &str = "skep peer ";

/// A socket in one namespace. It stays there, whoever uses it from where.
#[derive(Debug)]
pub struct RouteSocket {
    handle: rtnetlink::Handle,
    connection: JoinHandle<()>,
}

impl Drop for RouteSocket {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl RouteSocket {
    /// Opens a socket inside the namespace.
    ///
    /// # Errors
    /// When the namespace cannot be entered or the socket not made.
    pub async fn open(ns: BorrowedFd<'_>) -> Result<Self> {
        let op = "open rtnetlink socket";
        let runtime = Runtime::current();
        let opened = netns::enter_async(ns, move || {
            let _guard = runtime.enter();
            rtnetlink::new_connection()
        });
        let (connection, handle, _) = opened.await?.context(op, "")?;
        Ok(Self {
            handle,
            connection: tokio::spawn(connection),
        })
    }

    async fn request(&self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = flags;
        let mut answers = self
            .handle
            .clone()
            .request(request)
            .map_err(io::Error::other)?;
        let answer = timeout(DEADLINE, answers.next()).await?;
        match answer.map(|message| message.payload) {
            Some(NetlinkPayload::Error(error)) if error.code.is_some() => Err(error.to_io()),
            // A plain acknowledgement ends the stream without a message.
            Some(_) | None => Ok(()),
        }
    }

    /// Everything of one kind.
    pub(crate) async fn dump(
        &self,
        message: RouteNetlinkMessage,
    ) -> io::Result<Vec<RouteNetlinkMessage>> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
        let mut answers = self
            .handle
            .clone()
            .request(request)
            .map_err(io::Error::other)?;
        let mut all = Vec::new();
        while let Some(answer) = timeout(DEADLINE, answers.next()).await? {
            match answer.payload {
                NetlinkPayload::InnerMessage(message) => all.push(message),
                NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                NetlinkPayload::Overrun(_) => return Err(io::ErrorKind::UnexpectedEof.into()),
                _ => {}
            }
        }
        Ok(all)
    }

    /// Names and indexes of all links.
    pub(crate) async fn indexes(&self) -> io::Result<BTreeMap<String, u32>> {
        let links = self.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()));
        let mut indexes = BTreeMap::new();
        for message in links.await? {
            if let RouteNetlinkMessage::NewLink(link) = message {
                let name = link
                    .attributes
                    .iter()
                    .find_map(|attribute| match attribute {
                        LinkAttribute::IfName(name) => Some(name.clone()),
                        _ => None,
                    });
                indexes.extend(name.map(|name| (name, link.header.index)));
            }
        }
        Ok(indexes)
    }

    pub(crate) async fn create_bridge(&self, name: &str) -> io::Result<()> {
        let data = InfoData::Bridge(vec![InfoBridge::VlanDefaultPvid(0)]);
        self.create(name, InfoKind::Bridge, data, None).await
    }

    /// `self` must be the namespace that the packets leave through.
    pub(crate) async fn create_vxlan(
        &self,
        name: &str,
        vxlan: &Vxlan,
        into: BorrowedFd<'_>,
    ) -> io::Result<()> {
        let local = match vxlan.local {
            IpAddr::V4(addr) => InfoVxlan::Local(addr),
            IpAddr::V6(addr) => InfoVxlan::Local6(addr),
        };
        let data = InfoData::Vxlan(vec![
            InfoVxlan::Id(vxlan.vni),
            local,
            InfoVxlan::Port(vxlan.port),
            InfoVxlan::Learning(vxlan.learning),
            InfoVxlan::Proxy(vxlan.proxy),
        ]);
        self.create(name, InfoKind::Vxlan, data, Some(into)).await
    }

    pub(crate) async fn create_veth(
        &self,
        name: &str,
        peer: &LinkName,
        peer_ns: BorrowedFd<'_>,
    ) -> io::Result<()> {
        let mut other = LinkMessage::default();
        other.attributes = vec![
            LinkAttribute::IfName(peer.name.clone()),
            LinkAttribute::NetNsFd(peer_ns.as_raw_fd()),
        ];
        let data = InfoData::Veth(InfoVeth::Peer(other));
        self.create(name, InfoKind::Veth, data, None).await
    }

    async fn create(
        &self,
        name: &str,
        kind: InfoKind,
        data: InfoData,
        into: Option<BorrowedFd<'_>>,
    ) -> io::Result<()> {
        let mut link = LinkMessage::default();
        link.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind), LinkInfo::Data(data)]),
        ];
        let into = into.map(|fd| LinkAttribute::NetNsFd(fd.as_raw_fd()));
        link.attributes.extend(into);
        self.request(RouteNetlinkMessage::NewLink(link), CREATE)
            .await
    }

    /// Writes into a pair's end who its peer is.
    pub(crate) async fn set_peer(&self, name: &str, peer: &LinkName) -> io::Result<()> {
        let alias = format!("{PEER_ALIAS}{}/{}", peer.ns, peer.name);
        self.set(name, vec![LinkAttribute::IfAlias(alias)]).await
    }

    pub(crate) async fn set_mac(&self, name: &str, mac: Mac) -> io::Result<()> {
        self.set(name, vec![LinkAttribute::Address(mac.0.to_vec())])
            .await
    }

    pub(crate) async fn set_mtu(&self, name: &str, mtu: u32) -> io::Result<()> {
        self.set(name, vec![LinkAttribute::Mtu(mtu)]).await
    }

    /// Makes a link a port of the bridge with index `bridge`.
    pub(crate) async fn set_port(
        &self,
        name: &str,
        bridge: u32,
        port: &BridgePort,
    ) -> io::Result<()> {
        self.set(name, vec![LinkAttribute::Controller(bridge)])
            .await?;
        // Properties of a port can only be set once it is one.
        let mut link = LinkMessage::default();
        let properties = vec![
            InfoBridgePort::Learning(port.learning),
            InfoBridgePort::Isolated(port.isolated),
        ];
        link.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::PortKind(InfoPortKind::Bridge),
                LinkInfo::PortData(InfoPortData::BridgePort(properties)),
            ]),
        ];
        self.request(RouteNetlinkMessage::NewLink(link), CHANGE)
            .await
    }

    pub(crate) async fn clear_port(&self, name: &str) -> io::Result<()> {
        self.set(name, vec![LinkAttribute::Controller(0)]).await
    }

    pub(crate) async fn set_up(&self, name: &str, up: bool) -> io::Result<()> {
        let mut link = LinkMessage::default();
        link.attributes = vec![LinkAttribute::IfName(name.to_owned())];
        link.header.change_mask = LinkFlags::Up;
        if up {
            link.header.flags = LinkFlags::Up;
        }
        self.request(RouteNetlinkMessage::SetLink(link), CHANGE)
            .await
    }

    async fn set(&self, name: &str, mut attributes: Vec<LinkAttribute>) -> io::Result<()> {
        let mut link = LinkMessage::default();
        attributes.push(LinkAttribute::IfName(name.to_owned()));
        link.attributes = attributes;
        self.request(RouteNetlinkMessage::SetLink(link), CHANGE)
            .await
    }

    pub(crate) async fn delete_link(&self, name: &str) -> io::Result<()> {
        let mut link = LinkMessage::default();
        link.attributes = vec![LinkAttribute::IfName(name.to_owned())];
        self.request(RouteNetlinkMessage::DelLink(link), CHANGE)
            .await
    }

    pub(crate) async fn add_address(&self, index: u32, address: Ipv4Net) -> io::Result<()> {
        let mut message = address_message(index, address);
        if address.prefix() < 31 {
            let broadcast = AddressAttribute::Broadcast(address.broadcast());
            message.attributes.push(broadcast);
        }
        if address.addr().is_loopback() {
            // As the kernel itself gives it to lo; without a broadcast address.
            message.header.scope = AddressScope::Host;
            message.attributes.pop();
        }
        self.request(RouteNetlinkMessage::NewAddress(message), CREATE)
            .await
    }

    pub(crate) async fn delete_address(&self, index: u32, address: Ipv4Net) -> io::Result<()> {
        let message = address_message(index, address);
        self.request(RouteNetlinkMessage::DelAddress(message), CHANGE)
            .await
    }

    pub(crate) async fn set_neighbour(
        &self,
        index: u32,
        addr: Ipv4Addr,
        mac: Mac,
    ) -> io::Result<()> {
        let mut message = neighbour_message(index, addr);
        message.header.state = NeighbourState::Permanent;
        let mac = NeighbourAttribute::LinkLayerAddress(mac.0.to_vec());
        message.attributes.push(mac);
        self.request(RouteNetlinkMessage::NewNeighbour(message), REPLACE)
            .await
    }

    pub(crate) async fn delete_neighbour(&self, index: u32, addr: Ipv4Addr) -> io::Result<()> {
        let message = neighbour_message(index, addr);
        self.request(RouteNetlinkMessage::DelNeighbour(message), CHANGE)
            .await
    }

    pub(crate) async fn set_fdb(&self, index: u32, mac: Mac, vtep: IpAddr) -> io::Result<()> {
        let mut message = fdb_message(index, mac, NeighbourFlags::Own);
        message.header.state = NeighbourState::Permanent;
        let vtep = match vtep {
            IpAddr::V4(addr) => NeighbourAddress::Inet(addr),
            IpAddr::V6(addr) => NeighbourAddress::Inet6(addr),
        };
        message
            .attributes
            .push(NeighbourAttribute::Destination(vtep));
        self.request(RouteNetlinkMessage::NewNeighbour(message), REPLACE)
            .await
    }

    pub(crate) async fn delete_fdb(&self, index: u32, mac: Mac) -> io::Result<()> {
        let message = fdb_message(index, mac, NeighbourFlags::Own);
        self.request(RouteNetlinkMessage::DelNeighbour(message), CHANGE)
            .await
    }

    pub(crate) async fn set_station(&self, index: u32, station: &Station) -> io::Result<()> {
        let mut message = fdb_message(index, station.mac, NeighbourFlags::Controller);
        message.header.state = if station.local {
            NeighbourState::Permanent
        } else {
            NeighbourState::Noarp
        };
        self.request(RouteNetlinkMessage::NewNeighbour(message), REPLACE)
            .await
    }

    pub(crate) async fn delete_station(&self, index: u32, station: &Station) -> io::Result<()> {
        let message = fdb_message(index, station.mac, NeighbourFlags::Controller);
        self.request(RouteNetlinkMessage::DelNeighbour(message), CHANGE)
            .await
    }

    pub(crate) async fn add_route(&self, index: u32, route: &Route) -> io::Result<()> {
        let mut message = route_message(index, route);
        message.header.protocol = RouteProtocol::Static;
        message.header.kind = RouteType::Unicast;
        message.header.scope = if route.gateway.is_some() {
            RouteScope::Universe
        } else {
            RouteScope::Link
        };
        self.request(RouteNetlinkMessage::NewRoute(message), CREATE)
            .await
    }

    pub(crate) async fn delete_route(&self, index: u32, route: &Route) -> io::Result<()> {
        let mut message = route_message(index, route);
        message.header.scope = RouteScope::NoWhere;
        self.request(RouteNetlinkMessage::DelRoute(message), CHANGE)
            .await
    }
}

fn address_message(index: u32, address: Ipv4Net) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.prefix_len = address.prefix();
    message.header.index = index;
    let addr = IpAddr::V4(address.addr());
    message.attributes = vec![
        AddressAttribute::Local(addr),
        AddressAttribute::Address(addr),
    ];
    message
}

fn neighbour_message(index: u32, addr: Ipv4Addr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.ifindex = index;
    message.attributes = vec![NeighbourAttribute::Destination(NeighbourAddress::Inet(
        addr,
    ))];
    message
}

fn fdb_message(index: u32, mac: Mac, flags: NeighbourFlags) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = index;
    message.header.flags = flags;
    message.attributes = vec![NeighbourAttribute::LinkLayerAddress(mac.0.to_vec())];
    message
}

fn route_message(index: u32, route: &Route) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.destination_prefix_length = route.destination.prefix();
    message.attributes = vec![RouteAttribute::Oif(index)];
    if route.destination.prefix() > 0 {
        let destination = RouteAddress::Inet(route.destination.network().addr());
        message
            .attributes
            .push(RouteAttribute::Destination(destination));
    }
    let gateway = route
        .gateway
        .map(|addr| RouteAttribute::Gateway(RouteAddress::Inet(addr)));
    message.attributes.extend(gateway);
    message
}
