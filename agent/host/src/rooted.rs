//! A directory that is the whole world: every path is looked up as if it were `/`, with `..` and absolute links staying
//! inside (`openat2` with `RESOLVE_IN_ROOT`). For trees whose content was made by strangers.

use std::ffi::CStr;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path};

use rustix::fs::{self, AtFlags, Dir, Mode, OFlags, RenameFlags, ResolveFlags};
use rustix::io::Errno;

/// The directory.
#[derive(Debug)]
pub(crate) struct Rooted {
    fd: OwnedFd,
}

impl Rooted {
    /// Takes an open directory as the root.
    pub(crate) fn new(fd: OwnedFd) -> Self {
        Self { fd }
    }

    /// Opens a directory of the node as the root.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self::new(fs::open(path, flags, Mode::empty())?))
    }

    /// The root itself.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Gives the root away.
    pub(crate) fn into_fd(self) -> OwnedFd {
        self.fd
    }

    /// Opens what is at `path`. Unless `flags` say otherwise a link at its end is followed, inside.
    pub(crate) fn open_at(&self, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
        let path = relative(path);
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        // EAGAIN says that a rename on the way might have led outside: the kernel asks to try again.
        for _ in 0..32 {
            match fs::openat2(
                &self.fd,
                &path,
                flags | OFlags::CLOEXEC,
                Mode::empty(),
                resolve,
            ) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                result => return Ok(result?),
            }
        }
        Err(Errno::AGAIN.into())
    }

    /// The start of a regular file, at most `limit` bytes; `None` if there is no such file.
    pub(crate) fn read(&self, path: &Path, limit: u64) -> io::Result<Option<Vec<u8>>> {
        let file = match self.open_at(path, OFlags::RDONLY | OFlags::NONBLOCK) {
            Ok(fd) => std::fs::File::from(fd),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => return Ok(None),
            Err(error) => return Err(error),
        };
        if !file.metadata()?.is_file() {
            return Ok(None);
        }
        let mut content = Vec::new();
        file.take(limit).read_to_end(&mut content)?;
        Ok(Some(content))
    }

    /// Opens the directory at `path`, making it and its parents (mode 0755, owned by root) where they are not.
    pub(crate) fn make_dirs(&self, path: &Path) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        match self.open_at(path, flags) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            result => return result,
        }
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return self.open_at(path, flags);
        };
        let parent = self.make_dirs(parent)?;
        match fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        self.open_at(path, flags)
    }
}

/// Removes what is at `path`: a file, a link itself, or a directory with all that is in it. That nothing is there is well.
///
/// The tree may be a stranger's work, and as deep as it likes: what a directory inside holds is moved up beside it before
/// it is removed, so that no level costs a stack frame, a descriptor or a longer path.
pub(crate) fn remove_tree(path: &Path) -> io::Result<()> {
    match fs::unlink(path) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        // What a directory answers, by Linux and by POSIX.
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error.into()),
    }
    empty(&fs::open(path, INSIDE, Mode::empty())?)?;
    Ok(fs::rmdir(path)?)
}

const INSIDE: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

fn empty(top: &OwnedFd) -> io::Result<()> {
    let mut moved = 0;
    loop {
        let mut is_empty = true;
        for entry in Dir::read_from(top)? {
            let entry = entry?;
            let name = entry.file_name();
            if is_self_or_parent(name) {
                continue;
            }
            is_empty = false;
            if !removed(top, name)? {
                let inner = fs::openat(top, name, INSIDE, Mode::empty())?;
                lift(&inner, top, &mut moved)?;
                // Reading while moving may pass over an entry: the next round finds it.
                removed(top, name)?;
            }
        }
        if is_empty {
            return Ok(());
        }
    }
}

