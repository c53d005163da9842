//! Containers and images on a real kernel, from the pull to the removal. Needs root and cgroup v2, and says so.
//!
//! The whole runs in a mount namespace of its own, in which `/sys/fs/cgroup` is cgroup v2 also on a host that is not so
//! far; limits need a kernel whose controllers are free, such as the one of the lab's guest (`SKEP_TEST_KERNEL=image`).
#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test program: it prints its results, and a failure is a panic"
)]
#![allow(clippy::expect_used, missing_docs)]

mod cases;
mod image;
mod pulls;
mod restart;
mod secrets;

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use serde_json::json;
use skep_core::time::Timestamp;
use skep_core::worker::container::plan::{ContainerId, ContainerPlan};
use skep_core::worker::container::{self, DebugRequest, Layout, Surroundings};
use skep_core::worker::dependencies::Contents;
use skep_host::container::{Containers, Dirs, Exit, LogQuery};
use skep_host::image::{Image, Images, Registries};

use crate::image::Registry;

/// Everything that a case needs.
pub(crate) struct World {
    pub(crate) dir: PathBuf,
    pub(crate) dirs: Dirs,
    pub(crate) containers: Containers,
    pub(crate) image: Image,
    /// The same with links where file systems are mounted.
    pub(crate) hostile: Image,
    pub(crate) dev_link: Image,
    /// With links where secrets and configs go.
    pub(crate) secret_links: Image,
}

type Case = (
    &'static str,
    fn(&World) -> Pin<Box<dyn Future<Output = ()> + '_>>,
);

/// Names a case and boxes it.
#[macro_export]
macro_rules! case {
    ($path:path) => {
        (stringify!($path), |world| Box::pin($path(world)))
    };
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [word, dir] = &args[..]
        && word == "victim"
    {
        // A skepd that the test kills: makes a container and never ends.
        return runtime().block_on(restart::victim(Path::new(dir)));
    }
    // SAFETY: geteuid cannot fail.
    if unsafe { libc::geteuid() } != 0 {
        println!("containers: skipped, since they need root");
        return ExitCode::SUCCESS;
    }
    if !may_raise_limits() && std::env::var_os("SKEP_TEST_SHIM").is_none() {
        println!(
            "containers: skipped, since this host lacks CAP_SYS_RESOURCE; the lab runs them in its guest"
        );
        return ExitCode::SUCCESS;
    }
    let filters: Vec<&String> = args.iter().filter(|arg| !arg.starts_with('-')).collect();
    isolate();
    let dir = PathBuf::from(format!("/tmp/skep-ct-{}", std::process::id()));
    let mut failed = Vec::new();
    let mut passed = 0;
    runtime().block_on(async {
        let world = World::make(&dir).await;
        for (name, run) in [cases::CASES, secrets::CASES, pulls::CASES, restart::CASES].concat() {
            if !filters.is_empty() && !filters.iter().any(|filter| name.contains(filter.as_str())) {
                continue;
            }
            let begun = std::time::Instant::now();
            let case = std::panic::AssertUnwindSafe(run(&world));
            let case = futures_util::FutureExt::catch_unwind(case);
            let ended = tokio::time::timeout(Duration::from_secs(180), case).await;
            let milliseconds = begun.elapsed().as_millis();
            match ended {
                Ok(Ok(())) => {
                    passed += 1;
                    println!("test {name} ... ok ({milliseconds} ms)");
                }
                Ok(Err(_)) | Err(_) => {
                    println!("test {name} ... FAILED ({milliseconds} ms)");
                    failed.push(name);
                }
            }
        }
        world.clear().await;
    });
    let _ = std::fs::remove_dir_all(&dir);
    let word = if failed.is_empty() { "ok" } else { "FAILED" };
    println!(
        "test result: {word}. {passed} passed; {} failed",
        failed.len()
    );
    if failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// libcgroups raises the limit on locked memory before it loads the device rules.
fn may_raise_limits() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .unwrap();
    u64::from_str_radix(line.trim(), 16).unwrap() >> 24 & 1 == 1
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}

/// A mount namespace in which this process and its children find cgroup v2 where it belongs.
fn isolate() {
    use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
    // SAFETY: called before any other thread exists.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }.unwrap();
    mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .unwrap();
    if !Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        mount(
            "none",
            "/sys/fs/cgroup",
            "cgroup2",
            MountFlags::empty(),
            None,
        )
        .unwrap();
    }
    // What an operator's container sees of the node.
    mount("none", "/run", "tmpfs", MountFlags::empty(), None).unwrap();
    for dir in ["/run/skep", "/run/dbus"] {
        std::fs::create_dir(dir).unwrap();
    }
    for controller in ["cpu", "memory", "pids"] {
        // What is bound elsewhere on this host cannot be handed down; `limits_hold` says so.
        let _ = std::fs::write(
            "/sys/fs/cgroup/cgroup.subtree_control",
            format!("+{controller}"),
        );
    }
}

