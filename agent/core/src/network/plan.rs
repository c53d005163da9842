//! The steps from what is to what must be.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

use super::{
    address::{Ipv4Net, Mac},
    ruleset::Ruleset,
    state::{
        BridgePort, GATEWAY_BRIDGE, GATEWAY_PORT_PREFIX, IpvsDestination, IpvsForward, IpvsKey,
        IpvsService, Link, LinkKind, LinkName, Namespace, NetState, Ns, Route, Station, Table,
        Vxlan,
    },
};

/// One step, complete: whoever carries it out has nothing to decide.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetOp {
    /// Where.
    pub ns: Ns,
    /// What.
    pub step: Step,
}

/// Kinds of steps, in the order in which a plan has them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Remove our table.
    DeleteTable,
    /// Remove a server of a balancer.
    DeleteIpvsDestination(IpvsKey, IpvsDestination),
    /// Remove a balancer with its servers.
    DeleteIpvsService(IpvsKey),
    /// Remove a route.
    DeleteRoute(Route),
    /// Remove an ARP entry of (link, address).
    DeleteNeighbour(String, Ipv4Addr),
    /// Remove a forwarding entry of a VXLAN device: (link, MAC).
    DeleteFdb(String, Mac),
    /// Remove an entry of a bridge.
    DeleteStation(Station),
    /// Remove an address from a link.
    DeleteAddress(String, Ipv4Net),
    /// Remove a link; of a pair, both ends.
    DeleteLink(String),
    /// Remove the namespace with all that is in it.
    DeleteNamespace,
    /// Make the namespace.
    CreateNamespace,
    /// Write a kernel setting.
    SetSysctl(String, String),
    /// Make a bridge of that name.
    CreateBridge(String),
    /// Make a VXLAN device here whose packets leave through the host's namespace.
    CreateVxlan(String, Vxlan),
    /// Make a pair: a link of that name here, the peer there.
    CreateVeth(String, LinkName),
    /// Set a MAC address.
    SetMac(String, Mac),
    /// Set an MTU.
    SetMtu(String, u32),
    /// Make a link a port of a bridge, with these properties.
    SetPort(String, BridgePort),
    /// Take a link out of its bridge.
    ClearPort(String),
    /// Give a link an address.
    AddAddress(String, Ipv4Net),
    /// Switch a link on (true) or off.
    SetUp(String, bool),
    /// Set an ARP entry of (link, address).
    SetNeighbour(String, Ipv4Addr, Mac),
    /// Set a forwarding entry of a VXLAN device: (link, MAC) to VTEP.
    SetFdb(String, Mac, IpAddr),
    /// Set an entry of a bridge.
    SetStation(Station),
    /// Add a route.
    AddRoute(Route),
    /// Make a balancer without servers: key, scheduler, flags.
    AddIpvsService(IpvsKey, String, u32),
    /// Add a server, or set its weight and way.
    SetIpvsDestination(IpvsKey, IpvsDestination, IpvsForward),
    /// Replace our table by this, in one transaction.
    ReplaceTable(Ruleset),
}

/// The steps from `observed` to `desired`: removal before addition, in the order of [`Step`], by
/// namespace within one kind. Empty when nothing differs. Both states must have the same scope.
#[must_use]
pub fn plan(desired: &NetState, observed: &NetState) -> Vec<NetOp> {
    let nothing = Namespace::default();
    let mut ops = Vec::new();
    for (ns, seen) in &observed.namespaces {
        match desired.namespaces.get(ns) {
            Some(want) => Diff { ns, want, seen }.removals(desired, observed, &mut ops),
            // What links lead out of it must go first: a process may keep the namespace alive.
            None if *ns != Ns::Host => {
                let want = &nothing;
                Diff { ns, want, seen }.link_removals(desired, observed, &mut ops);
                ops.push(op(ns, Step::DeleteNamespace));
            }
            None => {}
        }
    }
    for (ns, want) in &desired.namespaces {
        let seen = observed.namespaces.get(ns);
        if seen.is_none() && *ns != Ns::Host {
            ops.push(op(ns, Step::CreateNamespace));
        }
        let seen = seen.unwrap_or(&nothing);
        Diff { ns, want, seen }.additions(desired, observed, &mut ops);
    }
    // A stable sort by kind: the plan of one namespace after the other becomes one order for all.
    ops.sort_by_key(|op| op.step.rank());
    ops
}

