//! Unpacks a layer into a directory of its own, in the form in which overlayfs stacks it.
//!
//! Every path is looked up inside that directory by the kernel (`openat2`, `RESOLVE_IN_ROOT`), and the last part of each is
//! made relative to an open parent without following anything: no link of a layer, however it got there, leads outside.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    self, AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;

use super::tar_reader::{Entry, Kind, TarError, TarReader};
use crate::rooted::{Rooted, remove_tree};

/// What a layer may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Budget {
    /// Bytes of data in all files.
    pub(super) bytes: u64,
    /// Files, links and directories.
    pub(super) entries: u64,
    /// Bytes that must stay free on the file system: the node's own state lives there too.
    pub(super) keep_free: u64,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            bytes: 32 << 30,
            entries: 4_000_000,
            keep_free: 64 << 20,
        }
    }
}

/// Why a layer was not unpacked.
#[derive(Debug, thiserror::Error)]
pub(super) enum UnpackError {
    /// The archive is not one, or ends too early.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// An entry was refused or could not be made.
    #[error("{path:?}: {why}")]
    Entry {
        /// Its path in the archive.
        path: PathBuf,
        /// The reason.
        why: String,
    },
    /// The layer is larger than a layer may be.
    #[error("the layer has more than {0}")]
    TooLarge(String),
    /// The disk is full but for the reserve.
    #[error("no space left on the state partition")]
    NoSpace,
}

type Result<T> = std::result::Result<T, UnpackError>;

/// Prefix of names that take something of the layers below away.
const WHITEOUT: &[u8] = b".wh.";
/// The name that takes everything of a directory away.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Prefix of aufs's own records, which mean nothing here.
const AUFS: &[u8] = b".wh..wh.";
/// Directories whose times are set at the end.
const MAX_DIR_TIMES: usize = 100_000;
/// Data written between two looks at the free space.
const SPACE_CHECK: u64 = 16 << 20;
/// Entries made between two looks: they take blocks and inodes without any data.
const ENTRIES_CHECK: u64 = 1000;
/// Inodes that must stay free.
const INODES_FREE: u64 = 4096;

/// Unpacks `archive` below `dir`, an empty directory, and gives the number of bytes in its files.
pub(super) fn unpack(archive: impl Read, dir: &Path, budget: Budget) -> Result<u64> {
    let root = Rooted::open(dir).map_err(|error| entry_error(dir, error))?;
    let mut unpacker = Unpacker {
        root,
        budget,
        written: 0,
        checked: 0,
        entries: 0,
        dir_times: BTreeMap::new(),
        parent: None,
    };
    let mut reader = TarReader::new(archive);
    while let Some(entry) = reader.next()? {
        unpacker.entries += 1;
        if unpacker.entries > budget.entries {
            return Err(UnpackError::TooLarge(format!("{} entries", budget.entries)));
        }
        if unpacker.entries.is_multiple_of(ENTRIES_CHECK) {
            unpacker.look_at_space(dir)?;
        }
        unpacker.add(&entry, &mut reader)?;
    }
    // What follows the archive belongs to the layer's digest.
    let mut rest = reader.into_inner().take(budget.bytes);
    io::copy(&mut rest, &mut io::sink()).map_err(TarError::Read)?;
    unpacker.set_dir_times()?;
    Ok(unpacker.written)
}

fn entry_error(path: &Path, why: impl ToString) -> UnpackError {
    UnpackError::Entry {
        path: path.to_owned(),
        why: why.to_string(),
    }
}

struct Unpacker {
    root: Rooted,
    budget: Budget,
    written: u64,
    checked: u64,
    entries: u64,
    /// Times of directories, which everything made in them would change.
    dir_times: BTreeMap<PathBuf, Timestamps>,
    /// The directory of the last entry. Forgotten whenever something other than a plain file is made.
    parent: Option<(PathBuf, OwnedFd)>,
}

