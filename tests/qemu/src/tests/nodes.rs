//! Rows A1-A4: nodes.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::bad_input::stays_out;
use crate::archive::Blob;
use crate::commands::READY_PATIENCE;
use crate::docker::Release;
use crate::process::{Outcome, run_within};
use crate::runner::{Run, Test};
use crate::swarm::{COMMAND_PATIENCE, CONVERGENCE, Swarm, eventually, must_contain, refusal};
use crate::vm::Vm;
use crate::{api, console, docker};

pub(super) const TESTS: &[Test] = &[
    Test {
        id: "A2",
        shows: "worker and manager tokens differ; a rotated one stops working for new joins, joined nodes stay",
        slow: false,
        causes: &[],
        run: Run::Spare(tokens),
    },
    Test {
        id: "A3",
        shows: "three nodes joined by what they booted with, and no human step",
        slow: false,
        causes: &[],
        run: Run::Swarm(joined_by_themselves),
    },
    Test {
        id: "A4",
        shows: "node ls: ID with * for self, HOSTNAME, STATUS, AVAILABILITY, MANAGER STATUS",
        slow: false,
        causes: &[],
        run: Run::Swarm(listed),
    },
    Test {
        id: "A1",
        shows: "swarm init prints the join line, a second one is refused; then leave, and join as a worker by hand",
        slow: false,
        causes: &[],
        run: Run::Spare(init_leave_join),
    },
];

fn tokens(swarm: &Swarm<'_>, spare: &str) -> Result<()> {
    let token = |role| swarm.docker(&["swarm", "join-token", "--quiet", role]);
    let (worker, manager) = (token("worker")?, token("manager")?);
    ensure!(
        worker != manager,
        "the tokens of workers and managers are the same"
    );
    ensure!(
        worker.starts_with("SWMTKN-1-"),
        "no SWMTKN-1 token: {worker}"
    );
    let printed = swarm.docker(&["swarm", "join-token", "worker"])?;
    must_contain(
        &printed,
        &[
            &format!("docker swarm join --token {}", worker.trim()),
            ":2377",
        ],
    )?;
    swarm.docker(&["swarm", "join-token", "--rotate", "--quiet", "worker"])?;
    let rotated = token("worker")?;
    ensure!(
        rotated != worker,
        "the token of workers is the same after its rotation"
    );
    ensure!(
        token("manager")? == manager,
        "the token of managers changed with that of workers"
    );
    stays_out(swarm, spare, worker.trim(), "token")?;
    joined_by_themselves(swarm)
}

fn joined_by_themselves(swarm: &Swarm<'_>) -> Result<()> {
    let ready = swarm.cluster.ready_nodes()?;
    for name in ["swarm-manager", "swarm-worker1", "swarm-worker2"] {
        ensure!(
            ready.iter().any(|node| node == name),
            "{name} is not Ready; Ready are {ready:?}"
        );
    }
    Ok(())
}

fn listed(swarm: &Swarm<'_>) -> Result<()> {
    for release in [Release::Bookworm, Release::Trixie] {
        let table = swarm
            .docker_on(release, swarm.manager(), &["node", "ls"])?
            .good("docker node ls")?;
        must_contain(
            &table,
            &["ID", "HOSTNAME", "STATUS", "AVAILABILITY", "MANAGER STATUS"],
        )?;
        let row = |name: &str| -> Result<Vec<String>> {
            let is_row = |line: &&str| line.split_whitespace().any(|word| word == name);
            let line = table
                .lines()
                .find(is_row)
                .with_context(|| format!("no {name} in: {table}"))?;
            Ok(line.split_whitespace().map(str::to_owned).collect())
        };
        let manager = row("swarm-manager")?;
        let expected = ["*", "swarm-manager", "Ready", "Active", "Leader"];
        ensure!(
            manager.get(1..6).is_some_and(|words| words == expected),
            "the manager's row is {manager:?}"
        );
        for name in ["swarm-worker1", "swarm-worker2"] {
            let worker = row(name)?;
            let sound = worker
                .get(1..4)
                .is_some_and(|words| words == [name, "Ready", "Active"]);
            ensure!(
                sound && worker[0].len() == 25,
                "the row of {name} is {worker:?}"
            );
        }
    }
    Ok(())
}

