//! Rows B1-B6, B9 and B10: services.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::process::Stdio;

use anyhow::{Context, Result, bail, ensure};

use crate::docker::Release;
use crate::runner::{Run, Test};
use crate::swarm::{CONVERGENCE, Swarm, Task, eventually, must_contain};

const NODES: [&str; 3] = ["swarm-manager", "swarm-worker1", "swarm-worker2"];

pub(super) const TESTS: &[Test] = &[
    Test {
        id: "B1",
        shows: "service create shows its progress and that the service converged, with both docker clients and skep",
        slow: false,
        causes: &[],
        run: Run::Swarm(create_with_progress),
    },
    Test {
        id: "B2",
        shows: "service ls: ID NAME MODE REPLICAS IMAGE PORTS",
        slow: false,
        causes: &[],
        run: Run::Swarm(list),
    },
    Test {
        id: "B3",
        shows: "service ps: a row per task, history below it, NODE, DESIRED STATE, CURRENT STATE, ERROR",
        slow: false,
        causes: &[],
        run: Run::Swarm(history),
    },
    Test {
        id: "B4",
        shows: "containers are called service.slot.task, and call themselves by their 12-digit id",
        slow: false,
        causes: &[],
        run: Run::Swarm(container_names),
    },
    Test {
        id: "B5",
        shows: "service scale takes several services at once",
        slow: false,
        causes: &[],
        run: Run::Swarm(scale_two),
    },
    Test {
        id: "B6",
        shows: "service update --publish-add replaces every task and opens the port on all nodes",
        slow: false,
        causes: &[],
        run: Run::Swarm(publish_add),
    },
    Test {
        id: "update",
        shows: "an update of image and environment replaces the tasks",
        slow: false,
        causes: &[],
        run: Run::Swarm(update_image_and_env),
    },
    Test {
        id: "B9",
        shows: "service logs brings the lines of all tasks from their nodes, follows new ones, and knows whose they are",
        slow: false,
        causes: &[],
        run: Run::Swarm(service_logs),
    },
    Test {
        id: "B10",
        shows: "a task whose process dies is started again, and its end is told",
        slow: false,
        causes: &[],
        run: Run::Swarm(process_dies),
    },
];

fn create_with_progress(swarm: &Swarm<'_>) -> Result<()> {
    let arguments = [
        "service",
        "create",
        "--name",
        "web",
        "--replicas",
        "2",
        "whoami",
    ];
    let progress = [
        "overall progress: 2 out of 2 tasks",
        "verify: Service",
        "converged",
    ];
    for release in [Release::Bookworm, Release::Trixie] {
        let said = swarm
            .docker_on(release, swarm.manager(), &arguments)?
            .good("docker service create")?;
        must_contain(&said, &progress)?;
        swarm.docker(&["service", "rm", "web"])?;
        eventually(CONVERGENCE, || no_service(swarm, "web"))?;
    }
    let said = swarm.skep(swarm.manager(), &arguments)?;
    must_contain(&format!("{}{}", said.stdout, said.stderr), &progress)?;
    said.good("skep service create").map(drop)
}

fn no_service(swarm: &Swarm<'_>, name: &str) -> Result<()> {
    let names = swarm.docker(&["service", "ls", "--format", "{{.Name}}"])?;
    match names.lines().any(|line| line == name) {
        true => bail!("{name} is still listed"),
        false => Ok(()),
    }
}

fn list(swarm: &Swarm<'_>) -> Result<()> {
    let table = swarm.docker(&["service", "ls"])?;
    must_contain(
        &table,
        &["ID", "NAME", "MODE", "REPLICAS", "IMAGE", "PORTS"],
    )?;
    let row: Vec<&str> = table
        .lines()
        .find(|line| line.contains(" whoami "))
        .with_context(|| format!("no whoami in: {table}"))?
        .split_whitespace()
        .collect();
    let expected = [
        "whoami",
        "replicated",
        "3/3",
        "whoami:latest",
        "*:8000->8000/tcp",
    ];
    ensure!(
        row.get(1..) == Some(&expected[..]),
        "the row of whoami is {row:?}"
    );
    let ours = swarm
        .skep(swarm.manager(), &["service", "ls"])?
        .good("skep service ls")?;
    must_contain(&ours, &expected)
}

