//! From any state to any other: every step can be carried out, and nothing is left to do.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "each function soils what it can and leaves the rest"
)]

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
};

use proptest::prelude::*;

use crate::network::{
    NetState, Ns,
    address::{Ipv4Net, Mac},
    desired,
    example::{self, Example, id, ingress, my_demo},
    plan,
    state::{
        BridgePort, IpvsDestination, IpvsForward, IpvsKey, IpvsService, Link, LinkKind, LinkName,
        Route, Station, Table, Vxlan,
    },
};

/// A change of the inputs.
#[derive(Debug, Clone)]
enum Turn {
    DropSandbox(usize),
    DropEndpoint(u8),
    MoveEndpoint(u8, u8),
    OutOfService(u8),
    Suspect(u8),
    Internal,
    DropDemo,
    DropPorts,
    LeaveSwarm,
    NewVni(u32),
    NewVtep(u8),
    NewMtu(u32),
    NewGateway,
    Dnsrr,
}

fn turn() -> impl Strategy<Value = Turn> {
    prop_oneof![
        (0..2usize).prop_map(Turn::DropSandbox),
        (0..3u8).prop_map(Turn::DropEndpoint),
        (0..3u8, 0..3u8).prop_map(|(task, node)| Turn::MoveEndpoint(task, node)),
        (0..3u8).prop_map(Turn::OutOfService),
        (0..3u8).prop_map(Turn::Suspect),
        Just(Turn::Internal),
        Just(Turn::DropDemo),
        Just(Turn::DropPorts),
        Just(Turn::LeaveSwarm),
        (5000..5002u32).prop_map(Turn::NewVni),
        (40..42u8).prop_map(Turn::NewVtep),
        (1400..1402u32).prop_map(Turn::NewMtu),
        Just(Turn::NewGateway),
        Just(Turn::Dnsrr),
    ]
}

fn inputs() -> impl Strategy<Value = Example> {
    (0..3u8, prop::collection::vec(turn(), 0..5)).prop_map(|(node, turns)| {
        let mut example = example::whoami(node);
        for turn in &turns {
            take(&mut example, turn);
        }
        example
    })
}

fn take(example: &mut Example, turn: &Turn) {
    let task = |n: u8| id(100 + u128::from(n));
    let networks = &mut example.mesh.networks;
    match *turn {
        Turn::DropSandbox(n) => {
            let key = example.sandboxes.keys().nth(n).cloned();
            key.map(|key| example.sandboxes.remove(&key));
        }
        Turn::DropEndpoint(n) => networks.values_mut().for_each(|net| {
            net.endpoints.remove(&task(n));
        }),
        Turn::MoveEndpoint(n, node) => networks
            .values_mut()
            .filter_map(|net| net.endpoints.get_mut(&task(n)))
            .for_each(|endpoint| endpoint.node_id = id(node.into())),
        Turn::OutOfService(n) => networks
            .values_mut()
            .filter_map(|net| net.endpoints.get_mut(&task(n)))
            .for_each(|endpoint| endpoint.in_service = false),
        Turn::Suspect(n) => {
            let node = example.mesh.nodes.get_mut(&id(n.into()));
            node.into_iter().for_each(|node| node.alive = false);
        }
        Turn::Internal => networks
            .values_mut()
            .for_each(|net| net.internal = !net.ingress),
        Turn::DropDemo => drop(networks.remove(&my_demo())),
        Turn::DropPorts => networks
            .values_mut()
            .flat_map(|net| net.services.values_mut())
            .for_each(|service| service.ports.clear()),
        Turn::LeaveSwarm => {
            example.mesh = Default::default();
            example.node.node_id = None;
        }
        Turn::NewVni(vni) => {
            networks
                .get_mut(&my_demo())
                .into_iter()
                .for_each(|net| net.vni = vni);
        }
        Turn::NewVtep(last) => {
            example.node.vtep = IpAddr::V4(Ipv4Addr::new(192, 168, 77, last));
        }
        Turn::NewMtu(mtu) => networks.values_mut().for_each(|net| net.mtu = mtu),
        Turn::NewGateway => example.node.gateway_bridge = "192.168.9.1/24".parse().unwrap(),
        Turn::Dnsrr => networks
            .get_mut(&ingress())
            .into_iter()
            .flat_map(|net| net.services.values_mut())
            .for_each(|service| service.vip = None),
    }
}

