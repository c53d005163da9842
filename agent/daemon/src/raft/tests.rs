//! openraft's own suite over our storage, and what must be true of the files.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use openraft::{
    StorageError,
    testing::{StoreBuilder, Suite},
};
use redb::ReadableTable;
use skep_core::{
    api::{Node, Role},
    id::Id,
    rng::Rng,
    store::{Change, Proposal, View},
    testing::bench,
    time::Timestamp,
};
use skep_host::clock;
use tokio::sync::watch;

use super::{
    Member, RaftHandle, StartError,
    disk::{self, Disk, OpenError},
    raft_id, recover,
    state::StateMachine,
    types::RaftTypes,
};
use crate::{
    identity::{Authority, LogKeys, tls},
    rpc::dial::{Dialer, MANAGER},
};

struct Builder;

/// Removes the folder at the end of a test.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Folder {
    fn log(&self) -> PathBuf {
        self.0.join("raft.redb")
    }
}

fn folder() -> Folder {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("skep-raft-{}-{number}", std::process::id()));
    fs::create_dir_all(&path).unwrap();
    Folder(path)
}

fn keys() -> LogKeys {
    let mut keys = LogKeys::default();
    keys.draw().unwrap();
    keys
}

impl StoreBuilder<RaftTypes, Disk, StateMachine, Folder> for Builder {
    async fn build(&self) -> Result<(Folder, Disk, StateMachine), StorageError<u64>> {
        let folder = folder();
        let disk = Disk::open(&folder.log(), &keys()).unwrap();
        let published = Arc::new(watch::Sender::new(None));
        let machine = StateMachine::open(disk.clone(), published).unwrap();
        Ok((folder, disk, machine))
    }
}

#[test]
fn the_storage_passes_openrafts_suite() {
    Suite::test_all(Builder).unwrap();
}

/// What no file may have in it.
const CANARY: &str = "canary-of-the-cluster";

fn node(entropy: u128) -> Node {
    let addr = "10.0.0.1".parse().unwrap();
    Node {
        id: Id::from_entropy(entropy),
        ..bench::node(&mut Rng::seeded(1), "node", addr, Role::Manager)
    }
}

/// A manager alone over this log.
async fn start(folder: &Folder, keys: &LogKeys) -> Result<RaftHandle, StartError> {
    let authority = Authority::generate("swarm-ca", clock::timestamp()).unwrap();
    let client = tls::cluster_client(authority.certificate(), None).unwrap();
    let dialer = Dialer::new(client, MANAGER, None);
    let published = Arc::new(watch::Sender::new(None));
    RaftHandle::start(&folder.0, keys, own_id(), dialer, published).await
}

fn own_id() -> u64 {
    raft_id(&node(1).id)
}

fn member(entropy: u128) -> (u64, Member) {
    let node = node(entropy);
    let member = Member {
        node_id: node.id.to_string(),
        addr: "127.0.0.1:1".to_owned(),
    };
    (raft_id(&node.id), member)
}

/// A swarm of two nodes with the canary in its log.
async fn found(folder: &Folder, keys: &LogKeys) -> RaftHandle {
    let raft = start(folder, keys).await.unwrap();
    raft.begin(member(1).1).await.unwrap();
    raft.lead().await.unwrap();
    let mut cluster = bench::cluster(&mut Rng::seeded(1), Timestamp(1));
    let label = (CANARY.to_owned(), CANARY.to_owned());
    cluster.spec.labels.extend([label]);
    let nodes = [node(1), node(2)].map(Change::put_node);
    let changes = [Change::put_cluster(cluster)].into_iter().chain(nodes);
    raft.propose(Proposal::of(changes)).await.unwrap().unwrap();
    raft
}

async fn snapshot(raft: &RaftHandle) {
    raft.raft().trigger().snapshot().await.unwrap();
    let wait = raft.raft().wait(Some(Duration::from_secs(10)));
    let taken = wait.metrics(|metrics| metrics.snapshot.is_some(), "a snapshot");
    taken.await.unwrap();
}

