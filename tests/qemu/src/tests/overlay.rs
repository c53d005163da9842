//! Rows D1-D4: overlay networks, not encrypted.

use anyhow::{Context, Result, ensure};

use crate::registry::Registry;
use crate::runner::{Run, Test};
use crate::swarm::{CONVERGENCE, Swarm, Task, eventually, must_contain};

pub(super) const TESTS: &[Test] = &[
    Test {
        id: "D1",
        shows: "network create with a subnet; listed with scope swarm beside the built-in ones; encrypted is refused by name",
        slow: false,
        causes: &[],
        run: Run::Swarm(create_networks),
    },
    Test {
        id: "D2",
        shows: "tasks of one overlay on different nodes reach each other: ICMP, TCP, UDP, by address and name; VXLAN on the wire",
        slow: false,
        causes: &[],
        run: Run::Swarm(reach),
    },
    Test {
        id: "D3",
        shows: "tasks of different overlays do not reach each other; a service on two overlays reaches both",
        slow: false,
        causes: &[],
        run: Run::Swarm(isolated),
    },
    Test {
        id: "D4",
        shows: "a task reaches the outside through the gateway bridge; one on an internal network does not",
        slow: false,
        causes: &[],
        run: Run::Swarm(way_out),
    },
];

fn create_networks(swarm: &Swarm<'_>) -> Result<()> {
    swarm.docker(&[
        "network",
        "create",
        "--driver",
        "overlay",
        "--subnet",
        "192.168.10.0/24",
        "my-net",
    ])?;
    let table = swarm.docker(&[
        "network",
        "ls",
        "--format",
        "{{.Name}} {{.Driver}} {{.Scope}}",
    ])?;
    must_contain(
        &table,
        &[
            "my-net overlay swarm",
            "my-demo overlay swarm",
            "ingress overlay swarm",
            "bridge bridge local",
            "docker_gwbridge bridge local",
            "host host local",
            "none null local",
        ],
    )?;
    let subnet = swarm.docker(&[
        "network",
        "inspect",
        "my-net",
        "--format",
        "{{(index .IPAM.Config 0).Subnet}}",
    ])?;
    ensure!(
        subnet.trim() == "192.168.10.0/24",
        "my-net has the subnet {subnet:?}"
    );
    let tasks = swarm.create("web", 2, &["--network", "my-net", "whoami"])?;
    for task in &tasks {
        must_contain(task.address("my-net")?, &["192.168.10."])?;
    }
    let said = swarm.refused(&[
        "network",
        "create",
        "--driver",
        "overlay",
        "--opt",
        "encrypted",
        "secret-net",
    ])?;
    must_contain(&said, &["encrypted"])?;
    let overlap = [
        "network",
        "create",
        "--driver",
        "overlay",
        "--subnet",
        "192.168.10.128/25",
        "late",
    ];
    must_contain(&swarm.refused(&overlap)?, &["192.168.10.128/25", "overlap"])?;
    must_contain(
        &swarm.refused(&["network", "create", "--driver", "overlay", "my-net"])?,
        &["my-net", "already exists"],
    )
}

fn client(swarm: &Swarm<'_>) -> Result<Task> {
    swarm
        .running("client")?
        .into_iter()
        .next()
        .context("the client does not run")
}

fn reach(swarm: &Swarm<'_>) -> Result<()> {
    let client = client(swarm)?;
    let tasks = swarm.running("whoami")?;
    let far = tasks
        .iter()
        .find(|task| task.node != client.node)
        .context("no replica on another node")?;
    let address = far.address("my-demo")?;
    let expected = format!("I'm {}", far.hostname());
    // Watches the wire meanwhile: what the client sends leaves the node in VXLAN.
    let script = format!(
        "tcpdump -Z root -l -n -i any -c 4 'udp dst port 4789' >/tmp/wire 2>&1 & sleep 1; \
         nsenter --net={} sh -c 'ping -c 3 -W 3 {address} && curl -sS -m 5 http://{address}:8000/ && \
         echo hello-overlay | timeout 3 socat -t 2 - udp4:{address}:8000'; sleep 1; kill %1 2>/dev/null; cat /tmp/wire",
        client.namespace()
    );
    let said = swarm.debug(&client.node, &script)?;
    let far_node = swarm.cluster.place(&far.node)?.address();
    must_contain(
        &said,
        &[
            " 0% packet loss",
            &expected,
            "hello-overlay",
            "VXLAN",
            &format!("{far_node}.4789"),
        ],
    )?;
    let by_name = swarm.inside(
        &client,
        "curl -sS -m 5 http://$(dig +short @127.0.0.11 whoami):8000/",
    )?;
    must_contain(&by_name, &["I'm "])
}

fn isolated(swarm: &Swarm<'_>) -> Result<()> {
    swarm.docker(&["network", "create", "--driver", "overlay", "other"])?;
    let here = ["--constraint", "node.hostname==swarm-worker1"];
    let other = swarm.create(
        "other",
        1,
        &[&here[..], &["--network", "other", "whoami"]].concat(),
    )?;
    let both = swarm.create(
        "both",
        1,
        &["--network", "other", "--network", "my-demo", "whoami"],
    )?;
    let (other, both) = (&other[0], &both[0]);
    let demo = swarm.running("whoami")?;
    let demo = demo.first().context("no task of whoami runs")?;
    let curl = |address: &str| format!("curl -sS -m 3 http://{address}:8000/");
    let demo_address = demo.address("my-demo")?;
    let other_address = other.address("other")?;
    eventually(CONVERGENCE, || swarm.inside(both, &curl(demo_address)))?;
    eventually(CONVERGENCE, || swarm.inside(both, &curl(other_address)))?;
    for (from, to, address) in [(other, demo, demo_address), (demo, other, other_address)] {
        // By its answer: what leaves the node may meet another machine with this address.
        let said = swarm.inside(from, &format!("{}; true", curl(address)))?;
        ensure!(
            !said.contains(to.hostname()),
            "task {} reaches {address} of an overlay that it is not on",
            from.id
        );
    }
    let name = swarm.inside(other, "dig +short @127.0.0.11 whoami; true")?;
    ensure!(
        !name.contains("10."),
        "a task resolves a service of an overlay that it is not on: {name}"
    );
    Ok(())
}

fn way_out(swarm: &Swarm<'_>) -> Result<()> {
    let registry = Registry::at(swarm.paths)?.address_for_nodes();
    let curl = format!("curl -sS -m 5 -o /dev/null -w '%{{http_code}}' http://{registry}/v2/");
    let out = swarm.inside(&client(swarm)?, &curl)?;
    ensure!(
        out.trim() == "200",
        "the client's request to the outside gives {out:?}"
    );
    swarm.docker(&[
        "network",
        "create",
        "--driver",
        "overlay",
        "--internal",
        "inside",
    ])?;
    let kept = swarm.create("kept", 1, &["--network", "inside", "whoami"])?;
    let out = swarm.inside(&kept[0], &format!("{curl} && echo REACHED; true"))?;
    ensure!(
        !out.contains("REACHED"),
        "a task on an internal network reaches the outside"
    );
    Ok(())
}
