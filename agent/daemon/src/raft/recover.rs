//! A manager that has lost the majority of its group goes on alone with what it has.
//!
//! While raft is stopped, one commit appends two entries to its log: a membership of nobody but itself, and what
//! becomes of the other managers. When raft starts again, it elects itself and commits them with all that was not
//! committed before: an entry that the lost majority may have acknowledged is never dropped. The term and the index only
//! grow, and the group gets a name of its own (`raft::lineage`).

use std::{collections::BTreeMap, path::Path};

use openraft::{CommittedLeaderId, EntryPayload, LogId, Membership, SnapshotMeta, Vote};
use redb::Durability;
use skep_core::{
    api::{ManagerStatus, Node, Reachability},
    id::Id,
    manager::recover,
    store::{Entry, Store, View},
    time::Timestamp,
};

use super::{
    StartError,
    disk::{Disk, Failure, LINEAGE, PURGED, VOTE},
    lineage,
    types::{Member, RaftEntry, raft_id},
};
use crate::identity::LogKeys;

/// Makes the log in `folder` that of a group with this manager alone, reached at `addr`. Raft must be stopped.
///
/// # Errors
/// When the log cannot be read or written, or has no state of a swarm.
pub async fn alone(
    folder: &Path,
    keys: &LogKeys,
    own: &Id<Node>,
    addr: &str,
    now: Timestamp,
) -> Result<(), StartError> {
    let disk = Disk::open(&folder.join("raft.redb"), keys);
    let disk = disk.map_err(|error| StartError(error.to_string()))?;
    let failed = |error: Failure| StartError(format!("the log could not be taken over: {error}"));
    let state = State::read(&disk).map_err(failed)?;
    let Some(last) = state.last.filter(|_| state.view.node(own).is_some()) else {
        let line = "this manager has nothing of its swarm yet: there is nothing to go on from";
        return Err(StartError(line.to_owned()));
    };
    let vote: Option<Vote<u64>> = disk.meta(VOTE).map_err(failed)?;
    let voted = vote.map_or(0, |vote| vote.leader_id.term);
    let term = voted.max(last.leader_id.term) + 1;
    let name = lineage::draw().map_err(|error| StartError(error.chain()))?;
    let id = raft_id(own);
    let entries = entries(&state.view, own, addr, term, last, now);
    disk.write(Durability::Immediate, move |writing| {
        if let Some(snapshot) = state.ends_with_snapshot() {
            // A manager that was stopped while it took over a snapshot has entries that the snapshot replaces.
            writing.remove(..=snapshot.index)?;
            writing.value(PURGED, &snapshot)?;
        }
        for entry in &entries {
            writing.entry(entry)?;
        }
        writing.value(VOTE, &Vote::new(term, id))?;
        writing.value(LINEAGE, &name)
    })
    .await
    .map_err(failed)?;
    tracing::warn!(
        raft.term = term,
        "this manager goes on alone: the others are out of its group"
    );
    Ok(())
}

/// What a log amounts to, with all of its entries applied.
struct State {
    view: View,
    last: Option<LogId<u64>>,
    snapshot: Option<LogId<u64>>,
}

impl State {
    fn read(disk: &Disk) -> Result<Self, Failure> {
        let (mut store, snapshot) = match disk.snapshot()? {
            Some((meta, bytes)) => {
                let meta: SnapshotMeta<u64, Member> = serde_json::from_slice(&meta)?;
                (
                    Store::from_view(View::from_snapshot(&bytes)?),
                    meta.last_log_id,
                )
            }
            None => (Store::default(), None),
        };
        let purged: Option<LogId<u64>> = disk.meta(PURGED)?;
        let mut last = purged.max(snapshot);
        let next = snapshot.map_or(0, |snapshot| snapshot.index + 1);
        for entry in disk.entries(next..)? {
            last = last.max(Some(entry.log_id));
            if let EntryPayload::Normal(change) = &entry.payload {
                store.apply(entry.log_id.index, change);
            }
        }
        Ok(Self {
            view: store.view(),
            last,
            snapshot,
        })
    }

    /// The snapshot, if nothing comes after it.
    fn ends_with_snapshot(&self) -> Option<LogId<u64>> {
        self.snapshot.filter(|_| self.snapshot == self.last)
    }
}

/// What comes after the last entry.
fn entries(
    view: &View,
    own: &Id<Node>,
    addr: &str,
    term: u64,
    last: LogId<u64>,
    now: Timestamp,
) -> [RaftEntry; 2] {
    let id = raft_id(own);
    let at = |offset| LogId::new(CommittedLeaderId::new(term, id), last.index + offset);
    let member = Member {
        node_id: own.to_string(),
        addr: addr.to_owned(),
    };
    let alone = Membership::new(vec![[id].into()], BTreeMap::from([(id, member)]));
    let status = ManagerStatus {
        raft_id: id,
        leader: true,
        reachability: Reachability::Reachable,
        addr: addr.to_owned(),
    };
    let proposals = vec![recover::alone(view, own, &status, now)];
    let payloads = [
        EntryPayload::Membership(alone),
        EntryPayload::Normal(Entry { proposals }),
    ];
    let mut offset = 0;
    payloads.map(|payload| {
        offset += 1;
        RaftEntry {
            log_id: at(offset),
            payload,
        }
    })
}
