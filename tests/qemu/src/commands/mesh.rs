//! The walk-through's services, and whether the mesh answers from each replica on every node.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::cluster::{Cluster, Place};
use crate::docker::Release;
use crate::http::Client;
use crate::paths::Paths;
use crate::process::run;

/// Longest wait for one answer through the mesh.
const ANSWER_PATIENCE: Duration = Duration::from_secs(5);

/// The walk-through's network and services.
pub struct Mesh {
    /// Replicas of `whoami`.
    pub replicas: usize,
}

impl Mesh {
    /// How many replicas `whoami` has at first.
    pub const REPLICAS: usize = 3;
    /// The published port of `whoami`.
    pub const PORT: u16 = 8000;

    /// Makes what is not there yet.
    pub fn make(paths: &Paths, cluster: &Cluster) -> Result<Mesh> {
        let docker = || -> Result<Command> {
            cluster.docker(paths, Release::Trixie, &cluster.manager().name)
        };
        let names = |kind: &str| -> Result<BTreeSet<String>> {
            let list = run(docker()?.args([kind, "ls", "--format", "{{.Name}}"]))?;
            Ok(list.lines().map(str::to_owned).collect())
        };
        if !names("network")?.contains("my-demo") {
            run(docker()?.args(["network", "create", "--driver", "overlay", "my-demo"]))?;
        }
        let services = names("service")?;
        if !services.contains("client") {
            run(docker()?
                .args(["service", "create", "--detach", "--name", "client"])
                .args(["--network", "my-demo", "busybox", "sleep", "infinity"]))?;
        }
        if !services.contains("whoami") {
            run(docker()?
                .args(["service", "create", "--detach", "--name", "whoami"])
                .args(["--network", "my-demo", "--replicas", "3"])
                .args(["--publish", "8000:8000", "whoami"]))?;
        }
        let replicas = run(docker()?.args([
            "service",
            "inspect",
            "whoami",
            "--format",
            "{{.Spec.Mode.Replicated.Replicas}}",
        ]))?;
        let replicas = replicas
            .trim()
            .parse()
            .with_context(|| format!("whoami has {replicas:?} replicas"))?;
        Ok(Mesh { replicas })
    }
}

/// What one GET to port 8000 of a node answers, through a port on the host's loopback.
pub fn who_answers(port: u16) -> Result<String> {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let answer = Client::plain(address, ANSWER_PATIENCE).get("/")?.good()?;
    Ok(answer.text().trim().to_owned())
}

/// Waits until port 8000 of each of these nodes has answered from `replicas` different replicas, the same ones everywhere.
///
/// # Errors
/// After `patience`, with what each node answered so far.
pub fn answers_of_every_replica(
    cluster: &Cluster,
    places: &[Place],
    replicas: usize,
    patience: Duration,
) -> Result<BTreeSet<String>> {
    let begun = Instant::now();
    loop {
        let mut answers = Vec::new();
        for place in places {
            let left = patience.saturating_sub(begun.elapsed());
            answers.push(answers_of_node(cluster, place, replicas, left)?);
        }
        // A task that was replaced meanwhile makes the nodes differ: then ask again.
        match answers.split_first() {
            Some((first, others)) if others.iter().all(|other| other == first) => {
                return Ok(first.clone());
            }
            _ if begun.elapsed() > patience => bail!("the nodes do not agree: {answers:?}"),
            _ => {}
        }
    }
}

fn answers_of_node(
    cluster: &Cluster,
    place: &Place,
    replicas: usize,
    patience: Duration,
) -> Result<BTreeSet<String>> {
    let port = cluster.vm(&place.name)?.forward(false, Mesh::PORT)?;
    let begun = Instant::now();
    let mut found = BTreeSet::new();
    let mut last = String::from("nothing asked yet");
    while begun.elapsed() <= patience {
        match who_answers(port) {
            Ok(answer) => {
                if !answer.starts_with("I'm ") {
                    bail!("port 8000 of {} answers {answer:?}", place.name);
                }
                found.insert(answer);
                if found.len() == replicas {
                    return Ok(found);
                }
            }
            Err(error) => {
                last = format!("{error:#}");
                std::thread::sleep(Duration::from_millis(250));
            }
        }
    }
    bail!(
        "port 8000 of {} has answered from {} of {replicas} replicas ({found:?}); last failure: {last}",
        place.name,
        found.len()
    )
}