impl Step {
    /// Position in a plan. Settings of one link come after the links, all others before.
    fn rank(&self) -> u8 {
        match self {
            Step::DeleteTable => 0,
            Step::DeleteIpvsDestination(..) => 1,
            Step::DeleteIpvsService(_) => 2,
            Step::DeleteRoute(_) => 3,
            Step::DeleteNeighbour(..) => 4,
            Step::DeleteFdb(..) => 5,
            Step::DeleteStation(_) => 6,
            Step::DeleteAddress(..) => 7,
            Step::DeleteLink(_) => 8,
            Step::DeleteNamespace => 9,
            Step::CreateNamespace => 10,
            Step::SetSysctl(key, _) if link_of(key).is_none() => 11,
            Step::CreateBridge(_) => 12,
            Step::CreateVxlan(..) => 13,
            Step::CreateVeth(..) => 14,
            Step::SetSysctl(..) => 15,
            Step::SetMac(..) => 16,
            Step::SetMtu(..) => 17,
            Step::ClearPort(_) => 18,
            Step::SetPort(..) => 19,
            Step::AddAddress(..) => 20,
            Step::SetUp(..) => 21,
            Step::SetNeighbour(..) => 22,
            Step::SetFdb(..) => 23,
            Step::SetStation(_) => 24,
            Step::AddRoute(_) => 25,
            Step::AddIpvsService(..) => 26,
            Step::SetIpvsDestination(..) => 27,
            Step::ReplaceTable(_) => 28,
        }
    }
}

/// The link that a setting belongs to, if it is not one of the whole namespace.
fn link_of(key: &str) -> Option<&str> {
    let mut parts = key.split('/').skip(2);
    let conf = parts.next()? == "conf";
    parts
        .next()
        .filter(|name| conf && !matches!(*name, "all" | "default"))
}

fn op(ns: &Ns, step: Step) -> NetOp {
    NetOp {
        ns: ns.clone(),
        step,
    }
}

/// One namespace as it must be and as it is.
struct Diff<'a> {
    ns: &'a Ns,
    want: &'a Namespace,
    seen: &'a Namespace,
}

