//! Bytes that only who has the key can read, and that nobody else can change unnoticed: AES-256-GCM.
//!
//! A sealed record is `version (1) · salt (16) · number (8) · ciphertext · tag (16)`. Each [`Sealer`] draws a salt when
//! it is made and derives a key of its own from it (HKDF with SHA-256); it numbers its records. So no key meets the same
//! nonce twice, whatever becomes of the process, and no counter needs to be kept. Where a record belongs, its context,
//! is authenticated with it: records cannot change places.

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
};

use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};
use ring::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    hkdf,
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use skep_host::{HostError, entropy};
use zeroize::{Zeroize, Zeroizing};

const VERSION: u8 = 1;
const SALT: usize = 16;
const NUMBER: usize = 8;
const HEAD: usize = 1 + SALT + NUMBER;
const TAG: usize = 16;

/// A secret of 256 bits. It is wiped when it is dropped, and not shown.
#[derive(Clone)]
pub struct Key([u8; 32]);

/// Why a record could not be sealed or opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// Not a record of this form.
    #[error("it is cut short, or of a later version of Skep")]
    Form,
    /// Changed, cut, in the wrong place or sealed with another key: these cannot be told apart.
    #[error("it was changed, or sealed with another key")]
    Damaged,
    /// The cryptographic library refuses, or a number is used up.
    #[error("it cannot be sealed")]
    Refused,
}

/// Seals and opens records under one key.
pub struct Sealer {
    key: Key,
    purpose: &'static str,
    salt: [u8; SALT],
    own: LessSafeKey,
    next: AtomicU64,
}

impl Key {
    /// A key of these bytes.
    #[must_use]
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Draws a key.
    ///
    /// # Errors
    /// When the kernel gives no randomness.
    pub fn draw() -> Result<Self, HostError> {
        Ok(Self(entropy::bits256()?))
    }

    /// The key for one salt and one purpose.
    fn derive(&self, purpose: &str, salt: &[u8]) -> Result<LessSafeKey, SealError> {
        let secret = hkdf::Salt::new(hkdf::HKDF_SHA256, salt).extract(&self.0);
        let info = [purpose.as_bytes()];
        let derived = secret.expand(&info, &AES_256_GCM);
        let derived = derived.map_err(|_| SealError::Refused)?;
        Ok(LessSafeKey::new(UnboundKey::from(derived)))
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Keys stay out of logs.
        f.debug_struct("Key").finish_non_exhaustive()
    }
}

impl Serialize for Key {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&Zeroizing::new(STANDARD_NO_PAD.encode(self.0)))
    }
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Zeroizing::new(String::deserialize(deserializer)?);
        let bytes = STANDARD_NO_PAD.decode(text.as_bytes()).map(Zeroizing::new);
        let bytes = bytes.map_err(|_| de::Error::custom("a key is not in base 64"))?;
        let bytes = <[u8; 32]>::try_from(bytes.as_slice());
        bytes
            .map(Self)
            .map_err(|_| de::Error::custom("a key has not 32 bytes"))
    }
}

impl Sealer {
    /// A sealer under this key. `purpose` separates what the same key is used for.
    ///
    /// # Errors
    /// When the kernel gives no randomness.
    pub fn new(key: Key, purpose: &'static str) -> Result<Self, HostError> {
        let salt = entropy::bits128()?.to_be_bytes();
        let own = key.derive(purpose, &salt);
        let own = own.map_err(|error| HostError::new("derive a key for", purpose, error))?;
        Ok(Self {
            key,
            purpose,
            salt,
            own,
            next: AtomicU64::new(0),
        })
    }

