//! openraft's own suite over our storage.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use openraft::{
    StorageError,
    testing::{StoreBuilder, Suite},
};
use tokio::sync::watch;

use super::{log::Disk, state::StateMachine, types::RaftTypes};

struct Builder;

/// Removes the folder at the end of a test.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn folder() -> Folder {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("skep-raft-{}-{number}", std::process::id()));
    std::fs::create_dir_all(&path).unwrap();
    Folder(path)
}

impl StoreBuilder<RaftTypes, Disk, StateMachine, Folder> for Builder {
    async fn build(&self) -> Result<(Folder, Disk, StateMachine), StorageError<u64>> {
        let folder = folder();
        let disk = Disk::open(&folder.0.join("raft.redb")).unwrap();
        let published = Arc::new(watch::Sender::new(None));
        let machine = StateMachine::open(disk.clone(), published).unwrap();
        Ok((folder, disk, machine))
    }
}

#[test]
fn the_storage_passes_openrafts_suite() {
    Suite::test_all(Builder).unwrap();
}
