//! The nftables rules of each kind of namespace.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

use super::{
    address::Ipv4Net,
    desired::{Inputs, Interface},
    mesh::{MeshNetwork, MeshService, Sandbox},
    ruleset::{Action, ChainKind, Hook, Match, Policy, Port, Rule, Ruleset},
    state::GATEWAY_BRIDGE,
};
use crate::api::Protocol;

const LOOPBACK_NET: Ipv4Net = Ipv4Net::host(Ipv4Addr::LOCALHOST).widened(8);

/// The host: published ports go to the ingress sandbox, containers go out, nothing else passes.
#[must_use]
pub(super) fn host(inputs: &Inputs<'_>, ingress: Option<&MeshNetwork>) -> Ruleset {
    let mut table = Ruleset::default();
    let published = published_ports(ingress);
    let to_mesh: Vec<Rule> = (!published.is_empty())
        .then(|| {
            Rule::new(
                [Match::LocalDestination, Match::PortIn(published)],
                Action::DestinationNat(inputs.node.ingress_gateway_address()),
            )
        })
        .into_iter()
        .collect();
    let nat = ChainKind::Nat;
    table.push(nat, Hook::Prerouting, Policy::Accept, to_mesh.clone());
    table.push(nat, Hook::Output, Policy::Accept, to_mesh);
    let filter = ChainKind::Filter;
    table.push(filter, Hook::Input, Policy::Accept, host_input(inputs));
    table.push(filter, Hook::Forward, Policy::Drop, host_forward());
    let containers = inputs.node.gateway_bridge.network();
    table.push(
        nat,
        Hook::Postrouting,
        Policy::Accept,
        vec![
            // This node itself calls a published port, be it at 127.0.0.1.
            Rule::new([gateway_out(), Match::LocalSource], Action::Masquerade),
            // A container goes out, or calls a published port of its own node.
            Rule::new([Match::Source(containers)], Action::Masquerade),
        ],
    );
    table
}

fn published_ports(ingress: Option<&MeshNetwork>) -> BTreeSet<Port> {
    let services = ingress
        .into_iter()
        .flat_map(|network| network.services.values());
    services
        .filter(|service| service.vip.is_some())
        .flat_map(|service| &service.ports)
        .map(|port| (port.protocol, port.published))
        .collect()
}

/// Who may talk to the host itself.
fn host_input(inputs: &Inputs<'_>) -> Vec<Rule> {
    let mut rules = vec![
        // route_localnet opens 127.0.0.0/8 to the bridge for answers; for answers only.
        Rule::new(
            [
                gateway_in(),
                Match::Destination(LOOPBACK_NET),
                Match::NotEstablished,
            ],
            Action::Drop,
        ),
    ];
    let peers: BTreeSet<Ipv4Addr> = inputs
        .mesh
        .nodes
        .values()
        .filter_map(|node| match node.vtep {
            IpAddr::V4(vtep) => Some(vtep),
            IpAddr::V6(_) => None,
        })
        .collect();
    let ports: BTreeSet<Port> = inputs
        .mesh
        .networks
        .values()
        .map(|network| (Protocol::Udp, network.vxlan_port))
        .collect();
    if !peers.is_empty() && !ports.is_empty() {
        // A VXLAN packet carries no proof of anything; at least it has to come from a member.
        rules.push(Rule::new(
            [Match::PortIn(ports), Match::SourceNotIn(peers)],
            Action::Drop,
        ));
    }
    rules
}

/// What the host passes on: what containers begin, what published ports translated, and answers.
fn host_forward() -> Vec<Rule> {
    vec![
        Rule::new([Match::Established], Action::Accept),
        Rule::new([gateway_out(), Match::Translated], Action::Accept),
        Rule::new([gateway_in(), gateway_out()], Action::Drop),
        Rule::new([gateway_in()], Action::Accept),
    ]
}

fn gateway_in() -> Match {
    Match::InLink(GATEWAY_BRIDGE.to_owned())
}

fn gateway_out() -> Match {
    Match::OutLink(GATEWAY_BRIDGE.to_owned())
}

