//! What `skep gen swarm` makes: certificates for the operator, and for each role what its machines boot with.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::paths::Paths;
use crate::process::run;

/// A node's part in the swarm, as `gen swarm` tells them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The manager that begins the swarm.
    FirstManager,
    /// A manager that joins.
    Manager,
    /// A worker.
    Worker,
}

impl Part {
    fn folder(self) -> &'static str {
        match self {
            Part::FirstManager => "first-manager",
            Part::Manager => "manager",
            Part::Worker => "worker",
        }
    }
}

/// The folder that `skep gen swarm` filled.
#[derive(Debug, Clone)]
pub struct Generated {
    folder: PathBuf,
}

impl Generated {
    /// The content of a folder that was filled before.
    pub fn at(folder: impl Into<PathBuf>) -> Generated {
        Generated {
            folder: folder.into(),
        }
    }

    /// Fills a new folder.
    pub fn make(skep: &Path, folder: impl Into<PathBuf>, manager: &str) -> Result<Generated> {
        let folder = folder.into();
        run(Command::new(skep)
            .args(["gen", "swarm"])
            .arg(&folder)
            .args(["--manager", manager]))?;
        Ok(Generated { folder })
    }

    /// The operator's certificates: `ca.pem cert.pem key.pem`.
    pub fn operator(&self) -> PathBuf {
        self.folder.join("operator")
    }

    /// What a node of this part adds to the kernel command line.
    pub fn cmdline(&self, part: Part) -> Result<String> {
        let file = self.folder.join(part.folder()).join("cmdline");
        let text = fs::read_to_string(&file)
            .with_context(|| format!("skep gen swarm made no {}", file.display()))?;
        Ok(text.trim().to_owned())
    }

    /// The credentials of a node of this part: name and value.
    pub fn credentials(&self, part: Part) -> Result<Vec<(String, Vec<u8>)>> {
        let folder = self.folder.join(part.folder()).join("credentials");
        let mut found = Vec::new();
        let entries = fs::read_dir(&folder)
            .with_context(|| format!("skep gen swarm made no {}", folder.display()))?;
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            found.push((name, fs::read(entry.path())?));
        }
        found.sort();
        Ok(found)
    }
}

/// Gives the command line program that was compiled for the image a name to be called by.
pub fn link_skep(paths: &Paths) -> Result<PathBuf> {
    let link = paths.folder("bin")?.join("skep");
    let _ = fs::remove_file(&link);
    std::os::unix::fs::symlink(target_folder(paths).join("release/skepd"), &link)
        .with_context(|| format!("cannot make {}", link.display()))?;
    Ok(link)
}

/// Where cargo puts what it compiles.
pub fn target_folder(paths: &Paths) -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(folder) => paths.repository.join(folder),
        None => paths.repository.join("target"),
    }
}
