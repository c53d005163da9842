//! Rows C1-C4 and C6: the routing mesh, looked at with `curl`, `ip`, `nft`, `ipvsadm` and `bridge` on the nodes.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail, ensure};

use crate::runner::{Run, Test};
use crate::swarm::{CONVERGENCE, Swarm, Task, eventually, in_namespace, must_contain};

const NODES: [&str; 3] = ["swarm-manager", "swarm-worker1", "swarm-worker2"];
const SANDBOX: &str = "/run/skep/netns/ingress_sbox";

pub(super) const TESTS: &[Test] = &[
    Test {
        id: "C1",
        shows: "127.0.0.1:8000 and the node's address answer on all nodes, alternating, also without a replica",
        slow: false,
        causes: &[],
        run: Run::Swarm(every_node_answers),
    },
    Test {
        id: "C2",
        shows: "kernel state of a node without a replica: DNAT, ingress sandbox, mark 0x100, IPVS rr",
        slow: false,
        causes: &[],
        run: Run::Swarm(ingress_sandbox),
    },
    Test {
        id: "C3",
        shows: "inside a task: both VIPs on lo, ingress, gateway bridge and my-demo interfaces, MAC by address",
        slow: false,
        causes: &[],
        run: Run::Swarm(inside_a_task),
    },
    Test {
        id: "C4",
        shows: "a port is chosen from 30000-32767 when none is given; a taken one is refused",
        slow: false,
        causes: &[],
        run: Run::Swarm(ports),
    },
    Test {
        id: "C6",
        shows: "the mesh follows scale and rm at once, and rm leaves nothing behind on any node",
        slow: false,
        causes: &[],
        run: Run::Swarm(follows_and_leaves_nothing),
    },
    Test {
        id: "C-udp",
        shows: "a published UDP port answers on every node",
        slow: false,
        causes: &[],
        run: Run::Swarm(udp),
    },
    Test {
        id: "junk",
        shows: "entries added by hand to the sandbox's IPVS, ARP and FDB tables and to the node's rules are gone after the next pass",
        slow: false,
        causes: &[],
        run: Run::Swarm(junk_is_removed),
    },
];

fn answers_of(tasks: &[Task]) -> BTreeSet<String> {
    tasks
        .iter()
        .map(|task| format!("I'm {}", task.hostname()))
        .collect()
}

fn every_node_answers(swarm: &Swarm<'_>) -> Result<()> {
    swarm.docker(&["service", "scale", "--detach", "whoami=2"])?;
    let tasks = swarm.wait_running("whoami", 2)?;
    swarm.node_without(&tasks, &NODES)?;
    let expected = answers_of(&tasks);
    for node in NODES {
        let address = swarm.cluster.place(node)?.address();
        let from_outside = eventually(CONVERGENCE, || {
            let got = (0..4)
                .map(|_| swarm.get(node, 8000))
                .collect::<Result<Vec<_>>>()?;
            same_answers(&got, &expected)?;
            Ok(got)
        })?;
        let alternates = from_outside.windows(2).all(|pair| pair[0] != pair[1]);
        ensure!(alternates, "{node} does not alternate: {from_outside:?}");
        for target in ["127.0.0.1", &address] {
            let script =
                format!("for i in 1 2 3 4; do curl -sS -m 5 http://{target}:8000/ || exit 1; done");
            let said = swarm.debug(node, &script)?;
            let got: Vec<String> = said.lines().map(str::to_owned).collect();
            same_answers(&got, &expected)
                .with_context(|| format!("on {node} itself, at {target}"))?;
        }
    }
    Ok(())
}

fn same_answers(got: &[String], expected: &BTreeSet<String>) -> Result<()> {
    let seen: BTreeSet<String> = got.iter().cloned().collect();
    ensure!(
        &seen == expected,
        "the answers are {seen:?}, the replicas {expected:?}"
    );
    Ok(())
}

