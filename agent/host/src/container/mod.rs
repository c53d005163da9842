//! Containers on this node: made from a plan, watched over by one `skep-shim` each, found again after a restart.
//!
//! The directory `/run/skep/containers/<id>` of a container is the truth about it; nothing in this process is.
//! `wait` and `list` may therefore be asked by anybody, at any time, after any crash.

mod bundle;
mod cgroup;
mod copy;
mod logs;
mod protocol;
mod provided;
mod session;
mod shim;

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::StreamExt;
use skep_core::worker::container::exec::{self, ExecRequest};
use skep_core::worker::container::image::Reference;
use skep_core::worker::container::plan::{ContainerId, ContainerPlan};
use skep_core::worker::dependencies::Contents;
use tokio::io::AsyncWrite;
use tokio::sync::mpsc;

use self::bundle::Bundle;
use self::cgroup::Delegated;
use self::logs::LogReader;
pub use self::protocol::Exit;
use self::protocol::{Reply, Request};
pub use self::session::Terminal;
use self::shim::{Connection, Packet};
use crate::error::{Context, HostError, Result};
use crate::image::{Image, Images, Progress, RegistryAuth};
use crate::rooted::Rooted;

/// What follows the container's id in the name of its log file, as Docker names it.
const LOG_SUFFIX: &str = "-json.log";
/// Shims that are asked at a time.
const LOOKS: usize = 32;
/// How long after SIGKILL to its main process all of a container is killed.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// Where things are on a node.
#[derive(Clone, Debug)]
pub struct Dirs {
    /// One directory per container, on a tmpfs: gone after a reboot, as the containers are. `/run/skep/containers`.
    pub run: PathBuf,
    /// Writable layers and logs: `/var/lib/skep/containers`.
    pub state: PathBuf,
    /// Local volumes, `<name>/_data` in each: `/var/lib/skep/volumes`.
    pub volumes: PathBuf,
    /// The delegated cgroup, as a path below `/sys/fs/cgroup`: `/skep.slice/skep-containers.service`.
    pub cgroup: PathBuf,
    /// The shim: `/usr/libexec/skep/skep-shim`.
    pub shim: PathBuf,
}

impl Default for Dirs {
    fn default() -> Self {
        Self {
            run: "/run/skep/containers".into(),
            state: "/var/lib/skep/containers".into(),
            volumes: "/var/lib/skep/volumes".into(),
            cgroup: "/skep.slice/skep-containers.service".into(),
            shim: "/usr/libexec/skep/skep-shim".into(),
        }
    }
}

/// What a container is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Made, its program not started.
    Created,
    /// Its program runs.
    Running,
    /// Ended, and this is how.
    Exited(Exit),
}

/// A container as it is now.
#[derive(Clone, Debug)]
pub struct Status {
    /// What it was made from.
    pub plan: ContainerPlan,
    /// What it is doing.
    pub phase: Phase,
    /// The main process as the node counts it; 0 once it has ended.
    pub pid: i32,
    /// Unix nanoseconds at which the program started; 0 before.
    pub started_at: u64,
}

/// What a container uses, from its cgroup. All zero for one that has ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Processor time in nanoseconds.
    pub cpu_total: u64,
    /// Of it, in user mode.
    pub cpu_user: u64,
    /// Of it, in the kernel.
    pub cpu_system: u64,
    /// Periods in which the processor limit held it back.
    pub cpu_throttled_periods: u64,
    /// Bytes of memory, page cache included.
    pub memory_usage: u64,
    /// Of it, page cache that can be given back.
    pub memory_inactive_file: u64,
    /// The memory limit in bytes; `u64::MAX` when there is none.
    pub memory_limit: u64,
    /// Processes and threads.
    pub pids: u64,
    /// Bytes read from block devices.
    pub io_read: u64,
    /// Bytes written to block devices.
    pub io_write: u64,
}

/// Which of the two outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stream {
    /// Standard output, and everything on a terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

/// A line, or a part of a long line, of a container's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEntry {
    /// Which output.
    pub stream: Stream,
    /// When, in Unix nanoseconds.
    pub time: u64,
    /// The bytes, the newline included if there was one.
    pub line: Bytes,
}

/// Which part of a log is wanted.
#[derive(Clone, Copy, Debug, Default)]
pub struct LogQuery {
    /// Only the last so many entries; all if `None`.
    pub tail: Option<usize>,
    /// Only entries at or after this time in Unix nanoseconds.
    pub since: u64,
    /// Only entries before this time; 0 is no bound.
    pub until: u64,
    /// Go on with what is written later, until the container has ended.
    pub follow: bool,
}