impl Unpacker {
    fn add(&mut self, entry: &Entry, data: &mut impl Read) -> Result<()> {
        let path = clean(&entry.path)?;
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return self.set_root(entry);
        };
        if self
            .parent
            .as_ref()
            .is_none_or(|(known, _)| known != parent)
        {
            let opened = self.root.make_dirs(parent);
            let opened = opened.map_err(|error| entry_error(&path, error))?;
            self.parent = Some((parent.to_owned(), opened));
        }
        let Some((_, dir)) = self.parent.take() else {
            return Ok(());
        };
        let parent = parent.to_owned();
        let bytes = name.as_bytes();
        let plain = entry.kind == Kind::File && !bytes.starts_with(WHITEOUT);
        let made = if bytes.starts_with(WHITEOUT) {
            whiteout(dir.as_fd(), bytes)
        } else {
            self.make(dir.as_fd(), name, &path, entry, data)
        };
        made.map_err(|error| match error {
            MakeError::Io(error) => io_error(&path, &error),
            MakeError::Whole(error) => error,
        })?;
        self.parent = plain.then_some((parent, dir));
        Ok(())
    }

    fn make(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        path: &Path,
        entry: &Entry,
        data: &mut impl Read,
    ) -> std::result::Result<(), MakeError> {
        let was_whiteout = clear_place(dir, name, entry.kind)?;
        match entry.kind {
            Kind::File => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                let file = fs::openat(dir, name, flags, Mode::from_raw_mode(0o600))?;
                let mut file = std::fs::File::from(file);
                self.write(&mut file, entry.size, data)?;
                set_attributes(file.as_fd(), entry)?;
                fs::futimens(&file, &times(entry))?;
            }
            Kind::Directory => {
                match fs::mkdirat(dir, name, Mode::from_raw_mode(0o755)) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(error) => return Err(error.into()),
                }
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let made = fs::openat(dir, name, flags, Mode::empty())?;
                set_attributes(made.as_fd(), entry)?;
                if was_whiteout {
                    make_opaque(made.as_fd())?;
                }
                if self.dir_times.len() < MAX_DIR_TIMES {
                    self.dir_times.insert(path.to_owned(), times(entry));
                }
            }
            Kind::Symlink => {
                fs::symlinkat(OsStr::from_bytes(&entry.link), dir, name)?;
                own(dir, name, entry)?;
                fs::utimensat(dir, name, &times(entry), AtFlags::SYMLINK_NOFOLLOW)?;
            }
            Kind::HardLink => self.hard_link(dir, name, entry)?,
            Kind::Fifo => make_node(dir, name, FileType::Fifo, entry)?,
            Kind::Character => make_node(dir, name, FileType::CharacterDevice, entry)?,
            Kind::Block => make_node(dir, name, FileType::BlockDevice, entry)?,
        }
        Ok(())
    }

    /// Another name for a file of this layer. A file of a layer below would have been copied here by whoever built the image.
    fn hard_link(
        &self,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        entry: &Entry,
    ) -> std::result::Result<(), MakeError> {
        let target = clean(&entry.link).map_err(MakeError::Whole)?;
        let (Some(parent), Some(base)) = (target.parent(), target.file_name()) else {
            return Err(io::Error::other("hard link to the root").into());
        };
        let missing = |error: io::Error| {
            let why = format!("hard link to {}: {error}", target.display());
            io::Error::new(error.kind(), why)
        };
        let from = self
            .root
            .open_at(parent, OFlags::PATH | OFlags::DIRECTORY)
            .map_err(missing)?;
        let linked = fs::linkat(&from, base, dir, name, AtFlags::empty());
        Ok(linked.map_err(|error| missing(error.into()))?)
    }

    fn write(
        &mut self,
        file: &mut std::fs::File,
        size: u64,
        data: &mut impl Read,
    ) -> std::result::Result<(), MakeError> {
        let total = self.written.saturating_add(size);
        if total > self.budget.bytes {
            let limit = format!("{} bytes", self.budget.bytes);
            return Err(MakeError::Whole(UnpackError::TooLarge(limit)));
        }
        let mut buffer = vec![0; 64 * 1024];
        let mut left = size;
        while left > 0 {
            let count = data.read(&mut buffer)?;
            if count == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            file.write_all(&buffer[..count])?;
            let count = u64::try_from(count).unwrap_or(0);
            left = left.saturating_sub(count);
            self.written += count;
            self.check_space(file)?;
        }
        Ok(())
    }

    fn check_space(&mut self, file: &std::fs::File) -> std::result::Result<(), MakeError> {
        if self.written < self.checked {
            return Ok(());
        }
        self.checked = self.written + SPACE_CHECK;
        self.judge(&fs::fstatvfs(file)?).map_err(MakeError::Whole)
    }

    fn look_at_space(&self, dir: &Path) -> Result<()> {
        let space = fs::fstatvfs(self.root.fd()).map_err(|error| entry_error(dir, error))?;
        self.judge(&space)
    }

    fn judge(&self, space: &fs::StatVfs) -> Result<()> {
        let bytes = space.f_bavail.saturating_mul(space.f_frsize);
        // A file system without a table of inodes says that it has none at all.
        let inodes = space.f_files == 0 || space.f_favail >= INODES_FREE;
        if bytes < self.budget.keep_free || !inodes {
            return Err(UnpackError::NoSpace);
        }
        Ok(())
    }

    fn set_root(&mut self, entry: &Entry) -> Result<()> {
        let set = || -> io::Result<()> {
            if entry.kind != Kind::Directory {
                return Err(io::Error::other("the root must be a directory"));
            }
            set_attributes(self.root.fd(), entry)
        };
        set().map_err(|error| io_error(Path::new("/"), &error))?;
        self.dir_times.insert(PathBuf::new(), times(entry));
        Ok(())
    }

    fn set_dir_times(&self) -> Result<()> {
        for (path, times) in self.dir_times.iter().rev() {
            // A later entry may have put something else in its place.
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
            if let Ok(dir) = self.root.open_at(path, flags) {
                fs::futimens(&dir, times).map_err(|error| entry_error(path, error))?;
            }
        }
        Ok(())
    }
}

