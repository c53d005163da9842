//! The file of raft: a redb database with the log, the vote and the snapshot. A commit of it is one fsync.
//!
//! Every value in it is sealed ([`super::keyring`]); what can be read of the file is how many entries there are, and
//! how large.

use std::{
    fs,
    ops::RangeBounds,
    path::Path,
    sync::{Arc, Weak},
};

use openraft::{LogId, Vote};
use redb::{
    Database, Durability, ReadableDatabase, ReadableTable, ReadableTableMetadata, StorageBackend,
    TableDefinition, backends::InMemoryBackend,
};
use serde::{Serialize, de::DeserializeOwned};

use super::{
    keyring::{Keyring, Place},
    types::RaftEntry,
};
use crate::identity::LogKeys;

/// Entries by their index, as JSON.
pub(super) const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
/// Single values by name, as JSON, and the snapshot's bytes.
pub(super) const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");

pub(super) const VOTE: &str = "vote";
pub(super) const COMMITTED: &str = "committed";
pub(super) const PURGED: &str = "purged";
pub(super) const SNAPSHOT_META: &str = "snapshot-meta";
pub(super) const SNAPSHOT: &str = "snapshot";
/// The raft group that the log is of, see [`super::lineage`].
pub(super) const LINEAGE: &str = "lineage";

pub(super) type Failure = Box<dyn std::error::Error + Send + Sync>;
/// A snapshot's description, as JSON, and its bytes.
type StoredSnapshot = (Vec<u8>, Vec<u8>);

/// Present in every log that is sealed; its value is the form of the log.
const SEALED: &str = "sealed";
const FORMAT: u32 = 1;
/// Bytes of a file whose pages are checked before it is used. Of a larger one only the records are.
const MAX_COPY: u64 = 256 << 20;
/// Where a redb file has its marks (redb's `docs/design.md`).
const MARKS: usize = 9;
/// The mark of a file that must be looked through.
const RECOVER: u8 = 2;
/// The mark of a commit in two phases, which a clean end has: what it says of free pages is believed.
const TWO_PHASES: u8 = 4;

/// What an operator can do about a log that cannot be read.
const WHAT_TO_DO: &str = "nothing was changed. Leave the swarm with `skep swarm leave --force` and join it again as a \
    manager; if no other manager is left, put the file back from a copy";

/// Why a log was not opened.
#[derive(Debug, thiserror::Error)]
pub(super) enum OpenError {
    /// Another process, or an earlier life of this manager, has it open.
    #[error("the log {0} is in use")]
    InUse(String),
    /// Written before logs were sealed.
    #[error("the log {0} is of an earlier version of Skep, which did not encrypt it; {WHAT_TO_DO}")]
    Unsealed(String),
    /// Not what was written.
    #[error("the log {path} cannot be read: {why}; {WHAT_TO_DO}")]
    Damaged {
        /// The file.
        path: String,
        /// What is wrong, and where.
        why: String,
    },
}

impl OpenError {
    fn of(path: &Path, why: Failure) -> Self {
        Self::Damaged {
            path: path.display().to_string(),
            why: why.to_string(),
        }
    }

    fn of_database(path: &Path, error: redb::Error) -> Self {
        if matches!(error, redb::Error::DatabaseAlreadyOpen) {
            return Self::InUse(path.display().to_string());
        }
        Self::of(path, error.into())
    }
}

/// What a database is before it is used.
enum Form {
    /// Nothing is in it.
    New,
    /// Sealed.
    Sealed,
    /// In it is what anybody can read.
    Readable,
}

/// An open file. The fields are dropped in this order.
struct Opened {
    database: Database,
    open: Arc<()>,
}

impl std::ops::Deref for Opened {
    type Target = Database;

    fn deref(&self) -> &Database {
        &self.database
    }
}

/// The database of raft.
#[derive(Clone)]
pub(super) struct Disk {
    database: Arc<Opened>,
    keyring: Arc<Keyring>,
}

/// The database, for those that must not keep it from being closed.
#[derive(Clone)]
pub(super) struct WeakDisk {
    database: Weak<Opened>,
    /// Goes when the file is closed, which takes longer than the last use of it.
    open: Weak<()>,
    keyring: Arc<Keyring>,
}