/// The values are those of the walk-through's articles.
fn ingress_sandbox(swarm: &Swarm<'_>) -> Result<()> {
    swarm.docker(&["service", "scale", "--detach", "whoami=2"])?;
    let tasks = swarm.wait_running("whoami", 2)?;
    let node = swarm.node_without(&tasks, &NODES)?;
    let vip = swarm.vip("whoami", "ingress")?;
    eventually(CONVERGENCE, || {
        let said = swarm.debug(
            &node,
            &in_namespace(
                SANDBOX,
                "ip -o link; ip -o -4 addr; nft list ruleset; ipvsadm -ln",
            ),
        )?;
        let line = |part: &str| -> Result<&str> {
            let mut lines = said.lines().filter(|line| line.contains(part));
            lines
                .next()
                .with_context(|| format!("no {part:?} in the sandbox of {node}:\n{said}"))
        };
        must_contain(line(": eth0@")?, &["mtu 1450"])?;
        let own = said
            .lines()
            .filter(|line| line.contains(" eth0 "))
            .any(|line| line.contains("inet 10.255.0.") && line.contains("/16"));
        ensure!(own, "eth0 has no address 10.255.0.x/16:\n{said}");
        line(&format!("inet {vip}/32"))?;
        line(" eth1 ")?;
        line("tcp . 8000 : 0x00000100")?;
        must_contain(line("FWM  256")?, &["rr"])?;
        let masqueraded = said.lines().filter(|line| line.contains("Masq")).count();
        ensure!(
            masqueraded == tasks.len(),
            "{masqueraded} IPVS entries for {} tasks:\n{said}",
            tasks.len()
        );
        tasks.iter().try_for_each(|task| {
            must_contain(
                line(&format!("-> {}:0", task.address("ingress")?))?,
                &["Masq"],
            )
        })
    })?;
    let bridge_address = swarm.debug(
        &node,
        &in_namespace(
            SANDBOX,
            "ip -o -4 addr show dev eth1 | awk '{print $4}' | cut -d/ -f1",
        ),
    )?;
    let rules = swarm.debug(&node, "nft list ruleset")?;
    let target = format!(" {}", bridge_address.trim());
    let parts = [" 8000", "dnat", &target];
    let of_one_rule = |line: &str| parts.iter().all(|part| line.contains(part));
    ensure!(
        rules.lines().any(of_one_rule),
        "{node} has no rule with {parts:?}:\n{rules}"
    );
    Ok(())
}

fn inside_a_task(swarm: &Swarm<'_>) -> Result<()> {
    let tasks = swarm.running("whoami")?;
    let task = tasks.first().context("no task of whoami runs")?;
    let said = swarm.inside(task, "ip -o link; ip -o -4 addr")?;
    let ingress = swarm.vip("whoami", "ingress")?;
    let demo = swarm.vip("whoami", "my-demo")?;
    for vip in [ingress, demo] {
        let on_lo = said
            .lines()
            .any(|l| l.contains(" lo ") && l.contains(&format!("inet {vip}/32")));
        ensure!(on_lo, "lo does not have {vip}/32:\n{said}");
    }
    for (network, mtu, prefix) in [("ingress", "mtu 1450", 16), ("my-demo", "mtu 1450", 24)] {
        let address = task.address(network)?;
        let (interface, link) = interface_of(&said, &format!("inet {address}/{prefix} "))?;
        must_contain(link, &[mtu, &mac_of(address)?])
            .with_context(|| format!("{interface} of {network}"))?;
    }
    let (gateway, link) = interface_of(&said, "inet 172.18.")?;
    must_contain(link, &["mtu 1500"]).with_context(|| format!("{gateway} on the gateway bridge"))
}

/// The interface with an address, and its line of `ip -o link`.
fn interface_of<'a>(said: &'a str, address: &str) -> Result<(&'a str, &'a str)> {
    let line = said
        .lines()
        .find(|l| l.contains(address))
        .with_context(|| format!("no {address:?} in:\n{said}"))?;
    let name = line
        .split_whitespace()
        .nth(1)
        .context("a line of ip without a name")?;
    let is_link = |l: &&str| l.contains(": mtu") || l.contains(" mtu ");
    let named = |l: &&str| l.contains(&format!(": {name}@")) || l.contains(&format!(": {name}:"));
    let link = said
        .lines()
        .filter(is_link)
        .find(named)
        .with_context(|| format!("no link {name} in:\n{said}"))?;
    Ok((name, link))
}

/// `02:42:` and the address in hex.
fn mac_of(address: &str) -> Result<String> {
    let octets: Vec<u8> = address
        .split('.')
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    let hex: Vec<String> = octets.iter().map(|octet| format!("{octet:02x}")).collect();
    Ok(format!("02:42:{}", hex.join(":")))
}

fn ports(swarm: &Swarm<'_>) -> Result<()> {
    swarm.create("web", 1, &["--publish", "8000", "whoami"])?;
    let shown = swarm.docker(&[
        "service",
        "ls",
        "--filter",
        "name=web",
        "--format",
        "{{.Ports}}",
    ])?;
    let port: u16 = shown
        .trim()
        .strip_prefix("*:")
        .and_then(|rest| rest.split("->").next()?.parse().ok())
        .with_context(|| format!("service ls shows the ports {shown:?}"))?;
    ensure!((30000..=32767).contains(&port), "the chosen port is {port}");
    eventually(CONVERGENCE, || swarm.get("swarm-worker2", port))?;
    let said = swarm.refused(&[
        "service",
        "create",
        "--detach",
        "--name",
        "late",
        "--publish",
        "8000:8000",
        "whoami",
    ])?;
    must_contain(&said, &["8000", "whoami", "already in use"])?;
    let names = swarm.docker(&["service", "ls", "--format", "{{.Name}}"])?;
    ensure!(
        !names.lines().any(|name| name == "late"),
        "the refused service is there"
    );
    Ok(())
}