    /// Seals a record for one place.
    ///
    /// # Errors
    /// [`SealError::Refused`].
    pub fn seal(&self, context: &[u8], plain: &[u8]) -> Result<Vec<u8>, SealError> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        if number == u64::MAX {
            return Err(SealError::Refused);
        }
        let number = number.to_be_bytes();
        let mut record = Vec::with_capacity(HEAD + plain.len() + TAG);
        record.push(VERSION);
        record.extend_from_slice(&self.salt);
        record.extend_from_slice(&number);
        record.extend_from_slice(plain);
        let (_, body) = record.split_at_mut(HEAD);
        let tag = self
            .own
            .seal_in_place_separate_tag(nonce(number), Aad::from(context), body);
        let tag = tag.map_err(|_| SealError::Refused)?;
        record.extend_from_slice(tag.as_ref());
        Ok(record)
    }

    /// Opens a record of one place, sealed under the same key by this sealer or another.
    ///
    /// # Errors
    /// When it is none, or not exactly what was sealed for this place.
    pub fn open(&self, context: &[u8], record: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealError> {
        let (version, rest) = record.split_first().ok_or(SealError::Form)?;
        let (salt, rest) = rest.split_at_checked(SALT).ok_or(SealError::Form)?;
        let (number, body) = rest.split_first_chunk::<NUMBER>().ok_or(SealError::Form)?;
        if *version != VERSION || body.len() < TAG {
            return Err(SealError::Form);
        }
        let mut plain = Zeroizing::new(body.to_vec());
        let nonce = nonce(*number);
        let context = Aad::from(context);
        let opened = if salt == self.salt {
            self.own.open_in_place(nonce, context, &mut plain)
        } else {
            let key = self.key.derive(self.purpose, salt)?;
            key.open_in_place(nonce, context, &mut plain)
        };
        let length = opened.map_err(|_| SealError::Damaged)?.len();
        plain.truncate(length);
        Ok(plain)
    }
}

fn nonce(number: [u8; NUMBER]) -> Nonce {
    let mut nonce = [0; NONCE_LEN];
    let (_, end) = nonce.split_at_mut(NONCE_LEN - NUMBER);
    end.copy_from_slice(&number);
    Nonce::assume_unique_for_key(nonce)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sealer(byte: u8) -> Sealer {
        Sealer::new(Key::new([byte; 32]), "test").unwrap()
    }

    #[test]
    fn no_two_records_are_alike_and_another_sealer_reads_them() {
        let (one, other) = (sealer(1), sealer(1));
        let sealed: Vec<_> = [&one, &one, &other]
            .map(|sealer| sealer.seal(b"here", b"same").unwrap())
            .into();
        for (position, record) in sealed.iter().enumerate() {
            assert_eq!(*one.open(b"here", record).unwrap(), b"same");
            assert_eq!(*other.open(b"here", record).unwrap(), b"same");
            assert!(!sealed[..position].contains(record));
        }
    }

    #[test]
    fn another_key_place_or_purpose_opens_nothing() {
        let record = sealer(1).seal(b"here", b"text").unwrap();
        let elsewhere = Sealer::new(Key::new([1; 32]), "other").unwrap();
        for opened in [
            sealer(2).open(b"here", &record),
            sealer(1).open(b"there", &record),
            elsewhere.open(b"here", &record),
        ] {
            assert_eq!(opened, Err(SealError::Damaged));
        }
    }

    #[test]
    fn keys_survive_their_text_and_are_not_shown() {
        let key = Key::new([0xa5; 32]);
        assert!(!format!("{key:?}").contains("a5"));
        let text = serde_json::to_string(&key).unwrap();
        assert_eq!(serde_json::from_str::<Key>(&text).unwrap().0, key.0);
        for wrong in ["\"\"", "\"paWl\"", "\"!\"", "1"] {
            assert!(serde_json::from_str::<Key>(wrong).is_err());
        }
    }

    proptest! {
        #[test]
        fn what_was_changed_anywhere_or_cut_is_an_error(
            plain in prop::collection::vec(any::<u8>(), 0..200),
            at: prop::sample::Index,
            flip in 1..=255u8,
        ) {
            let sealer = sealer(3);
            let record = sealer.seal(b"place", &plain).unwrap();
            prop_assert_eq!(&*sealer.open(b"place", &record).unwrap(), &plain);
            let at = at.index(record.len());
            prop_assert!(sealer.open(b"place", &record[..at]).is_err());
            let mut changed = record;
            changed[at] ^= flip;
            prop_assert!(sealer.open(b"place", &changed).is_err());
        }

        #[test]
        fn no_bytes_break_the_reader(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(sealer(4).open(b"", &bytes).is_err());
        }
    }
}
