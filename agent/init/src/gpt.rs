//! GUID partition tables: read one from a disk's bytes, and plan the bytes of one with a partition more.
//!
//! Format: UEFI specification, chapter 5.3. The disk is not trusted to be well-formed: sizes are bounded before they are
//! used, and a table counts only if both of its checksums hold. Nothing here touches a disk.

use std::fmt;

/// First bytes of a header.
const SIGNATURE: &[u8; 8] = b"EFI PART";
/// The size of the header that is covered by its checksum, in the only revision there is.
const HEADER_SIZE: usize = 92;
/// The size of one entry in every table made by a common tool; other sizes are refused.
const ENTRY_SIZE: usize = 128;
/// More entries than any real table has; bounds what is read.
const MAX_ENTRIES: usize = 1024;
/// Partitions begin at a multiple of this.
const ALIGNMENT: u64 = 1024 * 1024;
/// The type "Linux file system data".
pub(crate) const LINUX_DATA: [u8; 16] = [
    0x0f, 0xc6, 0x3d, 0xaf, 0x84, 0x83, 0x47, 0x72, 0x8e, 0x79, 0x3d, 0x69, 0xd8, 0x47, 0x7d, 0xe4,
];

/// One partition. UUIDs are in the order of their text form, addresses in sectors of the disk, both ends included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Partition {
    /// From 1, as in the name of the device.
    pub(crate) number: u32,
    /// What kind of partition it is.
    pub(crate) kind: [u8; 16],
    /// Its own UUID (`PARTUUID`).
    pub(crate) uuid: [u8; 16],
    /// First sector.
    pub(crate) first: u64,
    /// Last sector.
    pub(crate) last: u64,
    /// Its name (`PARTLABEL`).
    pub(crate) label: String,
}

/// A valid table, with the bytes of its entries so that nothing in them is lost when it is written again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Table {
    sector: usize,
    header: [u8; HEADER_SIZE],
    entries: Vec<u8>,
}

/// Bytes to be written to the disk, in this order, each synced before the next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Write {
    /// Byte offset on the disk.
    pub(crate) offset: u64,
    /// What goes there.
    pub(crate) bytes: Vec<u8>,
}

/// Why some bytes are not a table, or why it cannot take the partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GptError {
    /// There is no table header at this place.
    NoSignature,
    /// The header's numbers are out of any sensible range.
    BadHeader,
    /// A checksum does not hold.
    BadChecksum,
    /// Every entry is taken.
    Full,
    /// Behind the last partition there are only so many bytes.
    NoRoom {
        /// Bytes that are free.
        free: u64,
    },
}

impl fmt::Display for GptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSignature => write!(f, "no partition table"),
            Self::BadHeader => write!(f, "the partition table's header makes no sense"),
            Self::BadChecksum => write!(f, "the partition table's checksum is wrong"),
            Self::Full => write!(f, "the partition table has no entry left"),
            Self::NoRoom { free } => write!(
                f,
                "only {} MiB are free behind the last partition",
                free / (1024 * 1024)
            ),
        }
    }
}

/// Where a header says that its entries are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct EntriesAt {
    /// Byte offset on the disk.
    pub(crate) offset: u64,
    /// Their size in bytes.
    pub(crate) len: usize,
}

/// Reads the header sector and says where the entries are, to be read next. `sector` is the disk's logical sector size.
pub(crate) fn entries_at(header: &[u8], sector: usize) -> Result<EntriesAt, GptError> {
    let header = header.get(..HEADER_SIZE).ok_or(GptError::NoSignature)?;
    if &header[..8] != SIGNATURE {
        return Err(GptError::NoSignature);
    }
    let count = usize_at(header, 80);
    if u32_at(header, 12) != 92 || usize_at(header, 84) != ENTRY_SIZE || count > MAX_ENTRIES {
        return Err(GptError::BadHeader);
    }
    let mut unsummed = header.to_vec();
    unsummed[16..20].fill(0);
    if crc32(&unsummed) != u32_at(header, 16) {
        return Err(GptError::BadChecksum);
    }
    let offset = u64_at(header, 72)
        .checked_mul(sector as u64)
        .ok_or(GptError::BadHeader)?;
    Ok(EntriesAt {
        offset,
        len: count * ENTRY_SIZE,
    })
}

