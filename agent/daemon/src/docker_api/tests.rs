//! The Engine API over a whole manager in memory: the real store, control and loops of `skep_core`; only
//! the nodes are played.

pub(crate) mod certificates;
mod client;
mod hostile;
mod http;

use std::path::PathBuf;

/// An empty folder for one test.
pub(crate) fn scratch(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("skep-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&path);
    std::fs::create_dir_all(&path).unwrap();
    path
}
