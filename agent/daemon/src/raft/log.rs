//! openraft's log over [`Disk`].

use std::{fmt::Debug, ops::RangeBounds};

use openraft::{
    AnyError, ErrorSubject, ErrorVerb, LogId, LogState, OptionalSend, RaftLogReader, StorageError,
    StorageIOError, Vote,
    storage::{LogFlushed, RaftLogStorage},
};
use redb::Durability;

use super::{
    disk::{COMMITTED, Disk, Failure, PURGED, VOTE, Writing},
    types::{RaftEntry, RaftTypes},
};

type Fallible<T> = Result<T, StorageError<u64>>;

/// What openraft asks about storage, with the failure that is behind it.
pub(super) fn storage_error(
    subject: ErrorSubject<u64>,
    verb: ErrorVerb,
    failure: Failure,
) -> StorageError<u64> {
    let source = AnyError::from_dyn(&*failure, None);
    StorageIOError::new(subject, verb, source).into()
}

fn logs(verb: ErrorVerb) -> impl Fn(Failure) -> StorageError<u64> {
    move |failure| storage_error(ErrorSubject::Logs, verb, failure)
}

impl RaftLogReader<RaftTypes> for Disk {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Fallible<Vec<RaftEntry>> {
        self.entries(range).map_err(logs(ErrorVerb::Read))
    }
}

impl RaftLogStorage<RaftTypes> for Disk {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Fallible<LogState<RaftTypes>> {
        let read = logs(ErrorVerb::Read);
        let last_purged_log_id: Option<LogId<u64>> = self.meta(PURGED).map_err(&read)?;
        let last = self.last_log_id().map_err(&read)?;
        Ok(LogState {
            last_purged_log_id,
            last_log_id: last.or(last_purged_log_id),
        })
    }

    async fn get_log_reader(&mut self) -> Self::LogReader {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote<u64>) -> Fallible<()> {
        self.set_meta(VOTE, vote, Durability::Immediate)
            .await
            .map_err(|failure| storage_error(ErrorSubject::Vote, ErrorVerb::Write, failure))
    }

    async fn read_vote(&mut self) -> Fallible<Option<Vote<u64>>> {
        self.meta(VOTE)
            .map_err(|failure| storage_error(ErrorSubject::Vote, ErrorVerb::Read, failure))
    }

    async fn save_committed(&mut self, committed: Option<LogId<u64>>) -> Fallible<()> {
        // Only makes a restart quicker, so it waits for the next fsync.
        self.set_meta(COMMITTED, &committed, Durability::None)
            .await
            .map_err(logs(ErrorVerb::Write))
    }

    async fn read_committed(&mut self) -> Fallible<Option<LogId<u64>>> {
        let committed: Option<Option<LogId<u64>>> =
            self.meta(COMMITTED).map_err(logs(ErrorVerb::Read))?;
        Ok(committed.flatten())
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<RaftTypes>) -> Fallible<()>
    where
        I: IntoIterator<Item = RaftEntry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<RaftEntry> = entries.into_iter().collect();
        let insert =
            move |writing: &Writing<'_>| entries.iter().try_for_each(|entry| writing.entry(entry));
        self.write(Durability::Immediate, insert)
            .await
            .map_err(logs(ErrorVerb::Write))?;
        callback.log_io_completed(Ok(()));
        Ok(())
    }

    async fn truncate(&mut self, log_id: LogId<u64>) -> Fallible<()> {
        let cut = move |writing: &Writing<'_>| writing.remove(log_id.index..);
        self.write(Durability::Immediate, cut)
            .await
            .map_err(logs(ErrorVerb::Delete))
    }

    async fn purge(&mut self, log_id: LogId<u64>) -> Fallible<()> {
        let purge = move |writing: &Writing<'_>| {
            writing.value(PURGED, &log_id)?;
            writing.remove(..=log_id.index)
        };
        self.write(Durability::Immediate, purge)
            .await
            .map_err(logs(ErrorVerb::Delete))
    }
}