fn has_canary(view: &View) -> bool {
    view.cluster()
        .is_some_and(|cluster| cluster.spec.labels.contains_key(CANARY))
}

/// Starts again, waits until this manager leads, and gives what it has.
async fn restarted(folder: &Folder, keys: &LogKeys) -> (RaftHandle, View) {
    let raft = start(folder, keys).await.unwrap();
    raft.lead().await.unwrap();
    let view = raft.linearizable().await.unwrap();
    (raft, view)
}

fn contains(file: &Path, text: &str) -> bool {
    let bytes = fs::read(file).unwrap();
    bytes
        .windows(text.len())
        .any(|window| window == text.as_bytes())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_the_log_is_in_no_file_and_survives() {
    let (folder, mut keys) = (folder(), keys());
    let raft = found(&folder, &keys).await;
    snapshot(&raft).await;
    let files: Vec<_> = fs::read_dir(&folder.0).unwrap().collect();
    assert!(!files.is_empty());
    for file in files {
        let path = file.unwrap().path();
        for text in [CANARY, "proposals", "node_id"] {
            assert!(!contains(&path, text), "{text} in {path:?}");
        }
    }
    // With another key all of it is sealed again, while raft runs.
    keys.draw().unwrap();
    raft.rotate(&keys).await.unwrap();
    assert!(has_canary(&raft.linearizable().await.unwrap()));
    raft.propose(Proposal::of([Change::put_node(node(3))]))
        .await
        .unwrap()
        .unwrap();
    raft.stop().await;
    drop(raft);
    let newest = only_newest(&keys);
    let (raft, view) = restarted(&folder, &newest).await;
    assert!(has_canary(&view) && view.nodes().count() == 3);
    raft.stop().await;
}

/// What is left of the keys when a rotation is over.
fn only_newest(keys: &LogKeys) -> LogKeys {
    let (number, key) = keys.iter().last().unwrap();
    let text = format!("{{\"{number}\":{}}}", serde_json::to_string(key).unwrap());
    serde_json::from_str(&text).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_that_was_broken_off_is_finished_by_the_next_start() {
    let (folder, mut keys) = (folder(), keys());
    found(&folder, &keys).await.stop().await;
    keys.draw().unwrap();
    restarted(&folder, &keys).await.0.stop().await;
    let (raft, view) = restarted(&folder, &only_newest(&keys)).await;
    assert!(has_canary(&view));
    raft.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manager_without_a_majority_goes_on_alone_with_all_it_has() {
    let (folder, keys) = (folder(), keys());
    let raft = found(&folder, &keys).await;
    let lineage = raft.lineage_name();
    // The second manager is a voter that is never there: from now on nothing is committed.
    let (id, second) = member(2);
    raft.raft().add_learner(id, second, false).await.unwrap();
    let voters = openraft::ChangeMembers::AddVoterIds([id].into());
    let change = raft.raft().change_membership(voters, true);
    let changed = tokio::time::timeout(Duration::from_secs(1), change).await;
    assert!(changed.is_err(), "there is no majority");
    let term = raft.raft().metrics().borrow().vote.leader_id.term;
    raft.stop().await;
    drop(raft);
    let own = node(1).id;
    for addr in ["10.9.0.1:2377", "10.9.0.2:2377"] {
        let now = Timestamp(9);
        recover::alone(&folder.0, &keys, &own, addr, now)
            .await
            .unwrap();
    }
    let (raft, view) = restarted(&folder, &keys).await;
    assert!(has_canary(&view));
    let roles: Vec<_> = view
        .nodes()
        .map(|node| (node.id.clone(), node.spec.role))
        .collect();
    assert!(roles.contains(&(own.clone(), Role::Manager)), "{roles:?}");
    assert!(roles.contains(&(node(2).id, Role::Worker)), "{roles:?}");
    let group = raft.group();
    let addresses: Vec<_> = group.members.values().map(|it| it.addr.clone()).collect();
    assert_eq!(addresses, ["10.9.0.2:2377"]);
    assert!(raft.raft().metrics().borrow().vote.leader_id.term > term);
    assert!(!raft.is_of_group(&lineage).await.unwrap(), "another group");
    raft.propose(Proposal::of([Change::put_node(node(4))]))
        .await
        .unwrap()
        .unwrap();
    raft.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_made_out_of_a_log_that_has_nothing() {
    let (folder, keys) = (folder(), keys());
    let own = node(1).id;
    let alone = recover::alone(&folder.0, &keys, &own, "10.0.0.1:2377", Timestamp(1)).await;
    assert!(alone.unwrap_err().0.contains("nothing of its swarm"));
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_that_are_not_what_was_written_are_refused_by_name() {
    let (folder, own_keys) = (folder(), keys());
    found(&folder, &own_keys).await.stop().await;
    let (raft, _) = restarted(&folder, &own_keys).await;
    let in_use = Disk::open(&folder.log(), &own_keys).err().unwrap();
    assert!(matches!(in_use, OpenError::InUse(_)), "{in_use}");
    raft.stop().await;
    drop(raft);
    restarted(&folder, &own_keys).await.0.stop().await;
    let says = |keys: &LogKeys, wanted: &str| {
        let error = Disk::open(&folder.log(), keys).err().unwrap().to_string();
        assert!(
            error.contains("raft.redb") && error.contains(wanted),
            "{error}"
        );
        assert!(error.contains("leave --force"), "{error}");
    };
    says(&keys(), "another key");
    // An entry that changed its place.
    let database = redb::Database::open(folder.log()).unwrap();
    let write = database.begin_write().unwrap();
    {
        let mut log = write.open_table(disk::LOG).unwrap();
        let one = log.get(1).unwrap().unwrap().value().to_vec();
        log.insert(2, one.as_slice()).unwrap();
    }
    write.commit().unwrap();
    drop(database);
    says(&own_keys, "entry 2");
    // One that is missing.
    let database = redb::Database::open(folder.log()).unwrap();
    let write = database.begin_write().unwrap();
    write.open_table(disk::LOG).unwrap().remove(1).unwrap();
    write.commit().unwrap();
    drop(database);
    says(&own_keys, "missing");
    // And what an earlier version has written, which everybody can read.
    let database = redb::Database::open(folder.log()).unwrap();
    let write = database.begin_write().unwrap();
    write
        .open_table(disk::META)
        .unwrap()
        .remove("sealed")
        .unwrap();
    write.commit().unwrap();
    drop(database);
    says(&own_keys, "did not encrypt");
}

/// Everything that can be read of a log.
fn content(disk: &Disk) -> String {
    let entries = serde_json::to_string(&disk.entries(..).unwrap()).unwrap();
    let vote: Option<openraft::Vote<u64>> = disk.meta("vote").unwrap();
    format!("{entries} {vote:?} {:?}", disk.snapshot().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_with_a_flipped_or_missing_byte_is_refused_or_gives_what_was_written() {
    const PLACES: usize = 150;
    let (folder, keys) = (folder(), keys());
    let raft = found(&folder, &keys).await;
    snapshot(&raft).await;
    raft.stop().await;
    drop(raft);
    restarted(&folder, &keys).await.0.stop().await;
    let written = content(&Disk::open(&folder.log(), &keys).unwrap());
    let whole = fs::read(folder.log()).unwrap();
    let damaged = folder.0.join("damaged.redb");
    let mut refused = 0;
    for place in 0..PLACES {
        // The marks are in the first bytes; to cut all of them is to have no log.
        let at = match place {
            0..40 => place + 1,
            _ => (whole.len() * place / PLACES + place * 31) % whole.len(),
        };
        let mut flipped = whole.clone();
        flipped[at] ^= 0x41;
        for bytes in [&flipped[..], &whole[..at]] {
            fs::write(&damaged, bytes).unwrap();
            match Disk::open(&damaged, &keys) {
                Ok(disk) => assert!(content(&disk) == written, "{at}"),
                Err(_) => refused += 1,
            }
        }
    }
    assert!(refused > PLACES / 2, "{refused}");
}