/// A process whose input and output are in this process's hands.
pub struct Session {
    /// Its process id as the node counts it.
    pub pid: i32,
    /// Standard input; dropping it ends the input.
    pub stdin: Option<Pin<Box<dyn AsyncWrite + Send>>>,
    /// What it says, in order; closed when both outputs are.
    pub output: mpsc::Receiver<(Stream, Bytes)>,
    /// How it ends; `Err` if that can no longer be learned.
    pub exit: Pin<Box<dyn Future<Output = Result<Exit>> + Send>>,
    /// Sets the size of its terminal; without effect on a process without one.
    pub terminal: Terminal,
}

/// Limits that may change while a container runs; `None` leaves one as it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    /// Processor time in billionths of a processor (`NanoCPUs`); 0 takes the limit away.
    pub nano_cpus: Option<u64>,
    /// Memory in bytes; 0 takes the limit away.
    pub memory: Option<u64>,
    /// Processes and threads; 0 takes the limit away.
    pub pids: Option<u64>,
}

/// The containers of this node. Cheap to clone.
#[derive(Clone)]
pub struct Containers {
    dirs: Arc<Dirs>,
    cgroups: Delegated,
    images: Images,
}

impl Containers {
    /// Prepares the directories and the cgroup, adopts what runs, and clears away what a crash left half made
    /// and what belongs to an earlier boot.
    pub async fn open(dirs: Dirs, images: Images) -> Result<Self> {
        for dir in [&dirs.run, &dirs.state, &dirs.volumes] {
            std::fs::create_dir_all(dir).context("make directory", dir.display())?;
        }
        let containers = Self {
            cgroups: Delegated::open(&dirs.cgroup)?,
            dirs: Arc::new(dirs),
            images,
        };
        // What goes wrong with one container must not keep the node down.
        for id in ids_in(&containers.dirs.run) {
            if let Err(error) = containers.adopt(&id).await {
                tracing::error!(container.id = id.short(), error = %error.chain(), "a container cannot be adopted: {}", error.chain());
            }
        }
        containers.clear_strays().await;
        Ok(containers)
    }

    /// Makes a container up to the point where its program could start: layers mounted, volumes filled, namespaces and
    /// cgroup made, shim running. Its network namespace, if the specification names one, must be there, and in `contents`
    /// the content of each file that the plan provides.
    ///
    /// Making one that exists is an error. On any error nothing is left behind.
    pub async fn create(&self, plan: &ContainerPlan, contents: &Contents) -> Result<Status> {
        let bundle = self.bundle(&plan.id);
        let layers = self.images.layer_dirs(&plan.image_id)?;
        bundle.claim()?;
        match self.build(&bundle, plan, contents, layers).await {
            Ok(pid) => Ok(Status {
                plan: plan.clone(),
                phase: Phase::Created,
                pid,
                started_at: 0,
            }),
            Err(error) => {
                if let Err(leftover) = self.clear(&plan.id).await {
                    tracing::warn!(container.id = plan.id.short(), error = %leftover.chain(), "a container that failed is not cleared away");
                }
                Err(error)
            }
        }
    }

    async fn build(
        &self,
        bundle: &Bundle,
        plan: &ContainerPlan,
        contents: &Contents,
        layers: Vec<PathBuf>,
    ) -> Result<i32> {
        let mounted = blocking("prepare container", &plan.id, {
            let (bundle, plan, cgroups) = (bundle.clone(), plan.clone(), self.cgroups.clone());
            let contents = contents.clone();
            move || bundle.prepare(&plan, &contents, &layers, &cgroups)
        })
        .await?;
        let pid = shim::spawn(&self.dirs.shim, &bundle.run, mounted)
            .await
            .context("create container", plan.id.short())?;
        bundle.mark_created()?;
        Ok(pid)
    }

    /// Lets the program of a created container run. Does nothing if it runs already or has ended.
    pub async fn start(&self, id: &ContainerId) -> Result<()> {
        self.tell(id, "start container", Request::Start).await
    }

    /// Sends a signal to the main process. Does nothing if the container has ended.
    pub async fn signal(&self, id: &ContainerId, signal: i32) -> Result<()> {
        self.tell(id, "signal container", Request::Signal { signal })
            .await
    }

