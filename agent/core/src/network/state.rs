//! The one type for what a kernel should look like and what it does look like.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, Ipv4Addr},
};

use serde::{Deserialize, Serialize};

use super::{
    address::{Ipv4Net, Mac},
    ruleset::Ruleset,
};

/// The bridge in the host's namespace that is every container's way out.
pub const GATEWAY_BRIDGE: &str = "docker_gwbridge";
/// Name of the namespace of the routing mesh.
pub const INGRESS_SANDBOX: &str = "ingress_sbox";
/// The bridge in the namespace of an overlay network.
pub const OVERLAY_BRIDGE: &str = "br0";
/// The VXLAN device in the namespace of an overlay network.
pub const OVERLAY_VXLAN: &str = "vxlan0";
/// How the host's ends of the pairs to [`GATEWAY_BRIDGE`] begin.
pub const GATEWAY_PORT_PREFIX: &str = "gw-";
/// How the bridge's ends of the pairs in an overlay's namespace begin.
pub const OVERLAY_PORT_PREFIX: &str = "sb-";

/// A network namespace.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Ns {
    /// The one that skepd itself is in.
    Host,
    /// `/run/skep/netns/<name>`; all of it is ours.
    Named(String),
}

impl fmt::Display for Ns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ns::Host => f.write_str("host"),
            Ns::Named(name) => f.write_str(name),
        }
    }
}

/// Everything of this node's network that is ours.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NetState {
    /// Per namespace; the host's is always there.
    pub namespaces: BTreeMap<Ns, Namespace>,
}

impl NetState {
    /// The same state with only the namespaces in `scope`.
    #[must_use]
    pub fn restricted(&self, scope: &Scope) -> Self {
        let within = self.namespaces.iter().filter(|(ns, _)| scope.includes(ns));
        Self {
            namespaces: within.map(|(ns, one)| (ns.clone(), one.clone())).collect(),
        }
    }
}

/// What to look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    /// These namespaces only; all that exist when absent.
    pub only: Option<BTreeSet<Ns>>,
    /// The settings to read in each namespace.
    pub sysctls: BTreeMap<Ns, BTreeSet<String>>,
}

impl Scope {
    /// All that exists, with the settings that `desired` speaks of.
    #[must_use]
    pub fn all(desired: &NetState) -> Self {
        let keys = |namespace: &Namespace| namespace.sysctls.keys().cloned().collect();
        Self {
            only: None,
            sysctls: desired
                .namespaces
                .iter()
                .map(|(ns, namespace)| (ns.clone(), keys(namespace)))
                .collect(),
        }
    }

    /// The same, but only these namespaces. A pair of links is only repaired in a scope that has
    /// both its ends.
    #[must_use]
    pub fn only(desired: &NetState, namespaces: BTreeSet<Ns>) -> Self {
        let mut scope = Self::all(desired);
        scope.sysctls.retain(|ns, _| namespaces.contains(ns));
        scope.only = Some(namespaces);
        scope
    }

    /// Whether `ns` is to be looked at.
    #[must_use]
    pub fn includes(&self, ns: &Ns) -> bool {
        self.only.as_ref().is_none_or(|only| only.contains(ns))
    }
}

/// One network namespace.
///
/// Observed in a named namespace: everything that can be changed there, whoever made it. Observed
/// in the host's: links of the kinds below, our table, the settings asked for; addresses of
/// [`GATEWAY_BRIDGE`]. What the kernel adds by itself (connected routes, multicast) never appears.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Namespace {
    /// By name.
    pub links: BTreeMap<String, Link>,
    /// IPv4 routes of the main table through a gateway.
    pub routes: BTreeSet<Route>,
    /// Permanent ARP entries: (link, address) to MAC.
    pub neighbours: BTreeMap<(String, Ipv4Addr), Mac>,
    /// Forwarding of VXLAN devices: (link, MAC) to the VTEP of its node.
    pub fdb: BTreeMap<(String, Mac), IpAddr>,
    /// Static entries of bridges.
    pub stations: BTreeSet<Station>,
    /// Our nftables table.
    pub table: Option<Table>,
    /// IPVS services.
    pub ipvs: BTreeMap<IpvsKey, IpvsService>,
    /// Kernel settings: path below `/proc/sys` to value.
    pub sysctls: BTreeMap<String, String>,
}