/// Why one entry was not made.
enum MakeError {
    /// The system said no.
    Io(io::Error),
    /// The whole layer is refused.
    Whole(UnpackError),
}

impl From<io::Error> for MakeError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<Errno> for MakeError {
    fn from(error: Errno) -> Self {
        Self::Io(error.into())
    }
}

/// Errors that are the archive's or the disk's keep their kind.
fn io_error(path: &Path, error: &io::Error) -> UnpackError {
    use io::ErrorKind::{QuotaExceeded, StorageFull, UnexpectedEof};
    let kind = error.kind();
    if kind == StorageFull || kind == QuotaExceeded {
        UnpackError::NoSpace
    } else if kind == UnexpectedEof {
        UnpackError::Tar(TarError::Read(UnexpectedEof.into()))
    } else {
        entry_error(path, error)
    }
}

/// The path inside the layer. One that climbs is refused, whatever it would lead to.
fn clean(path: &[u8]) -> Result<PathBuf> {
    let mut clean = PathBuf::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                let path = Path::new(OsStr::from_bytes(path));
                return Err(entry_error(path, "the path leaves the layer"));
            }
            part => clean.push(OsStr::from_bytes(part)),
        }
    }
    Ok(clean)
}

/// `.wh.<name>` becomes overlayfs's whiteout, `.wh..wh..opq` its mark of an opaque directory.
fn whiteout(dir: BorrowedFd<'_>, name: &[u8]) -> std::result::Result<(), MakeError> {
    if name == OPAQUE {
        return Ok(make_opaque(dir)?);
    }
    if name.starts_with(AUFS) {
        return Ok(());
    }
    let hidden = name.strip_prefix(WHITEOUT).unwrap_or_default();
    if matches!(hidden, b"" | b"." | b"..") {
        return Err(io::Error::other("a whiteout of nothing").into());
    }
    let device = fs::makedev(0, 0);
    let name = OsStr::from_bytes(hidden);
    match fs::mknodat(dir, name, FileType::CharacterDevice, Mode::empty(), device) {
        Ok(()) => Ok(()),
        Err(Errno::EXIST) => hide_below(dir, name),
        Err(error) => Err(error.into()),
    }
}