fn history(swarm: &Swarm<'_>) -> Result<()> {
    let tasks = swarm.create("web", 1, &["whoami"])?;
    let first = tasks.first().context("no task")?;
    kill_process(swarm, first)?;
    eventually(CONVERGENCE, || another_runs(swarm, "web", first))?;
    let table = swarm.docker(&["service", "ps", "--no-trunc", "web"])?;
    must_contain(
        &table,
        &[
            "ID",
            "NAME",
            "IMAGE",
            "NODE",
            "DESIRED STATE",
            "CURRENT STATE",
            "ERROR",
            "PORTS",
        ],
    )?;
    let rows: Vec<&str> = table.lines().skip(1).collect();
    ensure!(
        rows.len() == 2,
        "one task and one in its history are not two rows: {table}"
    );
    must_contain(rows[0], &[" web.1 ", "Running"])?;
    must_contain(
        rows[1],
        &[
            r" \_ web.1",
            &first.id,
            "Shutdown",
            "Failed",
            "ago",
            "non-zero exit (137)",
        ],
    )
}

fn another_runs(swarm: &Swarm<'_>, service: &str, old: &Task) -> Result<Task> {
    let running = swarm.running(service)?;
    let new = running
        .into_iter()
        .find(|task| task.slot == old.slot && task.id != old.id);
    new.with_context(|| format!("nothing runs in place of {service}.{}", old.slot))
}

/// Kills the first process of a task's container, seen from the node.
fn kill_process(swarm: &Swarm<'_>, task: &Task) -> Result<()> {
    let host = task.hostname();
    let script = format!(
        "for p in $(pgrep -x whoami); do [ \"$(nsenter -t $p -u uname -n)\" = {host} ] && kill -9 $p && exit 0; done; exit 1"
    );
    swarm.debug(&task.node, &script).map(drop)
}

fn process_dies(swarm: &Swarm<'_>) -> Result<()> {
    let before = swarm.running("whoami")?;
    let victim = before.first().context("no task of whoami runs")?;
    kill_process(swarm, victim)?;
    eventually(CONVERGENCE, || another_runs(swarm, "whoami", victim))?;
    let after = swarm.wait_running("whoami", 3)?;
    let kept = |task: &&Task| after.iter().any(|other| other.id == task.id);
    ensure!(
        before.iter().filter(kept).count() == 2,
        "more than the one task was replaced"
    );
    let told = swarm.tasks("whoami")?;
    let dead = told
        .iter()
        .find(|task| task.id == victim.id)
        .context("the dead task is forgotten")?;
    ensure!(dead.state == "failed", "the dead task is {}", dead.state);
    must_contain(&dead.error, &["non-zero exit (137)"])
}

fn container_names(swarm: &Swarm<'_>) -> Result<()> {
    for task in swarm.running("whoami")? {
        let names = swarm
            .docker_on(
                Release::Trixie,
                &task.node,
                &["ps", "--format", "{{.ID}} {{.Names}}"],
            )?
            .good("docker ps")?;
        let expected = format!("{} whoami.{}.{}", task.hostname(), task.slot, task.id);
        must_contain(&names, &[&expected])?;
        ensure!(
            task.container.len() == 64,
            "a container id of {} digits",
            task.container.len()
        );
    }
    let answer = swarm.get(swarm.manager(), 8000)?;
    let hosts: Vec<String> = swarm
        .running("whoami")?
        .iter()
        .map(|t| format!("I'm {}", t.hostname()))
        .collect();
    ensure!(hosts.contains(&answer), "{answer:?} is none of {hosts:?}");
    Ok(())
}

fn scale_two(swarm: &Swarm<'_>) -> Result<()> {
    swarm.create("web", 1, &["whoami"])?;
    swarm.create("api", 1, &["whoami"])?;
    let said = swarm.docker(&["service", "scale", "web=5", "api=2"])?;
    must_contain(&said, &["web scaled to 5", "api scaled to 2"])?;
    let web = swarm.wait_running("web", 5)?;
    swarm.wait_running("api", 2)?;
    for node in NODES {
        let here = web.iter().filter(|task| task.node == node).count();
        ensure!(
            (1..=2).contains(&here),
            "{here} of 5 tasks run on {node}: they are not spread"
        );
    }
    swarm.docker(&["service", "scale", "--detach", "web=2"])?;
    swarm.wait_running("web", 2).map(drop)
}

fn publish_add(swarm: &Swarm<'_>) -> Result<()> {
    let before = swarm.create("web", 2, &["whoami"])?;
    swarm.docker(&["service", "update", "--publish-add", "8080:8000", "web"])?;
    let after = swarm.wait_running("web", 2)?;
    all_replaced(swarm, "web", &before, &after)?;
    for node in NODES {
        let answer = eventually(CONVERGENCE, || swarm.get(node, 8080))?;
        let known = after
            .iter()
            .any(|task| answer == format!("I'm {}", task.hostname()));
        ensure!(known, "port 8080 of {node} answers {answer:?}");
    }
    Ok(())
}

