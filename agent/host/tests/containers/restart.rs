//! skepd and shims that die at any moment.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use serde_json::json;
use skep_core::worker::container::exec::ExecRequest;
use skep_core::worker::container::plan::{ContainerId, ContainerPlan};
use skep_core::worker::dependencies::Contents;
use skep_host::container::{Containers, Phase};
use skep_host::image::{Images, Registries};

use crate::{Case, World, case, dirs};

pub(crate) const CASES: &[Case] = &[
    case!(containers_outlive_skepd),
    case!(exit_codes_are_kept_while_skepd_is_dead),
    case!(a_shim_that_dies_is_noticed),
    case!(half_made_containers_are_cleared),
    case!(skepd_killed_at_any_moment_leaves_order),
];

/// A skepd in a process of its own: opens everything in the folder of the plan, makes the container, starts it, and waits.
pub(crate) async fn victim(dir: &Path) -> ExitCode {
    let plan: ContainerPlan =
        serde_json::from_slice(&std::fs::read(dir.join("plan.json")).unwrap()).unwrap();
    let containers = reopen(dir).await;
    println!("open");
    containers
        .create(&plan, &Contents::new())
        .await
        .unwrap_or_else(|error| panic!("{}", error.chain()));
    println!("created");
    containers.start(&plan.id).await.unwrap();
    println!("started");
    tokio::time::sleep(Duration::from_secs(600)).await;
    ExitCode::SUCCESS
}

async fn reopen(dir: &Path) -> Containers {
    let images = Images::open(dir.parent().unwrap().join("images"), Registries::default())
        .await
        .unwrap();
    Containers::open(dirs(dir), images)
        .await
        .unwrap_or_else(|error| panic!("{}", error.chain()))
}

struct Victim {
    process: Child,
    said: BufReader<std::process::ChildStdout>,
    dir: PathBuf,
    plan: ContainerPlan,
}

impl Victim {
    fn start(world: &World, name: &str, words: &[&str]) -> Self {
        let dir = world.dir.join(name);
        std::fs::create_dir_all(&dir).unwrap();
        let own = dirs(&dir);
        let layout = skep_core::worker::container::Layout {
            run: own.run.clone(),
            state: own.state.clone(),
            volumes: own.volumes.clone(),
            cgroup: own.cgroup.clone(),
        };
        let mut plan = world.task_plan_in(json!({"Image": "test"}), json!({}), &layout);
        crate::set_args(&mut plan, words);
        std::fs::write(dir.join("plan.json"), serde_json::to_vec(&plan).unwrap()).unwrap();
        let mut process = Command::new(std::env::current_exe().unwrap())
            .arg("victim")
            .arg(&dir)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let said = BufReader::new(process.stdout.take().unwrap());
        Self {
            process,
            said,
            dir,
            plan,
        }
    }

    fn until(&mut self, word: &str) {
        let mut line = String::new();
        while line.trim() != word {
            line.clear();
            assert_ne!(
                self.said.read_line(&mut line).unwrap(),
                0,
                "it ended before it said {word:?}"
            );
        }
    }

