//! Rows F1-F3: D-Bus and skep on the node, the remote API from outside, and errors.

use anyhow::{Context, Result, ensure};

use crate::docker::Release;
use crate::runner::{Run, Test};
use crate::swarm::{CONVERGENCE, Swarm, eventually, must_contain, refusal};

pub(super) const TESTS: &[Test] = &[
    Test {
        id: "F1",
        shows: "on the node: skep over D-Bus lists, creates, scales, inspects and removes; others than root are refused",
        slow: false,
        causes: &[],
        run: Run::Swarm(on_the_node),
    },
    Test {
        id: "F2",
        shows: "from outside with mutual TLS: both docker clients and skep --host; without a certificate nothing",
        slow: false,
        causes: &[],
        run: Run::Swarm(from_outside),
    },
    Test {
        id: "F3",
        shows: "errors are one line that says what is wrong, with a status that is not zero, and change nothing",
        slow: false,
        causes: &[],
        run: Run::Swarm(errors),
    },
    Test {
        id: "inspect",
        shows: "inspect, info, version and --format of every kind in scope work with both clients",
        slow: false,
        causes: &[],
        run: Run::Swarm(inspect),
    },
    Test {
        id: "debug",
        shows: "skep debug streams output and gives the command's exit status, also on workers",
        slow: false,
        causes: &[],
        run: Run::Swarm(debug),
    },
];

fn on_the_node(swarm: &Swarm<'_>) -> Result<()> {
    // The node's own program, in the node's own mount namespace.
    let skep = "nsenter --mount=/proc/1/ns/mnt /usr/bin/skep";
    let said = swarm.debug(
        swarm.manager(),
        &format!("{skep} node ls && {skep} service ls && {skep} network ls"),
    )?;
    must_contain(
        &said,
        &[
            "swarm-worker2",
            "Leader",
            "whoami",
            "3/3",
            "my-demo",
            "ingress",
        ],
    )?;
    manage_on_the_node(swarm, skep)?;
    let names = swarm.debug(
        swarm.manager(),
        "busctl --system list --no-legend | grep io.skep; busctl --system introspect io.skep /io/skep",
    )?;
    must_contain(&names, &["io.skep", "io.skep.Nodes1", "io.skep.Services1"])?;
    let other = swarm.debug_outcome(
        swarm.manager(),
        &format!(
            "{skep} info >/dev/null && {} node ls",
            skep.replace("nsenter", "nsenter --setuid 65534 --setgid 65534")
        ),
    )?;
    refusal(&other, "skep of another user than root").map(drop)
}

/// The verbs that change something, by the node's own skep.
fn manage_on_the_node(swarm: &Swarm<'_>, skep: &str) -> Result<()> {
    let run = |words: &str| swarm.debug(swarm.manager(), &format!("{skep} {words}"));
    run("network create bus-net")?;
    run("service create --detach --name bus --network bus-net --replicas 1 whoami")?;
    swarm.wait_running("bus", 1)?;
    must_contain(&run("service scale --detach bus=2")?, &["bus scaled to 2"])?;
    swarm.wait_running("bus", 2)?;
    must_contain(&run("service ps bus")?, &["bus.1", "bus.2"])?;
    must_contain(&run("service inspect bus")?, &["\"Replicas\": 2"])?;
    run("service rm bus")?;
    eventually(CONVERGENCE, || run("network rm bus-net"))?;
    let left = swarm.docker(&["network", "ls", "--format", "{{.Name}}"])?;
    ensure!(
        !left.lines().any(|name| name == "bus-net"),
        "bus-net is still listed"
    );
    Ok(())
}

fn from_outside(swarm: &Swarm<'_>) -> Result<()> {
    for release in [Release::Bookworm, Release::Trixie] {
        let said = swarm
            .docker_on(release, swarm.manager(), &["node", "ls"])?
            .good("docker node ls")?;
        must_contain(&said, &["swarm-worker1"])?;
    }
    let said = swarm
        .skep(swarm.manager(), &["node", "ls"])?
        .good("skep node ls")?;
    must_contain(&said, &["swarm-worker1", "Leader"])?;
    for node in ["swarm-manager", "swarm-worker1"] {
        let port = swarm.cluster.vm(node)?.api_port().context("no API port")?;
        let certs = swarm.cluster.certs();
        let mut curl = std::process::Command::new("curl");
        curl.args(["-sS", "-m", "10", "--cacert"])
            .arg(certs.join("ca.pem"));
        let url = format!("https://127.0.0.1:{port}/version");
        let outcome =
            crate::process::run_within(curl.arg(&url), std::time::Duration::from_secs(20))?;
        ensure!(
            !outcome.stdout.contains("ApiVersion"),
            "{node} answers without a client certificate"
        );
        let mut curl = std::process::Command::new("curl");
        curl.args(["-sS", "-m", "10", "--cacert"])
            .arg(certs.join("ca.pem"));
        curl.arg("--cert")
            .arg(certs.join("cert.pem"))
            .arg("--key")
            .arg(certs.join("key.pem"));
        must_contain(&crate::process::run(curl.arg(&url))?, &["ApiVersion"])?;
    }
    Ok(())
}