impl WeakDisk {
    /// Whether the file is closed.
    pub(super) fn is_closed(&self) -> bool {
        self.open.strong_count() == 0
    }

    /// The database, unless raft has closed it.
    pub(super) fn upgrade(&self) -> Option<Disk> {
        Some(Disk {
            database: self.database.upgrade()?,
            keyring: Arc::clone(&self.keyring),
        })
    }
}

/// What is written for one commit, on the way into it.
pub(super) struct Writing<'a> {
    transaction: &'a redb::WriteTransaction,
    keyring: &'a Keyring,
}

impl Writing<'_> {
    /// Writes an entry.
    pub(super) fn entry(&self, entry: &RaftEntry) -> Result<(), Failure> {
        let index = entry.log_id.index;
        let plain = serde_json::to_vec(entry)?;
        let record = self.keyring.seal(Place::Entry(index), &plain)?;
        let mut table = self.transaction.open_table(LOG)?;
        table.insert(index, record.as_slice())?;
        Ok(())
    }

    /// Writes a value.
    pub(super) fn value(&self, name: &str, value: &impl Serialize) -> Result<(), Failure> {
        self.bytes(name, Place::Value(name), &serde_json::to_vec(value)?)
    }

    fn bytes(&self, name: &str, place: Place<'_>, plain: &[u8]) -> Result<(), Failure> {
        let record = self.keyring.seal(place, plain)?;
        let mut table = self.transaction.open_table(META)?;
        table.insert(name, record.as_slice())?;
        Ok(())
    }

    /// Removes entries.
    pub(super) fn remove(&self, range: impl RangeBounds<u64>) -> Result<(), Failure> {
        let mut table = self.transaction.open_table(LOG)?;
        table.retain_in(range, |_, _| false)?;
        Ok(())
    }

    /// Seals again what was sealed with another key than the newest.
    fn renew(&self) -> Result<(), Failure> {
        let mut log = self.transaction.open_table(LOG)?;
        let mut old = Vec::new();
        for item in log.iter()? {
            let (index, record) = item?;
            if self.keyring.is_old(record.value()) {
                old.push((index.value(), record.value().to_vec()));
            }
        }
        for (index, record) in old {
            let place = Place::Entry(index);
            let record = self
                .keyring
                .seal(place, &self.keyring.open(place, &record)?)?;
            log.insert(index, record.as_slice())?;
        }
        let mut meta = self.transaction.open_table(META)?;
        let mut values = Vec::new();
        for item in meta.iter()? {
            let (name, record) = item?;
            values.push((name.value().to_owned(), record.value().to_vec()));
        }
        let described = values.iter().find(|(name, _)| name == SNAPSHOT_META);
        let described = described
            .map(|(_, record)| self.keyring.open(Place::Value(SNAPSHOT_META), record))
            .transpose()?
            .unwrap_or_default();
        for (name, record) in &values {
            let place = match name.as_str() {
                SNAPSHOT => Place::Snapshot(&described),
                name => Place::Value(name),
            };
            if self.keyring.is_old(record) {
                let record = self
                    .keyring
                    .seal(place, &self.keyring.open(place, record)?)?;
                meta.insert(name.as_str(), record.as_slice())?;
            }
        }
        Ok(())
    }
}