/// The ingress sandbox: published ports and VIPs get the mark of their service, IPVS does the rest,
/// and the packets leave with this node's own address so that the answers come back here.
#[must_use]
pub(super) fn ingress(network: &MeshNetwork, address: Ipv4Addr) -> Ruleset {
    let mut table = Ruleset::default();
    let by_port: BTreeMap<Port, u32> = balanced(network)
        .flat_map(|(_, service)| service.ports.iter().map(|port| (port, service.mark)))
        .map(|(port, mark)| ((port.protocol, port.published), mark))
        .collect();
    let by_vip = marks(network);
    let from_host = Match::InLink("eth1".to_owned());
    let mesh = Match::OutLink("eth0".to_owned());
    let mangle = ChainKind::Mangle;
    if !by_port.is_empty() {
        let rule = Rule::new([from_host], Action::MarkByPort(by_port));
        table.push(mangle, Hook::Prerouting, Policy::Accept, vec![rule]);
    }
    if !by_vip.is_empty() {
        let rule = Rule::new([], Action::MarkByAddress(by_vip));
        table.push(mangle, Hook::Input, Policy::Accept, vec![rule.clone()]);
        table.push(mangle, Hook::Output, Policy::Accept, vec![rule]);
    }
    let answers = Rule::new([Match::Established], Action::Accept);
    table.push(
        ChainKind::Filter,
        Hook::Forward,
        Policy::Drop,
        vec![answers],
    );
    let leave = Rule::new(
        [mesh, Match::Destination(network.subnet)],
        Action::SourceNat(address),
    );
    table.push(
        ChainKind::Nat,
        Hook::Postrouting,
        Policy::Accept,
        vec![leave],
    );
    table
}

/// A container: published ports arrive at its target ports and nothing else comes in by the ingress
/// network; what it sends to a VIP is marked for IPVS and leaves with its own address.
#[must_use]
pub(super) fn sandbox(sandbox: &Sandbox, networks: &[Interface<'_>]) -> Ruleset {
    let mut table = Ruleset::default();
    let mut by_vip = BTreeMap::new();
    let mut own_address = BTreeMap::new();
    for one in networks.iter().filter(|one| !one.network.ingress) {
        by_vip.extend(marks(one.network));
        let services = balanced(one.network);
        own_address.extend(services.map(|(_, service)| (service.mark, one.address)));
    }
    if let Some(ingress) = networks.iter().find(|one| one.network.ingress) {
        push_published(&mut table, sandbox, ingress);
    }
    if !by_vip.is_empty() {
        let mark = Rule::new([Match::Transport], Action::MarkByAddress(by_vip));
        let own = Rule::new([], Action::SourceNatByMark(own_address));
        table.push(ChainKind::Mangle, Hook::Output, Policy::Accept, vec![mark]);
        table.push(ChainKind::Nat, Hook::Postrouting, Policy::Accept, vec![own]);
    }
    table
}

fn push_published(table: &mut Ruleset, sandbox: &Sandbox, ingress: &Interface<'_>) {
    let redirects = sandbox
        .ports
        .iter()
        .map(|port| {
            let from = Match::Port((port.protocol, port.published));
            let here = Match::Destination(Ipv4Net::host(ingress.address));
            Rule::new([here, from], Action::Redirect(port.target))
        })
        .collect();
    table.push(ChainKind::Nat, Hook::Prerouting, Policy::Accept, redirects);
    let mesh = || Match::InLink(ingress.link.clone());
    let targets: BTreeSet<Port> = sandbox
        .ports
        .iter()
        .map(|port| (port.protocol, port.target))
        .collect();
    let mut input = vec![Rule::new([mesh(), Match::Established], Action::Accept)];
    if !targets.is_empty() {
        input.push(Rule::new([mesh(), Match::PortIn(targets)], Action::Accept));
    }
    input.push(Rule::new([mesh(), Match::Icmp], Action::Accept));
    input.push(Rule::new([mesh()], Action::Drop));
    table.push(ChainKind::Filter, Hook::Input, Policy::Accept, input);
}

/// Services with a VIP.
fn balanced(network: &MeshNetwork) -> impl Iterator<Item = (Ipv4Addr, &MeshService)> {
    let services = network.services.values();
    services.filter_map(|service| Some((service.vip?, service)))
}

fn marks(network: &MeshNetwork) -> BTreeMap<Ipv4Addr, u32> {
    let services = balanced(network);
    services.map(|(vip, service)| (vip, service.mark)).collect()
}
