//! `test`: runs registered tests one after the other, each with what it needs, and tells how they ended.
//!
//! A test is a record: its id (of the walk-through's row where there is one), what it shows, what it needs, and a
//! function. After each test that had nodes, their consoles are searched for what no sound node ever writes; what
//! the consoles and journals said is kept for a test that failed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail};

use crate::cluster::Cluster;
use crate::commands::{Mesh, Prepared, READY_PATIENCE, answers_of_every_replica, lock, prepare};
use crate::console;
use crate::packages::{FOR_EVERYTHING, ensure_installed};
use crate::paths::Paths;
use crate::progress::say;
use crate::swarm::{CONVERGENCE, Swarm, eventually};
use crate::tests::REGISTERED;

/// The cluster of the tests; it is not the one of `up`.
const CLUSTER: &str = "test";
/// Nodes that run in it, and one more that is off until a test wants it.
const NODES: u8 = 3;

/// What a test runs on.
#[derive(Debug, Clone, Copy)]
pub enum Run {
    /// This machine.
    Host(fn(&Paths) -> Result<()>),
    /// The built image, maybe in VMs of the test's own.
    Image(fn(&Paths, &Prepared) -> Result<()>),
    /// The shared swarm of three nodes with the whoami mesh on it.
    Swarm(fn(&Swarm<'_>) -> Result<()>),
    /// The shared swarm, and the spare node that is off.
    Spare(fn(&Swarm<'_>, &str) -> Result<()>),
}

/// A test.
#[derive(Debug, Clone, Copy)]
pub struct Test {
    /// A row's id, or a name.
    pub id: &'static str,
    /// What it shows.
    pub shows: &'static str,
    /// Whether it only runs with `--all`.
    pub slow: bool,
    /// Parts of lines on the consoles that are faults elsewhere and that this test causes on purpose.
    pub causes: &'static [&'static str],
    /// What it does.
    pub run: Run,
}

/// `test`
pub fn main(paths: &Paths, names: &[String], all: bool, list: bool) -> Result<ExitCode> {
    let wanted = |test: &&Test| match names {
        [] => all || !test.slow,
        names => {
            let text = format!("{} {}", test.id, test.shows).to_lowercase();
            let ids = || REGISTERED.iter().copied().flatten().map(|test| test.id);
            // An id means that test only; anything else is looked for in what the tests show.
            let named = |part: &String| match ids().any(|id| id == part) {
                true => test.id == part,
                false => text.contains(&part.to_lowercase()),
            };
            names.iter().any(named)
        }
    };
    let chosen: Vec<&Test> = REGISTERED
        .iter()
        .copied()
        .flatten()
        .filter(wanted)
        .collect();
    if chosen.is_empty() {
        bail!(
            "no test is called {}; see: cargo lab test --list",
            names.join(" or ")
        );
    }
    if list {
        for test in chosen {
            println!("{:<16} {}", test.id, test.shows);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let _lock = lock(paths)?;
    ensure_installed(&FOR_EVERYTHING.concat())?;
    let results = paths.lab.join("tests");
    let _ = fs::remove_dir_all(&results);
    let mut runner = Runner {
        paths,
        results,
        prepared: None,
        cluster: None,
    };
    let begun = Instant::now();
    let mut passed = 0;
    let mut failed = 0;
    for test in chosen {
        match runner.one(test) {
            true => passed += 1,
            false => failed += 1,
        }
    }
    runner.clean_up()?;
    say(&format!(
        "all of it took {:.0} s",
        begun.elapsed().as_secs_f32()
    ));
    println!("{passed} passed, {failed} failed");
    Ok(match failed {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

struct Runner<'a> {
    paths: &'a Paths,
    results: PathBuf,
    prepared: Option<Result<Prepared, String>>,
    cluster: Option<Result<Cluster, String>>,
}

impl Runner<'_> {
    fn one(&mut self, test: &Test) -> bool {
        let begun = Instant::now();
        let ended = match test.run {
            Run::Host(function) => function(self.paths),
            Run::Image(function) => {
                let paths = self.paths;
                self.prepared()
                    .and_then(|prepared| function(paths, prepared))
            }
            Run::Swarm(_) | Run::Spare(_) => self.on_swarm(test),
        };
        if let (Run::Image(_), Err(_)) = (test.run, &ended) {
            keep_boots(self.paths, test.id, &self.results);
        }
        let seconds = begun.elapsed().as_secs_f32();
        match &ended {
            Ok(()) => println!("ok      {:<16} {} ({seconds:.1} s)", test.id, test.shows),
            Err(error) => {
                println!(
                    "FAILED  {:<16} {} ({seconds:.1} s): {error:#}",
                    test.id, test.shows
                );
            }
        }
        ended.is_ok()
    }

    fn prepared(&mut self) -> Result<&Prepared> {
        if self.prepared.is_none() {
            self.prepared = Some(prepare(self.paths).map_err(|error| format!("{error:#}")));
        }
        match self.prepared.as_ref().context("prepared above")? {
            Ok(prepared) => Ok(prepared),
            Err(error) => Err(anyhow!(
                "the image or what it needs could not be made: {error}"
            )),
        }
    }

    /// The shared cluster, booted by the first test that wants it. It is not tried again when that fails.
    fn cluster(&mut self) -> Result<()> {
        if self.cluster.is_some() {
            return Ok(());
        }
        let paths = self.paths;
        let booted = self.prepared().and_then(|prepared| boot(paths, prepared));
        self.cluster = Some(booted.map_err(|error| format!("{error:#}")));
        Ok(())
    }

    fn on_swarm(&mut self, test: &Test) -> Result<()> {
        // The first test answers for what the nodes said while they booted, too.
        let first = self.cluster.is_none();
        self.cluster()?;
        let cluster = match self.cluster.as_ref().context("booted above")? {
            Ok(cluster) => cluster,
            Err(error) => bail!("the swarm did not come up: {error}"),
        };
        let swarm = Swarm {
            paths: self.paths,
            cluster,
        };
        let read_before = |name: &str| match first {
            true => String::new(),
            false => console_of(cluster, name),
        };
        let before: Vec<(String, String)> = cluster
            .places()
            .iter()
            .map(|place| (place.name.clone(), read_before(&place.name)))
            .collect();
        let spare = cluster.places().last().context("a cluster without nodes")?;
        let ended = settle(&swarm).and_then(|()| match test.run {
            Run::Swarm(function) => function(&swarm),
            Run::Spare(function) => function(&swarm, &spare.name),
            Run::Host(_) | Run::Image(_) => bail!("{} needs no swarm", test.id),
        });
        let ended = ended.and_then(|()| check_consoles(cluster, &before, test.causes));
        if ended.is_err() {
            keep(&swarm, &self.results.join(test.id));
        }
        // Only now: the journal of a spare node that is on was wanted.
        match test.run {
            Run::Spare(_) => ended.and(cluster.vm(&spare.name).and_then(|vm| vm.power_cut())),
            Run::Swarm(_) | Run::Host(_) | Run::Image(_) => ended,
        }
    }

    fn clean_up(&mut self) -> Result<()> {
        if let Some(Ok(cluster)) = self.cluster.take() {
            for place in cluster.places() {
                let folder = self.results.join("all");
                fs::create_dir_all(&folder)?;
                let file = folder.join(format!("{}.console.log", place.name));
                fs::write(file, console_of(&cluster, &place.name))?;
            }
            cluster.down()?;
        }
        if let Some(Ok(prepared)) = &self.prepared
            && Cluster::find(self.paths, crate::commands::DEFAULT)?.is_none()
        {
            prepared.registry.stop()?;
        }
        Ok(())
    }
}

fn boot(paths: &Paths, prepared: &Prepared) -> Result<Cluster> {
    if let Some(old) = Cluster::find(paths, CLUSTER)? {
        old.down()?;
    }
    let cluster = Cluster::create(paths, CLUSTER, &prepared.plan(NODES + 1, 1)?)?;
    let running = &cluster.places()[..usize::from(NODES)];
    say("booting the swarm of the tests …");
    let booted = cluster
        .power_on(running)
        .and_then(|()| cluster.wait_ready(running, READY_PATIENCE));
    if let Err(error) = booted {
        let folder = paths.folder("tests/boot")?;
        for place in running {
            let file = folder.join(format!("{}.console.log", place.name));
            fs::write(file, console_of(&cluster, &place.name))?;
        }
        cluster.power_off()?;
        return Err(error);
    }
    Ok(cluster)
}

/// Brings the swarm to where every test begins: three nodes on and Ready, the whoami mesh as the walk-through has it,
/// no other service, no other network, no secret, no config.
fn settle(swarm: &Swarm<'_>) -> Result<()> {
    let cluster = swarm.cluster;
    let running = &cluster.places()[..usize::from(NODES)];
    cluster.power_on(running)?;
    cluster.undo_harm(cluster.places())?;
    cluster.wait_ready(running, READY_PATIENCE)?;
    eventually(CONVERGENCE, || remove_strangers(swarm))?;
    let mesh = Mesh::make(swarm.paths, cluster).context("cannot make the whoami mesh")?;
    if mesh.replicas != Mesh::REPLICAS {
        swarm.docker(&["service", "scale", "--detach", "whoami=3"])?;
    }
    swarm.wait_running("client", 1)?;
    swarm.wait_running("whoami", Mesh::REPLICAS)?;
    answers_of_every_replica(cluster, running, Mesh::REPLICAS, CONVERGENCE)?;
    Ok(())
}

fn remove_strangers(swarm: &Swarm<'_>) -> Result<()> {
    let services = swarm.docker(&["service", "ls", "--format", "{{.Name}}"])?;
    for name in services
        .lines()
        .filter(|name| !["client", "whoami"].contains(name))
    {
        swarm.docker(&["service", "rm", name])?;
    }
    let networks = swarm.docker(&[
        "network",
        "ls",
        "--filter",
        "driver=overlay",
        "--format",
        "{{.Name}}",
    ])?;
    for name in networks
        .lines()
        .filter(|name| !["ingress", "my-demo"].contains(name))
    {
        swarm.docker(&["network", "rm", name])?;
    }
    for kind in ["secret", "config"] {
        let names = swarm.docker(&[kind, "ls", "--format", "{{.Name}}"])?;
        for name in names.lines() {
            swarm.docker(&[kind, "rm", name])?;
        }
    }
    // Machines of earlier tests that are off: their names would be taken for those of nodes that are there.
    let format = "{{.ID}} {{.Status}} {{.ManagerStatus}}";
    let nodes = swarm.docker(&["node", "ls", "--format", format])?;
    for line in nodes.lines() {
        if let [id, "Down"] = line.split_whitespace().collect::<Vec<_>>()[..] {
            swarm.docker(&["node", "rm", id])?;
        }
    }
    Ok(())
}

fn console_of(cluster: &Cluster, name: &str) -> String {
    cluster
        .vm(name)
        .map(|vm| console::read(&vm.folder))
        .unwrap_or_default()
}

/// What a console says beyond what it said before: all of it when it was begun anew, as that of the spare node is.
fn said_since<'a>(now: &'a str, before: &str) -> &'a str {
    // Whole lines only: the last one may still have been growing.
    let lines = before.rfind('\n').map_or(0, |end| end + 1);
    now.strip_prefix(&before[..lines]).unwrap_or(now)
}

fn check_consoles(cluster: &Cluster, before: &[(String, String)], causes: &[&str]) -> Result<()> {
    for (name, before) in before {
        let text = console_of(cluster, name);
        let mut faults = console::faults(said_since(&text, before));
        faults.retain(|line| !causes.iter().any(|cause| line.contains(cause)));
        if let Some(first) = faults.first() {
            bail!(
                "the console of {name} has {} faults, the first: {first}",
                faults.len()
            );
        }
    }
    Ok(())
}

/// Keeps what a machine of the test's own said, if it has had one.
fn keep_boots(paths: &Paths, id: &str, results: &Path) {
    let boot = paths.lab.join("boots").join(id);
    let kept = results.join(id);
    for name in ["console", "qemu.log"] {
        let file = boot.join(name);
        if file.exists() && fs::create_dir_all(&kept).is_ok() {
            let _ = fs::copy(file, kept.join(name));
        }
    }
}

/// Keeps consoles and journals of a test that failed; what cannot be had is left out.
fn keep(swarm: &Swarm<'_>, folder: &Path) {
    if fs::create_dir_all(folder).is_err() {
        return;
    }
    for place in swarm.cluster.places() {
        let console = console_of(swarm.cluster, &place.name);
        let _ = fs::write(folder.join(format!("{}.console.log", place.name)), console);
        let running = swarm.cluster.vm(&place.name).is_ok_and(|vm| vm.running());
        if !running {
            continue;
        }
        let journal = swarm.journal(&place.name, "--lines 3000");
        if let Ok(journal) = journal {
            let _ = fs::write(folder.join(format!("{}.journal.log", place.name)), journal);
        }
    }
    say(&format!(
        "consoles and journals are kept in {}",
        folder.display()
    ));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_console_that_was_begun_anew_is_searched_from_its_begin() {
        assert_eq!(said_since("a\nb\nc\n", "a\nb\n"), "c\n");
        assert_eq!(said_since("a\nbc\n", "a\nb"), "bc\n");
        assert_eq!(said_since("x\ny\nz\n", "a\nb\n"), "x\ny\nz\n");
        assert_eq!(said_since("x\n", ""), "x\n");
    }
}
