//! What must hold while things die: skepd killed again and again, a node without power, a node cut off.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::commands::{answers_of_every_replica, who_answers};
use crate::runner::{Run, Test};
use crate::swarm::{CONVERGENCE, Swarm, Task, eventually, in_namespace, must_contain};

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
        shows: "a worker cut off goes on with its tasks; healed, the swarm is as before",
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
    // In the container's cgroup, root and namespaces, as a process of its own.
    let inside = format!(
        "echo $$ > /sys/fs/cgroup$(cut -d: -f3 /proc/{process}/cgroup)/cgroup.procs && \
         nsenter -t {process} -m -u -n -p -r sh -c 'cat /proc/cmdline | wc -c; mknod /tmp/disk b 253 0; cat /tmp/disk 2>&1; cat /etc/hostname'"
    );
    let said = swarm.debug_outcome(&task.node, &inside)?;
    must_contain(
        &format!("{}{}", said.stdout, said.stderr),
        &["Operation not permitted", task.hostname()],
    )?;
    ensure!(
        said.stdout
            .lines()
            .next()
            .is_some_and(|line| line.trim() == "0"),
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

fn kill_skepd(swarm: &Swarm<'_>) -> Result<()> {
    let before = all_running(swarm)?;
    let client = swarm
        .running("client")?
        .into_iter()
        .next()
        .context("the client does not run")?;
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
        let killed = kill_repeatedly(swarm, &client);
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

/// One script on the client's node, which outlives each skepd: kills it, asks DNS meanwhile, waits for the next one.
fn kill_repeatedly(swarm: &Swarm<'_>, client: &Task) -> Result<()> {
    // Five seconds is how long a resolver waits before it asks again.
    let dns = in_namespace(
        &client.namespace(),
        "dig +short +time=5 +tries=1 @127.0.0.11 whoami",
    );
    for round in 1..=KILLS {
        let script = format!(
            "old=$(pgrep -o -x skepd) && kill -9 $old; {dns} | grep -q '^10\\.' || echo no-answer > /run/skep/dns-failed; \
             for i in $(seq 100); do new=$(pgrep -o -x skepd); [ -n \"$new\" ] && [ \"$new\" != \"$old\" ] && exit 0; sleep 0.1; done"
        );
        // The stream of this command dies with skepd: what became of it is seen below.
        let _ = swarm.debug_outcome(&client.node, &script);
        let said = eventually(CONVERGENCE, || {
            swarm.debug(
                &client.node,
                &format!("ls /run/skep/dns-failed 2>&1; {dns}"),
            )
        })
        .with_context(|| format!("after kill {round} of {KILLS}"))?;
        ensure!(
            !said.lines().any(|line| line == "/run/skep/dns-failed"),
            "DNS did not answer during kill {round}"
        );
        must_contain(&said, &["10."])?;
    }
    Ok(())
}

fn power_cut(swarm: &Swarm<'_>) -> Result<()> {
    let before = swarm.running("whoami")?;
    let victim = "swarm-worker2";
    ensure!(
        before.iter().any(|task| task.node == victim),
        "no task runs on {victim}"
    );
    swarm.cluster.vm(victim)?.power_cut()?;
    let begun = Instant::now();
    let others = &swarm.cluster.places()[..2];
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
    answers_of_every_replica(swarm.cluster, others, 3, CONVERGENCE)?;
    for place in others {
        for _ in 0..12 {
            swarm
                .get(&place.name, 8000)
                .with_context(|| format!("{} still sends to the dead node", place.name))?;
        }
    }
    let listed = swarm.docker(&["node", "ls", "--format", "{{.Hostname}} {{.Status}}"])?;
    must_contain(&listed, &["swarm-worker2 Down"])?;
    let vm = swarm.cluster.vm(victim)?;
    vm.power_on()?;
    let back = std::slice::from_ref(swarm.cluster.place(victim)?);
    swarm
        .cluster
        .wait_ready(back, crate::commands::READY_PATIENCE)?;
    answers_of_every_replica(swarm.cluster, &swarm.cluster.places()[..3], 3, CONVERGENCE).map(drop)
}

fn cut_off(swarm: &Swarm<'_>) -> Result<()> {
    let node = "swarm-worker1";
    let tasks = swarm.running("whoami")?;
    let here = tasks
        .iter()
        .find(|task| task.node == node)
        .context("no task runs on the worker")?;
    swarm.cluster.set_link(node, false)?;
    let answer = eventually(CONVERGENCE, || {
        let answer = swarm.get(node, 8000)?;
        ensure!(
            answer == format!("I'm {}", here.hostname()),
            "{answer:?} is not the task that is left"
        );
        Ok(answer)
    });
    swarm.cluster.set_link(node, true)?;
    answer.context("a node that is cut off must go on from the last state")?;
    let place = std::slice::from_ref(swarm.cluster.place(node)?);
    swarm.cluster.wait_ready(place, CONVERGENCE)?;
    swarm.wait_running("whoami", 3)?;
    answers_of_every_replica(swarm.cluster, &swarm.cluster.places()[..3], 3, CONVERGENCE).map(drop)
}
