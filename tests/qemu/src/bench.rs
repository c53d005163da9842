//! `bench`: measurements, one JSON line each.
//!
//! The names and what they mean are those of the harness that measured Docker Swarm in the same kind of VMs; on an
//! emulated machine only numbers taken side by side may be compared, so each line tells the accelerator.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::commands::{
    DEFAULT, Mesh, Prepared, READY_PATIENCE, api_answers, lock, prepare, who_answers,
};
use crate::paths::Paths;
use crate::swarm::{Swarm, eventually};

const CLUSTER: &str = "bench";
const RUNS: usize = 3;
const SCALE_TO: usize = 30;
const PATIENCE: Duration = Duration::from_secs(600);
const MIB: u64 = 1 << 20;

// The measurements by their names, in the groups that are taken together.
const DISK: &str = "b1_disk";
const BOOT: &[&str] = &[
    "a2_poweron_to_engine_ready_three_vms",
    "a_poweron_to_three_nodes_ready",
];
const MEMORY_IDLE: &[&str] = &["b2_memory_idle_manager", "b2_memory_idle_worker"];
const CREATE: &[&str] = &[
    "c1_create_cli_returns",
    "c2_create_to_3_running",
    "c3_create_to_first_ingress_answer_on_every_node",
];
const ONE_START: &[&str] = &["e_run_rm_true_none"];
const SCALE: &[&str] = &[
    "d1_scale_3_to_30_all_running",
    "d2_scale_30_to_3_three_desired_left",
];
const FIVE_TASKS: &[&str] = &["b3_memory_worker_5_tasks"];

/// `bench`: those whose name contains `name`, or all.
pub fn run(paths: &Paths, name: Option<&str>) -> Result<()> {
    let _lock = lock(paths)?;
    let prepared = prepare(paths)?;
    let bench = Bench {
        accelerator: json!(prepared.accelerator),
    };
    let wanted = |group: &[&str]| {
        let named = |part: &str| group.iter().any(|metric| metric.contains(part));
        name.is_none_or(named)
    };
    let all = [BOOT, MEMORY_IDLE, CREATE, ONE_START, SCALE, FIVE_TASKS];
    let on_cluster = all.iter().any(|group| wanted(group));
    if let Some(name) = name
        && !on_cluster
        && !wanted(&[DISK])
    {
        let names = [&[DISK][..], &all.concat()].concat();
        bail!("nothing is called {name}; there are: {}", names.join(", "));
    }
    if wanted(&[DISK]) {
        bench.disk(&prepared)?;
    }
    let measured = match on_cluster {
        true => on_new_cluster(paths, &prepared, &bench, &wanted),
        false => Ok(()),
    };
    if Cluster::find(paths, DEFAULT)?.is_none() {
        prepared.registry.stop()?;
    }
    measured
}

fn on_new_cluster(
    paths: &Paths,
    prepared: &Prepared,
    bench: &Bench,
    wanted: &dyn Fn(&[&str]) -> bool,
) -> Result<()> {
    if let Some(old) = Cluster::find(paths, CLUSTER)? {
        old.down()?;
    }
    let cluster = Cluster::create(paths, CLUSTER, &prepared.plan(3, 1)?)?;
    let measured = bench.on_cluster(paths, &cluster, wanted);
    cluster.down()?;
    measured
}

struct Bench {
    accelerator: Value,
}

impl Bench {
    fn print(&self, metric: &str, unit: &str, values: &[f64], detail: Value) {
        let round = |value: f64| (value * 1000.0).round() / 1000.0;
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let line = json!({
            "system": "skep",
            "metric": metric,
            "unit": unit,
            "median": sorted.get(sorted.len() / 2).copied().map(round),
            "n": values.len(),
            "values": values.iter().copied().map(round).collect::<Vec<_>>(),
            "accelerator": self.accelerator,
            "detail": detail,
        });
        println!("{line}");
    }

    fn disk(&self, prepared: &Prepared) -> Result<()> {
        let sizes = prepared.image.sizes;
        let mib =
            |bytes: u64| -> Result<f64> { Ok(f64::from(u32::try_from(bytes * 10 / MIB)?) / 10.0) };
        let detail = json!({ "root_mib": mib(sizes.root)?, "uki_mib": mib(sizes.uki)?, "agent_mib": mib(sizes.agent)? });
        self.print(
            DISK,
            "MiB root and UKI",
            &[mib(sizes.root + sizes.uki)?],
            detail,
        );
        Ok(())
    }

