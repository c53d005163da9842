//! From any dirty state the next pass is exact.

use std::{collections::BTreeMap, time::Duration};

use skep_core::network::{
    Ns, Step, desired,
    desired::{overlay_ns, sandbox_ns, sandbox_scope},
    example::{self, Example, id, ingress, my_demo},
    plan,
    state::{INGRESS_SANDBOX, Scope},
};
use tokio::time::timeout;

use crate::machine::{Machine, count, ipvs, possible, root};

fn inputs(index: u8) -> (Machine, Example) {
    (Machine::new(), example::whoami(index))
}

#[tokio::test]
async fn a_second_pass_has_nothing_to_do() {
    if !root() {
        return;
    }
    let (machine, example) = inputs(0);
    assert!(!machine.converge(&example).await.is_empty());
    assert_eq!(machine.converge(&example).await, []);
}

#[tokio::test]
async fn a_restart_has_nothing_to_do() {
    if !root() {
        return;
    }
    let (machine, example) = inputs(0);
    machine.converge(&example).await;
    let machine = machine.restarted();
    assert_eq!(machine.converge(&example).await, []);
    // Unless somebody has used the time in between.
    let mesh = Ns::Named(INGRESS_SANDBOX.to_owned());
    machine.run(&mesh, "nft add rule ip skep nat_postrouting counter");
    let ops = machine.restarted().converge(&example).await;
    let replaced = count(&ops, |step| matches!(step, Step::ReplaceTable(_)));
    assert_eq!((replaced, ops.len()), (1, 1), "{ops:#?}");
}

const JUNK_IN_OVERLAY: [&str; 13] = [
    "bridge fdb add 02:42:0a:00:01:63 dev vxlan0 dst 192.168.77.66 self permanent",
    "bridge fdb replace 02:42:0a:00:01:07 dev vxlan0 dst 192.168.77.66 self permanent",
    "bridge fdb add 02:42:0a:00:01:64 dev vxlan0 master static",
    "bridge fdb add 02:42:0a:00:01:65 dev vxlan0 master permanent",
    "bridge fdb append 00:00:00:00:00:00 dev vxlan0 dst 192.168.77.66 self permanent",
    "bridge fdb append 00:00:00:00:00:00 dev vxlan0 dst 192.168.77.67 self permanent",
    "ip neigh add 10.0.1.99 lladdr 02:42:0a:00:01:63 dev vxlan0 nud permanent",
    "ip neigh replace 10.0.1.8 lladdr 02:42:0a:00:01:63 dev vxlan0 nud permanent",
    "ip link add junk0 type veth peer name junk0x && ip link set junk0 up",
    "ip link add junk1 type bridge && ip addr add 10.9.9.9/24 dev junk1",
    "ip link set vxlan0 mtu 1400",
    "sysctl -q -w net.ipv4.ip_forward=1",
    "nft add table ip skep",
];

const JUNK_IN_SANDBOX: [&str; 4] = [
    "ip addr add 10.0.1.99/24 dev eth0 && ip addr add 10.0.1.98/32 dev lo",
    "ip route replace default via 172.18.0.9 dev eth1",
    "ip route add 10.5.0.0/16 via 10.0.1.7",
    "nft add rule ip skep nat_postrouting counter masquerade",
];

const JUNK_IN_MESH: [&str; 3] = [
    "nft flush table ip skep",
    "ip link set eth1 down",
    "ip link set eth0 address 02:00:00:00:00:09",
];

const JUNK_IN_HOST: [&str; 5] = [
    "nft delete table ip skep",
    "ip link add gw-junk type veth peer name junk && ip link set gw-junk master docker_gwbridge",
    "ip link set gw-ingress_sbox type bridge_slave learning on isolated on",
    "sysctl -q -w net.ipv4.conf.docker_gwbridge.route_localnet=0",
    "ip addr add 172.18.5.5/16 dev docker_gwbridge",
];

/// Everything that a foreign hand did is undone, whatever it was.
#[tokio::test]
async fn junk_is_removed() {
    if !root() {
        return;
    }
    let (machine, example) = inputs(0);
    machine.converge(&example).await;
    machine.run(
        &Ns::Host,
        "ip link add mine type bridge && ip addr add 10.77.0.1/24 dev mine",
    );
    let before = machine.observe(&example).await;
    let demo = overlay_ns(&my_demo());
    let client = sandbox_ns(example.sandboxes.values().nth(1).unwrap());
    let mesh = Ns::Named(INGRESS_SANDBOX.to_owned());
    for (ns, lines) in [
        (&demo, JUNK_IN_OVERLAY.as_slice()),
        (&client, &JUNK_IN_SANDBOX),
        (&mesh, &JUNK_IN_MESH),
        (&Ns::Host, &JUNK_IN_HOST),
    ] {
        for line in lines {
            machine.run(ns, line);
        }
    }
    let ops = machine.converge(&example).await;
    assert!(ops.len() >= 20, "{ops:#?}");
    assert_eq!(machine.observe(&example).await, before);
    assert!(!machine.try_run(&Ns::Host, "ip link show junk").0);
}

