//! Row B8 and jobs: services that run once on each node, and such that run to their end.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};

use crate::commands::READY_PATIENCE;
use crate::docker::Release;
use crate::runner::{Run, Test};
use crate::swarm::{CONVERGENCE, Swarm, Task, eventually, must_contain};

const NODES: [&str; 3] = ["swarm-manager", "swarm-worker1", "swarm-worker2"];

pub(super) const TESTS: &[Test] = &[
    Test {
        id: "B8",
        shows: "a global service runs one task on each node, also on one that joins later, and none on a drained one",
        slow: false,
        causes: &[],
        run: Run::Spare(once_per_node),
    },
    Test {
        id: "jobs",
        shows: "jobs run their tasks to their end, so many at a time or once on each node, and again when they are updated",
        slow: false,
        causes: &[],
        run: Run::Swarm(jobs),
    },
    Test {
        id: "spread",
        shows: "a placement preference spreads over the values of a label; a task without a node says why",
        slow: false,
        causes: &[],
        run: Run::Swarm(spread_over_labels),
    },
];

fn once_per_node(swarm: &Swarm<'_>, spare: &str) -> Result<()> {
    let create = "service create --mode global --name agent --publish 8090:8000 whoami";
    let said = swarm.docker(&words(create))?;
    let progress = ["overall progress: 3 out of 3 tasks", "verify: Service"];
    must_contain(&said, &progress)?;
    let tasks = one_on_each(swarm, "agent", &NODES)?;
    for task in &tasks {
        is_named_by_its_node(swarm, task)?;
    }
    let listed = swarm.docker(&["service", "ls", "--filter", "mode=global"])?;
    must_contain(&listed, &["agent", "global", "3/3", "*:8090->8000/tcp"])?;
    let refused = swarm.refused(&["service", "scale", "agent=2"])?;
    must_contain(&refused, &["scale can only be used with replicated"])?;

    swarm.boot_changed(spare, |_| Ok(()))?;
    let joined = eventually(READY_PATIENCE, || ready_id(swarm, spare))?;
    let all = [&NODES[..], &[spare]].concat();
    one_on_each(swarm, "agent", &all)?;
    eventually(CONVERGENCE, || swarm.get(spare, 8090))?;

    let available = |word| swarm.docker(&["node", "update", "--availability", word, &joined]);
    available("drain")?;
    one_on_each(swarm, "agent", &NODES)?;
    available("active")?;
    let before = one_on_each(swarm, "agent", &all)?;

    let update = "service update --detach --update-parallelism 2 --env-add A=b agent";
    swarm.docker(&words(update))?;
    eventually(CONVERGENCE, || {
        let after = one_on_each(swarm, "agent", &all)?;
        let kept = after
            .iter()
            .find(|new| before.iter().any(|old| old.id == new.id));
        match kept {
            Some(task) => bail!("the task on {} was not replaced", task.node),
            None => Ok(()),
        }
    })?;
    swarm.docker(&["service", "rm", "agent"])?;
    // One that has just lost its power is given tasks for a while: what comes next shall find it down.
    swarm.cluster.vm(spare)?.power_cut()?;
    eventually(CONVERGENCE, || {
        let state = ["node", "inspect", "--format", "{{.Status.State}}", &joined];
        let state = swarm.docker(&state)?;
        ensure!(state.trim() == "down", "{spare} is {}", state.trim());
        Ok(())
    })
}

fn words(text: &str) -> Vec<&str> {
    text.split(' ').collect()
}

/// The running tasks of a service, once there is exactly one on each of these nodes.
fn one_on_each(swarm: &Swarm<'_>, service: &str, nodes: &[&str]) -> Result<Vec<Task>> {
    let tasks = swarm.wait_running(service, nodes.len())?;
    for node in nodes {
        let here = tasks.iter().filter(|task| task.node == *node).count();
        ensure!(here == 1, "{here} tasks of {service} run on {node}");
    }
    Ok(tasks)
}

/// The id of the node with this name that is Ready; others of its name may be Down.
fn ready_id(swarm: &Swarm<'_>, name: &str) -> Result<String> {
    let format = "{{.ID}} {{.Hostname}} {{.Status}}";
    let listed = swarm.docker(&["node", "ls", "--format", format])?;
    let mut lines = listed.lines().map(words);
    let found = lines.find(|words| words.get(1..).is_some_and(|rest| rest == [name, "Ready"]));
    let id = found.and_then(|words| words.first().copied().map(str::to_owned));
    id.with_context(|| format!("{name} is not Ready: {listed}"))
}

