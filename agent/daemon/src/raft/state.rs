//! The state machine: `skep_core::store` under openraft's interface.

use std::{
    io::Cursor,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use openraft::{
    EntryPayload, ErrorSubject, ErrorVerb, LogId, OptionalSend, RaftSnapshotBuilder, Snapshot,
    SnapshotMeta, StorageError, StoredMembership, storage::RaftStateMachine,
};
use skep_core::store::{Store, View};
use tokio::sync::watch;

use super::{
    disk::Disk,
    log::storage_error,
    types::{Member, Outcome, RaftEntry, RaftTypes},
};

type Fallible<T> = Result<T, StorageError<u64>>;
type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Where each new state is shown: readers keep a snapshot, nobody waits for them.
pub type Published = watch::Sender<Option<View>>;

/// The state machine; clones share it.
#[derive(Clone)]
pub(super) struct StateMachine {
    disk: Disk,
    published: Arc<Published>,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    store: Store,
    applied: Option<LogId<u64>>,
    membership: StoredMembership<u64, Member>,
}

impl StateMachine {
    /// The state of the last snapshot; raft applies again what came after it.
    ///
    /// # Errors
    /// When the snapshot is damaged.
    pub(super) fn open(disk: Disk, published: Arc<Published>) -> Result<Self, Failure> {
        let state = match disk.snapshot()? {
            Some((meta, bytes)) => state_of(&serde_json::from_slice(&meta)?, &bytes)?,
            None => State::default(),
        };
        let machine = Self {
            disk,
            published,
            state: Arc::new(Mutex::new(state)),
        };
        machine.publish();
        Ok(machine)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self) {
        let view = self.state().store.view();
        if view.cluster().is_some() {
            self.published.send_replace(Some(view));
        }
    }
}

fn state_of(meta: &SnapshotMeta<u64, Member>, bytes: &[u8]) -> Result<State, Failure> {
    Ok(State {
        store: Store::from_view(View::from_snapshot(bytes)?),
        applied: meta.last_log_id,
        membership: meta.last_membership.clone(),
    })
}

impl State {
    fn apply(&mut self, entry: RaftEntry) -> Outcome {
        self.applied = Some(entry.log_id);
        match entry.payload {
            EntryPayload::Blank => Outcome::default(),
            EntryPayload::Normal(change) => Outcome {
                results: self.store.apply(entry.log_id.index, &change),
            },
            EntryPayload::Membership(membership) => {
                self.membership = StoredMembership::new(Some(entry.log_id), membership);
                Outcome::default()
            }
        }
    }
}

impl RaftStateMachine<RaftTypes> for StateMachine {
    type SnapshotBuilder = Self;

    async fn applied_state(
        &mut self,
    ) -> Fallible<(Option<LogId<u64>>, StoredMembership<u64, Member>)> {
        let state = self.state();
        Ok((state.applied, state.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Fallible<Vec<Outcome>>
    where
        I: IntoIterator<Item = RaftEntry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let outcomes = {
            let mut state = self.state();
            entries
                .into_iter()
                .map(|entry| state.apply(entry))
                .collect()
        };
        self.publish();
        Ok(outcomes)
    }

    async fn get_snapshot_builder(&mut self) -> Self::SnapshotBuilder {
        self.clone()
    }

    async fn begin_receiving_snapshot(&mut self) -> Fallible<Box<Cursor<Vec<u8>>>> {
        Ok(Box::default())
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta<u64, Member>,
        snapshot: Box<Cursor<Vec<u8>>>,
    ) -> Fallible<()> {
        let fail = |failure| {
            let subject = ErrorSubject::Snapshot(Some(meta.signature()));
            storage_error(subject, ErrorVerb::Write, failure)
        };
        let bytes = snapshot.into_inner();
        let state = state_of(meta, &bytes).map_err(fail)?;
        let document = serde_json::to_vec(meta).map_err(|error| fail(error.into()))?;
        self.disk
            .set_snapshot(document, bytes)
            .await
            .map_err(fail)?;
        *self.state() = state;
        self.publish();
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Fallible<Option<Snapshot<RaftTypes>>> {
        let read = || -> Result<Option<Snapshot<RaftTypes>>, Failure> {
            let Some((meta, bytes)) = self.disk.snapshot()? else {
                return Ok(None);
            };
            Ok(Some(Snapshot {
                meta: serde_json::from_slice(&meta)?,
                snapshot: Box::new(Cursor::new(bytes)),
            }))
        };
        read().map_err(|failure| {
            storage_error(ErrorSubject::Snapshot(None), ErrorVerb::Read, failure)
        })
    }
}

impl RaftSnapshotBuilder<RaftTypes> for StateMachine {
    async fn build_snapshot(&mut self) -> Fallible<Snapshot<RaftTypes>> {
        // Only the copy of a few pointers happens under the lock: the world is not stopped.
        let (view, applied, membership) = {
            let state = self.state();
            (state.store.view(), state.applied, state.membership.clone())
        };
        let index = applied.map_or(0, |log_id| log_id.index);
        let meta = SnapshotMeta {
            last_log_id: applied,
            last_membership: membership,
            snapshot_id: format!("{index}"),
        };
        let signature = meta.signature();
        let fail = |failure| {
            let subject = ErrorSubject::Snapshot(Some(signature.clone()));
            storage_error(subject, ErrorVerb::Write, failure)
        };
        let bytes = tokio::task::spawn_blocking(move || view.to_snapshot())
            .await
            .map_err(|error| fail(error.into()))?
            .map_err(|error| fail(error.into()))?;
        let document = serde_json::to_vec(&meta).map_err(|error| fail(error.into()))?;
        self.disk
            .set_snapshot(document, bytes.clone())
            .await
            .map_err(fail)?;
        Ok(Snapshot {
            meta,
            snapshot: Box::new(Cursor::new(bytes)),
        })
    }
}