impl Table {
    /// A table from its header sector and the entries that [`entries_at`] told to read.
    pub(crate) fn parse(header: &[u8], entries: &[u8], sector: usize) -> Result<Self, GptError> {
        let at = entries_at(header, sector)?;
        let entries = entries.get(..at.len).ok_or(GptError::BadHeader)?.to_vec();
        let header: [u8; HEADER_SIZE] = header[..HEADER_SIZE]
            .try_into()
            .map_err(|_| GptError::BadHeader)?;
        if crc32(&entries) != u32_at(&header, 88) {
            return Err(GptError::BadChecksum);
        }
        let table = Self {
            sector,
            header,
            entries,
        };
        if table.partitions().any(|p| p.first > p.last) {
            return Err(GptError::BadHeader);
        }
        Ok(table)
    }

    /// The partitions in the order of their numbers.
    pub(crate) fn partitions(&self) -> impl Iterator<Item = Partition> {
        (1..)
            .zip(self.entries.chunks_exact(ENTRY_SIZE))
            .filter(|(_, entry)| entry[..16] != [0; 16])
            .map(|(number, entry)| Partition {
                number,
                kind: swapped(&entry[..16]),
                uuid: swapped(&entry[16..32]),
                first: u64_at(entry, 32),
                last: u64_at(entry, 40),
                label: label(&entry[56..128]),
            })
    }

    /// The partition whose own UUID this is.
    pub(crate) fn by_uuid(&self, uuid: [u8; 16]) -> Option<Partition> {
        self.partitions().find(|p| p.uuid == uuid)
    }

    /// The partition with that label.
    pub(crate) fn by_label(&self, label: &str) -> Option<Partition> {
        self.partitions().find(|p| p.label == label)
    }

    /// Plans a partition of Linux data over all that is free behind the last one, and the bytes of both copies of the
    /// new table. The backup comes first: whichever write is torn, one valid table remains.
    ///
    /// `sectors` is the size of the disk, which may have grown since the table was made.
    pub(crate) fn with_last(
        &self,
        label: &str,
        uuid: [u8; 16],
        sectors: u64,
        at_least: u64,
    ) -> Result<(Partition, Vec<Write>), GptError> {
        let sector = self.sector as u64;
        let last_usable = self.last_usable(sectors)?;
        let align = (ALIGNMENT / sector).max(1);
        let end = self.partitions().map(|p| p.last).max().unwrap_or(0);
        let first = end
            .checked_add(1)
            .map(|next| next.max(u64_at(&self.header, 40)))
            .and_then(|next| next.checked_next_multiple_of(align))
            .ok_or(GptError::BadHeader)?;
        let free = (last_usable + 1)
            .saturating_sub(first)
            .saturating_mul(sector);
        if free < at_least.max(ALIGNMENT) {
            return Err(GptError::NoRoom { free });
        }
        let number = (1..)
            .zip(self.entries.chunks_exact(ENTRY_SIZE))
            .find(|(_, entry)| entry[..16] == [0; 16])
            .map(|(number, _)| number)
            .ok_or(GptError::Full)?;
        let partition = Partition {
            number,
            kind: LINUX_DATA,
            uuid,
            first,
            last: (last_usable + 1) / align * align - 1,
            label: label.to_owned(),
        };
        let mut grown = self.clone();
        grown.set(&partition);
        Ok((partition, grown.writes(sectors)?))
    }

    /// The bytes of both copies of the table with another label for the partition of that label.
    pub(crate) fn with_label(
        &self,
        label: &str,
        new: &str,
        sectors: u64,
    ) -> Result<Vec<Write>, GptError> {
        let mut renamed = self.clone();
        if let Some(partition) = self.by_label(label) {
            renamed.set(&Partition {
                label: new.to_owned(),
                ..partition
            });
        }
        renamed.writes(sectors)
    }

    /// The bytes of both copies of this table, for a disk of that size.
    pub(crate) fn writes(&self, sectors: u64) -> Result<Vec<Write>, GptError> {
        let last_usable = self.last_usable(sectors)?;
        let sector = self.sector as u64;
        let backup_at = sectors - 1;
        let backup_entries_at = last_usable + 1;
        let mut entries = self.entries.clone();
        entries.resize(entries.len().next_multiple_of(self.sector), 0);

        let mut primary = self.header_sector(1, backup_at, 2, last_usable);
        primary.extend_from_slice(&entries);
        let mut backup = entries;
        backup.extend(self.header_sector(backup_at, 1, backup_entries_at, last_usable));
        Ok(vec![
            Write {
                offset: backup_entries_at * sector,
                bytes: backup,
            },
            Write {
                offset: sector,
                bytes: primary,
            },
        ])
    }

