//! The last step inside a container: find the program, undo what the shim's process had changed, execute it.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use libcontainer::workload::{Executor, ExecutorError, ExecutorValidationError};
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::unistd::{AccessFlags, access, execv};
use oci_spec::runtime::{LinuxSeccomp, Spec};

/// Executes the program of a container or of an `exec`.
#[derive(Clone)]
pub(crate) struct Program {
    seccomp: Option<LinuxSeccomp>,
    tenant: bool,
}

impl Program {
    /// The main program of a container; libcontainer sees to its filter.
    pub(crate) fn main() -> Self {
        Self {
            seccomp: None,
            tenant: false,
        }
    }

    /// The program of an `exec`, with its filter: libcontainer installs none for processes that join a container.
    pub(crate) fn tenant(seccomp: Option<LinuxSeccomp>) -> Self {
        Self {
            seccomp,
            tenant: true,
        }
    }
}

impl Executor for Program {
    fn exec(&self, spec: &Spec) -> std::result::Result<(), ExecutorError> {
        let path = find(spec).map_err(ExecutorError::Other)?;
        reset_signals();
        if let Some(seccomp) = &self.seccomp {
            libcontainer::seccomp::initialize_seccomp(seccomp).map_err(|error| {
                ExecutorError::Other(format!("install seccomp filter: {error}"))
            })?;
        }
        let error = execute(&path, spec);
        if self.tenant {
            return Err(ExecutorError::Other(format!(
                "exec {}: {error}",
                path.display()
            )));
        }
        // The container was started already, so its own output is the place to say it, as runc does.
        crate::complain(&format!("exec {}: {error}", path.display()));
        // SAFETY: ends the process at once; there is nothing in it to clean up.
        unsafe { libc::_exit(126) }
    }

    fn validate(&self, spec: &Spec) -> std::result::Result<(), ExecutorValidationError> {
        find(spec)
            .map(|_| ())
            .map_err(ExecutorValidationError::ArgValidationError)
    }
}

fn execute(path: &Path, spec: &Spec) -> String {
    let args = spec.process().as_ref().and_then(|p| p.args().clone());
    let args: std::result::Result<Vec<_>, _> = args
        .unwrap_or_default()
        .into_iter()
        .map(CString::new)
        .collect();
    match (CString::new(path.as_os_str().as_bytes()), args) {
        (Ok(path), Ok(args)) => match execv(&path, &args) {
            Err(error) => error.desc().to_lowercase(),
        },
        (Err(_), _) | (_, Err(_)) => "an argument has a NUL byte".to_owned(),
    }
}

/// Rust ignores SIGPIPE, glibc's `posix_spawn` its own two signals, and the shim blocks SIGCHLD; a program expects none of it.
fn reset_signals() {
    // The kernel's `struct sigaction`, four words of zeros: the default action. Not by the C library, which does not touch
    // the signals it keeps to itself.
    let default = [0_usize; 4];
    for signal in 1..=64 {
        // SAFETY: the kernel reads as much as is there; what has no other action (9, 19) is refused without harm.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                std::ptr::null::<usize>(),
                size_of::<u64>(),
            )
        };
    }
    // Cannot fail with these arguments.
    let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None);
}

/// Finds the program as `execvp` would, in the container and as its user, and says what Docker's users know if it cannot be run.
fn find(spec: &Spec) -> std::result::Result<PathBuf, String> {
    let process = spec.process().as_ref().ok_or("no process given")?;
    let name = process
        .args()
        .as_ref()
        .and_then(|args| args.first())
        .ok_or("no command specified")?;
    if name.contains('/') {
        return runnable(Path::new(name))
            .map(|()| PathBuf::from(name))
            .map_err(|why| format!("exec: {name:?}: {why}"));
    }
    let path = process
        .env()
        .iter()
        .flatten()
        .find_map(|entry| entry.strip_prefix("PATH="))
        .unwrap_or_default();
    path.split(':')
        .map(|dir| Path::new(if dir.is_empty() { "." } else { dir }).join(name))
        .find(|candidate| runnable(candidate).is_ok())
        .ok_or_else(|| format!("exec: {name:?}: executable file not found in $PATH"))
}

fn runnable(path: &Path) -> std::result::Result<(), &'static str> {
    let metadata = path
        .metadata()
        .map_err(|error| match error.raw_os_error() {
            Some(libc::EACCES) => "permission denied",
            _ => "no such file or directory",
        })?;
    if metadata.is_dir() {
        return Err("is a directory");
    }
    access(path, AccessFlags::X_OK).map_err(|_| "permission denied")
}
