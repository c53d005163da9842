//! Another process in the container, set up by a child of its own.
//!
//! libcontainer leaves descriptors, sockets and half-made children behind when an `exec` fails, changes the caller, and
//! may hang with the container; in a child that only does this, none of that matters. The process itself becomes a
//! sibling of that child, so the shim is its parent and learns how it ends.

use std::io::{ErrorKind, Read};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use nix::fcntl::OFlag;
use nix::unistd::{ForkResult, dup2, fork, pipe2};

use crate::causes;
use crate::container::{Container, chain, set_nonblocking};
use crate::program::Program;
use crate::protocol::{MAX_PACKET, Reply};
use crate::{Result, Trying};

/// How long the setting up may take, such as in a frozen container.
const PATIENCE: Duration = Duration::from_secs(30);
/// Where the child's report is in the child.
const REPORT: RawFd = 3;

/// An `exec` being set up or running.
pub(crate) struct Exec {
    /// The connection that asked.
    pub(crate) client: u64,
    /// The process, once it runs.
    pub(crate) pid: Option<i32>,
    /// Unix nanoseconds at which it was found running.
    pub(crate) started_at: u64,
    /// The child that sets it up, until it is reaped: then the number may be another process's.
    pub(crate) helper: Option<i32>,
    report: Option<std::fs::File>,
    text: Vec<u8>,
    /// When the setting up is given up.
    pub(crate) deadline: Instant,
}

impl Exec {
    /// Begins to set up `process`, an OCI `process` object.
    pub(crate) fn begin(
        container: &Container,
        id: &str,
        client: u64,
        process: &serde_json::Value,
        console: Option<&str>,
        stdio: &[OwnedFd],
    ) -> Result<Self> {
        let expected = if console.is_some() { 0 } else { 3 };
        if stdio.len() != expected {
            return Err(format!(
                "{expected} descriptors must come with this request, not {}",
                stdio.len()
            ));
        }
        if console
            .is_some_and(|name| name.is_empty() || name.contains('/') || name.starts_with('.'))
        {
            return Err("the terminal's socket must be a plain file name".to_owned());
        }
        let (ours, theirs) = pipe2(OFlag::O_CLOEXEC).trying("make a pipe")?;
        // SAFETY: the shim has one thread, so the child may do whatever the parent may.
        match unsafe { fork() }.trying("fork")? {
            ForkResult::Parent { child } => {
                set_nonblocking(&ours)?;
                Ok(Self {
                    client,
                    pid: None,
                    started_at: 0,
                    helper: Some(child.as_raw()),
                    report: Some(ours.into()),
                    text: Vec::new(),
                    deadline: Instant::now() + PATIENCE,
                })
            }
            ForkResult::Child => {
                let reply = match set_up(container, id, process, console, stdio, &theirs) {
                    Ok(pid) => Reply::Exec { pid },
                    Err(why) => Reply::Error { why },
                };
                let text = serde_json::to_vec(&reply).unwrap_or_default();
                // SAFETY: writes a buffer of this length to a descriptor; then ends the process at once, so that nothing
                // the parent had prepared is run or flushed here.
                unsafe {
                    libc::write(REPORT, text.as_ptr().cast(), text.len());
                    libc::_exit(0);
                }
            }
        }
    }

    /// To poll for reading, while it is being set up.
    pub(crate) fn report_fd(&self) -> Option<RawFd> {
        self.report.as_ref().map(AsRawFd::as_raw_fd)
    }

    /// Whether it is still being set up.
    pub(crate) fn is_setting_up(&self) -> bool {
        self.report.is_some()
    }

    /// Reads the report; a reply once it is complete.
    pub(crate) fn read_report(&mut self) -> Option<Reply> {
        let report = self.report.as_mut()?;
        let mut part = [0; 4096];
        match report.read(&mut part) {
            Ok(count) if count > 0 && self.text.len() < MAX_PACKET => {
                self.text.extend_from_slice(&part[..count]);
                return None;
            }
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
            {
                return None;
            }
            Ok(_) | Err(_) => self.report = None,
        }
        let reply: Option<Reply> = serde_json::from_slice(&self.text).ok();
        self.text = Vec::new();
        if let Some(Reply::Exec { pid }) = reply {
            self.pid = Some(pid);
            self.started_at = crate::now();
        }
        Some(reply.unwrap_or_else(|| Reply::Error {
            why: "the setting up died".to_owned(),
        }))
    }

    /// Gives up on it.
    pub(crate) fn abandon(&self) {
        if let Some(helper) = self.helper {
            // SAFETY: the child is ours and not reaped yet, so the number is its own.
            unsafe { libc::kill(helper, libc::SIGKILL) };
        }
    }
}

fn set_up(
    container: &Container,
    id: &str,
    process: &serde_json::Value,
    console: Option<&str>,
    stdio: &[OwnedFd],
    report: &OwnedFd,
) -> Result<i32> {
    for (fd, target) in stdio.iter().zip(0..) {
        dup2(fd.as_raw_fd(), target).trying("join standard input and output")?;
    }
    if report.as_raw_fd() != REPORT {
        // SAFETY: no memory is passed, and what was at this number is of no use to this child.
        let status = unsafe { libc::dup3(report.as_raw_fd(), REPORT, libc::O_CLOEXEC) };
        nix::errno::Errno::result(status).trying("keep the report")?;
    }
    // SAFETY: this child uses no descriptor above the report any more; it never returns to the event loop that had them.
    unsafe { libc::close_range(4, libc::c_uint::MAX, 0) };

    let name = format!("exec-{}.json", std::process::id());
    let path = container.dir().join(name);
    let text = serde_json::to_vec(process).trying("write the process")?;
    std::fs::write(&path, text).trying("write the process")?;
    let unprivileged = process["noNewPrivileges"] == serde_json::Value::Bool(true);
    let seccomp = container
        .spec()
        .linux()
        .as_ref()
        .and_then(|linux| linux.seccomp().clone());
    causes::forget();
    let result = ContainerBuilder::new(id.to_owned(), SyscallType::default())
        .with_executor(Program::tenant(seccomp.filter(|_| unprivileged)))
        .with_console_socket(console.map(|name| container.dir().join(name)))
        .with_root_path(container.state_dir())
        .trying("find the state")?
        .as_tenant()
        .with_process(Some(&path))
        .with_detach(true)
        .as_sibling(true)
        .build();
    // The directory goes with the container; this only keeps it small.
    let _ = std::fs::remove_file(&path);
    result
        .map(nix::unistd::Pid::as_raw)
        .map_err(|error| causes::with_cause(&chain(&error)))
}

/// Removes what libcontainer leaves in its directory for each `exec`. To be called while none is being set up.
pub(crate) fn sweep(container: &Container, id: &str) {
    let dir = container.state_dir().join(id);
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with("tenant-") {
            // A leftover is only a leftover.
            let _ = std::fs::remove_file(entry.path());
        }
    }
}