/// Removes what is in a directory, or moves it up where it is a directory that is not empty.
fn lift(inner: &OwnedFd, top: &OwnedFd, moved: &mut u64) -> io::Result<()> {
    for entry in Dir::read_from(inner)? {
        let entry = entry?;
        let name = entry.file_name();
        if is_self_or_parent(name) || removed(inner, name)? {
            continue;
        }
        loop {
            *moved += 1;
            let free = format!("skep-removed-{moved}");
            match fs::renameat_with(inner, name, top, free, RenameFlags::NOREPLACE) {
                Ok(()) => break,
                Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}

/// Whether it could be removed; a directory that is not empty could not.
fn removed(dir: &OwnedFd, name: &CStr) -> io::Result<bool> {
    match fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(true),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error.into()),
    }
    match fs::unlinkat(dir, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn is_self_or_parent(name: &CStr) -> bool {
    matches!(name.to_bytes(), b"." | b"..")
}

/// The path without what would make the kernel complain: leading slashes, and nothing at all.
fn relative(path: &Path) -> std::path::PathBuf {
    let parts = path.components().filter(|part| {
        !matches!(
            part,
            Component::RootDir | Component::Prefix(_) | Component::CurDir
        )
    });
    let path: std::path::PathBuf = parts.collect();
    if path.as_os_str().is_empty() {
        ".".into()
    } else {
        path
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// A container can make such a tree in a moment; removing it level by level on the stack would end the daemon.
    #[test]
    fn a_tree_may_be_as_deep_as_a_stranger_likes() {
        let dir = std::env::temp_dir().join(format!("skep-deep-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("victim")).unwrap();
        std::fs::write(dir.join("kept"), "outside").unwrap();
        let mut level = fs::open(dir.join("victim"), INSIDE, Mode::empty()).unwrap();
        for depth in 0..1_000 {
            for name in ["d", "e"] {
                fs::mkdirat(&level, name, Mode::from_raw_mode(0o700)).unwrap();
            }
            if depth % 100 == 0 {
                fs::symlinkat(dir.join("kept"), &level, "link").unwrap();
            }
            level = fs::openat(&level, "d", INSIDE, Mode::empty()).unwrap();
        }
        drop(level);
        // A stack on which one frame for each level would not fit.
        let victim = dir.join("victim");
        let small = std::thread::Builder::new().stack_size(128 * 1024);
        let remove = small.spawn(move || remove_tree(&victim));
        remove.unwrap().join().unwrap().unwrap();
        assert!(!dir.join("victim").exists() && dir.join("kept").exists());
        symlink(&dir, dir.join("loop")).unwrap();
        remove_tree(&dir.join("loop")).unwrap();
        remove_tree(&dir.join("nothing")).unwrap();
        assert!(dir.join("kept").exists());
        remove_tree(&dir).unwrap();
        assert!(!dir.exists());
    }

    #[test]
    fn no_link_leads_outside() {
        let dir = std::env::temp_dir().join(format!("skep-rooted-{}", std::process::id()));
        let root = dir.join("root");
        std::fs::create_dir_all(root.join("etc")).unwrap();
        std::fs::write(dir.join("secret"), "outside").unwrap();
        std::fs::write(root.join("etc/passwd"), "inside").unwrap();
        symlink("../../../../secret", root.join("up")).unwrap();
        symlink("/etc/passwd", root.join("absolute")).unwrap();
        symlink("/proc/self/root", root.join("magic")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        let rooted = Rooted::open(&root).unwrap();

        assert_eq!(rooted.read(Path::new("/up"), 100).unwrap(), None);
        assert_eq!(rooted.read(Path::new("../secret"), 100).unwrap(), None);
        assert_eq!(
            rooted.read(Path::new("absolute"), 4).unwrap(),
            Some(b"insi".to_vec())
        );
        assert_eq!(rooted.read(Path::new("etc"), 100).unwrap(), None);
        assert!(rooted.read(Path::new("loop"), 100).is_err());
        assert_eq!(
            rooted.read(Path::new("magic/etc/passwd"), 100).unwrap(),
            None
        );
        rooted.make_dirs(Path::new("/b/./c")).unwrap();
        rooted.make_dirs(Path::new("/../../d")).unwrap();
        assert!(root.join("d").is_dir() && !dir.join("d").exists());
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