impl Disk {
    /// Opens or makes the database, and reads all of it: what is damaged is found out here, and not in the middle of an
    /// election. Keys of a rotation that was broken off are used up.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub(super) fn open(path: &Path, keys: &LogKeys) -> Result<Self, OpenError> {
        let failed = |error: Failure| OpenError::of(path, error);
        let database = create(path).map_err(|error| OpenError::of_database(path, error))?;
        let keyring = Keyring::new(keys).map_err(|error| failed(error.chain().into()))?;
        let disk = Self {
            database: Arc::new(Opened {
                database,
                open: Arc::default(),
            }),
            keyring: Arc::new(keyring),
        };
        match disk.form().map_err(failed)? {
            Form::New => disk
                .write_now(Durability::Immediate, |writing| {
                    writing.value(SEALED, &FORMAT)
                })
                .map_err(failed)?,
            Form::Readable => return Err(OpenError::Unsealed(path.display().to_string())),
            Form::Sealed => disk.check().map_err(failed)?,
        }
        if keys.is_rotating() {
            disk.write_now(Durability::Immediate, |writing| writing.renew())
                .map_err(failed)?;
        }
        Ok(disk)
    }

    /// The same database for those that must not keep it open.
    pub(super) fn downgrade(&self) -> WeakDisk {
        WeakDisk {
            database: Arc::downgrade(&self.database),
            open: Arc::downgrade(&self.database.open),
            keyring: Arc::clone(&self.keyring),
        }
    }

    fn form(&self) -> Result<Form, Failure> {
        let read = self.database.begin_read()?;
        let (log, meta) = (read.open_table(LOG)?, read.open_table(META)?);
        Ok(match meta.get(SEALED)? {
            Some(_) => Form::Sealed,
            None if log.is_empty()? && meta.is_empty()? => Form::New,
            None => Form::Readable,
        })
    }

    /// Reads everything once.
    fn check(&self) -> Result<(), Failure> {
        let format: Option<u32> = self.meta(SEALED)?;
        if format != Some(FORMAT) {
            return Err("it is of a later version of Skep".into());
        }
        self.meta::<Vote<u64>>(VOTE)?;
        self.meta::<Option<LogId<u64>>>(COMMITTED)?;
        self.meta::<String>(LINEAGE)?;
        let purged: Option<LogId<u64>> = self.meta(PURGED)?;
        self.snapshot()?;
        let mut next = purged.map(|log_id| log_id.index + 1);
        let table = self.database.begin_read()?.open_table(LOG)?;
        for item in table.iter()? {
            let (index, record) = item?;
            let index = index.value();
            if next.is_some_and(|next| next != index) {
                return Err(format!("an entry before {index} is missing").into());
            }
            self.entry(index, record.value())?;
            next = Some(index + 1);
        }
        Ok(())
    }

    /// Runs a write on a thread that may block, and commits it.
    pub(super) async fn write<F>(&self, durability: Durability, work: F) -> Result<(), Failure>
    where
        F: FnOnce(&Writing<'_>) -> Result<(), Failure> + Send + 'static,
    {
        let disk = self.clone();
        let run = move || disk.write_now(durability, work);
        tokio::task::spawn_blocking(run).await?
    }

    /// Runs a write and commits it. Records are sealed inside: there is one writer at a time, and none of them keeps a
    /// key over a rotation.
    fn write_now<F>(&self, durability: Durability, work: F) -> Result<(), Failure>
    where
        F: FnOnce(&Writing<'_>) -> Result<(), Failure>,
    {
        let mut transaction = self.database.begin_write()?;
        transaction.set_durability(durability)?;
        work(&Writing {
            transaction: &transaction,
            keyring: &self.keyring,
        })?;
        Ok(transaction.commit()?)
    }

    /// Seals everything with the newest of these keys.
    pub(super) async fn rotate(&self, keys: &LogKeys) -> Result<(), Failure> {
        self.keyring.add(keys)?;
        self.write(Durability::Immediate, |writing| writing.renew())
            .await
    }

    /// A value by its name.
    pub(super) fn meta<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, Failure> {
        let table = self.database.begin_read()?.open_table(META)?;
        let Some(record) = table.get(name)? else {
            return Ok(None);
        };
        let plain = self.keyring.open(Place::Value(name), record.value());
        let plain = plain.map_err(|error| format!("{name}: {error}"))?;
        Ok(Some(serde_json::from_slice(&plain)?))
    }

    pub(super) async fn set_meta<T: Serialize + Clone + Send + 'static>(
        &self,
        name: &'static str,
        value: &T,
        durability: Durability,
    ) -> Result<(), Failure> {
        let value = value.clone();
        self.write(durability, move |writing| writing.value(name, &value))
            .await
    }

    /// Replaces the snapshot: its description and its bytes change together.
    pub(super) async fn set_snapshot(&self, meta: Vec<u8>, bytes: Vec<u8>) -> Result<(), Failure> {
        self.write(Durability::Immediate, move |writing| {
            writing.bytes(SNAPSHOT_META, Place::Value(SNAPSHOT_META), &meta)?;
            writing.bytes(SNAPSHOT, Place::Snapshot(&meta), &bytes)
        })
        .await
    }

    /// The snapshot's description and bytes.
    pub(super) fn snapshot(&self) -> Result<Option<StoredSnapshot>, Failure> {
        let table = self.database.begin_read()?.open_table(META)?;
        let (meta, bytes) = match (table.get(SNAPSHOT_META)?, table.get(SNAPSHOT)?) {
            (None, None) => return Ok(None),
            (Some(meta), Some(bytes)) => (meta, bytes),
            (Some(_), None) | (None, Some(_)) => return Err("half a snapshot is missing".into()),
        };
        let open = |place, record: &[u8]| {
            let plain = self.keyring.open(place, record);
            plain.map_err(|error| Failure::from(format!("snapshot: {error}")))
        };
        let meta = open(Place::Value(SNAPSHOT_META), meta.value())?.to_vec();
        let bytes = open(Place::Snapshot(&meta), bytes.value())?.to_vec();
        Ok(Some((meta, bytes)))
    }

    fn entry(&self, index: u64, record: &[u8]) -> Result<RaftEntry, Failure> {
        let plain = self.keyring.open(Place::Entry(index), record);
        let plain = plain.map_err(|error| format!("entry {index}: {error}"))?;
        Ok(serde_json::from_slice(&plain)?)
    }

    /// Entries in their order.
    pub(super) fn entries(&self, range: impl RangeBounds<u64>) -> Result<Vec<RaftEntry>, Failure> {
        let table = self.database.begin_read()?.open_table(LOG)?;
        let range = (range.start_bound().cloned(), range.end_bound().cloned());
        let mut entries = Vec::new();
        for item in table.range::<u64>(range)? {
            let (index, record) = item?;
            entries.push(self.entry(index.value(), record.value())?);
        }
        Ok(entries)
    }

    /// The last entry's.
    pub(super) fn last_log_id(&self) -> Result<Option<LogId<u64>>, Failure> {
        let table = self.database.begin_read()?.open_table(LOG)?;
        let Some((index, record)) = table.last()? else {
            return Ok(None);
        };
        Ok(Some(self.entry(index.value(), record.value())?.log_id))
    }
}