#[tokio::test]
async fn losses_are_made_good() {
    if !root() {
        return;
    }
    let (machine, example) = inputs(0);
    machine.converge(&example).await;
    let demo = overlay_ns(&my_demo());
    let client = sandbox_ns(example.sandboxes.values().nth(1).unwrap());
    let mesh = Ns::Named(INGRESS_SANDBOX.to_owned());
    for (ns, line) in [
        (&demo, "ip link del vxlan0"),
        (&client, "ip link del eth0"),
        (&mesh, "ip addr flush dev eth0"),
        (&overlay_ns(&ingress()), "ip link del br0"),
        (&Ns::Host, "ip link del docker_gwbridge"),
    ] {
        machine.run(ns, line);
        machine.converge(&example).await;
    }
}

#[tokio::test]
async fn a_namespace_that_is_gone_comes_back_with_all_in_it() {
    if !root() {
        return;
    }
    let (machine, example) = inputs(0);
    machine.converge(&example).await;
    let text = |ns: &Ns| machine.run(ns, "ip -br link | sort; ip -br -4 addr; ip route");
    let names: Vec<Ns> = machine
        .observe(&example)
        .await
        .namespaces
        .into_keys()
        .collect();
    assert_eq!(names.len(), 6, "{names:?}");
    for ns in names.into_iter().filter(|ns| *ns != Ns::Host) {
        let before = text(&ns).lines().count();
        machine.unmount(&ns);
        machine.converge(&example).await;
        assert_eq!(text(&ns).lines().count(), before, "{ns}");
    }
}

#[tokio::test]
async fn a_namespace_gets_its_place_back_from_a_descriptor() {
    if !root() {
        return;
    }
    let (machine, _) = inputs(0);
    let ns = Ns::Named("0123456789ab".to_owned());
    machine.create("0123456789ab");
    machine.run(&ns, "ip link add kept type bridge");
    let held = machine.net.open(&ns).unwrap();
    assert!(machine.restore(&ns, &held), "it is there already");
    machine.unmount(&ns);
    assert!(machine.restore(&ns, &held));
    assert!(machine.run(&ns, "ip -br link").contains("kept"));
    // Another has its name now.
    machine.unmount(&ns);
    machine.create("0123456789ab");
    assert!(!machine.restore(&ns, &held));
    assert!(!machine.run(&ns, "ip -br link").contains("kept"));
}

#[tokio::test]
async fn a_namespace_that_nobody_wants_goes() {
    if !root() {
        return;
    }
    let (machine, mut example) = inputs(0);
    machine.converge(&example).await;
    machine.create("0123456789ab");
    machine.run(
        &Ns::Named("0123456789ab".to_owned()),
        "ip link add x type bridge",
    );
    machine.converge(&example).await;
    assert!(
        machine
            .net
            .open(&Ns::Named("0123456789ab".to_owned()))
            .is_err()
    );
    // The node leaves: only the way out stays.
    example.mesh = Default::default();
    example.node.node_id = None;
    example.sandboxes = BTreeMap::new();
    machine.converge(&example).await;
    let state = machine.observe(&example).await;
    assert_eq!(state.namespaces.keys().collect::<Vec<_>>(), [&Ns::Host]);
    let links = machine.run(&Ns::Host, "ip -br link");
    assert!(!links.contains("gw-"), "{links}");
    let rules = machine.run(&Ns::Host, "nft list ruleset");
    assert!(!rules.contains("dnat to"), "{rules}");
}

/// A pass that is killed anywhere leaves something that the next pass makes exact.
#[tokio::test]
async fn a_pass_may_be_killed_after_any_step() {
    if !root() {
        return;
    }
    let (machine, example) = inputs(1);
    let want = possible(desired(&example.inputs()));
    let all = {
        let seen = machine.net.observe(&Scope::all(&want)).await.unwrap();
        plan(&want, &seen).len()
    };
    for stop in (0..all).step_by(29) {
        let machine = Machine::new();
        let seen = machine.net.observe(&Scope::all(&want)).await.unwrap();
        for result in machine.net.apply(&plan(&want, &seen)[..stop]).await {
            result.unwrap();
        }
        machine.restarted().converge(&example).await;
    }
}

