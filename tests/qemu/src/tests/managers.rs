//! Rows A3 and A5-A8: what nodes are to the swarm, and what becomes of it when its leader is lost.

use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::commands::{READY_PATIENCE, answers_of_every_replica};
use crate::docker::Release;
use crate::progress::say;
use crate::runner::{Run, Test};
use crate::swarm::{CONVERGENCE, Swarm, eventually, must_contain, refusal};

pub(super) const TESTS: &[Test] = &[
    Test {
        id: "A5",
        shows: "a drained node gives its tasks up, a paused one gets no new ones, an active one does",
        slow: false,
        causes: &[],
        run: Run::Swarm(availability),
    },
    Test {
        id: "A7",
        shows: "a node joins as a manager at boot, leaves by force without a loss of quorum, and is removed",
        slow: false,
        causes: &[],
        run: Run::Spare(joins_as_manager_and_leaves),
    },
    Test {
        id: "A6",
        shows: "of three managers, two of them promoted, the leader loses its power: another leads, services answer and are made; then all are demoted but one",
        slow: false,
        causes: &[],
        run: Run::Swarm(leader_lost),
    },
];

fn availability(swarm: &Swarm<'_>) -> Result<()> {
    let node = "swarm-worker1";
    let set = |word| swarm.docker(&["node", "update", "--availability", word, node]);
    let here = |service: &str| -> Result<usize> {
        let running = swarm.running(service)?;
        Ok(running.iter().filter(|task| task.node == node).count())
    };
    set("drain")?;
    eventually(CONVERGENCE, || {
        let running = swarm.running("whoami")?;
        ensure!(running.len() == 3, "{} of 3 tasks run", running.len());
        ensure!(here("whoami")? == 0, "{node} is drained and has tasks");
        Ok(())
    })?;
    must_contain(&swarm.docker(&["node", "ls"])?, &["Drain"])?;
    answers_of_every_replica(swarm.cluster, &swarm.cluster.places()[..3], 3, CONVERGENCE)?;
    set("pause")?;
    swarm.create("web", 4, &["whoami"])?;
    ensure!(here("web")? == 0, "{node} is paused and has new tasks");
    set("active")?;
    swarm.docker(&["service", "scale", "--detach", "web=8"])?;
    swarm.wait_running("web", 8)?;
    ensure!(here("web")? > 0, "{node} is active and gets no tasks");
    Ok(())
}

/// What `node ls` says of a node's part among the managers. Of several nodes with one name, as the spare one leaves them,
/// the one that has a part.
fn part(swarm: &Swarm<'_>, asked: &str, name: &str) -> Result<String> {
    let format = ["node", "ls", "--format", "{{.Hostname}}={{.ManagerStatus}}"];
    let listed = swarm
        .docker_on(Release::Trixie, asked, &format)?
        .good("docker node ls")?;
    let found = listed
        .lines()
        .filter_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    let part = found.map(str::trim).max_by_key(|part| part.len());
    Ok(part
        .with_context(|| format!("no {name} in: {listed}"))?
        .to_owned())
}

fn wait_part(swarm: &Swarm<'_>, asked: &str, name: &str, wanted: &[&str]) -> Result<()> {
    eventually(CONVERGENCE, || {
        let is = part(swarm, asked, name)?;
        ensure!(
            wanted.contains(&is.as_str()),
            "{name} is {is:?} among the managers"
        );
        Ok(())
    })
}