/// Opens or makes the database's file. A commit that was torn by a crash, and which nobody was told of, is taken back
/// here; all other pages must have their checksums.
fn create(path: &Path) -> Result<Database, redb::Error> {
    if path.exists() {
        check_pages(path)?;
    }
    let database = Database::create(path)?;
    let write = database.begin_write()?;
    write.open_table(LOG)?;
    write.open_table(META)?;
    write.commit()?;
    Ok(database)
}

/// Tries the file on a copy in memory. After a clean end redb trusts it without a look, and pages that are not what was
/// written would end the process; without the mark of a clean end, it looks at every one of them first.
fn check_pages(path: &Path) -> Result<(), redb::Error> {
    if fs::metadata(path)?.len() > MAX_COPY {
        return Ok(());
    }
    let mut bytes = fs::read(path)?;
    let mut was_clean = false;
    if let Some(marks) = bytes.get_mut(MARKS) {
        was_clean = *marks & TWO_PHASES != 0;
        *marks = (*marks | RECOVER) & !TWO_PHASES;
    }
    let copy = InMemoryBackend::new();
    copy.set_len(u64::try_from(bytes.len()).unwrap_or(u64::MAX))?;
    copy.write(0, &bytes)?;
    drop(bytes);
    let mut trial = Database::builder();
    // Begun, and less than half done: the last commit does not have its checksums. It may be a torn one, but not after a
    // clean end.
    trial.set_repair_callback(move |repair| {
        let done = repair.progress();
        if was_clean && done > 0.0 && done < 0.5 {
            repair.abort();
        }
    });
    match trial.create_with_backend(copy) {
        Ok(_) => Ok(()),
        Err(redb::DatabaseError::RepairAborted) => {
            let what = "its pages are not what was written".to_owned();
            Err(redb::Error::Corrupted(what))
        }
        Err(error) => Err(error.into()),
    }
}
