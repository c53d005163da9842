//! Log, vote and snapshots in one redb file: a commit of the database is one fsync.

use std::{fmt::Debug, ops::RangeBounds, path::Path, sync::Arc};

use openraft::{
    AnyError, ErrorSubject, ErrorVerb, LogId, LogState, OptionalSend, RaftLogReader, StorageError,
    StorageIOError, Vote,
    storage::{LogFlushed, RaftLogStorage},
};
use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};
use serde::{Serialize, de::DeserializeOwned};

use super::types::{RaftEntry, RaftTypes};

/// Entries by their index, as JSON.
const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
/// Single values by name, as JSON, and the snapshot's bytes.
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");

const VOTE: &str = "vote";
const COMMITTED: &str = "committed";
const PURGED: &str = "purged";
pub(super) const SNAPSHOT_META: &str = "snapshot-meta";
pub(super) const SNAPSHOT: &str = "snapshot";

type Failure = Box<dyn std::error::Error + Send + Sync>;
/// A snapshot's description, as JSON, and its bytes.
type StoredSnapshot = (Vec<u8>, Vec<u8>);
type Fallible<T> = Result<T, StorageError<u64>>;

/// The database of raft.
#[derive(Clone)]
pub(super) struct Disk {
    database: Arc<Database>,
}

impl Disk {
    /// Opens or makes the database.
    ///
    /// # Errors
    /// When the file is damaged or in use, or the file system refuses.
    pub(super) fn open(path: &Path) -> Result<Self, redb::Error> {
        let database = Database::create(path)?;
        let write = database.begin_write()?;
        write.open_table(LOG)?;
        write.open_table(META)?;
        write.commit()?;
        Ok(Self {
            database: Arc::new(database),
        })
    }

    /// Runs a write on a thread that may block, and commits it.
    async fn write<F>(&self, durability: Durability, work: F) -> Result<(), Failure>
    where
        F: FnOnce(&redb::WriteTransaction) -> Result<(), Failure> + Send + 'static,
    {
        let database = Arc::clone(&self.database);
        let run = move || {
            let mut transaction = database.begin_write()?;
            transaction.set_durability(durability)?;
            work(&transaction)?;
            Ok(transaction.commit()?)
        };
        tokio::task::spawn_blocking(run).await?
    }

    fn meta<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, Failure> {
        let table = self.database.begin_read()?.open_table(META)?;
        match table.get(name)? {
            Some(bytes) => Ok(serde_json::from_slice(bytes.value())?),
            None => Ok(None),
        }
    }

    async fn set_meta<T: Serialize>(
        &self,
        name: &'static str,
        value: &T,
        durability: Durability,
    ) -> Result<(), Failure> {
        let bytes = serde_json::to_vec(value)?;
        self.write(durability, move |transaction| {
            transaction
                .open_table(META)?
                .insert(name, bytes.as_slice())?;
            Ok(())
        })
        .await
    }

    /// Replaces the snapshot: its description and its bytes change together.
    pub(super) async fn set_snapshot(&self, meta: Vec<u8>, bytes: Vec<u8>) -> Result<(), Failure> {
        self.write(Durability::Immediate, move |transaction| {
            let mut table = transaction.open_table(META)?;
            table.insert(SNAPSHOT_META, meta.as_slice())?;
            table.insert(SNAPSHOT, bytes.as_slice())?;
            Ok(())
        })
        .await
    }

    /// The snapshot's description and bytes.
    pub(super) fn snapshot(&self) -> Result<Option<StoredSnapshot>, Failure> {
        let table = self.database.begin_read()?.open_table(META)?;
        let meta = table.get(SNAPSHOT_META)?;
        let bytes = table.get(SNAPSHOT)?;
        Ok(meta
            .zip(bytes)
            .map(|(meta, bytes)| (meta.value().to_vec(), bytes.value().to_vec())))
    }

    fn entries(&self, range: impl RangeBounds<u64>) -> Result<Vec<RaftEntry>, Failure> {
        let table = self.database.begin_read()?.open_table(LOG)?;
        let range = (range.start_bound().cloned(), range.end_bound().cloned());
        let mut entries = Vec::new();
        for item in table.range::<u64>(range)? {
            let (_, bytes) = item?;
            entries.push(serde_json::from_slice(bytes.value())?);
        }
        Ok(entries)
    }

    fn last_log_id(&self) -> Result<Option<LogId<u64>>, Failure> {
        let table = self.database.begin_read()?.open_table(LOG)?;
        let last = table.last()?;
        let entry = last.map(|(_, bytes)| serde_json::from_slice::<RaftEntry>(bytes.value()));
        Ok(entry.transpose()?.map(|entry| entry.log_id))
    }
}

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
        let rows = entries
            .into_iter()
            .map(|entry| Ok((entry.log_id.index, serde_json::to_vec(&entry)?)))
            .collect::<Result<Vec<_>, Failure>>()
            .map_err(logs(ErrorVerb::Write))?;
        let insert = move |transaction: &redb::WriteTransaction| {
            let mut table = transaction.open_table(LOG)?;
            for (index, bytes) in &rows {
                table.insert(index, bytes.as_slice())?;
            }
            Ok(())
        };
        self.write(Durability::Immediate, insert)
            .await
            .map_err(logs(ErrorVerb::Write))?;
        callback.log_io_completed(Ok(()));
        Ok(())
    }

    async fn truncate(&mut self, log_id: LogId<u64>) -> Fallible<()> {
        let cut = move |transaction: &redb::WriteTransaction| {
            let mut table = transaction.open_table(LOG)?;
            table.retain_in(log_id.index.., |_, _| false)?;
            Ok(())
        };
        self.write(Durability::Immediate, cut)
            .await
            .map_err(logs(ErrorVerb::Delete))
    }

    async fn purge(&mut self, log_id: LogId<u64>) -> Fallible<()> {
        let purge = move |transaction: &redb::WriteTransaction| {
            let bytes = serde_json::to_vec(&log_id)?;
            transaction
                .open_table(META)?
                .insert(PURGED, bytes.as_slice())?;
            let mut table = transaction.open_table(LOG)?;
            table.retain_in(..=log_id.index, |_, _| false)?;
            Ok(())
        };
        self.write(Durability::Immediate, purge)
            .await
            .map_err(logs(ErrorVerb::Delete))
    }
}
