//! What must hold while things die: skepd killed again and again, a node without power, a node cut off.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::commands::{answers_of_every_replica, who_answers};
use crate::docker::Release;
use crate::images::TOOLS;
use crate::runner::{Run, Test};
use crate::swarm::{CONVERGENCE, Swarm, Task, eventually, must_contain};

/// How often skepd is killed.
const KILLS: usize = 20;
/// How long the swarm may take to see that a node is gone and to start its tasks elsewhere, emulated.
const FAILOVER: Duration = Duration::from_secs(120);

pub(super) const TESTS: &[Test] = &[
    Test {
        id: "isolation",
        shows: "a container has only Docker's devices, capabilities and descriptors, and cannot read the kernel command line",
        slow: false,
        causes: &[],
        run: Run::Swarm(isolation),
    },
    Test {
        id: "kill-skepd",
        shows: "skepd killed 20 times under load: no container is lost, mesh and DNS answer throughout",
        slow: false,
        causes: &["skepd.service: Failed with result 'signal'"],
        run: Run::Swarm(kill_skepd),
    },
    Test {
        id: "B10-node",
        shows: "a node without power: its tasks run elsewhere, the mesh recovers on the others, the node comes back",
        slow: false,
        causes: &[],
        run: Run::Swarm(power_cut),
    },
    Test {
        id: "cut",
        shows: "a worker cut off goes on with its tasks while they run elsewhere, too; healed, those that were replaced stop",
        slow: false,
        causes: &[],
        run: Run::Swarm(cut_off),
    },
];

fn isolation(swarm: &Swarm<'_>) -> Result<()> {
    let tasks = swarm.create("box", 1, &["busybox", "sleep", "infinity"])?;
    let task = tasks.first().context("no task")?;
    let find = format!(
        "for p in $(pgrep -x sleep); do [ \"$(nsenter -t $p -u uname -n)\" = {} ] && echo $p && exit 0; done; exit 1",
        task.hostname()
    );
    let process = swarm.debug(&task.node, &find)?;
    let process = process.trim();
    let status = swarm.debug(
        &task.node,
        &format!("cat /proc/{process}/status; ls /proc/{process}/fd"),
    )?;
    // Docker's default set: CapabilityBounding a80425fb.
    must_contain(&status, &["CapEff:\t00000000a80425fb", "Seccomp:\t2"])?;
    let descriptors: Vec<&str> = status
        .lines()
        .filter(|line| line.parse::<u8>().is_ok())
        .collect();
    ensure!(
        descriptors == ["0", "1", "2"],
        "the container has the descriptors {descriptors:?}"
    );
    let numbers = swarm.debug(&task.node, "cat /sys/class/block/vda/dev")?;
    let (major, minor) = numbers.trim().split_once(':').context("no number of vda")?;
    // In the container's cgroup, root and namespaces, as a process of its own.
    let inside = format!(
        "echo $$ > /sys/fs/cgroup$(cut -d: -f3 /proc/{process}/cgroup)/cgroup.procs && \
         nsenter -t {process} -m -u -n -p -r sh -c 'cat /proc/cmdline | wc -c; \
         mknod /tmp/disk b {major} {minor} && echo made; head -c 512 /tmp/disk 2>&1 >/dev/null; cat /etc/hostname'"
    );
    let said = swarm.debug_outcome(&task.node, &inside)?;
    let lines: Vec<&str> = said.stdout.lines().map(str::trim).collect();
    let denied = lines.iter().any(|line| {
        line.starts_with("head:") && line.contains("/tmp/disk") && line.ends_with("not permitted")
    });
    ensure!(
        lines.contains(&"made") && denied,
        "the node's disk is not kept from the container: {}{}",
        said.stdout,
        said.stderr
    );
    must_contain(&said.stdout, &[task.hostname()])?;
    ensure!(
        lines.first() == Some(&"0"),
        "/proc/cmdline can be read: {}",
        said.stdout
    );
    Ok(())
}

/// Requests made while something went wrong.
#[derive(Debug, Default)]
struct Load {
    asked: usize,
    failed: Vec<String>,
}