pub(crate) fn dirs(dir: &Path) -> Dirs {
    Dirs {
        run: dir.join("run"),
        state: dir.join("state"),
        volumes: dir.join("volumes"),
        cgroup: Path::new("/").join(dir.file_name().unwrap()),
        shim: std::env::var_os("SKEP_TEST_SHIM").map_or_else(
            || image::program("skep-shim", "skep-shim", &["--package", "skep-shim"]),
            PathBuf::from,
        ),
    }
}

impl World {
    async fn make(dir: &Path) -> Self {
        let probe = image::program(
            "probe",
            "examples/probe",
            &["--package", "skep-host", "--example", "probe"],
        );
        let files = image::probe_files(&probe);
        let files: Vec<_> = files
            .iter()
            .map(|(path, mode, content)| (path.as_str(), *mode, content.clone()))
            .collect();
        let registry = Registry::start().await;
        let over = image::layer(&[
            ("/etc/second", 0o644, b"layer".to_vec()),
            ("/data/.wh.nothing", 0, Vec::new()),
        ]);
        let config = json!({"Entrypoint": ["/probe"], "Cmd": ["print", "hello"], "Env": ["FROM=image"], "Volumes": {"/data": {}}});
        registry.add("test:latest", config, &[image::layer(&files), over]);
        let registries = Registries {
            mirrors: Vec::new(),
            insecure: vec![registry.address.clone()],
        };
        let images = Images::open(dir.join("images"), registries).await.unwrap();
        let links = image::links(&[
            ("proc", "/etc"),
            ("sys", "/data"),
            ("dev", "../../../../../../../../tmp"),
        ]);
        registry.add("hostile:latest", json!({}), &[image::layer(&files), links]);
        // A link to a directory that the image has as well as the node.
        let place = image::layer(&[("/tmp/of-image", 0o644, Vec::new())]);
        let links = image::links(&[("dev", "/tmp")]);
        registry.add(
            "dev-link:latest",
            json!({}),
            &[image::layer(&files), place.clone(), links],
        );
        let second = image::layer(&[("/etc/second", 0o644, b"layer".to_vec())]);
        let links = image::links(&[
            ("run", "../../../../../../../../tmp"),
            ("site.conf", "/etc/second"),
        ]);
        let layers = [image::layer(&files), place, second, links];
        registry.add(
            "secret-links:latest",
            json!({"Entrypoint": ["/probe"]}),
            &layers,
        );
        let mut pulled = Vec::new();
        for name in ["test", "hostile", "dev-link", "secret-links"] {
            let reference = format!("{}/{name}", registry.address).parse().unwrap();
            let image = images.pull(&reference, None, &|_| ()).await;
            pulled.push(image.unwrap_or_else(|error| panic!("{}", error.chain())));
        }
        let (secret_links, dev_link) = (pulled.pop().unwrap(), pulled.pop().unwrap());
        let (hostile, image) = (pulled.pop().unwrap(), pulled.pop().unwrap());
        let dirs = dirs(dir);
        let containers = Containers::open(dirs.clone(), images.clone())
            .await
            .unwrap();
        Self {
            dir: dir.to_owned(),
            dirs,
            containers,
            image,
            hostile,
            dev_link,
            secret_links,
        }
    }

    /// A plan for `probe WORDS…` without a network namespace of its own.
    pub(crate) fn plan(&self, words: &[&str]) -> ContainerPlan {
        let mut plan = self.task_plan(json!({"Image": "test"}), json!({}));
        set_args(&mut plan, words);
        plan
    }

    /// A plan that goes through the whole of `skep_core`, as a task's does.
    pub(crate) fn task_plan(
        &self,
        spec: serde_json::Value,
        limits: serde_json::Value,
    ) -> ContainerPlan {
        self.task_plan_in(spec, limits, &self.layout())
    }

    pub(crate) fn task_plan_in(
        &self,
        spec: serde_json::Value,
        limits: serde_json::Value,
        layout: &Layout,
    ) -> ContainerPlan {
        let id = next_id();
        let around = self.around(&id, layout);
        let task: skep_core::api::TaskSpec = serde_json::from_value(json!({
            "ContainerSpec": spec, "Resources": {"Limits": limits},
        }))
        .unwrap();
        let task = skep_core::api::Task {
            spec: task,
            ..task_template()
        };
        container::from_task(&task, &around).unwrap_or_else(|error| panic!("{error}"))
    }

    pub(crate) fn debug_plan(&self, request: &DebugRequest) -> ContainerPlan {
        let layout = self.layout();
        let id = next_id();
        container::debug(request, &self.around(&id, &layout)).unwrap()
    }