fn errors(swarm: &Swarm<'_>) -> Result<()> {
    let cases: &[(&[&str], &[&str])] = &[
        (&["service", "inspect", "nope"], &["nope"]),
        (&["service", "rm", "nope"], &["nope", "not found"]),
        (&["service", "scale", "--detach", "nope=2"], &["nope"]),
        (&["network", "rm", "nope"], &["nope", "not found"]),
        (&["network", "rm", "my-demo"], &["my-demo", "in use"]),
        (&["node", "inspect", "nope"], &["nope"]),
        (
            &[
                "service", "create", "--detach", "--name", "whoami", "whoami",
            ],
            &["whoami", "name conflicts"],
        ),
        (
            &[
                "service",
                "create",
                "--detach",
                "--name",
                "x",
                "--network",
                "nope",
                "whoami",
            ],
            &["nope", "not found"],
        ),
        (
            &[
                "service",
                "create",
                "--detach",
                "--name",
                "x",
                "--publish",
                "mode=host,target=80",
                "whoami",
            ],
            &["host"],
        ),
        (
            &[
                "service",
                "create",
                "--detach",
                "--name",
                "x",
                "--hostname",
                "a b",
                "whoami",
            ],
            &["ostname"],
        ),
    ];
    for (arguments, parts) in cases {
        let said = swarm.refused(arguments)?;
        must_contain(&said, parts).with_context(|| format!("docker {}", arguments.join(" ")))?;
        ensure!(
            said.lines().count() <= 2,
            "docker {} says more than a line: {said}",
            arguments.join(" ")
        );
    }
    refused_by_skep(swarm)?;
    let names = swarm.docker(&["service", "ls", "--format", "{{.Name}}"])?;
    ensure!(
        names.lines().count() == 2,
        "something half-done is left: {names}"
    );
    Ok(())
}

fn refused_by_skep(swarm: &Swarm<'_>) -> Result<()> {
    let ours = refusal(
        &swarm.skep(swarm.manager(), &["service", "inspect", "nope"])?,
        "skep service inspect nope",
    )?;
    must_contain(&ours, &["nope"])
}

fn inspect(swarm: &Swarm<'_>) -> Result<()> {
    // Nodes of other tests that have left stay listed as Down, as with Docker: their number is what the list says.
    let listed = swarm.docker(&["node", "ls", "--quiet"])?.lines().count();
    let nodes = format!("Nodes: {listed}");
    let cases: &[(&[&str], &[&str])] = &[
        (
            &["node", "inspect", "swarm-worker1"],
            &["\"Hostname\": \"swarm-worker1\""],
        ),
        (
            &["node", "inspect", "--pretty", "self"],
            &["swarm-manager", "Leader:"],
        ),
        (
            &["service", "inspect", "whoami"],
            &["\"Replicas\": 3", "\"PublishedPort\": 8000"],
        ),
        (
            &["service", "inspect", "--pretty", "whoami"],
            &["Replicated", "PublishedPort = 8000"],
        ),
        (
            &["network", "inspect", "my-demo"],
            &["\"Scope\": \"swarm\"", "\"Driver\": \"overlay\""],
        ),
        (
            &["info"],
            &["Swarm: active", "Is Manager: true", "Managers: 1"],
        ),
        (&["version"], &["Client:", "Server:"]),
        (
            &["service", "ps", "whoami", "--format", "{{.Name}}"],
            &["whoami.1", "whoami.2", "whoami.3"],
        ),
        (
            &["service", "ls", "--format", "json"],
            &["\"Name\":\"whoami\""],
        ),
    ];
    for release in [Release::Bookworm, Release::Trixie] {
        let info = swarm
            .docker_on(release, swarm.manager(), &["info"])?
            .good("docker info")?;
        must_contain(&info, &[&nodes]).with_context(|| format!("docker info, {release:?}"))?;
        for (arguments, parts) in cases {
            // `--format json` came with 23.0.
            if release == Release::Bookworm && arguments.contains(&"json") {
                continue;
            }
            let name = format!("docker {}", arguments.join(" "));
            let said = swarm
                .docker_on(release, swarm.manager(), arguments)?
                .good(&name)?;
            must_contain(&said, parts).with_context(|| format!("{name}, {release:?}"))?;
        }
    }
    Ok(())
}

fn debug(swarm: &Swarm<'_>) -> Result<()> {
    for node in ["swarm-manager", "swarm-worker1"] {
        let outcome = swarm.debug_outcome(node, "echo to-stdout; echo to-stderr >&2; exit 7")?;
        ensure!(
            outcome.status == Some(7),
            "the exit status is {:?}",
            outcome.status
        );
        must_contain(&outcome.stdout, &["to-stdout"])?;
        must_contain(&outcome.stderr, &["to-stderr"])?;
        let seen = swarm.debug(node, "cat /proc/1/comm; ls -d /run/skep/netns /run/dbus /sys/fs/cgroup; readlink /proc/self/ns/net /proc/1/ns/net")?;
        must_contain(&seen, &["systemd", "/run/skep/netns", "/run/dbus"])?;
        let spaces: Vec<&str> = seen
            .lines()
            .filter(|line| line.starts_with("net:"))
            .collect();
        ensure!(
            spaces.len() == 2 && spaces[0] == spaces[1],
            "not the node's network namespace: {spaces:?}"
        );
    }
    Ok(())
}
