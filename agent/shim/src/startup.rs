//! From the moment of exec to a created container and a listening socket.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, umask};
use nix::unistd;

use crate::causes;
use crate::client::Listener;
use crate::container::Container;
use crate::event_loop::EventLoop;
use crate::protocol::{PROVIDED, ROOTFS, Ready, SETTINGS, SOCKET, Settings};
use crate::{Result, Trying};

/// What skepd passed on: descriptors 0 and 1, and one of which it has told the number.
struct Inherited {
    root: OwnedFd,
    provided: Option<OwnedFd>,
    ready: File,
}

/// Makes the container in `dir` and tells skepd how that went.
pub(crate) fn start(dir: &Path, provided: Option<RawFd>) -> Result<EventLoop> {
    let Inherited {
        root,
        provided,
        mut ready,
    } = take_inherited(provided)?;
    let result = create(dir, root, provided);
    let message = match &result {
        Ok(event_loop) => Ready::Created {
            pid: event_loop.pid(),
        },
        Err(why) => Ready::Failed { why: why.clone() },
    };
    let mut line = serde_json::to_vec(&message).trying("write the answer")?;
    line.push(b'\n');
    // A skepd that died meanwhile finds this container by its socket.
    let _ = ready.write_all(&line);
    result
}

fn create(dir: &Path, root: OwnedFd, provided: Option<OwnedFd>) -> Result<EventLoop> {
    let dir = fs::canonicalize(dir).trying("find the container's directory")?;
    std::env::set_current_dir(&dir).trying("enter the container's directory")?;
    let settings = fs::read(SETTINGS).trying("read the settings")?;
    let settings: Settings = serde_json::from_slice(&settings).trying("read the settings")?;
    causes::keep()?;
    become_shim(&settings)?;
    attach(&dir.join(ROOTFS), &root)?;
    drop(root);
    if let Some(provided) = provided {
        attach(&dir.join(PROVIDED), &provided)?;
    }
    let listener = Listener::bind(SOCKET)?;
    let container = Container::create(&dir, &settings)?;
    // libcontainer gives the caller the container's score before it clones.
    let _ = fs::write("/proc/self/oom_score_adj", "-999");
    EventLoop::new(settings, listener, container)
}

/// Moves the descriptors out of the way of standard input and output, and closes all others: skepd was itself given
/// descriptors by systemd, and none of them may come near a container.
fn take_inherited(provided: Option<RawFd>) -> Result<Inherited> {
    let kept = provided.and_then(|number| libc::c_uint::try_from(number).ok());
    let others = match kept {
        Some(kept) => [
            (3, kept.wrapping_sub(1)),
            (kept.wrapping_add(1), libc::c_uint::MAX),
        ],
        None => [(3, libc::c_uint::MAX); 2],
    };
    for (first, last) in others {
        // An empty range is an error that is none.
        // SAFETY: this is the first thing the process does; nothing of it uses these descriptors yet.
        unsafe { libc::close_range(first, last, 0) };
    }
    // SAFETY: it was left open above and belongs to nobody else in this process.
    let provided = provided.map(|number| unsafe { OwnedFd::from_raw_fd(number) });
    // Copies close at an exec: none of it may come near a container.
    let provided = match provided {
        Some(provided) => Some(duplicate(provided.as_raw_fd())?),
        None => None,
    };
    let root = duplicate(0)?;
    let ready = duplicate(1)?;
    let null = File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
        .trying("open /dev/null")?;
    for standard in [0, 1] {
        unistd::dup2(null.as_raw_fd(), standard).trying("replace standard input and output")?;
    }
    Ok(Inherited {
        root,
        provided,
        ready: File::from(ready),
    })
}

fn duplicate(fd: RawFd) -> Result<OwnedFd> {
    // SAFETY: fcntl has no memory to get wrong; the result is checked below.
    let copy = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) };
    if copy < 0 {
        return Err(format!(
            "take over descriptor {fd}: {}",
            std::io::Error::last_os_error()
        ));
    }
    // SAFETY: the descriptor was made by the call above and belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// Leaves skepd's session and cgroup, and takes a mount namespace of its own.
fn become_shim(settings: &Settings) -> Result<()> {
    let procs = format!("{}/cgroup.procs", settings.shim_cgroup);
    fs::write(&procs, "0").trying(&format!("enter cgroup {}", settings.shim_cgroup))?;
    // Being a group leader already is no reason to stop: skepd may have seen to it.
    let _ = unistd::setsid();
    // The container inherits this mask unless its image says otherwise.
    umask(Mode::from_bits_truncate(0o022));
    unistd::setgroups(&[]).trying("drop supplementary groups")?;
    // SAFETY: prctl with these arguments reads no memory of ours.
    if unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) } != 0 {
        return Err(format!(
            "become the reaper: {}",
            std::io::Error::last_os_error()
        ));
    }
    unshare(CloneFlags::CLONE_NEWNS).trying("make a mount namespace")?;
    // Mounts of the node still arrive and, what matters more, still go; nothing goes back.
    mount(
        None::<&str>,
        "/",
        None::<&str>,
        MsFlags::MS_REC | MsFlags::MS_SLAVE,
        None::<&str>,
    )
    .trying("make the mounts of the node one-way")
}

/// Attaches what skepd mounted without a place. It exists in this namespace only, so that no crash can leave it behind.
fn attach(place: &Path, mounted: &OwnedFd) -> Result<()> {
    use std::os::unix::ffi::OsStrExt;
    let shown = place.display();
    let target = std::ffi::CString::new(place.as_os_str().as_bytes());
    let target = target.trying(&format!("name {shown}"))?;
    // SAFETY: both strings end with a NUL and outlive the call; the descriptor is open.
    let status = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mounted.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            target.as_ptr(),
            libc::MOVE_MOUNT_F_EMPTY_PATH,
        )
    };
    if status == 0 {
        Ok(())
    } else {
        Err(format!(
            "attach {shown}: {}",
            std::io::Error::last_os_error()
        ))
    }
}