/// The spare node boots with nothing but the operator's CA, so an operator decides what becomes of it.
fn init_leave_join(swarm: &Swarm<'_>, spare: &str) -> Result<()> {
    let vm = boot_unconfigured(swarm, spare)?;
    let address = swarm.cluster.place(spare)?.address();
    let trust = swarm.paths.folder("tests/A1-certs")?;
    let docker = |arguments: &[&str]| docker_on_trust(swarm, &vm, &trust, arguments);
    eventually(READY_PATIENCE, || docker(&["info"])?.good("docker info"))?;
    // An operator compares the fingerprint on the console with that of the certificate which the node presents.
    let port = vm.api_port().context("no API port")?;
    let fingerprint = Blob::new(api::presented_certificate(port)?.to_vec()).digest;
    let fingerprint = fingerprint.trim_start_matches("sha256:");
    let console = console::read(&vm.folder).to_lowercase().replace(':', "");
    ensure!(
        console.contains(fingerprint),
        "the console does not tell the fingerprint {fingerprint}"
    );
    let printed =
        docker(&["swarm", "init", "--advertise-addr", &address])?.good("docker swarm init")?;
    let join = format!("{address}:2377");
    must_contain(
        &printed,
        &[
            "Swarm initialized: current node (",
            "docker swarm join --token SWMTKN-1-",
            &join,
        ],
    )?;
    let again = refusal(
        &docker(&["swarm", "init", "--advertise-addr", &address])?,
        "a second init",
    )?;
    must_contain(&again, &["already part of a swarm"])?;
    let kept = refusal(&docker(&["swarm", "leave"])?, "a manager's leave")?;
    must_contain(&kept, &["--force"])?;
    docker(&["swarm", "leave", "--force"])?.good("docker swarm leave --force")?;
    let token = swarm.docker(&["swarm", "join-token", "--quiet", "worker"])?;
    let manager = format!("{}:2377", swarm.cluster.manager().address());
    let joined = docker(&[
        "swarm",
        "join",
        "--token",
        token.trim(),
        "--advertise-addr",
        &address,
        &manager,
    ])?;
    must_contain(
        &joined.good("docker swarm join")?,
        &["This node joined a swarm as a worker."],
    )?;
    eventually(CONVERGENCE, || {
        match swarm
            .cluster
            .ready_nodes()?
            .iter()
            .any(|node| node == spare)
        {
            true => Ok(()),
            false => bail!("{spare} has joined and is not Ready"),
        }
    })?;
    docker(&["swarm", "leave"])?.good("docker swarm leave")?;
    Ok(())
}

fn boot_unconfigured(swarm: &Swarm<'_>, spare: &str) -> Result<Vm> {
    swarm.boot_changed(spare, |vm| {
        let credentials = &mut vm.boot.credentials;
        credentials.retain(|(name, _)| name == "skep.operator-ca");
        ensure!(
            !credentials.is_empty(),
            "gen swarm made no credential skep.operator-ca"
        );
        vm.boot.cmdline = without_swarm_keys(&vm.boot.cmdline);
        Ok(())
    })
}

/// The docker client against a node that is known by nothing but the certificate that it presents.
fn docker_on_trust(
    swarm: &Swarm<'_>,
    vm: &Vm,
    folder: &Path,
    arguments: &[&str],
) -> Result<Outcome> {
    let port = vm.api_port().context("no API port")?;
    let certificate = BASE64.encode(api::presented_certificate(port)?);
    let pem = format!("-----BEGIN CERTIFICATE-----\n{certificate}\n-----END CERTIFICATE-----\n");
    fs::write(folder.join("ca.pem"), pem)?;
    for name in ["cert.pem", "key.pem"] {
        fs::copy(swarm.cluster.certs().join(name), folder.join(name))?;
    }
    let mut command = docker::command(swarm.paths, Release::Trixie, port, folder)?;
    run_within(command.args(arguments), COMMAND_PATIENCE)
}

/// The kernel command line without the keys that make a node part of a swarm.
fn without_swarm_keys(cmdline: &str) -> String {
    let kept = |word: &&str| {
        !["skep.join=", "skep.swarm="]
            .iter()
            .any(|key| word.starts_with(key))
    };
    cmdline
        .split_whitespace()
        .filter(kept)
        .collect::<Vec<_>>()
        .join(" ")
}
