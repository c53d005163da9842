//! Unlock keys: `SWMKEY-1-<secret>`, as swarmkit makes and reads them: 32 random bytes in base 64 without
//! padding.

use std::fmt;

use data_encoding::BASE64_NOPAD;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, Zeroizing};

const PREFIX: &str = "SWMKEY-1-";
/// Bytes of the secret.
const LEN: usize = 32;
/// Characters of the secret.
const DIGITS: usize = 43;

/// What unlocks the managers of a swarm. Keys are compared in a time that does not tell where they differ, shown by
/// [`UnlockKey::text`] alone, and wiped from memory when they are dropped.
#[derive(Clone)]
pub struct UnlockKey([u8; LEN]);

/// A text is not an unlock key. The text itself is not repeated: it may be one but for a letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("invalid key string: want SWMKEY-1-<{DIGITS} characters>")]
pub struct InvalidUnlockKey;

impl UnlockKey {
    /// The key of these random bytes.
    #[must_use]
    pub fn new(secret: [u8; LEN]) -> Self {
        Self(secret)
    }

    /// Reads a key.
    ///
    /// # Errors
    /// When the text is none.
    pub fn parse(text: &str) -> Result<Self, InvalidUnlockKey> {
        let digits = text.trim().strip_prefix(PREFIX).ok_or(InvalidUnlockKey)?;
        if digits.len() != DIGITS {
            return Err(InvalidUnlockKey);
        }
        let mut key = Self([0; LEN]);
        let decoded = BASE64_NOPAD.decode_mut(digits.as_bytes(), &mut key.0);
        decoded.map(|_| key).map_err(|_| InvalidUnlockKey)
    }

    /// The text that operators keep.
    #[must_use]
    pub fn text(&self) -> Zeroizing<String> {
        let mut text = Zeroizing::new(PREFIX.to_owned());
        BASE64_NOPAD.encode_append(&self.0, &mut text);
        text
    }

    /// The secret, to derive keys from.
    #[must_use]
    pub fn secret(&self) -> &[u8; LEN] {
        &self.0
    }
}

impl Drop for UnlockKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl PartialEq for UnlockKey {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for UnlockKey {}

impl fmt::Debug for UnlockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The secret stays out of logs.
        f.debug_struct("UnlockKey").finish_non_exhaustive()
    }
}

impl Serialize for UnlockKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text())
    }
}

impl<'de> Deserialize<'de> for UnlockKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Zeroizing::new(String::deserialize(deserializer)?);
        Self::parse(&text).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_key_has_the_form_that_docker_shows_and_is_not_shown_by_accident() {
        let key = UnlockKey::new([0xa5; LEN]);
        let text = key.text();
        assert_eq!(
            *text,
            "SWMKEY-1-paWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaU"
        );
        assert_eq!(UnlockKey::parse(&format!(" {}\n", *text)), Ok(key.clone()));
        assert!(!format!("{key:?}").contains("paWl"));
        assert_ne!(key, UnlockKey::new([0xa4; LEN]));
    }

    #[test]
    fn other_texts_are_no_keys() {
        let good = UnlockKey::new([7; LEN]).text();
        let cases = [
            "",
            "SWMKEY-1-",
            &good[..good.len() - 1],
            &good.replace("SWMKEY-1-", "SWMKEY-2-"),
            &good.replace("SWMKEY-1-", "SWMTKN-1-"),
            &format!("{}A", *good),
            &format!("{}=", *good),
            &good.replacen("Bw", "B!", 1),
        ];
        for text in cases {
            assert_eq!(UnlockKey::parse(text), Err(InvalidUnlockKey), "{text}");
        }
    }

    proptest! {
        #[test]
        fn every_key_survives_its_text_and_the_store(secret: [u8; LEN]) {
            let key = UnlockKey::new(secret);
            prop_assert_eq!(&UnlockKey::parse(&key.text()).unwrap(), &key);
            let stored = serde_json::to_string(&key).unwrap();
            prop_assert_eq!(serde_json::from_str::<UnlockKey>(&stored).unwrap(), key);
        }

        #[test]
        fn no_text_breaks_the_parser(text in "(SWMKEY-1-)?\\PC*") {
            let _ = UnlockKey::parse(&text);
        }
    }
}