impl Diff<'_> {
    fn removals(&self, desired: &NetState, observed: &NetState, ops: &mut Vec<NetOp>) {
        let (want, seen) = (self.want, self.seen);
        let mut push = |step| ops.push(op(self.ns, step));
        if seen.table.is_some() && want.table.is_none() {
            push(Step::DeleteTable);
        }
        for route in seen.routes.difference(&want.routes) {
            push(Step::DeleteRoute(route.clone()));
        }
        for (link, addr) in gone(&seen.neighbours, &want.neighbours) {
            push(Step::DeleteNeighbour(link.clone(), *addr));
        }
        for (link, mac) in gone(&seen.fdb, &want.fdb) {
            push(Step::DeleteFdb(link.clone(), *mac));
        }
        for station in seen.stations.difference(&want.stations) {
            push(Step::DeleteStation(station.clone()));
        }
        for (name, link) in &seen.links {
            let wanted = want.links.get(name).map(|link| &link.addresses);
            let kept = wanted.unwrap_or(&link.addresses);
            for address in link.addresses.difference(kept) {
                push(Step::DeleteAddress(name.clone(), *address));
            }
        }
        self.ipvs_removals(ops);
        self.link_removals(desired, observed, ops);
    }

    fn ipvs_removals(&self, ops: &mut Vec<NetOp>) {
        for (key, service) in &self.seen.ipvs {
            match self
                .want
                .ipvs
                .get(key)
                .filter(|want| same_balancer(want, service))
            {
                None => ops.push(op(self.ns, Step::DeleteIpvsService(*key))),
                Some(want) => {
                    for server in gone(&service.destinations, &want.destinations) {
                        ops.push(op(self.ns, Step::DeleteIpvsDestination(*key, *server)));
                    }
                }
            }
        }
    }

    fn link_removals(&self, desired: &NetState, observed: &NetState, ops: &mut Vec<NetOp>) {
        for (name, link) in &self.seen.links {
            let kept = kept_link(self.ns, name, desired, observed).is_some();
            if !kept && may_delete(self.ns, name, link, desired) {
                ops.push(op(self.ns, Step::DeleteLink(name.clone())));
            }
        }
    }

    fn additions(&self, desired: &NetState, observed: &NetState, ops: &mut Vec<NetOp>) {
        let (want, seen) = (self.want, self.seen);
        let kept = |link: &str| kept_link(self.ns, link, desired, observed);
        for (key, value) in &want.sysctls {
            let lost = link_of(key).is_some_and(|link| kept(link).is_none());
            if lost || seen.sysctls.get(key) != Some(value) {
                let step = Step::SetSysctl(key.clone(), value.clone());
                ops.push(op(self.ns, step));
            }
        }
        for (name, link) in &want.links {
            let stays = kept(name);
            if stays.is_none() && !self.create(name, link, desired, ops) {
                continue;
            }
            let in_bridge = |link: &&Link| {
                link.port
                    .as_ref()
                    .is_some_and(|p| kept(&p.bridge).is_some())
            };
            let port = stays.filter(in_bridge).and_then(|link| link.port.as_ref());
            self.link_additions(name, link, stays, port, ops);
        }
        self.table_additions(desired, observed, ops);
        self.ipvs_additions(ops);
        if let Some(Table::Is(ruleset)) = &want.table
            && !seen.table.as_ref().is_some_and(|table| table.is(ruleset))
        {
            ops.push(op(self.ns, Step::ReplaceTable(ruleset.clone())));
        }
    }

    /// Makes a link; false when it cannot come to be within this scope.
    fn create(&self, name: &str, link: &Link, desired: &NetState, ops: &mut Vec<NetOp>) -> bool {
        let name = name.to_owned();
        let step = match &link.kind {
            LinkKind::Bridge => Step::CreateBridge(name),
            LinkKind::Vxlan(vxlan) => Step::CreateVxlan(name, *vxlan),
            LinkKind::Veth(_) if !can_create(link, desired) => return false,
            // A pair is made from its end inside the sandbox, the one that is no port of a bridge.
            LinkKind::Veth(Some(peer)) if link.port.is_none() => {
                Step::CreateVeth(name, peer.clone())
            }
            // The other end, or one that every namespace is born with.
            LinkKind::Veth(_) | LinkKind::Loopback => return true,
            LinkKind::Other(_) => return false,
        };
        ops.push(op(self.ns, step));
        true
    }

    fn link_additions(
        &self,
        name: &str,
        want: &Link,
        kept: Option<&Link>,
        kept_port: Option<&BridgePort>,
        ops: &mut Vec<NetOp>,
    ) {
        let mut push = |step| ops.push(op(self.ns, step));
        let name = || name.to_owned();
        if let Some(mac) = want
            .mac
            .filter(|mac| kept.and_then(|link| link.mac) != Some(*mac))
        {
            push(Step::SetMac(name(), mac));
        }
        if kept.map(|link| link.mtu) != Some(want.mtu) {
            push(Step::SetMtu(name(), want.mtu));
        }
        match (&want.port, kept_port) {
            (Some(port), seen) if seen != Some(port) => push(Step::SetPort(name(), port.clone())),
            (None, Some(_)) => push(Step::ClearPort(name())),
            (Some(_) | None, _) => {}
        }
        for address in &want.addresses {
            if !kept.is_some_and(|link| link.addresses.contains(address)) {
                push(Step::AddAddress(name(), *address));
            }
        }
        if kept.is_some_and(|link| link.up) != want.up {
            push(Step::SetUp(name(), want.up));
        }
    }

    /// What hangs on links; it went with a link that is made anew.
    fn table_additions(&self, desired: &NetState, observed: &NetState, ops: &mut Vec<NetOp>) {
        let (want, seen) = (self.want, self.seen);
        let kept = |link: &str| kept_link(self.ns, link, desired, observed).is_some();
        let in_bridge = |port: &str| {
            let port = want.links.get(port).and_then(|link| link.port.as_ref());
            port.is_some_and(|port| kept(&port.bridge))
        };
        let reachable = |port: &str| {
            kept(port)
                || want
                    .links
                    .get(port)
                    .is_some_and(|link| can_create(link, desired))
        };
        let mut push = |step| ops.push(op(self.ns, step));
        for (key, mac) in &want.neighbours {
            if seen.neighbours.get(key) != Some(mac) || !kept(&key.0) {
                push(Step::SetNeighbour(key.0.clone(), key.1, *mac));
            }
        }
        for (key, vtep) in &want.fdb {
            if seen.fdb.get(key) != Some(vtep) || !kept(&key.0) {
                push(Step::SetFdb(key.0.clone(), key.1, *vtep));
            }
        }
        for station in want
            .stations
            .iter()
            .filter(|station| reachable(&station.port))
        {
            let stays = kept(&station.port) && in_bridge(&station.port);
            if !stays || !seen.stations.contains(station) {
                push(Step::SetStation(station.clone()));
            }
        }
        for route in &want.routes {
            if !seen.routes.contains(route) || !kept(&route.link) {
                push(Step::AddRoute(route.clone()));
            }
        }
    }

    fn ipvs_additions(&self, ops: &mut Vec<NetOp>) {
        for (key, want) in &self.want.ipvs {
            let seen = self
                .seen
                .ipvs
                .get(key)
                .filter(|seen| same_balancer(want, seen));
            if seen.is_none() {
                let step = Step::AddIpvsService(*key, want.scheduler.clone(), want.flags);
                ops.push(op(self.ns, step));
            }
            for (server, forward) in &want.destinations {
                if seen.and_then(|seen| seen.destinations.get(server)) != Some(forward) {
                    ops.push(op(
                        self.ns,
                        Step::SetIpvsDestination(*key, *server, *forward),
                    ));
                }
            }
        }
    }
}

