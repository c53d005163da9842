//! The node as an operating system: its modules, its open ports, and the links that it is told to make.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};

use crate::cluster::Role;
use crate::commands::READY_PATIENCE;
use crate::runner::{Run, Test};
use crate::swarm::{CONVERGENCE, Swarm, eventually, must_contain};

pub(super) const TESTS: &[Test] = &[
    Test {
        id: "modules",
        shows: "every kernel module that a node promises is loaded at boot, and control groups are version 2 only",
        slow: false,
        causes: &[],
        run: Run::Swarm(modules),
    },
    Test {
        id: "listeners",
        shows: "a node listens on its management port, 4789 for VXLAN, a manager on 2377 as well, and on nothing else",
        slow: false,
        causes: &[],
        run: Run::Swarm(listeners),
    },
    Test {
        id: "network",
        shows: "bond, VLAN, a NIC by name and network.* credentials are carried out; networkd's restart leaves our links alone",
        slow: false,
        causes: &[],
        run: Run::Spare(host_network),
    },
];

/// What containers, meshes and operators need of the kernel; each of these is loaded or built in.
const MODULES: &str = "\
    ip_vs ip_vs_rr ip_vs_wrr ip_vs_sh ip_vs_lc ip_vs_wlc ip_vs_mh vxlan bridge br_netfilter veth dummy \
    tun overlay geneve macvlan vrf 8021q wireguard nf_tables nft_chain_nat nft_masq nft_fib nft_ct \
    nft_limit nft_reject nft_compat ip_tables iptable_nat nf_conntrack nf_conntrack_netlink nf_nat \
    ip_set xt_addrtype xt_comment xt_conntrack xt_ipvs xt_mark xt_MASQUERADE xt_multiport xt_nat \
    xt_REDIRECT xt_set xt_statistic xt_tcpudp xt_TCPMSS xt_limit xt_hashlimit xt_recent xt_owner xt_LOG \
    xt_connmark xt_physdev xt_policy xt_CT xfrm_user xfrm_interface esp4 dm_verity sch_htb cls_bpf \
    tcp_bbr vsock nvme aesni_intel";

fn modules(swarm: &Swarm<'_>) -> Result<()> {
    let node = "swarm-worker1";
    // What is built in has no line in /proc/modules; a file tells of it.
    let script = "cut -d' ' -f1 /proc/modules; \
                  sed 's#.*/##; s#[.]ko##; s#-#_#g' /proc/1/root/usr/lib/modules/*/modules.builtin; \
                  echo ---; cat /proc/1/root/usr/lib/modules-load.d/skep.conf /proc/1/root/usr/lib/skep/modules-later.conf; \
                  echo ---; grep -c ' cgroup ' /proc/1/mounts";
    // The later ones come when nothing else is to be done.
    eventually(CONVERGENCE, || {
        let said = swarm.debug_outcome(node, script)?.stdout;
        let mut parts = said.split("---\n");
        let (loaded, lists, old) = (parts.next(), parts.next(), parts.next());
        let loaded: BTreeSet<&str> = loaded.unwrap_or_default().lines().collect();
        let listed = lists
            .context("the lists of modules cannot be read")?
            .lines();
        let listed: Vec<&str> = listed.filter(|line| !line.starts_with('#')).collect();
        ensure!(
            listed.len() > 60,
            "the lists have only {} modules",
            listed.len()
        );
        let missing: Vec<&str> = MODULES
            .split_whitespace()
            .chain(listed)
            .filter(|name| !loaded.contains(name))
            .collect();
        ensure!(missing.is_empty(), "not loaded on {node}: {missing:?}");
        let old = old.unwrap_or_default().trim();
        ensure!(old == "0", "{old} control groups of version 1 are mounted");
        Ok(())
    })
}

fn listeners(swarm: &Swarm<'_>) -> Result<()> {
    for place in &swarm.cluster.places()[..3] {
        let mut wanted = BTreeSet::from([
            "tcp 0.0.0.0:2376",
            "udp 0.0.0.0:4789",
            "udp 192.168.76.15%wayout:68",
        ]);
        if place.role == Role::Manager {
            wanted.insert("tcp 0.0.0.0:2377");
        }
        let said = swarm.debug(&place.name, "ss -Hlntu | awk '{ print $1, $5 }'")?;
        let open: BTreeSet<&str> = said.lines().map(str::trim).collect();
        ensure!(
            open == wanted,
            "{} listens on {open:?} and should on {wanted:?}",
            place.name
        );
    }
    Ok(())
}