/// What a node holds of overlays and mesh, one item per line, in an order that can be compared.
fn kernel_state(swarm: &Swarm<'_>, node: &str) -> Result<String> {
    let script = "nft list ruleset | grep -v -E 'counter|handle' | sort; \
                  nsenter --net=/run/skep/netns/ingress_sbox nft list ruleset | grep -v -E 'counter|handle'; ls /run/skep/netns | sort; \
                  for n in /run/skep/netns/*; do echo $n; nsenter --net=$n sh -c 'ip -o -4 addr | cut -d\" \" -f2-7; bridge fdb | grep dst; ip neigh | grep PERM; ipvsadm -Sn 2>/dev/null'; done";
    swarm.debug(node, script)
}

fn follows_and_leaves_nothing(swarm: &Swarm<'_>) -> Result<()> {
    let before = NODES
        .iter()
        .map(|node| kernel_state(swarm, node))
        .collect::<Result<Vec<_>>>()?;
    swarm.docker(&["network", "create", "--driver", "overlay", "extra"])?;
    swarm.create(
        "web",
        3,
        &["--network", "extra", "--publish", "8090:8000", "whoami"],
    )?;
    for count in [3, 1, 4] {
        swarm.docker(&["service", "scale", "--detach", &format!("web={count}")])?;
        let tasks = swarm.wait_running("web", count)?;
        for node in NODES {
            eventually(CONVERGENCE, || {
                let got = (0..2 * count)
                    .map(|_| swarm.get(node, 8090))
                    .collect::<Result<Vec<_>>>()?;
                same_answers(&got, &answers_of(&tasks))
            })
            .with_context(|| format!("{node} after web={count}"))?;
        }
    }
    swarm.docker(&["service", "rm", "web"])?;
    eventually(CONVERGENCE, || swarm.docker(&["network", "rm", "extra"]))?;
    for (node, before) in NODES.iter().zip(before) {
        eventually(CONVERGENCE, || {
            let now = kernel_state(swarm, node)?;
            match difference(&before, &now) {
                None => Ok(()),
                Some(line) => bail!("after rm, {node} differs from before: {line}"),
            }
        })?;
        ensure!(
            swarm.get(node, 8090).is_err(),
            "port 8090 of {node} still answers"
        );
    }
    Ok(())
}

/// The first line that only one of the two has.
fn difference(before: &str, now: &str) -> Option<String> {
    let sorted = |text: &str| {
        let mut lines: Vec<String> = text.lines().map(|line| line.trim().to_owned()).collect();
        lines.sort();
        lines
    };
    let (before, now) = (sorted(before), sorted(now));
    let added = now
        .iter()
        .find(|line| !before.contains(line))
        .map(|line| format!("added {line:?}"));
    added.or_else(|| {
        before
            .iter()
            .find(|line| !now.contains(line))
            .map(|line| format!("missing {line:?}"))
    })
}

fn udp(swarm: &Swarm<'_>) -> Result<()> {
    swarm.create("echo", 2, &["--publish", "8053:8000/udp", "whoami"])?;
    for node in NODES {
        let address = swarm.cluster.place(node)?.address();
        let script = format!("echo hello-mesh | timeout 3 socat -t 2 - udp4:{address}:8053");
        // From another node than the one that is asked.
        let from = NODES
            .iter()
            .find(|other| **other != node)
            .context("one node only")?;
        eventually(CONVERGENCE, || {
            must_contain(&swarm.debug(from, &script)?, &["hello-mesh"])
        })?;
    }
    Ok(())
}

fn junk_is_removed(swarm: &Swarm<'_>) -> Result<()> {
    let node = "swarm-worker1";
    let good = kernel_state(swarm, node)?;
    let namespace = swarm.debug(node, "ls -d /run/skep/netns/1-* | head -1")?;
    let overlay = namespace.trim();
    let in_overlay = "dev=$(ip -o link show type vxlan | cut -d: -f2 | cut -d@ -f1 | head -1 | tr -d ' '); \
                      bridge fdb add 02:42:0a:63:63:63 dev $dev dst 192.168.77.99 self permanent; \
                      ip neigh add 10.99.99.99 lladdr 02:42:0a:63:63:63 dev $dev nud permanent";
    swarm.debug(node, &in_namespace(overlay, in_overlay))?;
    swarm.debug(
        node,
        &in_namespace(
            SANDBOX,
            "ipvsadm -a -f 256 -r 10.255.99.99 -m; ipvsadm -A -f 999 -s rr",
        ),
    )?;
    swarm.debug(
        node,
        "nft add rule ip skep forward ip daddr 192.0.2.99 drop",
    )?;
    eventually(CONVERGENCE, || {
        let now = kernel_state(swarm, node)?;
        match difference(&good, &now) {
            None => Ok(()),
            Some(line) => bail!("{node} still differs: {line}"),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardware_addresses_follow_from_addresses() {
        assert_eq!(mac_of("10.255.0.7").unwrap(), "02:42:0a:ff:00:07");
    }

    #[test]
    fn the_first_line_that_differs_is_named() {
        assert_eq!(difference("b\na", "a\nb"), None);
        assert_eq!(difference("a", "a\nc").as_deref(), Some("added \"c\""));
        assert_eq!(difference("a\nd", "a").as_deref(), Some("missing \"d\""));
    }
}