    /// The last sector before the backup entries and header, on a disk of that size.
    fn last_usable(&self, sectors: u64) -> Result<u64, GptError> {
        let table = self.entries.len().div_ceil(self.sector) as u64;
        let end = self.partitions().map(|p| p.last).max().unwrap_or(0);
        sectors
            .checked_sub(table + 2)
            .filter(|last| *last >= end && *last > table + 2)
            .ok_or(GptError::NoRoom { free: 0 })
    }

    fn set(&mut self, partition: &Partition) {
        let Some(index) = usize::try_from(partition.number).ok().map(|n| n - 1) else {
            return;
        };
        let entry = &mut self.entries[index * ENTRY_SIZE..(index + 1) * ENTRY_SIZE];
        entry.fill(0);
        entry[..16].copy_from_slice(&swapped(&partition.kind));
        entry[16..32].copy_from_slice(&swapped(&partition.uuid));
        entry[32..40].copy_from_slice(&partition.first.to_le_bytes());
        entry[40..48].copy_from_slice(&partition.last.to_le_bytes());
        for (unit, place) in partition
            .label
            .encode_utf16()
            .zip(entry[56..128].chunks_exact_mut(2))
        {
            place.copy_from_slice(&unit.to_le_bytes());
        }
    }

    fn header_sector(&self, own: u64, other: u64, entries: u64, last_usable: u64) -> Vec<u8> {
        let mut header = vec![0; self.sector];
        header[..HEADER_SIZE].copy_from_slice(&self.header);
        header[24..32].copy_from_slice(&own.to_le_bytes());
        header[32..40].copy_from_slice(&other.to_le_bytes());
        header[48..56].copy_from_slice(&last_usable.to_le_bytes());
        header[72..80].copy_from_slice(&entries.to_le_bytes());
        header[88..92].copy_from_slice(&crc32(&self.entries).to_le_bytes());
        header[16..20].fill(0);
        let sum = crc32(&header[..HEADER_SIZE]);
        header[16..20].copy_from_slice(&sum.to_le_bytes());
        header
    }
}

/// Between the order on disk, whose first three fields are little-endian, and the order of the text form.
fn swapped(bytes: &[u8]) -> [u8; 16] {
    const ORDER: [usize; 16] = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];
    std::array::from_fn(|i| bytes[ORDER[i]])
}

