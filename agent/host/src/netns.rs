//! Network namespaces that outlive us: bind mounts below one directory.
//!
//! A socket belongs for ever to the namespace it was made in, so nothing here keeps a thread in a
//! foreign one: short-lived threads enter, open what is needed, and end.

use std::{
    fs, io,
    net::{SocketAddrV4, TcpListener, UdpSocket},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        linux::fs::MetadataExt,
    },
    path::{Path, PathBuf},
    thread,
};

use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
    sys::statfs::{FsType, statfs},
};

use crate::error::{Context, HostError, Result};

/// Where a node keeps its namespaces.
pub const DIRECTORY: &str = "/run/skep/netns";
/// `NSFS_MAGIC` of linux/magic.h, which libc does not have.
const NSFS: i64 = 0x6e73_6673;
/// How many mounts may be stacked on one name before we give up on it.
const MAX_STACKED: usize = 16;

/// The namespaces below one directory.
#[derive(Debug, Clone)]
pub struct Namespaces {
    directory: PathBuf,
}

/// What tells a namespace from another that takes its name later.
pub type Identity = (u64, u64);

impl Namespaces {
    /// Those below `directory`, which is made when it is first needed.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
        }
    }

    /// Where the namespace of that name is mounted.
    ///
    /// # Errors
    /// When the name could leave the directory.
    pub fn path(&self, name: &str) -> Result<PathBuf> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        if name.is_empty() || name.len() > 64 || !name.bytes().all(plain) {
            let why = "the name may have letters, digits, - and _ only";
            return Err(HostError::new("name namespace", name, why));
        }
        Ok(self.directory.join(name))
    }

    /// The names of those that are there, in order.
    ///
    /// # Errors
    /// When the directory cannot be read. One that does not exist is empty.
    pub fn list(&self) -> Result<Vec<String>> {
        let entries = match fs::read_dir(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.context("read directory", self.directory.display())?,
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.context("read directory", self.directory.display())?;
            let name = entry.file_name().into_string().unwrap_or_default();
            if self.path(&name).is_ok_and(|path| is_namespace(&path)) {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    /// Makes a namespace; one that is there already is kept.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn create(&self, name: &str) -> Result<()> {
        let path = self.path(name)?;
        if is_namespace(&path) {
            return Ok(());
        }
        let op = "create namespace";
        fs::create_dir_all(&self.directory).context(op, name)?;
        fs::write(&path, []).context(op, name)?;
        let mounted = in_thread(move || {
            unshare(CloneFlags::CLONE_NEWNET)?;
            let own = "/proc/thread-self/ns/net";
            mount(
                Some(own),
                &path,
                None::<&str>,
                MsFlags::MS_BIND,
                None::<&str>,
            )
        });
        mounted.context(op, name)?.context(op, name)
    }

    /// Opens a namespace.
    ///
    /// # Errors
    /// When it is not there.
    pub fn open(&self, name: &str) -> Result<OwnedFd> {
        let path = self.path(name)?;
        let file = fs::File::open(&path).context("open namespace", name)?;
        if !is_namespace(&path) {
            return Err(HostError::new(
                "open namespace",
                name,
                "nothing is mounted there",
            ));
        }
        Ok(file.into())
    }

    /// Mounts a namespace in its place again if nothing is there. True if it is this one that has the place now.
    ///
    /// # Errors
    /// When the descriptor is not of a namespace, or the kernel refuses.
    pub fn restore(&self, name: &str, namespace: BorrowedFd<'_>) -> Result<bool> {
        let op = "restore namespace";
        let own = PathBuf::from(format!("/proc/self/fd/{}", namespace.as_raw_fd()));
        if !is_namespace(&own) {
            return Err(HostError::new(op, name, "the descriptor is not of one"));
        }
        let meta = fs::metadata(&own).context(op, name)?;
        let identity = (meta.st_dev(), meta.st_ino());
        if let Some(there) = self.identity(name) {
            return Ok(there == identity);
        }
        let path = self.path(name)?;
        fs::create_dir_all(&self.directory).context(op, name)?;
        fs::write(&path, []).context(op, name)?;
        let flags = MsFlags::MS_BIND;
        mount(Some(&own), &path, None::<&str>, flags, None::<&str>).context(op, name)?;
        Ok(true)
    }

    /// What the namespace is now; none when there is none.
    pub fn identity(&self, name: &str) -> Option<Identity> {
        let path = self.path(name).ok()?;
        let meta = is_namespace(&path)
            .then(|| fs::metadata(&path).ok())
            .flatten()?;
        Some((meta.st_dev(), meta.st_ino()))
    }

    /// Removes a namespace; none is fine. It lives on while a process is in it or a descriptor open.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn delete(&self, name: &str) -> Result<()> {
        let op = "delete namespace";
        let path = self.path(name)?;
        for _ in 0..MAX_STACKED {
            match umount2(&path, MntFlags::MNT_DETACH) {
                Ok(()) => {}
                Err(Errno::EINVAL | Errno::ENOENT) => break,
                Err(error) => return Err(HostError::new(op, name, error)),
            }
        }
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(HostError::new(op, name, error))
            }
            _ => Ok(()),
        }
    }
}

/// The namespace that the calling thread is in.
///
/// # Errors
/// When `/proc` is not mounted.
pub fn current() -> Result<OwnedFd> {
    let path = "/proc/thread-self/ns/net";
    Ok(fs::File::open(path).context("open namespace", path)?.into())
}

fn is_namespace(path: &Path) -> bool {
    statfs(path).is_ok_and(|stat| stat.filesystem_type() == FsType(NSFS))
}

/// Runs `work` on a thread of its own inside the namespace and waits for it.
///
/// # Errors
/// When the namespace cannot be entered.
pub fn enter<T: Send>(ns: BorrowedFd<'_>, work: impl FnOnce() -> T + Send) -> Result<T> {
    let op = "enter namespace";
    let entered = in_thread(|| setns(ns, CloneFlags::CLONE_NEWNET).map(|()| work()));
    entered.context(op, "")?.context(op, "")
}

/// The same for a caller that must not block.
///
/// # Errors
/// When the namespace cannot be entered.
pub async fn enter_async<T: Send + 'static>(
    ns: BorrowedFd<'_>,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T> {
    let op = "enter namespace";
    let ns = ns.try_clone_to_owned().context(op, "")?;
    let (reply, answer) = tokio::sync::oneshot::channel();
    thread::Builder::new()
        .name("netns".to_owned())
        .spawn(move || {
            let done = setns(ns.as_fd(), CloneFlags::CLONE_NEWNET).map(|()| work());
            // Nobody waits any more: then the result is of no use.
            let _ = reply.send(done);
        })
        .context(op, "")?;
    answer.await.context(op, "")?.context(op, "")
}

fn in_thread<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new()
            .name("netns".to_owned())
            .spawn_scoped(scope, work)?;
        thread
            .join()
            .map_err(|_| io::Error::other("the thread panicked"))
    })
}

/// A UDP socket and a TCP listener on the same address inside a namespace, both non-blocking.
///
/// # Errors
/// When the address is taken or cannot be had (`lo` must be up).
pub fn bind_in_netns(
    ns: BorrowedFd<'_>,
    address: SocketAddrV4,
) -> Result<(UdpSocket, TcpListener)> {
    let bind = || {
        let udp = UdpSocket::bind(address)?;
        let tcp = TcpListener::bind(address)?;
        udp.set_nonblocking(true)?;
        tcp.set_nonblocking(true)?;
        io::Result::Ok((udp, tcp))
    };
    enter(ns, bind)?.context("listen on", address)
}