/// What a foreign hand, or a crash in the middle, may have done to namespace `ns` (by position).
#[derive(Debug, Clone)]
enum Dirt {
    DropNamespace,
    NewNamespace(u8),
    DropLink(usize),
    JunkLink(u8),
    JunkVxlan(u32),
    ChangeLink(usize, u8),
    LosePeer(usize),
    LeaveBridge(usize),
    JunkAddress(usize, Ipv4Addr),
    DropAddresses(usize),
    JunkEntries(u8),
    DropEntries,
    JunkIpvs(u8),
    ChangeIpvs(u8),
    UnknownTable,
    DigestOfTable(u8),
    DropTable,
    DropSysctls,
}

fn dirt() -> impl Strategy<Value = Dirt> {
    prop_oneof![
        Just(Dirt::DropNamespace),
        any::<u8>().prop_map(Dirt::NewNamespace),
        (0..6usize).prop_map(Dirt::DropLink),
        any::<u8>().prop_map(Dirt::JunkLink),
        (4095..4099u32).prop_map(Dirt::JunkVxlan),
        (0..6usize, any::<u8>()).prop_map(|(n, what)| Dirt::ChangeLink(n, what)),
        (0..6usize).prop_map(Dirt::LosePeer),
        (0..6usize).prop_map(Dirt::LeaveBridge),
        (0..6usize, any::<u32>()).prop_map(|(n, a)| Dirt::JunkAddress(n, Ipv4Addr::from_bits(a))),
        (0..6usize).prop_map(Dirt::DropAddresses),
        any::<u8>().prop_map(Dirt::JunkEntries),
        Just(Dirt::DropEntries),
        any::<u8>().prop_map(Dirt::JunkIpvs),
        any::<u8>().prop_map(Dirt::ChangeIpvs),
        Just(Dirt::UnknownTable),
        any::<u8>().prop_map(Dirt::DigestOfTable),
        Just(Dirt::DropTable),
        Just(Dirt::DropSysctls),
    ]
}

fn soil(state: &mut NetState, position: usize, dirt: &Dirt) {
    let position = position % state.namespaces.len();
    let ns = state.namespaces.keys().nth(position).unwrap().clone();
    if *dirt == Dirt::DropNamespace {
        if ns != Ns::Host {
            state.namespaces.remove(&ns);
        }
    } else if let Dirt::NewNamespace(n) = dirt {
        let mut junk = state.namespaces[&ns].clone();
        junk.links
            .retain(|_, link| !matches!(link.kind, LinkKind::Vxlan(_)));
        let lo = link(LinkKind::Loopback);
        junk.links.entry("lo".to_owned()).or_insert(lo);
        state
            .namespaces
            .entry(Ns::Named(format!("{n:012x}")))
            .or_insert(junk);
    } else if ns == Ns::Host {
        soil_host(state, dirt);
    } else {
        soil_links(state, &ns, dirt);
        soil_entries(state, &ns, dirt);
        soil_table(state, &ns, dirt);
    }
}

impl PartialEq for Dirt {
    fn eq(&self, other: &Self) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other)
    }
}

/// In the host's namespace only what the host's observation can show.
fn soil_host(state: &mut NetState, dirt: &Dirt) {
    let host = state.namespaces.get_mut(&Ns::Host).unwrap();
    if let Dirt::JunkVxlan(vni) = dirt {
        let taken = vxlans(state).contains(vni);
        let host = state.namespaces.get_mut(&Ns::Host).unwrap();
        if !taken {
            host.links
                .insert("junk0".to_owned(), link(LinkKind::Vxlan(junk_vxlan(*vni))));
        }
        return;
    }
    match dirt {
        Dirt::UnknownTable => host.table = Some(Table::Unknown),
        Dirt::DropSysctls => host.sysctls.clear(),
        Dirt::JunkLink(n) => {
            host.links
                .insert(format!("gw-{n}"), link(LinkKind::Veth(None)));
        }
        Dirt::LosePeer(_) | Dirt::ChangeLink(..) | Dirt::DropLink(_) | Dirt::LeaveBridge(_) => {
            soil_links(state, &Ns::Host, dirt);
        }
        _ => {}
    }
}

