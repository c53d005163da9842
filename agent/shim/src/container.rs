//! The container itself, by libcontainer.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use libcontainer::container::Container as OciContainer;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::{Gid, Uid, fchown, pipe2};
use oci_spec::runtime::Spec;

use crate::causes;
use crate::program::Program;
use crate::protocol::Settings;
use crate::stdio::{Stdio, receive_terminal};
use crate::{Result, Trying};

/// Where libcontainer keeps its own state, below the container's directory.
const OCI_STATE: &str = "oci";
/// Where libcontainer sends the terminal.
const CONSOLE: &str = "console.sock";

/// A container that was created, and may have been started.
pub(crate) struct Container {
    /// Its directory.
    dir: PathBuf,
    /// Its specification.
    spec: Spec,
    oci: OciContainer,
    /// The main process.
    pub(crate) pid: i32,
    /// The main process again, in the form that cannot be mistaken for a later one.
    pidfd: OwnedFd,
    /// The shim's ends of its standard input and output.
    pub(crate) stdio: Stdio,
}

impl Container {
    /// Creates the container in `dir`, up to the point where its program would be executed.
    pub(crate) fn create(dir: &Path, settings: &Settings) -> Result<Self> {
        let spec = Spec::load("config.json").trying("read config.json")?;
        let base = ContainerBuilder::new(settings.id.clone(), SyscallType::default())
            .with_executor(Program::main())
            .with_root_path(dir.join(OCI_STATE))
            .trying("prepare the state")?;
        let (oci, stdio) = if settings.tty {
            let console = dir.join(CONSOLE);
            let listener = UnixListener::bind(CONSOLE).trying("listen for the terminal")?;
            let oci = build(base.with_console_socket(Some(console)), dir)?;
            let master = receive_terminal(&listener)?;
            // It has served; the directory goes with the container anyway.
            let _ = std::fs::remove_file(CONSOLE);
            (oci, Stdio::terminal(master)?)
        } else {
            let (pipes, stdio) = pipes(settings, &spec)?;
            let [stdin, stdout, stderr] = pipes;
            let base = base
                .with_stdin(stdin)
                .with_stdout(stdout)
                .with_stderr(stderr);
            (build(base, dir)?, stdio)
        };
        let pid = oci.pid().ok_or("it has no process")?.as_raw();
        Ok(Self {
            dir: dir.to_owned(),
            spec,
            oci,
            pid,
            pidfd: pidfd_open(pid).trying("open the process")?,
            stdio,
        })
    }

    /// Lets the program run.
    pub(crate) fn start(&mut self) -> Result<()> {
        self.oci.start().map_err(|error| chain(&error))
    }

    /// Sends a signal to the main process.
    pub(crate) fn signal(&self, signal: i32) -> Result<()> {
        // SAFETY: the descriptor is open and no memory is passed.
        let status = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.pidfd.as_raw_fd(),
                signal,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
        match Errno::result(status) {
            // It has died and is about to be reaped: the signal came too late, which is no error.
            Ok(_) | Err(Errno::ESRCH) => Ok(()),
            Err(error) => Err(format!("send signal {signal}: {error}")),
        }
    }

    /// The container's directory.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The container's specification.
    pub(crate) fn spec(&self) -> &Spec {
        &self.spec
    }

    /// The directory below which libcontainer finds this container's state.
    pub(crate) fn state_dir(&self) -> PathBuf {
        self.dir.join(OCI_STATE)
    }
}

fn build(base: ContainerBuilder, dir: &Path) -> Result<OciContainer> {
    base.as_init(dir)
        .with_systemd(false)
        .with_detach(true)
        .build()
        .map_err(|error| causes::with_cause(&chain(&error)))
}

/// The container's ends of three pipes, and the shim's. The container's belong to its user, so that `/dev/stdout` can be
/// opened by a program that is not root.
fn pipes(settings: &Settings, spec: &Spec) -> Result<([OwnedFd; 3], Stdio)> {
    let (stdin, stdin_ours) = if settings.open_stdin {
        let (theirs, ours) = pipe2(OFlag::O_CLOEXEC).trying("make a pipe")?;
        (theirs, Some(ours))
    } else {
        let null = File::open("/dev/null").trying("open /dev/null")?;
        (OwnedFd::from(null), None)
    };
    let (stdout_ours, stdout) = pipe2(OFlag::O_CLOEXEC).trying("make a pipe")?;
    let (stderr_ours, stderr) = pipe2(OFlag::O_CLOEXEC).trying("make a pipe")?;
    if let Some(user) = spec.process().as_ref().map(|process| process.user()) {
        let (uid, gid) = (Uid::from_raw(user.uid()), Gid::from_raw(user.gid()));
        let ends = [
            settings.open_stdin.then_some(&stdin),
            Some(&stdout),
            Some(&stderr),
        ];
        for end in ends.into_iter().flatten() {
            fchown(end.as_raw_fd(), Some(uid), Some(gid)).trying("give the pipes to the user")?;
        }
    }
    let ours = Stdio::pipes(stdin_ours, stdout_ours, stderr_ours)?;
    Ok(([stdin, stdout, stderr], ours))
}

fn pidfd_open(pid: i32) -> nix::Result<OwnedFd> {
    // SAFETY: no memory is passed; the result is checked.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    let fd = i32::try_from(fd).map_err(|_| Errno::EBADF)?;
    // SAFETY: the descriptor was made by the call above and belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// An error and its causes in one line, without saying the same thing twice.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !line.contains(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        cause = error.source();
    }
    line.replace('\n', " ")
}

/// Makes reads and writes on a descriptor return at once.
pub(crate) fn set_nonblocking(fd: impl AsFd) -> Result<()> {
    use nix::fcntl::{FcntlArg, fcntl};
    let raw = fd.as_fd().as_raw_fd();
    let flags = fcntl(raw, FcntlArg::F_GETFL).trying("read descriptor flags")?;
    let flags = OFlag::from_bits_truncate(flags) | OFlag::O_NONBLOCK;
    fcntl(raw, FcntlArg::F_SETFL(flags)).trying("set descriptor flags")?;
    Ok(())
}