/// A whiteout is about the layers below; what this layer itself has at the place stays. A directory would let the content
/// of theirs show through.
fn hide_below(dir: BorrowedFd<'_>, name: &OsStr) -> std::result::Result<(), MakeError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match fs::openat(dir, name, flags, Mode::empty()) {
        Ok(made) => Ok(make_opaque(made.as_fd())?),
        Err(Errno::NOTDIR | Errno::LOOP) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn make_opaque(dir: BorrowedFd<'_>) -> io::Result<()> {
    // The directory may be open for its path only.
    let path = proc_path(dir, OsStr::new("."));
    Ok(fs::setxattr(
        path,
        "trusted.overlay.opaque",
        b"y",
        XattrFlags::empty(),
    )?)
}

/// Takes away what an earlier entry made at the place, but keeps a directory for a directory. True if it was a whiteout.
fn clear_place(dir: BorrowedFd<'_>, name: &OsStr, kind: Kind) -> io::Result<bool> {
    let there = match fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(there) => there,
        Err(Errno::NOENT) => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    let there_kind = FileType::from_raw_mode(there.st_mode);
    if there_kind == FileType::Directory {
        if kind != Kind::Directory {
            remove_tree(&proc_path(dir, name))?;
        }
        return Ok(false);
    }
    fs::unlinkat(dir, name, AtFlags::empty())?;
    Ok(there_kind == FileType::CharacterDevice && there.st_rdev == 0)
}

fn make_node(
    dir: BorrowedFd<'_>,
    name: &OsStr,
    kind: FileType,
    entry: &Entry,
) -> std::result::Result<(), MakeError> {
    let (major, minor) = entry.device;
    if kind == FileType::CharacterDevice && (major, minor) == (0, 0) {
        return Err(io::Error::other("device 0:0 is overlayfs's mark, not a device").into());
    }
    let device = fs::makedev(major, minor);
    fs::mknodat(dir, name, kind, Mode::from_raw_mode(0o600), device)?;
    own(dir, name, entry)?;
    // Not a link: it has just been made.
    let mode = Mode::from_raw_mode(entry.mode);
    fs::chmodat(dir, name, mode, AtFlags::empty())?;
    fs::utimensat(dir, name, &times(entry), AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(())
}

fn own(dir: BorrowedFd<'_>, name: &OsStr, entry: &Entry) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
    Ok(fs::chownat(
        dir,
        name,
        Some(uid),
        Some(gid),
        AtFlags::SYMLINK_NOFOLLOW,
    )?)
}

/// Owner first: a change of owner takes setuid bits and capabilities away.
fn set_attributes(fd: BorrowedFd<'_>, entry: &Entry) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
    fs::fchown(fd, Some(uid), Some(gid))?;
    fs::fchmod(fd, Mode::from_raw_mode(entry.mode))?;
    for (name, value) in &entry.xattrs {
        // Capabilities of files and users' own attributes. The rest belongs to the system that the layer was built on, and
        // `trusted.overlay.` to ours.
        if name == b"security.capability" || name.starts_with(b"user.") {
            fs::fsetxattr(fd, name.as_slice(), value, XattrFlags::empty())?;
        }
    }
    Ok(())
}

fn times(entry: &Entry) -> Timestamps {
    let (seconds, nanos) = entry.mtime;
    let time = Timespec {
        tv_sec: seconds,
        tv_nsec: i64::from(nanos),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

/// A path for calls that take no descriptor: only its last part is looked up.
fn proc_path(dir: BorrowedFd<'_>, name: &OsStr) -> PathBuf {
    Path::new("/proc/self/fd")
        .join(dir.as_raw_fd().to_string())
        .join(name)
}

#[cfg(test)]
#[path = "unpack_tests.rs"]
mod tests;