fn soil_links(state: &mut NetState, ns: &Ns, dirt: &Dirt) {
    let taken = vxlans(state);
    let namespace = state.namespaces.get_mut(ns).unwrap();
    let nth = |n: &usize| namespace.links.keys().nth(*n).cloned();
    let name = match dirt {
        Dirt::DropLink(n)
        | Dirt::ChangeLink(n, _)
        | Dirt::LosePeer(n)
        | Dirt::LeaveBridge(n)
        | Dirt::JunkAddress(n, _)
        | Dirt::DropAddresses(n) => nth(n),
        _ => Some("lo".to_owned()),
    };
    let Some(name) = name else { return };
    if let Dirt::DropLink(_) = dirt {
        // A lone end cannot exist: the kernel drops both, the observation of the other is gone.
        if name != "lo" {
            let step = plan::Step::DeleteLink(name);
            state
                .apply(&plan::NetOp {
                    ns: ns.clone(),
                    step,
                })
                .unwrap();
        }
        return;
    }
    if let Dirt::JunkLink(n) = dirt {
        let kind = if n % 2 == 0 {
            LinkKind::Bridge
        } else {
            LinkKind::Other("dummy".to_owned())
        };
        let name = ["junk0", "eth0", "br0", "vxlan0"][usize::from(n % 4)];
        namespace.links.entry(name.to_owned()).or_insert(link(kind));
        return;
    }
    if let Dirt::JunkVxlan(vni) = dirt {
        if !taken.contains(vni) {
            let junk = link(LinkKind::Vxlan(junk_vxlan(*vni)));
            namespace.links.entry("junk1".to_owned()).or_insert(junk);
        }
        return;
    }
    let Some(link) = namespace.links.get_mut(&name) else {
        return;
    };
    match dirt {
        Dirt::ChangeLink(_, what) => match what % 3 {
            0 => link.mtu = 1280,
            1 => link.up = false,
            _ => link.mac = Some(Mac([2, 0, 0, 0, 0, 9])),
        },
        Dirt::LosePeer(_) => {
            if let LinkKind::Veth(peer) = &mut link.kind {
                *peer = None;
            }
        }
        Dirt::LeaveBridge(_) => {
            link.port = link.port.take().map(|port| BridgePort {
                learning: true,
                ..port
            });
        }
        Dirt::JunkAddress(_, addr) => {
            link.addresses.insert(Ipv4Net::new(*addr, 24).unwrap());
        }
        Dirt::DropAddresses(_) => link.addresses.clear(),
        _ => {}
    }
}

fn soil_table(state: &mut NetState, ns: &Ns, dirt: &Dirt) {
    let namespace = state.namespaces.get_mut(ns).unwrap();
    match dirt {
        Dirt::UnknownTable => namespace.table = Some(Table::Unknown),
        // As after a restart of skepd: right, or that of other rules.
        Dirt::DigestOfTable(n) => {
            if let Some(Table::Is(ruleset)) = &namespace.table {
                let mut digest = ruleset.digest();
                digest[0] ^= n % 2;
                namespace.table = Some(Table::Digest(digest));
            }
        }
        Dirt::DropTable => namespace.table = None,
        _ => {}
    }
}

