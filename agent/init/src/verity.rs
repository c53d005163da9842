//! dm-verity: the superblock of a hash partition, and the table line that the kernel wants for it.
//!
//! Format: the kernel's `Documentation/admin-guide/device-mapper/verity.rst` and cryptsetup's on-disk superblock,
//! version 1. The superblock itself is not covered by the root hash: what it says only chooses how the hash is computed,
//! so a forged one makes the root unreadable, never wrong. Its numbers are bounded all the same.

use std::fmt;

use crate::cmdline::RootHash;

/// How much of the hash partition's start must be read.
pub(crate) const SUPERBLOCK_SIZE: usize = 512;
const SALT_MAX: usize = 256;
const SECTOR: u64 = 512;

/// What a superblock says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Superblock {
    data_block: u32,
    hash_block: u32,
    data_blocks: u64,
    salt: Vec<u8>,
}

/// Why some bytes are not a superblock that can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum VerityError {
    /// The magic is not there.
    NoSuperblock,
    /// Version, hash type or algorithm is none that the image uses.
    Unsupported,
    /// A size is out of range.
    BadSize,
}

impl fmt::Display for VerityError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoSuperblock => "the hash partition has no verity superblock",
            Self::Unsupported => "the verity superblock is not of version 1, type 1 with sha256",
            Self::BadSize => "a size in the verity superblock is out of range",
        })
    }
}

/// What the kernel does on reading a block that does not match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnCorruption {
    /// The read fails.
    Fail,
    /// The machine restarts, so that boot counting can choose the other slot.
    Restart,
}

impl Superblock {
    /// Reads the first bytes of a hash partition.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, VerityError> {
        let bytes = bytes
            .get(..SUPERBLOCK_SIZE)
            .filter(|bytes| &bytes[..8] == b"verity\0\0")
            .ok_or(VerityError::NoSuperblock)?;
        let u32_at = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        let algorithm = bytes[32..64].split(|b| *b == 0).next();
        if u32_at(8) != 1 || u32_at(12) != 1 || algorithm != Some(b"sha256") {
            return Err(VerityError::Unsupported);
        }
        let superblock = Self {
            data_block: u32_at(64),
            hash_block: u32_at(68),
            data_blocks: u64::from_le_bytes(std::array::from_fn(|i| bytes[72 + i])),
            salt: {
                let size = usize::from(u16::from_le_bytes([bytes[80], bytes[81]]));
                let salt = bytes.get(88..88 + size.min(SALT_MAX + 1));
                salt.filter(|salt| salt.len() <= SALT_MAX)
                    .ok_or(VerityError::BadSize)?
                    .to_vec()
            },
        };
        let block = |size: u32| size.is_power_of_two() && (512..=65536).contains(&size);
        if !block(superblock.data_block)
            || !block(superblock.hash_block)
            || superblock.data_blocks == 0
            || superblock.data_bytes().is_none()
        {
            return Err(VerityError::BadSize);
        }
        Ok(superblock)
    }

    fn data_bytes(&self) -> Option<u64> {
        self.data_blocks.checked_mul(u64::from(self.data_block))
    }

    /// The size of the verified device in sectors of 512 bytes.
    pub(crate) fn sectors(&self) -> u64 {
        self.data_bytes().unwrap_or(0) / SECTOR
    }

    /// The parameters of the `verity` target; devices are paths or `major:minor`.
    pub(crate) fn table(
        &self,
        data: &str,
        hash: &str,
        root: &RootHash,
        on_corruption: OnCorruption,
    ) -> String {
        let mut salt: String = self.salt.iter().map(|b| format!("{b:02x}")).collect();
        if salt.is_empty() {
            salt.push('-');
        }
        let options = match on_corruption {
            OnCorruption::Fail => "",
            OnCorruption::Restart => " 1 restart_on_corruption",
        };
        // The superblock takes the first hash block; the tree begins behind it.
        format!(
            "1 {data} {hash} {} {} {} 1 sha256 {root} {salt}{options}",
            self.data_block, self.hash_block, self.data_blocks
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> Vec<u8> {
        let mut bytes = vec![0; SUPERBLOCK_SIZE];
        bytes[..8].copy_from_slice(b"verity\0\0");
        bytes[8] = 1;
        bytes[12] = 1;
        bytes[32..38].copy_from_slice(b"sha256");
        bytes[64..68].copy_from_slice(&4096_u32.to_le_bytes());
        bytes[68..72].copy_from_slice(&4096_u32.to_le_bytes());
        bytes[72..80].copy_from_slice(&100_u64.to_le_bytes());
        bytes[80] = 2;
        bytes[88..90].copy_from_slice(&[0xab, 0xcd]);
        bytes
    }

    #[test]
    fn the_table_is_the_kernels() {
        let root = RootHash::from_cmdline(&format!("roothash={}", "0f".repeat(32))).unwrap();
        let superblock = Superblock::parse(&sample()).unwrap();
        assert_eq!(superblock.sectors(), 800);
        assert_eq!(
            superblock.table("254:2", "254:3", &root, OnCorruption::Restart),
            format!("1 254:2 254:3 4096 4096 100 1 sha256 {root} abcd 1 restart_on_corruption")
        );
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let changed = |at: usize, byte: u8| {
            let mut bytes = sample();
            bytes[at] = byte;
            Superblock::parse(&bytes)
        };
        assert_eq!(changed(0, b'V'), Err(VerityError::NoSuperblock));
        assert_eq!(changed(8, 2), Err(VerityError::Unsupported));
        assert_eq!(changed(37, b'7'), Err(VerityError::Unsupported));
        assert_eq!(changed(64, 1), Err(VerityError::BadSize));
        assert_eq!(changed(81, 2), Err(VerityError::BadSize));
        assert_eq!(changed(79, 0xff), Err(VerityError::BadSize));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(at in 0_usize..512, tail in prop::collection::vec(any::<u8>(), 0..600)) {
            let mut bytes = sample();
            bytes.truncate(at);
            bytes.extend(tail);
            if let Ok(superblock) = Superblock::parse(&bytes) {
                prop_assert!(superblock.salt.len() <= SALT_MAX);
                prop_assert!(superblock.data_bytes().is_some());
            }
        }
    }
}
