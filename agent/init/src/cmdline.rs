//! The few keys of the kernel command line that matter before there is a root file system.

use std::fmt;

/// The root hash of the dm-verity tree: it names the root and, by its halves, the two partitions that hold it.
///
/// The rule is systemd-repart's and systemd-gpt-auto-generator's: the data partition's UUID is the first 128 bits of
/// the hash, the hash partition's UUID is the last 128 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RootHash([u8; 32]);

/// What is wrong with `roothash=`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RootHashError {
    /// The command line has no such key.
    Missing,
    /// The value is not 64 hexadecimal digits.
    Malformed(String),
}

impl fmt::Display for RootHashError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => {
                write!(
                    f,
                    "roothash= is missing on the kernel command line, so there is no root to start"
                )
            }
            Self::Malformed(value) => {
                write!(
                    f,
                    "roothash={value} on the kernel command line is not 64 hexadecimal digits"
                )
            }
        }
    }
}

impl RootHash {
    /// Finds and reads `roothash=`; of several, the last counts, as everywhere on the kernel command line.
    pub(crate) fn from_cmdline(cmdline: &str) -> Result<Self, RootHashError> {
        let value = values(cmdline, "roothash")
            .last()
            .ok_or(RootHashError::Missing)?;
        parse_hex32(value)
            .map(Self)
            .ok_or_else(|| RootHashError::Malformed(value.to_owned()))
    }

    /// The UUID of the data partition, in the order of its text form.
    pub(crate) fn data_uuid(&self) -> [u8; 16] {
        std::array::from_fn(|i| self.0[i])
    }

    /// The UUID of the hash partition, in the order of its text form.
    pub(crate) fn hash_uuid(&self) -> [u8; 16] {
        std::array::from_fn(|i| self.0[i + 16])
    }
}

impl fmt::Display for RootHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The values of `key=` in order. Words are split at white space; a double quote keeps white space inside a word and
/// is not part of it, as the kernel does it.
pub(crate) fn values<'a>(cmdline: &'a str, key: &'a str) -> impl Iterator<Item = &'a str> {
    words(cmdline).filter_map(move |word| {
        let word = word.strip_prefix('"').unwrap_or(word);
        let value = word.strip_prefix(key)?.strip_prefix('=')?;
        Some(value.trim_matches('"'))
    })
}

fn words(cmdline: &str) -> impl Iterator<Item = &str> {
    let mut quoted = false;
    cmdline
        .split(move |c: char| {
            quoted ^= c == '"';
            c.is_ascii_whitespace() && !quoted
        })
        .filter(|word| !word.is_empty())
}

fn parse_hex32(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let mut bytes = [0; 32];
    for (i, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * i..2 * i + 2)?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HASH: &str = "00112233445566778899aabbccddeeff0123456789abcdef0123456789abcdef";

    #[test]
    fn the_halves_of_the_hash_are_the_partitions() {
        let hash = RootHash::from_cmdline(&format!("quiet roothash={HASH} console=ttyS0")).unwrap();
        assert_eq!(hash.to_string(), HASH);
        assert_eq!(hash.data_uuid()[..3], [0x00, 0x11, 0x22]);
        assert_eq!(hash.hash_uuid()[..3], [0x01, 0x23, 0x45]);
    }

    #[test]
    fn the_last_of_several_counts() {
        let line = format!("roothash={} roothash={HASH}\n", "f".repeat(64));
        assert_eq!(RootHash::from_cmdline(&line).unwrap().to_string(), HASH);
    }

    #[test]
    fn what_is_wrong_is_said() {
        assert_eq!(
            RootHash::from_cmdline("quiet xroothash=00"),
            Err(RootHashError::Missing)
        );
        for bad in ["", "00", "zz", &"é".repeat(32), &format!("{HASH}0")] {
            let error = RootHash::from_cmdline(&format!("roothash={bad}")).unwrap_err();
            assert_eq!(error, RootHashError::Malformed(bad.to_owned()));
        }
    }

    #[test]
    fn quotes_hold_a_word_together() {
        let line = r#"a="x roothash=1" "b=y z" c=1"#;
        assert_eq!(values(line, "roothash").count(), 0);
        assert_eq!(values(line, "a").collect::<Vec<_>>(), ["x roothash=1"]);
        assert_eq!(values(line, "b").collect::<Vec<_>>(), ["y z"]);
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(line in any::<String>()) {
            let _ = RootHash::from_cmdline(&line);
        }

        #[test]
        fn a_hash_survives_the_way_through_text(bytes in any::<[u8; 32]>(), before in "[a-z=.]{0,20}") {
            let hash = RootHash(bytes);
            prop_assert_eq!(RootHash::from_cmdline(&format!("{before} roothash={hash}")), Ok(hash));
        }
    }
}