    /// Waits until the container has ended and its output is in the log. May be asked any number of times, also afterwards.
    pub async fn wait(&self, id: &ContainerId) -> Result<Exit> {
        const OP: &str = "wait for container";
        let bundle = self.existing(id, OP)?;
        loop {
            let connection = match Connection::open(&bundle.run).await {
                Ok(connection) => connection,
                Err(error) if shim::says_dead(&error) => return self.settle(&bundle),
                Err(error) => {
                    return Err(error)
                        .context(OP, id.short())
                        .map_err(HostError::temporary);
                }
            };
            let packet = match connection.request(&Request::Wait, &[]).await {
                Ok(()) => connection.receive().await,
                Err(error) => Err(error),
            };
            if let Ok(Packet::Reply(Reply::Exit(exit))) = packet {
                return Ok(exit);
            }
            // It died, or has too many clients: the next attempt tells.
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Sends the stop signal (the container's own if `None`), waits for the grace period (likewise), kills, and waits for the end.
    pub async fn stop(
        &self,
        id: &ContainerId,
        signal: Option<i32>,
        grace: Option<Duration>,
    ) -> Result<Exit> {
        let Some(status) = self.status(id).await? else {
            return Err(no_such("stop container", id));
        };
        if status.phase == Phase::Created {
            // It waits to be started and hears nothing but this.
            self.signal(id, libc::SIGKILL).await?;
            return self.wait(id).await;
        }
        let grace = grace.unwrap_or(Duration::from_nanos(status.plan.stop_grace));
        self.signal(id, signal.unwrap_or(status.plan.stop_signal))
            .await?;
        if let Ok(exit) = tokio::time::timeout(grace, self.wait(id)).await {
            return exit;
        }
        self.signal(id, libc::SIGKILL).await?;
        if let Ok(exit) = tokio::time::timeout(KILL_PATIENCE, self.wait(id)).await {
            return exit;
        }
        self.cgroups.container(id).kill()?;
        self.wait(id).await
    }

    /// Removes a container and all it leaves: kills it if it runs, takes away its writable layer, log, anonymous volumes
    /// and cgroups. Removing what is not there is fine.
    pub async fn delete(&self, id: &ContainerId) -> Result<()> {
        self.cgroups.container(id).kill()?;
        let shim = self.cgroups.shim(id);
        // Time to tell whoever waits how it ended.
        for _ in 0..100 {
            if !shim.is_populated() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.clear(id).await
    }

    /// All containers, oldest first. One whose shim does not answer is said to run, as far as anybody knows: it must not be
    /// taken for gone, nor keep the others from being seen.
    pub async fn list(&self) -> Result<Vec<Status>> {
        let looks = ids_in(&self.dirs.run).into_iter().map(|id| self.look(id));
        let looks = futures_util::stream::iter(looks).buffer_unordered(LOOKS);
        let found: Vec<Option<Status>> = looks.collect().await;
        let mut list: Vec<Status> = found.into_iter().flatten().collect();
        list.sort_by(|a, b| (a.plan.created_at, &a.plan.id).cmp(&(b.plan.created_at, &b.plan.id)));
        Ok(list)
    }

    async fn look(&self, id: ContainerId) -> Option<Status> {
        match self.status(&id).await {
            Ok(status) => status,
            Err(error) => {
                tracing::warn!(container.id = id.short(), error = %error.chain(), "a container does not answer: {}", error.chain());
                let plan = self.bundle(&id).plan().ok().flatten()?;
                Some(Status {
                    plan,
                    phase: Phase::Running,
                    pid: 0,
                    started_at: 0,
                })
            }
        }
    }

    /// Brings an image here, as [`Images::pull`] does. If the disk is full, images that no container uses make room.
    pub async fn pull(
        &self,
        reference: &Reference,
        auth: Option<&RegistryAuth>,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<Image> {
        let error = match self.images.pull(reference, auth, progress).await {
            Err(error) if Images::says_no_space(&error) => error,
            result => return result,
        };
        let used = self
            .list()
            .await?
            .into_iter()
            .map(|status| status.plan.image_id);
        let used: Vec<String> = used.collect();
        let removed = self.images.prune(&used).await?;
        if removed.is_empty() {
            return Err(error);
        }
        tracing::warn!(image = %reference, removed = removed.len(), "the disk was full; unused images were removed");
        self.images.pull(reference, auth, progress).await
    }

    /// One container; `None` if there is no such.
    pub async fn status(&self, id: &ContainerId) -> Result<Option<Status>> {
        let bundle = self.bundle(id);
        if !bundle.was_created() {
            return Ok(None);
        }
        let Some(plan) = bundle.plan()? else {
            return Ok(None);
        };
        let ended = |exit: Exit, plan: ContainerPlan| Status {
            started_at: exit.started_at,
            phase: Phase::Exited(exit),
            pid: 0,
            plan,
        };
        if let Some(exit) = bundle.exit()? {
            return Ok(Some(ended(exit, plan)));
        }
        match Connection::ask(&bundle.run, &Request::State).await {
            Ok(Reply::State {
                exit: Some(exit), ..
            }) => Ok(Some(ended(exit, plan))),
            Ok(Reply::State {
                started_at,
                pid,
                exit: None,
            }) => Ok(Some(Status {
                plan,
                phase: if started_at == 0 {
                    Phase::Created
                } else {
                    Phase::Running
                },
                pid,
                started_at,
            })),
            Err(error) if shim::says_dead(&error) => Ok(Some(ended(self.settle(&bundle)?, plan))),
            Ok(other) => Err(unexpected("look at container", id, &other)),
            Err(error) => Err(error)
                .context("look at container", id.short())
                .map_err(HostError::temporary),
        }
    }

    /// What it uses now.
    pub async fn stats(&self, id: &ContainerId) -> Result<Stats> {
        self.existing(id, "read the statistics of container")?;
        let leaf = self.cgroups.container(id);
        blocking("read the statistics of container", id, move || {
            Ok(leaf.stats())
        })
        .await
    }

    /// Changes limits of a running container.
    pub async fn update(&self, id: &ContainerId, limits: Limits) -> Result<()> {
        self.existing(id, "change the limits of container")?;
        let leaf = self.cgroups.container(id);
        blocking("change the limits of container", id, move || {
            leaf.limit(&limits)
        })
        .await
    }

    /// Reads the log. The channel holds a bounded number of entries and closes at the end; dropping it stops the reading.
    pub async fn logs(
        &self,
        id: &ContainerId,
        query: LogQuery,
    ) -> Result<mpsc::Receiver<LogEntry>> {
        const OP: &str = "read the log of container";
        let bundle = self.existing(id, OP)?;
        let path = bundle.log();
        let reader = blocking(OP, id, move || {
            LogReader::open(path.clone(), query).context(OP, path.display())
        })
        .await?;
        let (sender, receiver) = mpsc::channel(64);
        let (containers, id) = (self.clone(), id.clone());
        tokio::spawn(async move {
            let end = async {
                // However it ends, there is nothing more to come.
                let _ = containers.wait(&id).await;
            };
            if let Err(error) = logs::stream(reader, sender, end).await {
                tracing::warn!(container.id = id.short(), %error, "cannot go on reading the log: {error}");
            }
        });
        Ok(receiver)
    }

    /// Runs another process inside.
    pub async fn exec(&self, id: &ContainerId, request: ExecRequest) -> Result<Session> {
        const OP: &str = "run a process in container";
        let bundle = self.existing(id, OP)?;
        let status = self
            .status(id)
            .await?
            .filter(|status| status.phase == Phase::Running);
        let (Some(status), Some(spec)) = (status, bundle.spec()?) else {
            return Err(HostError::new(
                OP,
                id.short(),
                "the container is not running",
            ));
        };
        let user = match &request.user {
            None => None,
            Some(name) => {
                let path = PathBuf::from(format!("/proc/{}/root", status.pid));
                let root = Rooted::open(&path).context(OP, id.short())?;
                Some(bundle::find_user(&root, name, &[])?)
            }
        };
        let mut process = exec::process(&spec, &request, user.as_ref());
        exec::limit_capabilities(&mut process, bundle::bounding_set()?);
        let stdio = session::ExecStdio {
            tty: request.tty,
            stdin: request.stdin,
            owner: (process.user().uid(), process.user().gid()),
        };
        let process = serde_json::to_value(&process).context(OP, id.short())?;
        session::exec(&bundle.run, process, stdio)
            .await
            .context(OP, id.short())
    }

    /// Joins the input and output of the main process. Attach before `start` to miss nothing. With `lossless` the
    /// container waits for the reader; otherwise a reader that falls behind is cut off.
    pub async fn attach(&self, id: &ContainerId, stdin: bool, lossless: bool) -> Result<Session> {
        const OP: &str = "attach to container";
        let bundle = self.existing(id, OP)?;
        let Some(status) = self.status(id).await? else {
            return Err(no_such(OP, id));
        };
        let request = Request::Attach { stdin, lossless };
        session::attach(&bundle.run, status.pid, status.plan.stdio.tty, request)
            .await
            .context(OP, id.short())
    }

    /// Where things are.
    pub fn dirs(&self) -> &Dirs {
        &self.dirs
    }

    /// The images containers are made from.
    pub fn images(&self) -> &Images {
        &self.images
    }

    fn bundle(&self, id: &ContainerId) -> Bundle {
        Bundle::new(&self.dirs, id)
    }

    fn existing(&self, id: &ContainerId, op: &'static str) -> Result<Bundle> {
        let bundle = self.bundle(id);
        if bundle.was_created() {
            Ok(bundle)
        } else {
            Err(no_such(op, id))
        }
    }

    /// Asks for something that is answered by `done` and means nothing once the container has ended.
    async fn tell(&self, id: &ContainerId, op: &'static str, request: Request) -> Result<()> {
        let bundle = self.existing(id, op)?;
        match Connection::ask(&bundle.run, &request).await {
            Ok(Reply::Done) => Ok(()),
            Ok(other) => Err(unexpected(op, id, &other)),
            Err(_) if bundle.exit()?.is_some() => Ok(()),
            Err(error) if shim::says_dead(&error) => self.settle(&bundle).map(|_| ()),
            Err(error) => Err(error).context(op, id.short()),
        }
    }

    /// The exit status of a container whose shim is gone. If the shim could not write it, nobody knows it any more: what
    /// may still run is killed, so that «ended» is true, and that is the status.
    fn settle(&self, bundle: &Bundle) -> Result<Exit> {
        if let Some(exit) = bundle.exit()? {
            return Ok(exit);
        }
        let id = bundle.id();
        self.cgroups.container(id).kill()?;
        self.cgroups.shim(id).kill()?;
        let exit = Exit {
            code: 128 + libc::SIGKILL,
            signal: Some(libc::SIGKILL),
            oom_killed: false,
            started_at: 0,
            finished_at: now(),
            error: Some("its shim died, so the container was killed".to_owned()),
        };
        bundle.write_exit(&exit)?;
        tracing::error!(
            container.id = id.short(),
            "the shim of a container died; the container was killed"
        );
        Ok(exit)
    }

    /// Looks at a container that an earlier skepd left.
    async fn adopt(&self, id: &ContainerId) -> Result<()> {
        let bundle = self.bundle(id);
        let answer = Connection::ask(&bundle.run, &Request::State).await;
        match (bundle.was_created(), answer) {
            (true, Err(error)) if shim::says_dead(&error) => self.settle(&bundle).map(|_| ()),
            // A shim that is slow or has no room for one more client is not dead, nor is its container.
            (true, Ok(_) | Err(_)) => Ok(()),
            (false, Ok(Reply::State { .. })) => bundle.mark_created(),
            // It was being made when skepd died.
            (false, Ok(_) | Err(_)) => self.clear(id).await,
        }
    }

    /// Removes what belongs to no container: of an earlier boot, or of an interrupted removal.
    async fn clear_strays(&self) {
        let known = ids_in(&self.dirs.run);
        let mut strays = ids_in(&self.dirs.state);
        strays.extend(self.cgroups.ids());
        let owners = bundle::anonymous_volumes(&self.dirs.volumes);
        strays.extend(
            owners
                .iter()
                .filter_map(|(_, owner)| ContainerId::parse(owner)),
        );
        strays.sort();
        strays.dedup();
        for id in strays.iter().filter(|id| !known.contains(id)) {
            if let Err(error) = self.clear(id).await {
                tracing::error!(container.id = id.short(), error = %error.chain(), "what an earlier life left stays: {}", error.chain());
            }
        }
    }

    /// Kills and removes whatever there is of a container.
    async fn clear(&self, id: &ContainerId) -> Result<()> {
        self.cgroups.container(id).remove().await?;
        self.cgroups.shim(id).remove().await?;
        let (bundle, volumes) = (self.bundle(id), self.dirs.volumes.clone());
        blocking("remove container", id, move || {
            for (path, owner) in bundle::anonymous_volumes(&volumes) {
                if owner == bundle.id().as_str() {
                    bundle::remove_tree(&path)?;
                }
            }
            bundle.remove()
        })
        .await
    }
}

/// Container ids among the names in a directory.
fn ids_in(dir: &Path) -> Vec<ContainerId> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| ContainerId::parse(entry.file_name().to_str()?))
        .collect()
}

fn no_such(op: &'static str, id: &ContainerId) -> HostError {
    HostError::new(op, id.short(), "no such container")
}

fn unexpected(op: &'static str, id: &ContainerId, reply: &Reply) -> HostError {
    HostError::new(op, id.short(), format!("unexpected answer {reply:?}"))
}

/// The wall clock in Unix nanoseconds.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    })
}

/// Runs what waits for disks on a thread that may wait.
async fn blocking<T: Send + 'static>(
    op: &'static str,
    id: &ContainerId,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .context(op, id.short())?
}
