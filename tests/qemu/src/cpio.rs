//! initramfs archives (the "newc" form of cpio), written from folders; everything in them belongs to root.

use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use anyhow::{Context, Result};

use crate::archive::sorted_tree;

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;

/// Writes an archive; several of them one after the other make one initramfs.
pub struct Cpio<W: Write> {
    out: W,
    entries: u32,
}

impl<W: Write> Cpio<W> {
    /// Begins an archive.
    pub fn new(out: W) -> Cpio<W> {
        Cpio { out, entries: 0 }
    }

    /// Adds everything below a folder, as if the folder were `prefix` (empty for the root).
    pub fn add_tree(&mut self, root: &Path, prefix: &str) -> Result<()> {
        for path in sorted_tree(root)? {
            let name = Path::new(prefix).join(path.strip_prefix(root)?);
            let data = fs::symlink_metadata(&path)?;
            let mode = data.permissions().mode() & 0o7777;
            if data.is_dir() {
                self.entry(&name, DIRECTORY | mode, &[])?;
            } else if data.is_symlink() {
                let target = fs::read_link(&path)?;
                self.entry(&name, SYMLINK | 0o777, target.as_os_str().as_bytes())?;
            } else if data.is_file() && data.size() < u64::from(u32::MAX) {
                let content =
                    fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
                self.entry(&name, REGULAR | mode, &content)?;
            }
        }
        Ok(())
    }

    /// Adds a folder.
    pub fn add_folder(&mut self, name: &str) -> Result<()> {
        self.entry(Path::new(name), DIRECTORY | 0o755, &[])
    }

    /// Adds a file that can be run.
    pub fn add_program(&mut self, name: &str, content: &[u8]) -> Result<()> {
        self.entry(Path::new(name), REGULAR | 0o755, content)
    }

    /// Ends the archive.
    pub fn finish(mut self) -> Result<W> {
        self.entry(Path::new("TRAILER!!!"), 0, &[])?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn entry(&mut self, name: &Path, mode: u32, content: &[u8]) -> Result<()> {
        self.entries += 1;
        let name = name.as_os_str().as_bytes();
        let fields: [u32; 13] = [
            self.entries,
            mode,
            0,
            0,
            1,
            0,
            u32::try_from(content.len())?,
            0,
            0,
            0,
            0,
            u32::try_from(name.len() + 1)?,
            0,
        ];
        let mut head = b"070701".to_vec();
        for field in fields {
            write!(head, "{field:08X}")?;
        }
        head.extend(name);
        head.push(0);
        pad(&mut head);
        self.out.write_all(&head)?;
        self.out.write_all(content)?;
        let over = content.len() % 4;
        if over > 0 {
            self.out.write_all(&[0; 3][..4 - over])?;
        }
        Ok(())
    }
}

fn pad(bytes: &mut Vec<u8>) {
    while !bytes.len().is_multiple_of(4) {
        bytes.push(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_aligned_and_end_with_the_trailer() {
        let mut cpio = Cpio::new(Vec::new());
        cpio.add_folder("a").unwrap();
        cpio.add_program("a/run", b"12345").unwrap();
        let bytes = cpio.finish().unwrap();
        assert!(bytes.len().is_multiple_of(4));
        let begins: Vec<usize> = (0..bytes.len() - 6)
            .filter(|at| &bytes[*at..at + 6] == b"070701")
            .collect();
        assert_eq!(begins.len(), 3);
        assert!(begins.iter().all(|at| at.is_multiple_of(4)));
    }
}