    fn on_cluster(
        &self,
        paths: &Paths,
        cluster: &Cluster,
        wanted: &dyn Fn(&[&str]) -> bool,
    ) -> Result<()> {
        let swarm = Swarm { paths, cluster };
        self.boot(cluster)?;
        if wanted(MEMORY_IDLE) {
            self.memory(&swarm, "b2_memory_idle_manager", "swarm-manager")?;
            self.memory(&swarm, "b2_memory_idle_worker", "swarm-worker2")?;
        }
        if ![CREATE, ONE_START, SCALE, FIVE_TASKS]
            .iter()
            .any(|group| wanted(group))
        {
            return Ok(());
        }
        // The first time, images are fetched: that is not what is measured.
        create(&swarm)?;
        remove(&swarm)?;
        if wanted(CREATE) {
            self.create(&swarm)?;
        }
        if wanted(ONE_START) {
            self.one_start(&swarm)?;
        }
        if wanted(SCALE) {
            self.scale(&swarm)?;
        }
        // Last: the machines are turned off with what is left of it.
        if wanted(FIVE_TASKS) {
            let here = ["--constraint", "node.hostname==swarm-worker2", "whoami"];
            swarm.create("five", 5, &here)?;
            self.memory(&swarm, FIVE_TASKS[0], "swarm-worker2")?;
        }
        Ok(())
    }

    fn boot(&self, cluster: &Cluster) -> Result<()> {
        let begun = Instant::now();
        cluster.power_on(cluster.places())?;
        let mut engine = BTreeMap::new();
        eventually(READY_PATIENCE, || {
            for place in cluster.places() {
                if !engine.contains_key(&place.name) && api_answers(cluster, &place.name) {
                    engine.insert(place.name.clone(), begun.elapsed().as_secs_f64());
                }
            }
            ensure!(
                engine.len() == cluster.places().len(),
                "only {engine:?} answer"
            );
            Ok(())
        })?;
        let slowest = engine.values().copied().fold(0.0, f64::max);
        self.print(
            "a2_poweron_to_engine_ready_three_vms",
            "s",
            &[slowest],
            json!(engine),
        );
        cluster.wait_ready(cluster.places(), READY_PATIENCE)?;
        let ready = begun.elapsed().as_secs_f64();
        self.print("a_poweron_to_three_nodes_ready", "s", &[ready], Value::Null);
        Ok(())
    }

