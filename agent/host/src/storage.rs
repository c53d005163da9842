//! Small files that must be whole after a power cut: identities and settings.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
};

use crate::error::{Context, Result};

/// Files that are larger are not ours.
const MAX_FILE: u64 = 64 << 20;

/// Makes a folder, and those above it, that only root can enter.
///
/// # Errors
/// When the file system refuses.
pub fn private_folder(path: &Path) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .context("make the folder", path.display())
}

/// Replaces a file: readers, and a machine that loses power, see the old content or the new one.
/// Only root can read it.
///
/// # Errors
/// When the file system refuses; the old content is then still there.
pub fn replace(path: &Path, content: &[u8]) -> Result<()> {
    let new = path.with_extension("new");
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        sync_parent(path)
    };
    write().context("write", path.display())
}

/// The content of a file; `None` if there is none.
///
/// # Errors
/// When it cannot be read or is larger than 64 MiB.
pub fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).context("open", path.display()),
    };
    let mut content = Vec::new();
    let size = file.take(MAX_FILE + 1).read_to_end(&mut content);
    size.context("read", path.display())?;
    if content.len() as u64 > MAX_FILE {
        return Err(io::Error::other("larger than 64 MiB")).context("read", path.display());
    }
    Ok(Some(content))
}

/// Removes a file; that it is not there is well.
///
/// # Errors
/// When the file system refuses.
pub fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Ok(()) => sync_parent(path).context("remove", path.display()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).context("remove", path.display()),
    }
}

/// Removes a folder and all in it; that it is not there is well.
///
/// # Errors
/// When the file system refuses.
pub fn remove_folder(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Ok(()) => sync_parent(path).context("remove", path.display()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).context("remove", path.display()),
    }
}

fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_private() {
        let folder = std::env::temp_dir().join(format!("skep-storage-{}", std::process::id()));
        private_folder(&folder).unwrap();
        let path = folder.join("key.pem");
        assert_eq!(read(&path).unwrap(), None);
        for content in [b"one".as_slice(), b"two"] {
            replace(&path, content).unwrap();
            assert_eq!(read(&path).unwrap().as_deref(), Some(content));
        }
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(
            fs::read_dir(&folder).unwrap().count(),
            1,
            "no temporary file stays"
        );
        remove_folder(&folder).unwrap();
        remove_folder(&folder).unwrap();
        assert!(!folder.exists());
    }
}
