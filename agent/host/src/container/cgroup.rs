//! The delegated cgroup: two leaves per container, `shim-<id>` and `ctr-<id>`, so that a limit on the container never
//! touches the shim and killing one is a single write.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use skep_core::worker::container::plan::ContainerId;

use super::{Limits, Stats};
use crate::error::{Context, HostError, Result};

/// Where cgroup v2 is mounted.
const MOUNT: &str = "/sys/fs/cgroup";
/// Controllers that containers need; those the kernel does not have are said once, in the journal.
const CONTROLLERS: [&str; 5] = ["cpu", "cpuset", "io", "memory", "pids"];
/// Length of the period in which a processor limit counts, in microseconds, as Docker's.
const PERIOD: u64 = 100_000;

/// The delegated directory.
#[derive(Clone, Debug)]
pub(super) struct Delegated {
    dir: PathBuf,
}

/// One of a container's two leaves.
#[derive(Clone, Debug)]
pub(super) struct Leaf {
    dir: PathBuf,
}

impl Delegated {
    /// Makes the directory usable: present, and its controllers handed down.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let relative = path.strip_prefix("/").unwrap_or(path);
        let dir = Path::new(MOUNT).join(relative);
        fs::create_dir_all(&dir).context("make cgroup", dir.display())?;
        for controller in CONTROLLERS {
            let control = dir.join("cgroup.subtree_control");
            if let Err(error) = fs::write(&control, format!("+{controller}")) {
                tracing::warn!(controller, cgroup = %dir.display(), %error, "cgroup controller is not available: {error}");
            }
        }
        Ok(Self { dir })
    }

    /// The leaf of a container's shim.
    pub(super) fn shim(&self, id: &ContainerId) -> Leaf {
        Leaf {
            dir: self.dir.join(format!("shim-{id}")),
        }
    }

    /// The leaf of a container.
    pub(super) fn container(&self, id: &ContainerId) -> Leaf {
        Leaf {
            dir: self.dir.join(format!("ctr-{id}")),
        }
    }

    /// Ids of all containers that have a leaf.
    pub(super) fn ids(&self) -> Vec<ContainerId> {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let mut ids: Vec<_> = entries
            .filter_map(|entry| {
                let name = entry.file_name().into_string().ok()?;
                let id = name.strip_prefix("shim-").or(name.strip_prefix("ctr-"))?;
                ContainerId::parse(id)
            })
            .collect();
        ids.sort();
        ids.dedup();
        ids
    }
}

impl Leaf {
    /// Its directory.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Makes it. libcontainer only enters what is there, and so leaves the tree above alone.
    pub(super) fn make(&self) -> Result<()> {
        match fs::create_dir(&self.dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(error).context("make cgroup", self.dir.display())
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Kills all that is in it.
    pub(super) fn kill(&self) -> Result<()> {
        match fs::write(self.dir.join("cgroup.kill"), "1") {
            Err(error) if !is_gone(&error) => Err(error).context("kill cgroup", self.dir.display()),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Whether a process is in it.
    pub(super) fn is_populated(&self) -> bool {
        fs::read_to_string(self.dir.join("cgroup.events"))
            .is_ok_and(|events| events.lines().any(|line| line == "populated 1"))
    }

    /// Kills all that is in it and takes it away.
    pub(super) async fn remove(&self) -> Result<()> {
        for attempt in 0..100_u32 {
            self.kill()?;
            // What a privileged container has made in it goes first, the deepest before what holds it.
            for inner in inner_groups(&self.dir).iter().rev() {
                // Whatever stays keeps the leaf from going, which is said below.
                let _ = fs::remove_dir(inner);
            }
            match fs::remove_dir(&self.dir) {
                Err(error) if !is_gone(&error) && attempt == 99 => {
                    return Err(error)
                        .context("remove cgroup", self.dir.display())
                        .map_err(HostError::temporary);
                }
                // Killed processes are in it until they are reaped.
                Err(error) if !is_gone(&error) => {
                    tokio::time::sleep(Duration::from_millis(u64::from(attempt.min(50)))).await;
                }
                Ok(()) | Err(_) => return Ok(()),
            }
        }
        Ok(())
    }

    /// What is used in it. A file that is not there counts as nothing.
    pub(super) fn stats(&self) -> Stats {
        let cpu = self.read("cpu.stat");
        let memory = self.read("memory.stat");
        let microseconds = |key| field(&cpu, key).saturating_mul(1000);
        let (io_read, io_write) = io_totals(&self.read("io.stat"));
        Stats {
            cpu_total: microseconds("usage_usec"),
            cpu_user: microseconds("user_usec"),
            cpu_system: microseconds("system_usec"),
            cpu_throttled_periods: field(&cpu, "nr_throttled"),
            memory_usage: number(&self.read("memory.current")).unwrap_or(0),
            memory_inactive_file: field(&memory, "inactive_file"),
            memory_limit: number(&self.read("memory.max")).unwrap_or(u64::MAX),
            pids: number(&self.read("pids.current")).unwrap_or(0),
            io_read,
            io_write,
        }
    }

    /// Changes limits.
    pub(super) fn limit(&self, limits: &Limits) -> Result<()> {
        if let Some(nano_cpus) = limits.nano_cpus {
            let quota = match nano_cpus {
                0 => "max".to_owned(),
                // Below a millisecond per period the kernel refuses.
                nano_cpus => (nano_cpus / (1_000_000_000 / PERIOD)).max(1000).to_string(),
            };
            self.write("cpu.max", &format!("{quota} {PERIOD}"))?;
        }
        if let Some(memory) = limits.memory {
            self.write("memory.max", &or_max(memory))?;
        }
        if let Some(pids) = limits.pids {
            self.write("pids.max", &or_max(pids))?;
        }
        Ok(())
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.dir.join(file)).unwrap_or_default()
    }

    fn write(&self, file: &str, value: &str) -> Result<()> {
        let path = self.dir.join(file);
        fs::write(&path, value).context("write", path.display())
    }
}

/// All cgroups below one, each after the one that holds it.
fn inner_groups(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut next = Some(dir.to_owned());
    let mut at = 0;
    while let Some(dir) = next {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        let inner = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        found.extend(inner.map(|entry| entry.path()));
        next = found.get(at).cloned();
        at += 1;
    }
    found
}

fn is_gone(error: &io::Error) -> bool {
    // A cgroup that is removed while its file is open answers ENODEV.
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}

fn or_max(value: u64) -> String {
    match value {
        0 => "max".to_owned(),
        value => value.to_string(),
    }
}

fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

fn field(text: &str, key: &str) -> u64 {
    let mut values = text.lines().filter_map(|line| line.split_once(' '));
    values
        .find(|(name, _)| *name == key)
        .and_then(|(_, value)| number(value))
        .unwrap_or(0)
}

/// Bytes read and written, over all devices.
fn io_totals(text: &str) -> (u64, u64) {
    let mut totals = (0_u64, 0_u64);
    for entry in text.split_whitespace() {
        match entry.split_once('=') {
            Some(("rbytes", value)) => totals.0 += number(value).unwrap_or(0),
            Some(("wbytes", value)) => totals.1 += number(value).unwrap_or(0),
            Some(_) | None => {}
        }
    }
    totals
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_are_read_as_the_kernel_writes_them() {
        assert_eq!(field("usage_usec 12\nuser_usec 5\n", "user_usec"), 5);
        assert_eq!(field("usage_usec 12\n", "nothing"), 0);
        let io = "254:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n8:0 rbytes=1 wbytes=2\n";
        assert_eq!(io_totals(io), (11, 22));
        assert_eq!(number("max\n"), None);
    }
}