/// A link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// What it is.
    pub kind: LinkKind,
    /// Its MAC address; desired absent = whatever the kernel chose.
    pub mac: Option<Mac>,
    /// MTU in bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// The bridge it is a port of.
    pub port: Option<BridgePort>,
    /// IPv4 addresses.
    pub addresses: BTreeSet<Ipv4Net>,
}

/// Kinds of links that we make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkKind {
    /// `lo`.
    Loopback,
    /// A bridge.
    Bridge,
    /// A VXLAN device whose UDP socket lives in the host's namespace.
    Vxlan(Vxlan),
    /// One end of a pair.
    Veth(Option<LinkName>),
    /// Made by someone else in a namespace of ours.
    Other(String),
}

/// A VXLAN device. Learning is off in all that we make: all entries are static.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vxlan {
    /// Network identifier, 24 bits.
    pub vni: u32,
    /// UDP port.
    pub port: u16,
    /// Source address of the packets.
    pub local: IpAddr,
    /// Whether it learns from packets.
    pub learning: bool,
    /// Whether it answers ARP from the neighbour table.
    pub proxy: bool,
    /// Whether its packets leave through another namespace than its own, as they should.
    pub detached: bool,
}

/// A link somewhere.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct LinkName {
    /// Its namespace.
    pub ns: Ns,
    /// Its name there.
    pub name: String,
}

/// A link's place in a bridge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BridgePort {
    /// Name of the bridge.
    pub bridge: String,
    /// Whether the bridge learns senders on it.
    pub learning: bool,
    /// Isolated ports do not reach each other, only those that are not (no inter-container
    /// traffic on the gateway bridge).
    pub isolated: bool,
}

/// A route through a gateway.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// Destination; `0.0.0.0/0` is the default route.
    pub destination: Ipv4Net,
    /// The next hop, if there is one.
    pub gateway: Option<Ipv4Addr>,
    /// The link.
    pub link: String,
}

/// A static entry in a bridge's table: this MAC address is behind this port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Station {
    /// The port.
    pub port: String,
    /// Who is behind it.
    pub mac: Mac,
    /// The bridge keeps the frames for itself. Never desired; an observed one is a foreign hand's.
    pub local: bool,
}

/// Our table as it is in the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Table {
    /// Exactly this.
    Is(Ruleset),
    /// The one whose text has this SHA-256 digest: written before skepd was restarted, and not
    /// changed since. Never desired.
    Digest([u8; 32]),
    /// There is one, and nobody knows what is in it: somebody else has changed rules in this
    /// namespace, or may have.
    Unknown,
}

impl Table {
    /// Whether a table that was seen is the one that is wanted.
    #[must_use]
    pub fn is(&self, wanted: &Ruleset) -> bool {
        match self {
            Table::Is(ruleset) => ruleset == wanted,
            Table::Digest(digest) => *digest == wanted.digest(),
            Table::Unknown => false,
        }
    }
}

/// What an IPVS service is known by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum IpvsKey {
    /// A firewall mark, for IPv4. All of ours are.
    Mark(u32),
    /// An address; in our namespaces only a foreign hand makes these.
    Address {
        /// IP protocol number.
        protocol: u16,
        /// Virtual address.
        addr: IpAddr,
        /// Virtual port.
        port: u16,
    },
    /// A firewall mark for IPv6; a foreign hand's.
    Mark6(u32),
}

/// An IPVS service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IpvsService {
    /// `rr` in all of ours.
    pub scheduler: String,
    /// Flags without the one that says that it is in the table; 0 in all of ours.
    pub flags: u32,
    /// Where connections go.
    pub destinations: BTreeMap<IpvsDestination, IpvsForward>,
}

/// A real server. Port 0 keeps the port of the packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct IpvsDestination {
    /// Its address.
    pub addr: IpAddr,
    /// Its port.
    pub port: u16,
}

/// How connections go to a real server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IpvsForward {
    /// By address translation (`Masq`), as in all of ours.
    pub masquerade: bool,
    /// 0 gets no new connections but keeps those it has.
    pub weight: u32,
}