/// Asks a node's port until told to stop.
fn load(port: u16, stop: &AtomicBool) -> Load {
    let mut load = Load::default();
    while !stop.load(Ordering::Relaxed) {
        load.asked += 1;
        if let Err(error) = who_answers(port) {
            load.failed.push(format!("{error:#}"));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    load
}

/// An emulated, busy node takes as long to start skepd as Docker's default lets a node be silent. Which node is down is
/// for other tests to show; here it would only move tasks.
fn kill_skepd(swarm: &Swarm<'_>) -> Result<()> {
    let set = |period| swarm.docker(&["swarm", "update", "--dispatcher-heartbeat", period]);
    set("20s")?;
    let shown = kill_under_load(swarm);
    set("5s")?;
    shown
}

fn kill_under_load(swarm: &Swarm<'_>) -> Result<()> {
    let before = all_running(swarm)?;
    let asker = asker(swarm, "swarm-worker1")?;
    let asked_before = answers_of_dns(swarm, &asker)?.len();
    let stop = AtomicBool::new(false);
    let mut ports = Vec::new();
    for node in ["swarm-manager", "swarm-worker1", "swarm-worker2"] {
        ports.push((node, swarm.cluster.vm(node)?.forward(false, 8000)?));
    }
    let (killed, loads) = std::thread::scope(|scope| {
        let asking: Vec<_> = ports
            .iter()
            .map(|(node, port)| (*node, scope.spawn(|| load(*port, &stop))))
            .collect();
        let killed = kill_repeatedly(swarm, &asker.node);
        stop.store(true, Ordering::Relaxed);
        let loads: Vec<_> = asking
            .into_iter()
            .map(|(node, thread)| (node, thread.join().unwrap_or_default()))
            .collect();
        (killed, loads)
    });
    killed?;
    for (node, load) in loads {
        ensure!(
            load.asked > 20,
            "only {} requests were made through {node}",
            load.asked
        );
        ensure!(
            load.failed.is_empty(),
            "{} of {} requests through {node} failed, the first: {}",
            load.failed.len(),
            load.asked,
            load.failed[0]
        );
    }
    let asked = eventually(CONVERGENCE, || answers_of_dns(swarm, &asker))?;
    let meanwhile = asked.get(asked_before..).unwrap_or_default();
    let failed = meanwhile.iter().filter(|answered| !**answered).count();
    ensure!(
        meanwhile.len() >= KILLS / 2 && failed == 0,
        "{failed} of {} questions got no answer of DNS",
        meanwhile.len()
    );
    let after = eventually(CONVERGENCE, || all_running(swarm))?;
    ensure!(
        before == after,
        "the containers were {before:?} and are {after:?}"
    );
    Ok(())
}

fn all_running(swarm: &Swarm<'_>) -> Result<BTreeSet<String>> {
    let mut containers = BTreeSet::new();
    for service in ["client", "whoami"] {
        containers.extend(
            swarm
                .running(service)?
                .into_iter()
                .map(|task| task.container),
        );
    }
    ensure!(containers.len() == 4, "{} of 4 tasks run", containers.len());
    Ok(containers)
}

/// Kills the node's skepd again and again; each time another one must come up.
fn kill_repeatedly(swarm: &Swarm<'_>, node: &str) -> Result<()> {
    let process = || -> Result<String> {
        let said = swarm.debug(node, "pgrep -o -x skepd")?;
        Ok(said.trim().to_owned())
    };
    let mut old = eventually(CONVERGENCE, process)?;
    for round in 1..=KILLS {
        let kill = format!("[ \"$(cat /proc/{old}/comm)\" = skepd ] && kill -9 {old}");
        old = eventually(CONVERGENCE, || {
            // The stream of this command dies with skepd: what became of it is seen below.
            let _ = swarm.debug_outcome(node, &kill);
            let new = process()?;
            ensure!(new != old, "skepd is still process {old}");
            Ok(new)
        })
        .with_context(|| format!("after kill {round} of {KILLS}"))?;
    }
    Ok(())
}

/// A service that asks for a name again and again and writes down how it went. Debug containers end with skepd, this
/// one does not.
fn asker(swarm: &Swarm<'_>, node: &str) -> Result<Task> {
    // Five seconds and two tries are a resolver's default.
    let script = "while :; do if dig +short +time=5 +tries=2 @127.0.0.11 whoami | grep -q '^10[.]'; \
                  then echo answered; else echo failed; fi; sleep 0.3; done";
    let constraint = format!("node.hostname=={node}");
    let arguments = [
        "--network",
        "my-demo",
        "--constraint",
        &constraint,
        TOOLS,
        "sh",
        "-c",
        script,
    ];
    // The image is large: it is there before the service is waited for.
    swarm.debug(node, "true")?;
    let tasks = swarm.create("asker", 1, &arguments)?;
    let task = tasks.into_iter().next().context("no task of asker runs")?;
    // From here on: a name may be unknown for a moment after the task has begun.
    eventually(CONVERGENCE, || match answers_of_dns(swarm, &task)?.last() {
        Some(true) => Ok(()),
        Some(false) => bail!("DNS does not answer"),
        None => bail!("asker says nothing"),
    })?;
    Ok(task)
}

/// Whether each question was answered, in their order.
fn answers_of_dns(swarm: &Swarm<'_>, asker: &Task) -> Result<Vec<bool>> {
    let log = swarm
        .skep(&asker.node, &["logs", &asker.container])?
        .good("skep logs")?;
    let answered = |line: &str| match line.trim() {
        "answered" => Some(true),
        "failed" => Some(false),
        _ => None,
    };
    Ok(log.lines().filter_map(answered).collect())
}

/// A task on a worker. What earlier tests did to the nodes decides on which there is one: nothing moves back by itself.
fn on_a_worker(swarm: &Swarm<'_>) -> Result<Task> {
    let tasks = swarm.running("whoami")?.into_iter();
    let mut on_workers = tasks.filter(|task| task.node.starts_with("swarm-worker"));
    on_workers
        .next()
        .context("no task of whoami runs on a worker")
}

fn power_cut(swarm: &Swarm<'_>) -> Result<()> {
    let task = on_a_worker(swarm)?;
    let victim = task.node.as_str();
    swarm.cluster.vm(victim)?.power_cut()?;
    let begun = Instant::now();
    let mut others = swarm.cluster.places()[..3].to_vec();
    others.retain(|place| place.name != victim);
    eventually(FAILOVER, || {
        let running = swarm.running("whoami")?;
        let elsewhere = running.iter().filter(|task| task.node != victim).count();
        match elsewhere {
            3 => Ok(()),
            n => bail!("{n} of 3 tasks run on the nodes that are left"),
        }
    })?;
    crate::progress::say(&format!(
        "all tasks run elsewhere after {:.1} s",
        begun.elapsed().as_secs_f32()
    ));
    answers_of_every_replica(swarm.cluster, &others, 3, CONVERGENCE)?;
    for place in &others {
        for _ in 0..12 {
            swarm
                .get(&place.name, 8000)
                .with_context(|| format!("{} still sends to the dead node", place.name))?;
        }
    }
    let listed = swarm.docker(&["node", "ls", "--format", "{{.Hostname}} {{.Status}}"])?;
    must_contain(&listed, &[&format!("{victim} Down")])?;
    // The log of a service is whole but for the node that is gone, which is said.
    let log = swarm.docker_on(
        Release::Trixie,
        swarm.manager(),
        &["service", "logs", "whoami"],
    )?;
    ensure!(log.status == Some(0), "service logs fails: {}", log.stderr);
    must_contain(&log.stderr, &[&format!("node {victim} is not ready")])?;
    let vm = swarm.cluster.vm(victim)?;
    vm.power_on()?;
    let back = std::slice::from_ref(swarm.cluster.place(victim)?);
    swarm
        .cluster
        .wait_ready(back, crate::commands::READY_PATIENCE)?;
    answers_of_every_replica(swarm.cluster, &swarm.cluster.places()[..3], 3, CONVERGENCE).map(drop)
}

fn cut_off(swarm: &Swarm<'_>) -> Result<()> {
    let here = on_a_worker(swarm)?;
    let node = here.node.as_str();
    swarm.cluster.set_link(node, false)?;
    let shown = cut_off_and_alone(swarm, &here);
    swarm.cluster.set_link(node, true)?;
    shown?;
    let place = std::slice::from_ref(swarm.cluster.place(node)?);
    swarm.cluster.wait_ready(place, CONVERGENCE)?;
    let running = swarm.wait_running("whoami", 3)?;
    answers_of_every_replica(swarm.cluster, &swarm.cluster.places()[..3], 3, CONVERGENCE)?;
    // What was started elsewhere stays, and the tasks that went on behind the cut are stopped.
    ensure!(
        running.iter().all(|task| task.id != here.id),
        "a task that was replaced is counted again"
    );
    eventually(CONVERGENCE, || {
        let left = swarm
            .skep(node, &["ps", "--quiet", "--no-trunc"])?
            .good("skep ps")?;
        ensure!(
            !left.contains(&here.container),
            "{node} goes on with a task that was replaced"
        );
        Ok(())
    })
}

/// Alone, the node goes on from the last state that it knew; the others take it for down and do without it.
fn cut_off_and_alone(swarm: &Swarm<'_>, here: &Task) -> Result<()> {
    let node = here.node.as_str();
    eventually(FAILOVER, || {
        let listed = swarm.docker(&["node", "ls", "--format", "{{.Hostname}} {{.Status}}"])?;
        must_contain(&listed, &[&format!("{node} Down")])?;
        let running = swarm.running("whoami")?;
        let elsewhere = running.iter().filter(|task| task.node != node).count();
        ensure!(elsewhere == 3, "{elsewhere} of 3 tasks run on the others");
        Ok(())
    })?;
    // It still takes the tasks behind the cut for tasks: every third request finds its own.
    eventually(CONVERGENCE, || {
        let answer = swarm.get(node, 8000)?;
        ensure!(
            answer == format!("I'm {}", here.hostname()),
            "{answer:?} is not the task that is left"
        );
        Ok(())
    })
    .context("a node that is cut off must go on from the last state")
}