    /// `kill -9`.
    fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

/// Everything of a second skepd is gone.
async fn end(containers: Containers, dir: &Path) {
    for status in containers.list().await.unwrap() {
        containers.delete(&status.plan.id).await.unwrap();
    }
    let cgroup =
        Path::new("/sys/fs/cgroup").join(containers.dirs().cgroup.strip_prefix("/").unwrap());
    std::fs::remove_dir(&cgroup).unwrap_or_else(|error| panic!("{}: {error}", cgroup.display()));
    for part in ["run", "state", "volumes"] {
        assert_eq!(
            std::fs::read_dir(dir.join(part)).unwrap().count(),
            0,
            "{part}"
        );
    }
}

async fn until_log(containers: &Containers, id: &ContainerId, words: &str) -> String {
    for _ in 0..600 {
        let mut entries = containers
            .logs(id, skep_host::container::LogQuery::default())
            .await
            .unwrap();
        let mut text = String::new();
        while let Some(entry) = entries.recv().await {
            text.push_str(std::str::from_utf8(&entry.line).unwrap());
        }
        if text.contains(words) {
            return text;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{words:?} was never said");
}

async fn containers_outlive_skepd(world: &World) {
    let mut victim = Victim::start(world, "v1", &["wait"]);
    victim.until("started");
    victim.kill();
    let containers = reopen(&victim.dir).await;
    let [status] = &containers.list().await.unwrap()[..] else {
        panic!("one container");
    };
    assert_eq!(
        (&status.phase, &status.plan),
        (&Phase::Running, &victim.plan)
    );
    until_log(&containers, &victim.plan.id, "ready").await;
    let request = ExecRequest {
        args: vec!["/probe".into(), "exit".into(), "4".into()],
        ..ExecRequest::default()
    };
    let session = containers.exec(&victim.plan.id, request).await.unwrap();
    assert_eq!(session.exit.await.unwrap().code, 4);
    let exit = containers.stop(&victim.plan.id, None, None).await.unwrap();
    assert_eq!(exit.code, 7);
    assert_eq!(
        until_log(&containers, &victim.plan.id, "bye").await,
        "ready\nbye\n"
    );
    end(containers, &victim.dir).await;
}

async fn exit_codes_are_kept_while_skepd_is_dead(world: &World) {
    let mut victim = Victim::start(world, "v2", &["wait"]);
    victim.until("started");
    let run = victim.dir.join("run").join(victim.plan.id.as_str());
    victim.kill();
    // It says that it has its handler; then somebody else stops it, while there is no skepd.
    let log = victim
        .dir
        .join("state")
        .join(victim.plan.id.as_str())
        .join(format!("{}-json.log", victim.plan.id));
    for _ in 0..600 {
        if std::fs::read_to_string(&log).is_ok_and(|text| text.contains("ready")) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let leaf = Path::new("/sys/fs/cgroup/v2").join(format!("ctr-{}/cgroup.procs", victim.plan.id));
    let pid: i32 = std::fs::read_to_string(leaf)
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    // SAFETY: no memory is passed.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGTERM) }, 0);
    for _ in 0..200 {
        if run.join("exit.json").exists() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    let containers = reopen(&victim.dir).await;
    let status = containers.status(&victim.plan.id).await.unwrap().unwrap();
    let Phase::Exited(exit) = status.phase else {
        panic!("it is {:?}", status.phase);
    };
    assert_eq!((exit.code, exit.error), (7, None));
    assert_eq!(containers.wait(&victim.plan.id).await.unwrap().code, 7);
    end(containers, &victim.dir).await;
}

async fn a_shim_that_dies_is_noticed(world: &World) {
    let plan = world.plan(&["wait"]);
    let pid = world.create(&plan).await;
    world.containers.start(&plan.id).await.unwrap();
    world.until_log(&plan.id, "ready").await;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let shim: i32 = status
        .lines()
        .find_map(|line| line.strip_prefix("PPid:"))
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    let waiting = {
        let (containers, id) = (world.containers.clone(), plan.id.clone());
        tokio::spawn(async move { containers.wait(&id).await })
    };
    tokio::time::sleep(Duration::from_millis(100)).await;
    // SAFETY: no memory is passed.
    assert_eq!(unsafe { libc::kill(shim, libc::SIGKILL) }, 0);
    let exit = waiting.await.unwrap().unwrap();
    assert_eq!(exit.code, 137);
    assert!(exit.error.unwrap().contains("shim died"));
    for _ in 0..100 {
        if !Path::new(&format!("/proc/{pid}")).exists() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    assert!(
        state.is_empty() || state.contains(") Z "),
        "the program still runs: {state}"
    );
    world.containers.delete(&plan.id).await.unwrap();
}

async fn half_made_containers_are_cleared(world: &World) {
    let dir = world.dir.join("v3");
    let own = dirs(&dir);
    let (half, old) = (crate::next_id(), crate::next_id());
    std::fs::create_dir_all(own.run.join(half.as_str())).unwrap();
    std::fs::create_dir_all(own.state.join(half.as_str()).join("upper")).unwrap();
    // Of an earlier boot: the disk remembers, the tmpfs does not.
    std::fs::create_dir_all(own.state.join(old.as_str()).join("upper")).unwrap();
    std::fs::create_dir_all(own.volumes.join("anonymous/_data")).unwrap();
    std::fs::write(own.volumes.join("anonymous/.anonymous"), old.as_str()).unwrap();
    let leaf = Path::new("/sys/fs/cgroup/v3").join(format!("ctr-{old}"));
    std::fs::create_dir_all(&leaf).unwrap();
    let containers = reopen(&dir).await;
    assert!(containers.list().await.unwrap().is_empty());
    assert!(!leaf.exists());
    end(containers, &dir).await;
}

/// Killed at twelve moments between its start and its container's: whatever was left, the next skepd finds a container
/// that runs and can be stopped, or none at all.
async fn skepd_killed_at_any_moment_leaves_order(world: &World) {
    for step in 0..12_u64 {
        let mut victim = Victim::start(world, "v4", &["wait"]);
        victim.until("open");
        tokio::time::sleep(Duration::from_millis(step * step)).await;
        victim.kill();
        let containers = reopen(&victim.dir).await;
        let list = containers.list().await.unwrap();
        for status in &list {
            assert!(
                matches!(status.phase, Phase::Created | Phase::Running),
                "{step}: {:?}",
                status.phase
            );
        }
        // The same container can be made now, unless it is there.
        if list.is_empty() {
            containers
                .create(&victim.plan, &Contents::new())
                .await
                .unwrap_or_else(|error| panic!("{step}: {}", error.chain()));
        }
        containers.start(&victim.plan.id).await.unwrap();
        until_log(&containers, &victim.plan.id, "ready").await;
        assert_eq!(
            containers
                .stop(&victim.plan.id, None, None)
                .await
                .unwrap()
                .code,
            7
        );
        end(containers, &victim.dir).await;
    }
}
