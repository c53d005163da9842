//! A whole node, seen with tools that we did not write (rows C2 and C3 of the walk-through).

use skep_core::network::{
    Ns,
    desired::{overlay_ns, sandbox_ns},
    example::{self, Example, ingress, my_demo},
    state::INGRESS_SANDBOX,
};

use crate::machine::{Machine, root};

fn sandbox(example: &Example, number: usize) -> Ns {
    sandbox_ns(example.sandboxes.values().nth(number).unwrap())
}

/// The text has all of these, in any order.
fn has(text: &str, parts: &[&str]) {
    let squeezed = text.split_whitespace().collect::<Vec<_>>().join(" ");
    for part in parts {
        assert!(squeezed.contains(part), "no {part:?} in:\n{text}");
    }
}

#[tokio::test]
async fn the_ingress_sandbox_is_as_the_articles_show_it() {
    if !root() {
        return;
    }
    let machine = Machine::new();
    let example = example::whoami(0);
    machine.converge(&example).await;
    let ns = Ns::Named(INGRESS_SANDBOX.to_owned());
    let eth0 = machine.run(&ns, "ip -d addr show eth0");
    has(
        &eth0,
        &[
            "mtu 1450",
            "02:42:0a:ff:00:02",
            "10.255.0.2/16",
            "10.255.0.5/32",
            "veth",
            "state UP",
        ],
    );
    let eth1 = machine.run(&ns, "ip addr show eth1");
    has(
        &eth1,
        &["mtu 1500", "02:42:ac:12:00:02", "172.18.0.2/16", "state UP"],
    );
    has(
        &machine.run(&ns, "ip route"),
        &["default via 172.18.0.1 dev eth1"],
    );
    let rules = machine.run(&ns, "nft list ruleset");
    has(
        &rules,
        &[
            "tcp . 8000 : 0x00000100",
            "snat to 10.255.0.2",
            "10.255.0.5 : 0x00000100",
        ],
    );
    has(&machine.run(&ns, "sysctl net.ipv4.ip_forward"), &["= 1"]);
}

#[tokio::test]
async fn the_host_sends_published_ports_to_it() {
    if !root() {
        return;
    }
    let machine = Machine::new();
    machine.converge(&example::whoami(0)).await;
    let bridge = machine.run(&Ns::Host, "ip -d addr show docker_gwbridge");
    has(
        &bridge,
        &["bridge", "172.18.0.1/16", "02:42:ac:12:00:01", "mtu 1500"],
    );
    let rules = machine.run(&Ns::Host, "nft list ruleset");
    has(
        &rules,
        &[
            "fib daddr type local",
            "tcp . 8000",
            "dnat to 172.18.0.2",
            "masquerade",
        ],
    );
    has(
        &machine.run(&Ns::Host, "bridge -d link show"),
        &["gw-ingress_sbox", "isolated on", "learning off"],
    );
    let ingress_port = machine.run(&Ns::Host, "bridge -d link show dev gw-ingress_sbox");
    has(&ingress_port, &["isolated off"]);
    has(
        &machine.run(
            &Ns::Host,
            "sysctl net.ipv4.conf.docker_gwbridge.route_localnet",
        ),
        &["= 1"],
    );
}

#[tokio::test]
async fn a_task_has_its_interfaces_and_virtual_addresses() {
    if !root() {
        return;
    }
    let machine = Machine::new();
    let example = example::whoami(0);
    machine.converge(&example).await;
    let whoami = sandbox(&example, 0);
    let lo = machine.run(&whoami, "ip addr show lo");
    has(&lo, &["127.0.0.1/8", "10.255.0.5/32", "10.0.1.5/32"]);
    let eth0 = machine.run(&whoami, "ip addr show eth0");
    has(
        &eth0,
        &[
            "10.255.0.6/16 brd 10.255.255.255",
            "mtu 1450",
            "02:42:0a:ff:00:06",
        ],
    );
    has(
        &machine.run(&whoami, "ip addr show eth1"),
        &["10.0.1.6/24", "mtu 1450", "02:42:0a:00:01:06"],
    );
    has(
        &machine.run(&whoami, "ip addr show eth2"),
        &["172.18.0.3/16", "mtu 1500"],
    );
    let rules = machine.run(&whoami, "nft list ruleset");
    has(
        &rules,
        &[
            "ip daddr 10.255.0.6 tcp dport 8000 redirect to :80",
            "0x00000101",
        ],
    );
    let client = sandbox(&example, 1);
    has(
        &machine.run(&client, "ip route"),
        &["default via 172.18.0.1 dev eth1"],
    );
    assert!(!machine.run(&client, "ip addr show eth0").contains("inet6"));
}

#[tokio::test]
async fn an_overlay_knows_every_remote_address_and_learns_none() {
    if !root() {
        return;
    }
    let machine = Machine::new();
    machine.converge(&example::whoami(0)).await;
    let demo = overlay_ns(&my_demo());
    let vxlan = machine.run(&demo, "ip -d link show vxlan0");
    has(
        &vxlan,
        &[
            "vxlan id 4097",
            "local 192.168.77.11",
            "dstport 4789",
            "nolearning",
            "proxy",
            "link-netnsid",
            "master br0",
        ],
    );
    let fdb = machine.run(&demo, "bridge fdb show dev vxlan0");
    has(
        &fdb,
        &[
            "02:42:0a:00:01:07 dst 192.168.77.12",
            "02:42:0a:00:01:08 dst 192.168.77.13",
            "02:42:0a:00:01:07 master br0 static",
        ],
    );
    let neighbours = machine.run(&demo, "ip neigh show dev vxlan0 nud permanent");
    assert_eq!(neighbours.lines().count(), 2, "{neighbours}");
    let mesh = machine.run(&overlay_ns(&ingress()), "bridge fdb show dev vxlan0");
    // The other nodes' own addresses and their tasks': answers of the mesh go to the former.
    for last in ["03", "04", "07", "08"] {
        has(&mesh, &[&format!("02:42:0a:ff:00:{last} dst")]);
    }
    has(
        &machine.run(&demo, "ip addr show br0"),
        &["10.0.1.1/24", "10.0.1.5/32"],
    );
}
