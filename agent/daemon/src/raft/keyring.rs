//! What seals the records of a log: each is bound to its place in it.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::{Arc, PoisonError, RwLock},
};

use skep_host::HostError;
use zeroize::Zeroizing;

use crate::{
    identity::LogKeys,
    seal::{SealError, Sealer},
};

/// What the keys of a log are for.
const PURPOSE: &str = "skep: log of a manager";
/// Bytes of a key's number before a record.
const NUMBER: usize = 4;

/// Where a record belongs.
#[derive(Debug, Clone, Copy)]
pub(super) enum Place<'a> {
    /// The entry with this index.
    Entry(u64),
    /// The value of this name.
    Value(&'a str),
    /// The bytes of the snapshot with this description.
    Snapshot(&'a [u8]),
}

impl Place<'_> {
    fn context(self) -> Vec<u8> {
        let (kind, rest) = match self {
            Place::Entry(index) => (b'e', index.to_be_bytes().to_vec()),
            Place::Value(name) => (b'v', name.as_bytes().to_vec()),
            Place::Snapshot(meta) => (b's', meta.to_vec()),
        };
        let mut context = vec![kind];
        context.extend(rest);
        context
    }
}

/// Seals with the newest key of a log, and opens with the one that a record names.
pub(super) struct Keyring(RwLock<BTreeMap<u32, Arc<Sealer>>>);

impl Keyring {
    /// A keyring with these keys.
    ///
    /// # Errors
    /// When the kernel gives no randomness.
    pub(super) fn new(keys: &LogKeys) -> Result<Self, HostError> {
        let keyring = Self(RwLock::default());
        keyring.add(keys)?;
        Ok(keyring)
    }

    /// Takes up keys. Those that were there stay: a reader may still hold what they have sealed.
    ///
    /// # Errors
    /// When the kernel gives no randomness.
    pub(super) fn add(&self, keys: &LogKeys) -> Result<(), HostError> {
        let mut sealers = self.0.write().unwrap_or_else(PoisonError::into_inner);
        for (number, key) in keys.iter() {
            if let Entry::Vacant(place) = sealers.entry(number) {
                place.insert(Arc::new(Sealer::new(key.clone(), PURPOSE)?));
            }
        }
        Ok(())
    }

    fn newest(&self) -> Option<(u32, Arc<Sealer>)> {
        let sealers = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let (number, sealer) = sealers.last_key_value()?;
        Some((*number, Arc::clone(sealer)))
    }

    /// A record for its place.
    ///
    /// # Errors
    /// When there is no key, or it is used up.
    pub(super) fn seal(&self, place: Place<'_>, plain: &[u8]) -> Result<Vec<u8>, SealError> {
        let (number, sealer) = self.newest().ok_or(SealError::Refused)?;
        let mut record = number.to_be_bytes().to_vec();
        record.extend(sealer.seal(&place.context(), plain)?);
        Ok(record)
    }

    /// What was sealed for this place.
    ///
    /// # Errors
    /// When it is anything else.
    pub(super) fn open(
        &self,
        place: Place<'_>,
        record: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, SealError> {
        let (number, rest) = number(record)?;
        let sealers = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let sealer = sealers.get(&number).cloned();
        drop(sealers);
        sealer
            .ok_or(SealError::Damaged)?
            .open(&place.context(), rest)
    }

    /// Whether a record was sealed with another key than the newest.
    pub(super) fn is_old(&self, record: &[u8]) -> bool {
        let newest = self.newest().map(|(number, _)| number);
        number(record).ok().map(|(number, _)| number) != newest
    }
}

fn number(record: &[u8]) -> Result<(u32, &[u8]), SealError> {
    let (number, rest) = record
        .split_first_chunk::<NUMBER>()
        .ok_or(SealError::Form)?;
    Ok((u32::from_be_bytes(*number), rest))
}