fn label(bytes: &[u8]) -> String {
    let units: Vec<u16> = bytes
        .chunks_exact(2)
        .map(|pair| u16::from_le_bytes([pair[0], pair[1]]))
        .take_while(|unit| *unit != 0)
        .collect();
    String::from_utf16_lossy(&units)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

fn usize_at(bytes: &[u8], at: usize) -> usize {
    usize::try_from(u32_at(bytes, at)).unwrap_or(usize::MAX)
}

/// The checksum of IEEE 802.3, bit by bit: a table is 16 KiB and is read once.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
            (sum >> 1) ^ (0xedb8_8320 & (sum & 1).wrapping_neg())
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECTOR: usize = 512;

    /// A disk as the image has it: two partitions and a table made for exactly that size.
    fn disk(sectors: u64) -> (Table, Vec<u8>) {
        let mut header = [0; HEADER_SIZE];
        header[..8].copy_from_slice(SIGNATURE);
        header[8..12].copy_from_slice(&0x0001_0000_u32.to_le_bytes());
        header[12..16].copy_from_slice(&92_u32.to_le_bytes());
        header[40..48].copy_from_slice(&34_u64.to_le_bytes());
        header[56..72].fill(7);
        header[80..84].copy_from_slice(&128_u32.to_le_bytes());
        header[84..88].copy_from_slice(&128_u32.to_le_bytes());
        let mut table = Table {
            sector: SECTOR,
            header,
            entries: vec![0; 128 * ENTRY_SIZE],
        };
        for (number, first, last) in [(1, 2048, 4095), (3, 4096, 8191)] {
            table.set(&Partition {
                number,
                kind: LINUX_DATA,
                uuid: [u8::try_from(number).unwrap(); 16],
                first,
                last,
                label: format!("part-{number}"),
            });
        }
        let mut bytes = vec![0; usize::try_from(sectors).unwrap() * SECTOR];
        for write in table.writes(sectors).unwrap() {
            put(&mut bytes, &write);
        }
        (read(&bytes, 1).unwrap(), bytes)
    }

    fn put(disk: &mut [u8], write: &Write) {
        let at = usize::try_from(write.offset).unwrap();
        disk[at..at + write.bytes.len()].copy_from_slice(&write.bytes);
    }

    fn read(disk: &[u8], sector: usize) -> Result<Table, GptError> {
        let header = &disk[sector * SECTOR..(sector + 1) * SECTOR];
        let at = entries_at(header, SECTOR)?;
        let from = usize::try_from(at.offset).unwrap();
        Table::parse(header, &disk[from..from + at.len], SECTOR)
    }

    #[test]
    fn the_checksum_is_the_standard_one() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn partitions_are_found_by_uuid_and_label() {
        let (table, _) = disk(10_000);
        assert_eq!(table.by_uuid([3; 16]).unwrap().number, 3);
        assert_eq!(table.by_label("part-1").unwrap().first, 2048);
        assert_eq!(table.by_label("part"), None);
    }

    #[test]
    fn uuids_are_given_in_the_order_of_their_text() {
        let (_, bytes) = disk(10_000);
        assert_eq!(bytes[1024..1028], [0xaf, 0x3d, 0xc6, 0x0f]);
    }

    #[test]
    fn a_partition_fills_the_grown_disk_in_both_copies() {
        let (table, mut bytes) = disk(10_000);
        let sectors = 100_000_u64;
        bytes.resize(100_000 * SECTOR, 0);
        let (partition, writes) = table.with_last("state", [9; 16], sectors, 1 << 20).unwrap();
        assert_eq!((partition.number, partition.first), (2, 8192));
        assert_eq!(partition.last, 99_967 / 2048 * 2048 - 1);
        for write in &writes {
            put(&mut bytes, write);
        }
        let primary = read(&bytes, 1).unwrap();
        let backup = read(&bytes, 99_999).unwrap();
        assert_eq!(primary.entries, backup.entries);
        assert_eq!(primary.by_label("state"), Some(partition));
        assert_eq!(primary.partitions().count(), 3);
    }

    #[test]
    fn a_new_label_changes_nothing_else() {
        let (table, mut bytes) = disk(10_000);
        let old = table.by_label("part-3").unwrap();
        for write in table.with_label("part-3", "new", 10_000).unwrap() {
            put(&mut bytes, &write);
        }
        let renamed = read(&bytes, 1).unwrap();
        assert_eq!(renamed.by_label("part-3"), None);
        let label = "new".to_owned();
        assert_eq!(renamed.by_label("new"), Some(Partition { label, ..old }));
        assert_eq!(renamed.by_label("part-1"), table.by_label("part-1"));
    }

    #[test]
    fn a_disk_without_room_is_refused() {
        let (table, _) = disk(10_000);
        let error = table.with_last("state", [9; 16], 10_000, 512 << 20);
        assert_eq!(error, Err(GptError::NoRoom { free: 908_800 }));
        let error = table.with_last("state", [9; 16], 8000, 1);
        assert_eq!(error, Err(GptError::NoRoom { free: 0 }));
    }

    #[test]
    fn a_torn_write_leaves_one_valid_table() {
        let (table, mut bytes) = disk(10_000);
        bytes.resize(100_000 * SECTOR, 0);
        let (_, writes) = table.with_last("state", [9; 16], 100_000, 1 << 20).unwrap();
        for torn in 0..writes.len() {
            let mut disk = bytes.clone();
            for (i, write) in writes.iter().enumerate().take(torn + 1) {
                let mut write = write.clone();
                if i == torn {
                    write.bytes.truncate(write.bytes.len() / 2);
                }
                put(&mut disk, &write);
            }
            assert!(read(&disk, 1).is_ok() || read(&disk, 99_999).is_ok());
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(header in prop::collection::vec(any::<u8>(), 0..600),
                                            entries in prop::collection::vec(any::<u8>(), 0..2048)) {
            let _ = entries_at(&header, SECTOR);
            let _ = Table::parse(&header, &entries, SECTOR);
        }

        #[test]
        fn a_changed_byte_is_noticed(at in 512_usize..512 + 92, by in 1_u8..) {
            let (_, mut bytes) = disk(10_000);
            bytes[at] ^= by;
            prop_assert!(read(&bytes, 1).is_err());
        }

        #[test]
        fn the_new_partition_overlaps_nothing(sectors in 9_000_u64..1 << 40, at_least in 0_u64..1 << 50) {
            let (table, _) = disk(10_000);
            if let Ok((new, writes)) = table.with_last("state", [9; 16], sectors, at_least) {
                prop_assert!(table.partitions().all(|old| old.last < new.first));
                prop_assert!((new.last - new.first + 1) * 512 + ALIGNMENT > at_least);
                prop_assert!(writes[0].offset > new.last * 512);
                prop_assert_eq!(writes[0].offset + writes[0].bytes.len() as u64, sectors * 512);
            }
        }
    }
}