fn joins_as_manager_and_leaves(swarm: &Swarm<'_>, spare: &str) -> Result<()> {
    let token = swarm.docker(&["swarm", "join-token", "--quiet", "manager"])?;
    swarm.boot_changed(spare, |vm| {
        vm.set_credential("skep.join", &swarm.join_with(token.trim()));
        Ok(())
    })?;
    let place = std::slice::from_ref(swarm.cluster.place(spare)?);
    swarm.cluster.wait_ready(place, READY_PATIENCE)?;
    wait_part(swarm, swarm.manager(), spare, &["Reachable"])?;
    let id = swarm
        .docker_on(
            Release::Trixie,
            spare,
            &["info", "--format", "{{.Swarm.NodeID}}"],
        )?
        .good("docker info")?;
    let id = id.trim();
    // It answers for the whole swarm, and forwards what the leader must decide.
    let on_spare = |arguments: &[&str]| swarm.docker_on(Release::Trixie, spare, arguments);
    on_spare(&["service", "create", "--detach", "--name", "web", "whoami"])?.good("create")?;
    swarm.wait_running("web", 1)?;
    let refused = refusal(&on_spare(&["swarm", "leave"])?, "a manager's leave")?;
    must_contain(&refused, &["--force"])?;
    let refused = swarm.refused(&["node", "rm", "--force", id])?;
    must_contain(&refused, &["must be demoted"])?;
    on_spare(&["swarm", "leave", "--force"])?.good("swarm leave --force")?;
    // The one that is left is a majority by itself.
    swarm.docker(&["service", "rm", "web"])?;
    wait_part(swarm, swarm.manager(), spare, &[""])?;
    eventually(CONVERGENCE, || swarm.docker(&["node", "rm", id]))?;
    let listed = swarm.docker(&["node", "ls", "--quiet"])?;
    ensure!(!listed.contains(id), "{spare} was removed and is listed");
    Ok(())
}

const PROMOTED: [&str; 2] = ["swarm-worker1", "swarm-worker2"];

fn leader_lost(swarm: &Swarm<'_>) -> Result<()> {
    let first = swarm.manager();
    let promoted = swarm.docker(&["node", "promote", PROMOTED[0], PROMOTED[1]])?;
    must_contain(
        &promoted,
        &["Node swarm-worker2 promoted to a manager in the swarm."],
    )?;
    for name in PROMOTED {
        wait_part(swarm, first, name, &["Reachable", "Leader"])?;
    }
    let shown = without_the_leader(swarm, first);
    swarm.cluster.vm(first)?.power_on()?;
    shown?;
    let place = std::slice::from_ref(swarm.cluster.place(first)?);
    swarm.cluster.wait_ready(place, READY_PATIENCE)?;
    wait_part(swarm, PROMOTED[0], first, &["Reachable", "Leader"])?;
    for name in PROMOTED {
        let said = eventually(CONVERGENCE, || swarm.docker(&["node", "demote", name]))?;
        must_contain(&said, &[&format!("Manager {name} demoted in the swarm.")])?;
        wait_part(swarm, first, name, &[""])?;
    }
    wait_part(swarm, first, first, &["Leader"])?;
    let last = swarm.refused(&["node", "demote", first])?;
    must_contain(&last, &["last manager"])?;
    // Nodes that were managers are workers like any other.
    eventually(CONVERGENCE, || {
        let refused = swarm.docker_on(Release::Trixie, PROMOTED[0], &["node", "ls"])?;
        must_contain(
            &refusal(&refused, "a worker's node ls")?,
            &["not a swarm manager"],
        )
    })
}

fn without_the_leader(swarm: &Swarm<'_>, first: &str) -> Result<()> {
    swarm.cluster.vm(first)?.power_cut()?;
    let begun = Instant::now();
    let other = PROMOTED[0];
    // The node with the power off may have had a task of whoami; the nodes that are left go on answering.
    let network = ["network", "create", "--driver", "overlay", "after"];
    eventually(CONVERGENCE, || {
        swarm
            .docker_on(Release::Trixie, other, &network)?
            .good("network create")
    })?;
    say(&format!(
        "the next write was accepted {:.1} s after the leader's power went",
        begun.elapsed().as_secs_f32()
    ));
    let on_other = |arguments: &[&str]| {
        swarm
            .docker_on(Release::Trixie, other, arguments)?
            .good(&arguments.join(" "))
    };
    on_other(&[
        "service",
        "create",
        "--detach",
        "--name",
        "web",
        "--publish",
        "8200:8000",
        "whoami",
    ])?;
    for name in PROMOTED {
        eventually(CONVERGENCE, || swarm.get(name, 8200))?;
        eventually(CONVERGENCE, || swarm.get(name, 8000))?;
    }
    wait_part(swarm, other, first, &["Unreachable"])?;
    on_other(&["service", "rm", "web"])?;
    on_other(&["network", "rm", "after"]).map(drop)
}