fn soil_entries(state: &mut NetState, ns: &Ns, dirt: &Dirt) {
    let namespace = state.namespaces.get_mut(ns).unwrap();
    let addr = Ipv4Addr::new(10, 0, 1, 77);
    let server = |n: u8| IpvsDestination {
        addr: IpAddr::V4(Ipv4Addr::new(10, 0, 1, n)),
        port: 0,
    };
    let forward = IpvsForward {
        masquerade: false,
        weight: 3,
    };
    match dirt {
        Dirt::JunkEntries(n) => {
            let Some(link) = namespace.links.keys().nth(usize::from(*n) % 4).cloned() else {
                return;
            };
            let mac = Mac([2, 0x42, 10, 0, 1, *n % 10]);
            let local = n % 2 == 0;
            namespace.neighbours.insert((link.clone(), addr), mac);
            namespace.fdb.insert((link.clone(), mac), IpAddr::V4(addr));
            if namespace.links[&link].port.is_some() {
                namespace.stations.retain(|station| station.mac != mac);
                namespace.stations.insert(Station {
                    port: link.clone(),
                    mac,
                    local,
                });
            }
            let destination = Ipv4Net::host(addr);
            let gateway = Some(addr);
            namespace.routes.insert(Route {
                destination,
                gateway,
                link,
            });
        }
        Dirt::DropEntries => {
            namespace.neighbours.clear();
            namespace.fdb.clear();
            namespace.stations.clear();
            namespace.routes.clear();
        }
        Dirt::JunkIpvs(n) => {
            let key = match n % 3 {
                0 => IpvsKey::Mark(u32::from(*n)),
                1 => IpvsKey::Mark6(256),
                _ => IpvsKey::Address {
                    protocol: 6,
                    addr: IpAddr::V4(addr),
                    port: 80,
                },
            };
            let junk = IpvsService {
                scheduler: "wlc".to_owned(),
                flags: 1,
                destinations: [(server(*n), forward)].into(),
            };
            namespace.ipvs.insert(key, junk);
        }
        Dirt::ChangeIpvs(n) => {
            for service in namespace.ipvs.values_mut() {
                service.destinations.insert(server(n % 10), forward);
            }
        }
        Dirt::DropSysctls => namespace.sysctls.clear(),
        _ => {}
    }
}

fn vxlans(state: &NetState) -> BTreeSet<u32> {
    let links = state
        .namespaces
        .values()
        .flat_map(|namespace| namespace.links.values());
    links
        .filter_map(|link| match &link.kind {
            LinkKind::Vxlan(vxlan) => Some(vxlan.vni),
            _ => None,
        })
        .collect()
}

fn junk_vxlan(vni: u32) -> Vxlan {
    Vxlan {
        vni,
        port: 4789,
        local: IpAddr::V4(Ipv4Addr::LOCALHOST),
        learning: true,
        proxy: false,
        detached: false,
    }
}

fn link(kind: LinkKind) -> Link {
    Link {
        kind,
        mac: None,
        mtu: 1500,
        up: false,
        port: None,
        addresses: BTreeSet::new(),
    }
}

/// Every pair with both ends or none, as in a kernel; except where an observation says «unknown».
fn settle(state: &mut NetState) {
    let snapshot = state.clone();
    for (ns, namespace) in &mut state.namespaces {
        for (name, link) in &mut namespace.links {
            let LinkKind::Veth(Some(peer)) = &link.kind else {
                continue;
            };
            let here = LinkName {
                ns: ns.clone(),
                name: name.clone(),
            };
            let back = snapshot
                .namespaces
                .get(&peer.ns)
                .and_then(|n| n.links.get(&peer.name));
            if back.is_none_or(|back| back.kind != LinkKind::Veth(Some(here))) {
                link.kind = LinkKind::Veth(None);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, ..ProptestConfig::default() })]

    #[test]
    fn every_plan_can_be_carried_out_and_leaves_nothing_to_do(
        before in inputs(),
        after in inputs(),
        dirt in prop::collection::vec((0..8usize, dirt()), 0..8),
    ) {
        let mut kernel = NetState::booted();
        for op in plan::plan(&desired(&before.inputs()), &kernel) {
            kernel.apply(&op).unwrap();
        }
        for (position, dirt) in &dirt {
            soil(&mut kernel, *position, dirt);
            settle(&mut kernel);
        }
        let want = desired(&after.inputs());
        let ops = plan::plan(&want, &kernel);
        for op in &ops {
            if let Err(refused) = kernel.apply(op) {
                panic!("{refused}\nin the plan {ops:#?}");
            }
        }
        prop_assert_eq!(plan::plan(&want, &kernel), Vec::new());
    }

    #[test]
    fn a_plan_is_one_order(before in inputs(), after in inputs()) {
        let ops = plan::plan(&desired(&after.inputs()), &desired(&before.inputs()));
        let removal = |op: &plan::NetOp| format!("{:?}", op.step).starts_with("Delete");
        let first_addition = ops.iter().position(|op| !removal(op)).unwrap_or(ops.len());
        prop_assert!(!ops[first_addition..].iter().any(removal), "{ops:?}");
    }
}
