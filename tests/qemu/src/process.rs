//! Programs that go on when the command that started them has ended: the switch, the registry, the VMs.
//!
//! Each is known by a file with its process id and its start time, so that an id that the kernel has given to
//! another process since is never taken for ours.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::io::Errno;
use rustix::process::{Pid, kill_process};

/// A process in the background, known by its file.
#[derive(Debug, Clone)]
pub struct Background {
    file: PathBuf,
}

/// A signal that the lab sends.
#[derive(Debug, Clone, Copy)]
pub enum Signal {
    /// Please end.
    Terminate,
    /// The power cord.
    Kill,
}

impl Background {
    /// The process whose id stands in this file, if any.
    pub fn at(file: impl Into<PathBuf>) -> Background {
        Background { file: file.into() }
    }

    /// Starts `command` with its output in `log`, unless it runs already.
    pub fn start(&self, command: &mut Command, log: &Path) -> Result<()> {
        if self.alive() {
            return Ok(());
        }
        let output =
            File::create(log).with_context(|| format!("cannot write the log {}", log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        self.record(child.id())
    }

    /// Writes down which process this is.
    pub fn record(&self, id: u32) -> Result<()> {
        let begun = start_time(id).unwrap_or_default();
        fs::write(&self.file, format!("{id} {begun}\n"))
            .with_context(|| format!("cannot write {}", self.file.display()))
    }

    /// Whether the process is there and not a zombie.
    pub fn alive(&self) -> bool {
        self.id().is_some()
    }

    /// Its process id, while it lives.
    pub fn id(&self) -> Option<u32> {
        let text = fs::read_to_string(&self.file).ok()?;
        let (id, begun) = text.trim().split_once(' ')?;
        let id = id.parse().ok()?;
        (start_time(id)? == begun.parse::<u64>().ok()?).then_some(id)
    }

    /// Ends the process: with the given signal, and with SIGKILL if it is still there after `patience`.
    pub fn stop(&self, signal: Signal, patience: Duration) -> Result<()> {
        let Some(id) = self.id() else {
            return Ok(());
        };
        send(id, signal)?;
        if !self.wait_gone(patience) {
            send(id, Signal::Kill)?;
            if !self.wait_gone(Duration::from_secs(10)) {
                bail!("process {id} of {} does not end", self.file.display());
            }
        }
        Ok(())
    }

    /// Waits until the process is gone; false when it is still there after `patience`.
    pub fn wait_gone(&self, patience: Duration) -> bool {
        let begun = Instant::now();
        while self.alive() {
            if begun.elapsed() > patience {
                return false;
            }
            sleep(Duration::from_millis(10));
        }
        true
    }
}

fn send(id: u32, signal: Signal) -> Result<()> {
    let id = i32::try_from(id).ok().and_then(Pid::from_raw);
    let signal = match signal {
        Signal::Terminate => rustix::process::Signal::TERM,
        Signal::Kill => rustix::process::Signal::KILL,
    };
    match kill_process(id.context("a process id out of range")?, signal) {
        Ok(()) | Err(Errno::SRCH) => Ok(()),
        Err(error) => Err(error).context("cannot send a signal"),
    }
}

/// The start time of a living process in clock ticks since boot (field 22 of proc_pid_stat(5)).
fn start_time(id: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    if matches!(fields.first(), Some(&"Z" | &"X")) {
        return None;
    }
    fields.get(19)?.parse().ok()
}

/// This program once more, also when cargo has put a newer one in its place meanwhile.
pub fn ourselves() -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("lab");
    command
}

/// How a command ended, and what it said.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Its exit status; none when a signal ended it.
    pub status: Option<i32>,
    /// What it wrote to standard output.
    pub stdout: String,
    /// What it wrote to standard error.
    pub stderr: String,
}

impl Outcome {
    /// Standard output of a command that succeeded; else an error with the last lines of what it said.
    pub fn good(self, name: &str) -> Result<String> {
        if self.status == Some(0) {
            return Ok(self.stdout);
        }
        let said = if self.stderr.trim().is_empty() {
            &self.stdout
        } else {
            &self.stderr
        };
        let last: Vec<&str> = said.trim().lines().rev().take(3).collect();
        let last = last.into_iter().rev().collect::<Vec<_>>().join(" | ");
        match self.status {
            Some(status) => bail!("{name} failed (status {status}): {last}"),
            None => bail!("{name} was ended by a signal: {last}"),
        }
    }
}

/// Runs a command to its end, without input; standard output, or an error with what it said.
pub fn run(command: &mut Command) -> Result<String> {
    let name = name_of(command);
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {name}"))?;
    outcome(output.status.code(), output.stdout, output.stderr).good(&name)
}

/// Runs a command and kills it when it has not ended after `patience`.
///
/// # Errors
/// When it cannot be started or does not end in time; not when it fails.
pub fn run_within(command: &mut Command, patience: Duration) -> Result<Outcome> {
    let name = name_of(command);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {name}"))?;
    let stdout = child.stdout.take().map(read_aside);
    let stderr = child.stderr.take().map(read_aside);
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break Some(status);
        }
        if begun.elapsed() > patience {
            child.kill()?;
            child.wait()?;
            break None;
        }
        sleep(Duration::from_millis(10));
    };
    let text =
        |aside: Option<JoinHandle<Vec<u8>>>| aside.and_then(|a| a.join().ok()).unwrap_or_default();
    let (stdout, stderr) = (text(stdout), text(stderr));
    match status {
        Some(status) => Ok(outcome(status.code(), stdout, stderr)),
        None => {
            let so_far = outcome(None, stdout, stderr);
            bail!(
                "{name} has not ended after {} s; it said: {} {}",
                patience.as_secs(),
                so_far.stdout.trim(),
                so_far.stderr.trim()
            )
        }
    }
}

fn read_aside(mut pipe: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // A pipe that breaks has given what there was.
        let _ = pipe.read_to_end(&mut bytes);
        bytes
    })
}

fn outcome(status: Option<i32>, stdout: Vec<u8>, stderr: Vec<u8>) -> Outcome {
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Outcome {
        status,
        stdout: text(stdout),
        stderr: text(stderr),
    }
}

/// The program and its first two arguments: enough to know which command it was.
fn name_of(command: &Command) -> String {
    let program = Path::new(command.get_program())
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    let arguments = command
        .get_args()
        .filter(|a| !a.to_string_lossy().starts_with('-'));
    let words = arguments.take(2).map(|a| a.to_string_lossy().into_owned());
    std::iter::once(program)
        .chain(words)
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_carries_the_last_words() {
        let error = run(Command::new("sh").args(["-c", "echo no such thing >&2; exit 3"]));
        let text = error.unwrap_err().to_string();
        assert!(text.ends_with("failed (status 3): no such thing"), "{text}");
    }

    #[test]
    fn a_command_that_hangs_is_killed() {
        let begun = Instant::now();
        let hung = run_within(Command::new("sleep").arg("60"), Duration::from_millis(50));
        assert!(hung.is_err());
        assert!(begun.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn a_process_id_that_was_given_away_is_not_ours() {
        let file = std::env::temp_dir().join(format!("lab-process-{}", std::process::id()));
        fs::write(&file, format!("{} 1\n", std::process::id())).unwrap();
        assert!(!Background::at(&file).alive());
        Background::at(&file).record(std::process::id()).unwrap();
        assert!(Background::at(&file).alive());
        fs::remove_file(file).unwrap();
    }
}
