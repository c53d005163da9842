//! Copies what an image has at a path into a new volume, owners, modes, links and extended attributes included.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{self, AtFlags, Dir, FileType, Gid, Mode, OFlags, RawMode, Stat, Uid, XattrFlags};
use rustix::io::Errno;

use crate::rooted::Rooted;

/// Directories deeper than this are refused: the copy holds a descriptor for each level.
const MAX_DEPTH: u32 = 256;

/// Copies the directory at `source` in `root` over the empty directory `target`. Nothing at the source is nothing to do.
pub(super) fn copy_tree(root: &Rooted, source: &Path, target: &Path) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let source = match root.open_at(source, flags) {
        Ok(fd) => fd,
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    let target = fs::open(target, flags | OFlags::CLOEXEC, Mode::empty())?;
    copy_dir(source.as_fd(), target.as_fd(), 0)
}

fn copy_dir(source: BorrowedFd<'_>, target: BorrowedFd<'_>, depth: u32) -> io::Result<()> {
    if depth > MAX_DEPTH {
        return Err(io::Error::other(format!(
            "more than {MAX_DEPTH} directories inside each other"
        )));
    }
    for entry in Dir::read_from(source)? {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            copy_entry(source, target, name, depth)?;
        }
    }
    copy_attributes(source, target)
}

fn copy_entry(
    source: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
    name: &CStr,
    depth: u32,
) -> io::Result<()> {
    let stat = fs::statat(source, name, AtFlags::SYMLINK_NOFOLLOW)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => {
            fs::mkdirat(target, name, Mode::from_raw_mode(0o700))?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
            let from = open(source, name, flags)?;
            let to = open(target, name, flags)?;
            copy_dir(from.as_fd(), to.as_fd(), depth + 1)
        }
        FileType::RegularFile => {
            let from = open(
                source,
                name,
                OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK,
            )?;
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let to = fs::openat(target, name, flags, Mode::from_raw_mode(0o600))?;
            let (mut from, mut to) = (std::fs::File::from(from), std::fs::File::from(to));
            io::copy(&mut from, &mut to)?;
            copy_attributes(from.as_fd(), to.as_fd())
        }
        FileType::Symlink => {
            let link = fs::readlinkat(source, name, Vec::new())?;
            fs::symlinkat(link, target, name)?;
            own(target, name, &stat)
        }
        kind @ (FileType::Fifo
        | FileType::Socket
        | FileType::CharacterDevice
        | FileType::BlockDevice) => {
            let mode = Mode::from_raw_mode(stat.st_mode);
            fs::mknodat(target, name, kind, mode, stat.st_rdev)?;
            own(target, name, &stat)
        }
        FileType::Unknown => Err(io::Error::other(format!("{name:?} is of an unknown kind"))),
    }
}

fn open(dir: BorrowedFd<'_>, name: &CStr, flags: OFlags) -> io::Result<OwnedFd> {
    Ok(fs::openat(
        dir,
        name,
        flags | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}

fn own(dir: BorrowedFd<'_>, name: &CStr, stat: &Stat) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    fs::chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(())
}

/// Owner first, then mode and capabilities: changing the owner takes setuid bits and capabilities away.
fn copy_attributes(source: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    let stat = fs::fstat(source)?;
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    fs::fchown(target, Some(uid), Some(gid))?;
    fs::fchmod(
        target,
        Mode::from_raw_mode(stat.st_mode & RawMode::from(0o7777_u16)),
    )?;
    let mut names = vec![0; 64 * 1024];
    let length = match fs::flistxattr(source, &mut names) {
        Ok(length) => length,
        Err(Errno::OPNOTSUPP) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    for name in names[..length].split_inclusive(|byte| *byte == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else {
            continue;
        };
        // overlayfs keeps its own records in `trusted.overlay.`.
        if name.to_bytes().starts_with(b"trusted.") {
            continue;
        }
        let mut value = vec![0; 64 * 1024];
        let length = fs::fgetxattr(source, name, &mut value)?;
        fs::fsetxattr(target, name, &value[..length], XattrFlags::empty())?;
    }
    Ok(())
}