#[tokio::test]
async fn one_sandbox_comes_and_goes_within_its_scope() {
    if !root() {
        return;
    }
    let (machine, mut example) = inputs(0);
    let (key, sandbox) = example.sandboxes.pop_last().unwrap();
    machine.converge(&example).await;
    example.sandboxes.insert(key.clone(), sandbox.clone());
    for _ in 0..2 {
        let want = possible(desired(&example.inputs()));
        let scope = Scope::only(&want, sandbox_scope(&sandbox));
        let seen = machine.net.observe(&scope).await.unwrap();
        let ops = plan(&want.restricted(&scope), &seen);
        assert!(!ops.is_empty());
        for result in machine.net.apply(&ops).await {
            result.unwrap();
        }
        assert_eq!(machine.converge(&example).await, [], "the scope was enough");
        example.sandboxes.remove(&key);
    }
}

#[tokio::test]
async fn a_change_by_hand_wakes_the_node() {
    if !root() {
        return;
    }
    let (machine, example) = inputs(0);
    machine.converge(&example).await;
    let demo = overlay_ns(&my_demo());
    let mesh = Ns::Named(INGRESS_SANDBOX.to_owned());
    let quiet = Duration::from_millis(300);
    while timeout(quiet, machine.net.changed()).await.is_ok() {}
    for (ns, line) in [
        (
            &demo,
            "bridge fdb add 02:42:0a:00:01:63 dev vxlan0 dst 192.168.77.66 self permanent",
        ),
        (
            &demo,
            "ip neigh add 10.0.1.99 lladdr 02:42:0a:00:01:63 dev vxlan0 nud permanent",
        ),
        (&demo, "ip neigh del 10.0.1.99 dev vxlan0"),
        (&mesh, "nft add table ip other"),
        (&mesh, "ip addr add 10.255.9.9/32 dev eth0"),
        (&mesh, "ip route del default"),
        (&Ns::Host, "ip link set docker_gwbridge mtu 1400"),
    ] {
        machine.run(ns, line);
        let changed = timeout(Duration::from_secs(5), machine.net.changed()).await;
        assert!(changed.unwrap().contains(ns), "{line}");
        while timeout(quiet, machine.net.changed()).await.is_ok() {}
    }
    machine.converge(&example).await;
}

#[tokio::test]
async fn balancers_are_exact() {
    if !root() || !ipvs() {
        return;
    }
    let (machine, mut example) = inputs(0);
    machine.converge(&example).await;
    let mesh = Ns::Named(INGRESS_SANDBOX.to_owned());
    for line in [
        "ipvsadm -A -t 10.255.0.2:80 -s rr && ipvsadm -a -t 10.255.0.2:80 -r 10.255.0.9:80 -m",
        "ipvsadm -A -f 999 -s rr -p 60",
        "ipvsadm -E -f 256 -s rr -p 300",
        "ipvsadm -A -f 300 -6 -s rr",
        "ipvsadm -a -f 256 -r 10.255.0.99 -m",
        "ipvsadm -e -f 256 -r 10.255.0.6 -m -w 7",
        "ipvsadm -d -f 256 -r 10.255.0.7",
    ] {
        machine.run(&mesh, line);
    }
    machine.converge(&example).await;
    let all = "10.255.0.6:0 1, 10.255.0.7:0 1, 10.255.0.8:0 1";
    assert_eq!(servers(&machine, &mesh), all);
    let listed = machine.run(&mesh, "ipvsadm -ln");
    assert_eq!(listed.matches("FWM").count(), 1, "{listed}");
    machine.run(&mesh, "ipvsadm -C");
    machine.converge(&example).await;
    // A task that is being stopped: weight 0, then gone.
    let network = example.mesh.networks.get_mut(&ingress()).unwrap();
    network.endpoints.get_mut(&id(101)).unwrap().in_service = false;
    machine.converge(&example).await;
    let draining = "10.255.0.6:0 1, 10.255.0.7:0 0, 10.255.0.8:0 1";
    assert_eq!(servers(&machine, &mesh), draining);
    let network = example.mesh.networks.get_mut(&ingress()).unwrap();
    network.endpoints.remove(&id(101));
    machine.converge(&example).await;
    assert_eq!(servers(&machine, &mesh), "10.255.0.6:0 1, 10.255.0.8:0 1");
}

/// The masqueraded servers of a namespace with their weights.
fn servers(machine: &Machine, ns: &Ns) -> String {
    let listed = machine.run(ns, "ipvsadm -ln");
    let lines = listed
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>());
    let servers = lines.filter(|words| words.get(2) == Some(&"Masq"));
    let servers: Vec<_> = servers
        .map(|words| format!("{} {}", words[1], words[3]))
        .collect();
    servers.join(", ")
}