/// The spare node is on the segment by a bond, on a VLAN there with an address from a credential, finds its way out by
/// a NIC that is named as udev names it, and makes one more link that is told by credentials alone.
fn host_network(swarm: &Swarm<'_>, spare: &str) -> Result<()> {
    let by_name = name_of_way_out(swarm, "swarm-worker1")?;
    let number = swarm.cluster.place(spare)?.number;
    swarm.boot_changed(spare, |vm| {
        let kept = vm.boot.cmdline.split_whitespace().filter(|word| {
            !word.starts_with("ip=") && !word.starts_with("ifname=wayout:")
        });
        let told = format!(
            "bond=bond0:segment ip=192.168.77.{number}:::255.255.255.0::bond0:none vlan=bond0.7:bond0 ip={by_name}:dhcp"
        );
        vm.boot.cmdline = kept.chain([told.as_str()]).collect::<Vec<_>>().join(" ");
        vm.set_credential(
            "network.network.60-vlan",
            &format!("[Match]\nName=bond0.7\n[Network]\nAddress=192.168.78.{number}/24\n"),
        );
        vm.set_credential("network.netdev.61-told", "[NetDev]\nName=told0\nKind=dummy\n");
        vm.set_credential(
            "network.network.61-told",
            "[Match]\nName=told0\n[Network]\nAddress=192.168.79.1/24\n",
        );
        Ok(())
    })?;
    let spare_place = std::slice::from_ref(swarm.cluster.place(spare)?);
    swarm.cluster.wait_ready(spare_place, READY_PATIENCE)?;
    let links = swarm.debug(spare, "ip -br -4 addr; ip -o link show master bond0")?;
    must_contain(
        &links,
        &[
            &format!("192.168.77.{number}/24"),
            &format!("192.168.78.{number}/24"),
            "192.168.79.1/24",
            "192.168.76.15/24",
            &format!("{by_name} "),
            "segment",
        ],
    )?;
    over_the_vlan(swarm, "swarm-worker1", &format!("192.168.78.{number}"))?;
    networkd_leaves_our_links(swarm, spare)
}

/// What udev calls a NIC that the command line has given another name: by its place on the PCI bus.
fn name_of_way_out(swarm: &Swarm<'_>, node: &str) -> Result<String> {
    let said = swarm.debug(node, "readlink -f /sys/class/net/wayout/device")?;
    let place = said.split('/').find_map(|part| part.strip_prefix("0000:"));
    let slot = place
        .and_then(|place| place.strip_prefix("00:")?.strip_suffix(".0"))
        .and_then(|slot| u8::from_str_radix(slot, 16).ok())
        .with_context(|| format!("not on the first PCI bus: {said}"))?;
    Ok(format!("enp0s{slot}"))
}

fn over_the_vlan(swarm: &Swarm<'_>, node: &str, address: &str) -> Result<()> {
    let script = format!(
        "ip link add link segment name test.7 type vlan id 7 && ip addr add 192.168.78.250/24 dev test.7 && \
         ip link set test.7 up && ping -q -c 3 -W 5 {address}; said=$?; ip link del test.7; exit $said"
    );
    eventually(CONVERGENCE, || swarm.debug(node, &script)).map(drop)
}

/// Links, addresses and routes of a node and of the namespaces that skepd made on it.
const EVERYTHING: &str = "for name in host $(ls /run/skep/netns); do echo \"== $name\"; \
     if [ $name = host ]; then in=''; else in=\"nsenter --net=/run/skep/netns/$name\"; fi; \
     $in ip -br link; $in ip -br -4 addr; $in ip route; $in ip rule; $in ip neigh show nud permanent; done";

fn networkd_leaves_our_links(swarm: &Swarm<'_>, node: &str) -> Result<()> {
    let here = format!("node.hostname=={node}");
    let publish = [
        "--network",
        "my-demo",
        "--constraint",
        &here,
        "--publish",
        "8100:8000",
        "whoami",
    ];
    swarm.create("here", 1, &publish)?;
    let answer = eventually(CONVERGENCE, || swarm.get(node, 8100))?;
    let before = swarm.debug(node, EVERYTHING)?;
    must_contain(&before, &["docker_gwbridge", "== ingress_sbox", "eth0"])?;
    let old = swarm.debug(node, "pgrep -x systemd-network")?;
    swarm.debug(
        node,
        "dbus-send --system --print-reply --dest=org.freedesktop.systemd1 /org/freedesktop/systemd1 \
         org.freedesktop.systemd1.Manager.RestartUnit string:systemd-networkd.service string:replace",
    )?;
    eventually(CONVERGENCE, || {
        let new = swarm.debug(node, "pgrep -x systemd-network")?;
        ensure!(new != old, "networkd has not been started again");
        // Its own links may be configured anew for a moment.
        let after = swarm.debug(node, EVERYTHING)?;
        ensure!(before == after, "was:\n{before}\nis:\n{after}");
        Ok(())
    })?;
    ensure!(
        swarm.get(node, 8100)? == answer,
        "the service on {node} does not answer as before"
    );
    Ok(())
}
