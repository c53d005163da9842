//! Identifiers of cluster objects.

use std::{cmp, fmt, hash, marker::PhantomData, str::FromStr, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::rng::Rng;

/// Characters in an identifier: 25 digits of base 36 carry 128 bits, as in swarmkit.
pub const ID_LEN: usize = 25;
const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";

/// The identifier of an object of kind `K`: 25 characters of `[0-9a-z]`, as swarmkit makes them and
/// the `docker` client shows them. Cheap to clone.
pub struct Id<K> {
    text: Arc<str>,
    kind: PhantomData<fn() -> K>,
}

/// Why a text is not an identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an object id: want 25 characters of 0-9 and a-z")]
pub struct InvalidId(pub String);

impl<K> Id<K> {
    /// Draws a new identifier. The caller's generator decides it, so a replay draws it again.
    #[must_use]
    pub fn draw(rng: &mut Rng) -> Self {
        Self::from_entropy(rng.next_u128())
    }

    /// The identifier that 128 random bits stand for.
    #[must_use]
    pub fn from_entropy(bits: u128) -> Self {
        let mut text = [b'0'; ID_LEN];
        let mut rest = bits;
        for slot in text.iter_mut().rev() {
            // The remainder is below 36, so it fits any integer.
            *slot = DIGITS[usize::try_from(rest % 36).unwrap_or(0)];
            rest /= 36;
        }
        Self::trusted(std::str::from_utf8(&text).unwrap_or_default())
    }

    fn trusted(text: &str) -> Self {
        Self {
            text: Arc::from(text),
            kind: PhantomData,
        }
    }

    /// The 25 characters.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The first twelve characters, the form in which tables show an identifier.
    #[must_use]
    pub fn short(&self) -> &str {
        &self.text[..12]
    }
}

impl<K> FromStr for Id<K> {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let valid = text.len() == ID_LEN && text.bytes().all(|byte| DIGITS.contains(&byte));
        if valid {
            Ok(Self::trusted(text))
        } else {
            Err(InvalidId(text.chars().take(64).collect()))
        }
    }
}

impl<K> Clone for Id<K> {
    fn clone(&self) -> Self {
        Self {
            text: Arc::clone(&self.text),
            kind: PhantomData,
        }
    }
}
impl<K> PartialEq for Id<K> {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}
impl<K> Eq for Id<K> {}
impl<K> PartialOrd for Id<K> {
    fn partial_cmp(&self, other: &Self) -> Option<cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl<K> Ord for Id<K> {
    fn cmp(&self, other: &Self) -> cmp::Ordering {
        self.text.cmp(&other.text)
    }
}
impl<K> hash::Hash for Id<K> {
    fn hash<H: hash::Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}
impl<K> fmt::Display for Id<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}
impl<K> fmt::Debug for Id<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
impl<K> Serialize for Id<K> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}
impl<'de, K> Deserialize<'de> for Id<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Kind;

    #[test]
    fn every_entropy_gives_a_valid_id() {
        for bits in [0, 1, 35, 36, u128::MAX, 1 << 127] {
            let id = Id::<Kind>::from_entropy(bits);
            assert_eq!(id.as_str().parse::<Id<Kind>>(), Ok(id.clone()));
        }
    }

    #[test]
    fn foreign_texts_are_refused() {
        for text in [
            "",
            "short",
            "ABCDEFGHIJKLMNOPQRSTUVWXY",
            "0000000000000000000000000 ",
        ] {
            assert!(text.parse::<Id<Kind>>().is_err(), "{text:?}");
        }
    }
}