fn all_replaced(swarm: &Swarm<'_>, service: &str, before: &[Task], after: &[Task]) -> Result<()> {
    for old in before {
        ensure!(
            !after.iter().any(|new| new.id == old.id),
            "task {} was not replaced",
            old.id
        );
        eventually(CONVERGENCE, || {
            let tasks = swarm.tasks(service)?;
            let state = tasks
                .into_iter()
                .find(|t| t.id == old.id)
                .map(|t| (t.desired, t.state));
            match &state {
                Some((desired, state)) if desired == "shutdown" && state == "shutdown" => Ok(()),
                other => bail!("the old task {} is {other:?}", old.id),
            }
        })?;
    }
    Ok(())
}

fn update_image_and_env(swarm: &Swarm<'_>) -> Result<()> {
    let before = swarm.create(
        "web",
        2,
        &["--publish", "8081:9000", "--env", "PORT=9000", "whoami:1"],
    )?;
    eventually(CONVERGENCE, || swarm.get("swarm-worker1", 8081))?;
    swarm.docker(&["service", "update", "--image", "whoami:2", "web"])?;
    let after = swarm.wait_running("web", 2)?;
    all_replaced(swarm, "web", &before, &after)?;
    let image = swarm.docker(&[
        "service",
        "ls",
        "--filter",
        "name=web",
        "--format",
        "{{.Image}}",
    ])?;
    ensure!(
        image.trim() == "whoami:2",
        "service ls tells the image {image:?}"
    );
    // The published target stays at 9000: with another PORT inside nobody listens there any more.
    swarm.docker(&["service", "update", "--env-add", "PORT=9001", "web"])?;
    swarm.wait_running("web", 2)?;
    eventually(CONVERGENCE, || match swarm.get("swarm-worker1", 8081) {
        Ok(answer) => bail!("{answer:?} still listens where the old environment said"),
        Err(_) => Ok(()),
    })
}

fn service_logs(swarm: &Swarm<'_>) -> Result<()> {
    let says = "echo hello from $(hostname); echo careful >&2; exec sleep 100000";
    let tasks = swarm.create("web", 3, &["busybox", "sh", "-c", says])?;
    let of = |arguments: &[&str]| {
        let all = [&["service", "logs"], arguments, &["web"]].concat();
        swarm.docker_on(Release::Trixie, swarm.manager(), &all)
    };
    eventually(CONVERGENCE, || {
        let said = of(&[])?;
        ensure!(
            said.status == Some(0),
            "service logs fails: {}",
            said.stderr
        );
        for task in &tasks {
            let line = format!("@{}    | hello from {}", task.node, task.hostname());
            must_contain(&said.stdout, &[&line])
                .with_context(|| format!("standard error: {}", said.stderr))?;
        }
        let warnings = said.stderr.matches("| careful").count();
        ensure!(
            warnings == 3,
            "{warnings} of 3 lines came on standard error"
        );
        Ok(())
    })?;
    let last = of(&["--tail", "1"])?;
    let last = format!("{}{}", last.stdout, last.stderr);
    for task in &tasks {
        let own = format!("web.{}.{}@", task.slot, &task.id[..12]);
        let lines = last.lines().filter(|line| line.starts_with(&own)).count();
        ensure!(
            lines == 1,
            "{lines} lines are the last one of {own}: {last}"
        );
    }
    let skep = swarm
        .skep(swarm.manager(), &["service", "logs", "web"])?
        .good("skep service logs")?;
    let nodes: BTreeSet<&str> = tasks.iter().map(|task| task.node.as_str()).collect();
    for node in nodes {
        must_contain(&skep, &[&format!("@{node}    | hello from ")])?;
    }
    let one = &tasks[0];
    let alone = swarm.docker(&["service", "logs", "--raw", &one.id])?;
    ensure!(
        alone.trim() == format!("hello from {}", one.hostname()),
        "the log of one task is {alone:?}"
    );
    follows(swarm)
}

/// Who follows a service sees what tasks say that have come since.
fn follows(swarm: &Swarm<'_>) -> Result<()> {
    let file = swarm.paths.folder("tests")?.join("B9.followed");
    let mut follower = swarm
        .cluster
        .docker(swarm.paths, Release::Trixie, swarm.manager())?
        .args(["service", "logs", "--follow", "--tail", "0", "web"])
        .stdin(Stdio::null())
        .stdout(File::create(&file)?)
        .stderr(Stdio::null())
        .spawn()
        .context("cannot start docker")?;
    let shown = swarm
        .docker(&["service", "scale", "--detach", "web=4"])
        .and_then(|_| swarm.wait_running("web", 4))
        .and_then(|tasks| {
            let new = tasks
                .iter()
                .find(|task| task.slot == 4)
                .context("no slot 4")?;
            let wanted = format!("@{}    | hello from {}", new.node, new.hostname());
            eventually(CONVERGENCE, || {
                must_contain(&fs::read_to_string(&file)?, &[&wanted])
            })
        });
    follower.kill()?;
    follower.wait()?;
    shown
}