    /// PSS of skepd and of the shims, and what the whole VM uses without its caches.
    fn memory(&self, swarm: &Swarm<'_>, metric: &str, node: &str) -> Result<()> {
        let script = "for p in /proc/[0-9]*; do c=$(cat $p/comm 2>/dev/null) || continue; case $c in skepd|skep-shim) \
                      awk -v c=$c '/^Rss/{r=$2}/^Pss:/{s=$2}END{print c,r,s}' $p/smaps_rollup;; esac; done; \
                      awk '/MemTotal/{t=$2}/MemFree/{f=$2}/^Buffers/{b=$2}/^Cached/{c=$2}END{print \"vm\",t-f-b-c,0}' /proc/meminfo";
        let said = swarm.debug(node, script)?;
        let mut used = 0.0;
        let mut groups: BTreeMap<&str, (u32, f64, f64)> = BTreeMap::new();
        for line in said.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [name, first, second] = words.as_slice() else {
                bail!("unexpected line {line:?}");
            };
            let (first, second): (f64, f64) = (first.parse()?, second.parse()?);
            if *name == "vm" {
                used = first / 1024.0;
                continue;
            }
            let group = groups.entry(name).or_default();
            *group = (
                group.0 + 1,
                group.1 + first / 1024.0,
                group.2 + second / 1024.0,
            );
        }
        let detail: BTreeMap<&str, Value> = groups
            .into_iter()
            .map(|(name, (count, rss, pss))| {
                (
                    name,
                    json!({ "procs": count, "rss_mib": rss, "pss_mib": pss }),
                )
            })
            .collect();
        self.print(metric, "MiB vm_used", &[used], json!(detail));
        Ok(())
    }

    fn create(&self, swarm: &Swarm<'_>) -> Result<()> {
        let (mut returns, mut running, mut answers) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..RUNS {
            let times = create(swarm)?;
            returns.push(times.returned);
            running.push(times.running);
            answers.push(times.answered);
            remove(swarm)?;
        }
        self.print("c1_create_cli_returns", "s", &returns, Value::Null);
        self.print("c2_create_to_3_running", "s", &running, Value::Null);
        self.print(
            "c3_create_to_first_ingress_answer_on_every_node",
            "s",
            &answers,
            Value::Null,
        );
        Ok(())
    }

    fn one_start(&self, swarm: &Swarm<'_>) -> Result<()> {
        let mut times = Vec::new();
        for _ in 0..=2 * RUNS {
            let begun = Instant::now();
            let outcome = swarm.skep("swarm-worker2", &["debug", "busybox", "--", "true"])?;
            outcome.good("skep debug busybox -- true")?;
            times.push(begun.elapsed().as_secs_f64());
        }
        // The first one fetches the image.
        self.print(
            "e_run_rm_true_none",
            "s",
            &times[1..],
            json!("skep debug busybox -- true"),
        );
        Ok(())
    }

    fn scale(&self, swarm: &Swarm<'_>) -> Result<()> {
        create(swarm)?;
        let begun = Instant::now();
        swarm.docker(&[
            "service",
            "scale",
            "--detach",
            &format!("whoami={SCALE_TO}"),
        ])?;
        eventually(PATIENCE, || {
            let running = swarm.running("whoami")?.len();
            ensure!(running == SCALE_TO, "{running} of {SCALE_TO} run");
            Ok(())
        })?;
        let up = begun.elapsed().as_secs_f64();
        self.print(
            &format!("d1_scale_3_to_{SCALE_TO}_all_running"),
            "s",
            &[up],
            Value::Null,
        );
        let begun = Instant::now();
        swarm.docker(&["service", "scale", "--detach", "whoami=3"])?;
        eventually(PATIENCE, || {
            let running = swarm.running("whoami")?.len();
            ensure!(running == 3, "{running} of 3 run");
            Ok(())
        })?;
        let down = begun.elapsed().as_secs_f64();
        self.print(
            &format!("d2_scale_{SCALE_TO}_to_3_three_desired_left"),
            "s",
            &[down],
            Value::Null,
        );
        remove(swarm)
    }
}

struct CreateTimes {
    returned: f64,
    running: f64,
    answered: f64,
}

/// Creates the published whoami and waits until it answers on every node.
fn create(swarm: &Swarm<'_>) -> Result<CreateTimes> {
    let mut ports = Vec::new();
    for place in swarm.cluster.places() {
        ports.push(swarm.cluster.vm(&place.name)?.forward(false, Mesh::PORT)?);
    }
    let begun = Instant::now();
    let elapsed = || begun.elapsed().as_secs_f64();
    let first_answers: Result<Vec<f64>> = std::thread::scope(|scope| {
        let asking: Vec<_> = ports
            .iter()
            .map(|port| {
                scope.spawn(|| eventually(PATIENCE, || who_answers(*port)).map(|_| elapsed()))
            })
            .collect();
        swarm.docker(&[
            "service",
            "create",
            "--detach",
            "--name",
            "whoami",
            "--replicas",
            "3",
            "--publish",
            "8000:8000",
            "whoami",
        ])?;
        let returned = elapsed();
        swarm.wait_running("whoami", 3)?;
        let running = elapsed();
        let mut all = vec![returned, running];
        for thread in asking {
            all.push(
                thread
                    .join()
                    .unwrap_or_else(|_| bail!("a thread panicked"))?,
            );
        }
        Ok(all)
    });
    let all = first_answers?;
    let (head, answers) = all
        .split_first_chunk::<2>()
        .context("two times and the answers")?;
    Ok(CreateTimes {
        returned: head[0],
        running: head[1],
        answered: answers.iter().copied().fold(0.0, f64::max),
    })
}

fn remove(swarm: &Swarm<'_>) -> Result<()> {
    swarm.docker(&["service", "rm", "whoami"])?;
    for place in swarm.cluster.places() {
        let port = swarm.cluster.vm(&place.name)?.forward(false, Mesh::PORT)?;
        eventually(PATIENCE, || match who_answers(port) {
            Ok(answer) => bail!("{answer:?} still answers"),
            Err(_) => Ok(()),
        })?;
    }
    Ok(())
}