    fn layout(&self) -> Layout {
        Layout {
            run: self.dirs.run.clone(),
            state: self.dirs.state.clone(),
            volumes: self.dirs.volumes.clone(),
            cgroup: self.dirs.cgroup.clone(),
        }
    }

    fn around<'a>(&'a self, id: &ContainerId, layout: &'a Layout) -> Surroundings<'a> {
        Surroundings {
            id: id.clone(),
            now: Timestamp(1),
            layout,
            image_id: &self.image.id,
            image: &self.image.config,
            network: None,
            addresses: &[],
        }
    }

    /// Runs a container to its end: the exit and what it said.
    pub(crate) async fn run(&self, plan: &ContainerPlan) -> (Exit, String) {
        self.create(plan).await;
        self.containers.start(&plan.id).await.unwrap();
        let exit = self.containers.wait(&plan.id).await.unwrap();
        let log = self.log(&plan.id).await;
        self.containers.delete(&plan.id).await.unwrap();
        (exit, log)
    }

    pub(crate) async fn create(&self, plan: &ContainerPlan) -> i32 {
        self.create_with(plan, &Contents::new()).await
    }

    pub(crate) async fn create_with(&self, plan: &ContainerPlan, contents: &Contents) -> i32 {
        let status = self.containers.create(plan, contents).await;
        status
            .unwrap_or_else(|error| panic!("{}", error.chain()))
            .pid
    }

    /// What the probe says to these words.
    pub(crate) async fn says(&self, words: &[&str]) -> String {
        let (exit, log) = self.run(&self.plan(words)).await;
        assert_eq!(exit.code, 0, "{words:?}: {log}");
        log
    }

    pub(crate) async fn log(&self, id: &ContainerId) -> String {
        let mut entries = self.containers.logs(id, LogQuery::default()).await.unwrap();
        let mut text = Vec::new();
        while let Some(entry) = entries.recv().await {
            text.extend_from_slice(&entry.line);
        }
        String::from_utf8(text).unwrap()
    }

    /// Waits until the log has these words.
    pub(crate) async fn until_log(&self, id: &ContainerId, words: &str) {
        for _ in 0..600 {
            if self.log(id).await.contains(words) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{words:?} was never said");
    }

    async fn clear(&self) {
        for status in self.containers.list().await.unwrap() {
            self.containers.delete(&status.plan.id).await.unwrap();
        }
        let cgroup = Path::new("/sys/fs/cgroup").join(self.dirs.cgroup.strip_prefix("/").unwrap());
        let left: Vec<_> = std::fs::read_dir(&cgroup)
            .unwrap()
            .flatten()
            .filter(|entry| entry.path().is_dir())
            .collect();
        assert!(left.is_empty(), "cgroups are left: {left:?}");
        std::fs::remove_dir(cgroup).unwrap();
        for dir in [&self.dirs.run, &self.dirs.state, &self.dirs.volumes] {
            let left: Vec<_> = std::fs::read_dir(dir)
                .unwrap()
                .flatten()
                .map(|entry| entry.path())
                .collect();
            assert!(
                left.iter().all(|path| path.ends_with("kept")),
                "left behind: {left:?}"
            );
        }
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains("overlay"), "a mount is left");
    }
}

pub(crate) fn set_args(plan: &mut ContainerPlan, words: &[&str]) {
    let mut process = plan.spec.process().clone().unwrap();
    let args = ["/probe"]
        .iter()
        .chain(words)
        .map(|word| (*word).to_owned());
    process.set_args(Some(args.collect()));
    plan.spec.set_process(Some(process));
}

pub(crate) fn next_id() -> ContainerId {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let mut entropy = [0xcc; 32];
    entropy[0] = NEXT.fetch_add(1, Ordering::Relaxed);
    ContainerId::from_entropy(entropy)
}

fn task_template() -> skep_core::api::Task {
    serde_json::from_value(json!({
        "ID": "0000000000000000000000001", "Meta": {"Version": 1, "CreatedAt": "2026-01-01T00:00:00Z", "UpdatedAt": "2026-01-01T00:00:00Z"},
        "Spec": {}, "ServiceID": "0000000000000000000000002", "ServiceName": "web", "ServiceLabels": {}, "Slot": 1, "NodeID": null,
        "Status": {}, "DesiredState": "running", "Networks": [], "Endpoint": {}, "SpecVersion": 1,
    }))
    .unwrap_or_else(|error| panic!("the task template: {error}"))
}

/// Says something beside the results.
pub(crate) fn say(line: &str) {
    println!("{line}");
}

/// The output of a tool that we did not write.
pub(crate) fn tool(program: &str, args: &[&str]) -> String {
    let said = Command::new(program).args(args).output().unwrap();
    String::from_utf8_lossy(&said.stdout).into_owned()
}