fn same_balancer(one: &IpvsService, other: &IpvsService) -> bool {
    one.scheduler == other.scheduler && one.flags == other.flags
}

/// Keys of `seen` that `want` does not have.
fn gone<'a, K: Ord, V>(
    seen: &'a BTreeMap<K, V>,
    want: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = &'a K> {
    seen.keys().filter(|key| !want.contains_key(key))
}

/// The link as it is now, if it may stay. A pair stays only when both its ends do.
fn kept_link<'a>(
    ns: &Ns,
    name: &str,
    desired: &NetState,
    observed: &'a NetState,
) -> Option<&'a Link> {
    let want = desired.namespaces.get(ns)?.links.get(name)?;
    let seen = observed.namespaces.get(ns)?.links.get(name)?;
    if want.kind != seen.kind {
        return None;
    }
    let LinkKind::Veth(Some(peer)) = &want.kind else {
        return Some(seen);
    };
    let end = |state: &'a NetState| state.namespaces.get(&peer.ns)?.links.get(&peer.name);
    // A peer whose namespace is out of scope was not looked at.
    let unseen =
        !observed.namespaces.contains_key(&peer.ns) && !desired.namespaces.contains_key(&peer.ns);
    let other = LinkName {
        ns: ns.clone(),
        name: name.to_owned(),
    };
    let whole = end(observed).is_some_and(|end| end.kind == LinkKind::Veth(Some(other)));
    (unseen || whole).then_some(seen)
}

/// Whether a link can be made within this scope: of a pair, both ends must be in it.
fn can_create(link: &Link, desired: &NetState) -> bool {
    match &link.kind {
        LinkKind::Veth(Some(peer)) => desired.namespaces.contains_key(&peer.ns),
        LinkKind::Veth(None) | LinkKind::Other(_) => false,
        LinkKind::Loopback | LinkKind::Bridge | LinkKind::Vxlan(_) => true,
    }
}

/// Whether a link that is not wanted as it is may be deleted. In the host's namespace only what is
/// ours by name or by place, and what stands in the way of a network of ours.
fn may_delete(ns: &Ns, name: &str, link: &Link, desired: &NetState) -> bool {
    match (&link.kind, ns) {
        (LinkKind::Loopback, _) => false,
        (_, Ns::Named(_)) => true,
        (LinkKind::Vxlan(vxlan), Ns::Host) => {
            wanted_vnis(desired).contains(&(vxlan.vni, vxlan.port))
        }
        (_, Ns::Host) => {
            let enslaved = link
                .port
                .as_ref()
                .is_some_and(|port| port.bridge == GATEWAY_BRIDGE);
            let pair = matches!(link.kind, LinkKind::Veth(_));
            name == GATEWAY_BRIDGE || pair && (enslaved || name.starts_with(GATEWAY_PORT_PREFIX))
        }
    }
}

fn wanted_vnis(desired: &NetState) -> BTreeSet<(u32, u16)> {
    let links = desired
        .namespaces
        .values()
        .flat_map(|namespace| namespace.links.values());
    links
        .filter_map(|link| match &link.kind {
            LinkKind::Vxlan(vxlan) => Some((vxlan.vni, vxlan.port)),
            LinkKind::Loopback | LinkKind::Bridge | LinkKind::Veth(_) | LinkKind::Other(_) => None,
        })
        .collect()
}
