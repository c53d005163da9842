//! The articles' mesh, to the letter (rows C2 and C3 of the walk-through).

use std::collections::BTreeMap;

use crate::network::{
    NetState, Ns, desired,
    desired::{overlay_ns, sandbox_ns},
    example::{self, Example, id, ingress, my_demo},
    plan,
    state::{INGRESS_SANDBOX, Namespace, Table},
};

fn state(example: &Example) -> NetState {
    example.mesh.validate().unwrap();
    desired(&example.inputs())
}

fn sandbox_of(example: &Example, number: usize) -> Ns {
    sandbox_ns(example.sandboxes.values().nth(number).unwrap())
}

/// A namespace as text, one fact per line.
fn text(namespace: &Namespace) -> String {
    let mut lines = Vec::new();
    for (name, link) in &namespace.links {
        let addresses: Vec<_> = link.addresses.iter().map(ToString::to_string).collect();
        let mac = link.mac.map(|mac| mac.to_string()).unwrap_or_default();
        lines.push(format!(
            "{name} {:?} mtu {} {mac} {}",
            link.kind,
            link.mtu,
            addresses.join(" ")
        ));
        lines.extend(link.port.iter().map(|port| format!("  {port:?}")));
    }
    lines.extend(namespace.routes.iter().map(|route| format!("{route:?}")));
    lines.extend(
        namespace
            .neighbours
            .iter()
            .map(|entry| format!("neighbour {entry:?}")),
    );
    lines.extend(namespace.fdb.iter().map(|entry| format!("fdb {entry:?}")));
    lines.extend(namespace.stations.iter().map(|entry| format!("{entry:?}")));
    for (key, service) in &namespace.ipvs {
        lines.push(format!(
            "{key:?} {} flags {}",
            service.scheduler, service.flags
        ));
        let servers = service.destinations.iter();
        lines.extend(servers.map(|(to, how)| format!("  -> {}:{} {how:?}", to.addr, to.port)));
    }
    lines.extend(
        namespace
            .sysctls
            .iter()
            .map(|(key, value)| format!("{key} = {value}")),
    );
    if let Some(Table::Is(ruleset)) = &namespace.table {
        lines.push(ruleset.to_string());
    }
    lines.join("\n")
}

#[test]
fn the_ingress_sandbox() {
    let state = state(&example::whoami(0));
    let sandbox = &state.namespaces[&Ns::Named(INGRESS_SANDBOX.to_owned())];
    insta::assert_snapshot!(text(sandbox));
}

#[test]
fn the_host() {
    insta::assert_snapshot!(text(&state(&example::whoami(0)).namespaces[&Ns::Host]));
}

#[test]
fn a_whoami_task() {
    let example = example::whoami(0);
    insta::assert_snapshot!(text(&state(&example).namespaces[&sandbox_of(&example, 0)]));
}

#[test]
fn a_client_task() {
    let example = example::whoami(0);
    insta::assert_snapshot!(text(&state(&example).namespaces[&sandbox_of(&example, 1)]));
}

#[test]
fn the_overlay_of_my_demo() {
    let state = state(&example::whoami(0));
    insta::assert_snapshot!(text(&state.namespaces[&overlay_ns(&my_demo())]));
}

#[test]
fn the_overlay_of_ingress() {
    let state = state(&example::whoami(2));
    insta::assert_snapshot!(text(&state.namespaces[&overlay_ns(&ingress())]));
}

#[test]
fn the_whole_plan_of_a_fresh_node() {
    let ops = plan(&state(&example::whoami(1)), &NetState::booted());
    let lines: Vec<_> = ops
        .iter()
        .map(|op| {
            format!("{} {:?}", op.ns, op.step)
                .chars()
                .take(160)
                .collect::<String>()
        })
        .collect();
    insta::assert_snapshot!(lines.join("\n"));
}

#[test]
fn a_node_outside_a_swarm_has_only_the_gateway_bridge() {
    let mut example = example::whoami(0);
    example.mesh = Default::default();
    example.node.node_id = None;
    example.sandboxes = BTreeMap::new();
    let state = state(&example);
    assert_eq!(state.namespaces.keys().collect::<Vec<_>>(), [&Ns::Host]);
    insta::assert_snapshot!(text(&state.namespaces[&Ns::Host]));
}

#[test]
fn an_internal_network_has_no_way_out() {
    let mut example = example::whoami(0);
    example.mesh.networks.get_mut(&my_demo()).unwrap().internal = true;
    let state = state(&example);
    let client = &state.namespaces[&sandbox_of(&example, 1)];
    assert_eq!(client.links.keys().collect::<Vec<_>>(), ["eth0", "lo"]);
    assert!(client.routes.is_empty());
    let whoami = &state.namespaces[&sandbox_of(&example, 0)];
    assert!(
        whoami.links.contains_key("eth2"),
        "the ingress network is not internal"
    );
}

#[test]
fn a_network_without_a_local_task_is_not_there() {
    let mut example = example::whoami(1);
    example.sandboxes.clear();
    let state = state(&example);
    assert!(!state.namespaces.contains_key(&overlay_ns(&my_demo())));
    assert!(state.namespaces.contains_key(&overlay_ns(&ingress())));
    let _: crate::id::Id<crate::api::Network> = id(2);
}