fn is_named_by_its_node(swarm: &Swarm<'_>, task: &Task) -> Result<()> {
    let node = ready_id(swarm, &task.node)?;
    let list = ["ps", "--format", "{{.Names}}"];
    let names = swarm
        .docker_on(Release::Trixie, &task.node, &list)?
        .good("docker ps")?;
    must_contain(&names, &[&format!("agent.{node}.{}", task.id)])
}

fn jobs(swarm: &Swarm<'_>) -> Result<()> {
    let create =
        "service create --detach=false --mode replicated-job --replicas 3 --max-concurrent 2";
    for release in [Release::Bookworm, Release::Trixie] {
        let arguments = [words(create), words("--name sum busybox sleep 2")].concat();
        let said = swarm
            .docker_on(release, swarm.manager(), &arguments)?
            .good("docker service create")?;
        must_contain(&said, &["job complete"])?;
        is_listed(swarm, "sum", &["replicated job", "0/2 (3/3 completed)"])?;
        if release == Release::Bookworm {
            swarm.docker(&["service", "rm", "sum"])?;
        }
    }
    let first = ended_well(swarm, "sum")?;
    ensure!(
        first.len() == 3,
        "{} tasks of sum are complete",
        first.len()
    );
    swarm.docker(&words("service update --force --detach=false sum"))?;
    let again = ended_well(swarm, "sum")?;
    let counted_twice = first.keys().find(|id| again.contains_key(*id));
    ensure!(
        counted_twice.is_none(),
        "{counted_twice:?} counts for both runs"
    );
    ensure!(
        again.len() == 3,
        "{} tasks of the second run are complete",
        again.len()
    );

    let scan = "service create --mode global-job --name scan busybox true";
    let said = swarm
        .skep(swarm.manager(), &words(scan))?
        .good("skep service create")?;
    must_contain(
        &said,
        &["job progress: 3 out of 3 complete", "job complete"],
    )?;
    let nodes = ended_well(swarm, "scan")?;
    for node in NODES {
        ensure!(
            nodes.values().any(|on| on == node),
            "scan did not run on {node}"
        );
    }

    let hopeless =
        "service create --mode replicated-job --restart-condition none --name sad busybox false";
    let outcome = swarm.skep(swarm.manager(), &words(hopeless))?;
    ensure!(
        outcome.status != Some(0),
        "a job that fails is said to be complete"
    );
    must_contain(
        &outcome.stderr,
        &["no attempts are left", "non-zero exit (1)"],
    )?;
    is_listed(swarm, "sad", &["0/1 (0/1 completed)"])
}

fn is_listed(swarm: &Swarm<'_>, service: &str, wanted: &[&str]) -> Result<()> {
    let filter = format!("name={service}");
    must_contain(
        &swarm.docker(&["service", "ls", "--filter", &filter])?,
        wanted,
    )
}

/// The tasks of a job's present run that have ended well: id to node.
fn ended_well(swarm: &Swarm<'_>, service: &str) -> Result<BTreeMap<String, String>> {
    let tasks = swarm.tasks(service)?.into_iter();
    let done = tasks.filter(|task| task.state == "complete" && task.desired == "complete");
    Ok(done.map(|task| (task.id, task.node)).collect())
}

fn spread_over_labels(swarm: &Swarm<'_>) -> Result<()> {
    for (node, zone) in NODES.iter().zip(["east", "west", "west"]) {
        let label = format!("zone={zone}");
        swarm.docker(&["node", "update", "--label-add", &label, node])?;
    }
    let preference = ["--placement-pref", "spread=node.labels.zone", "whoami"];
    let tasks = swarm.create("zoned", 4, &preference)?;
    let east = tasks.iter().filter(|task| task.node == NODES[0]).count();
    ensure!(east == 2, "{east} of 4 tasks run in the zone of one node");

    let nowhere =
        "service create --detach --name nowhere --constraint node.labels.zone==north whoami";
    swarm.docker(&words(nowhere))?;
    eventually(CONVERGENCE, || {
        let rows = swarm.docker(&["service", "ps", "--no-trunc", "nowhere"])?;
        // Spare nodes that were there before are counted by themselves.
        let why = "scheduling constraints not satisfied on 3 nodes";
        must_contain(&rows, &["Pending", "no suitable node (", why])
    })?;
    for node in NODES {
        swarm.docker(&["node", "update", "--label-rm", "zone", node])?;
    }
    Ok(())
}
