//! Where things lie: the repository and the lab's git-ignored folder in it.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The repository and the lab's own folder.
#[derive(Debug, Clone)]
pub struct Paths {
    /// The root of the repository.
    pub repository: PathBuf,
    /// `.lab` in it: everything the lab makes, except the image, lies here.
    pub lab: PathBuf,
}

impl Paths {
    /// Takes the repository from the place this program was compiled from.
    pub fn find() -> Result<Paths> {
        let crate_folder = Path::new(env!("CARGO_MANIFEST_DIR"));
        let repository = crate_folder
            .ancestors()
            .nth(2)
            .context("the lab's crate does not lie two folders below the repository")?
            .to_path_buf();
        let lab = repository.join(".lab");
        fs::create_dir_all(&lab).with_context(|| format!("cannot make {}", lab.display()))?;
        Ok(Paths { repository, lab })
    }

    /// A folder below `.lab`, made if it is not there.
    pub fn folder(&self, name: &str) -> Result<PathBuf> {
        let path = self.lab.join(name);
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(path)
    }
}

/// Connects to a Unix socket by its folder, so that the length of the folder's path does not matter
/// (a socket address holds 107 bytes).
pub fn connect(folder: &Path, socket: &str) -> io::Result<UnixStream> {
    let folder = File::open(folder)?;
    UnixStream::connect(format!("/proc/self/fd/{}/{socket}", folder.as_raw_fd()))
}

/// Writes a file so that a reader sees the old or the new content, never a part.
pub fn write_atomically(path: &Path, content: &[u8]) -> Result<()> {
    let temporary = path.with_extension("new");
    fs::write(&temporary, content)
        .and_then(|()| fs::rename(&temporary, path))
        .with_context(|| format!("cannot write {}", path.display()))
}
