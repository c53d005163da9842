//! The disk that holds the root: find it by its partition table, and add the state partition to it.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use crate::cmdline::RootHash;
use crate::failure::{Doing as _, Failure, Result};
use crate::gpt::{self, GptError, Partition, Table};

const BLOCK_DEVICES: &str = "/sys/class/block";
const POLL: Duration = Duration::from_millis(20);
/// No partition table is wanted from these.
const NOT_DISKS: [&str; 6] = ["loop", "ram", "zram", "dm-", "md", "sr"];

/// A whole disk with a valid partition table.
pub(crate) struct Disk {
    name: String,
    sector: usize,
    sectors: u64,
    table: Table,
}

impl Disk {
    /// Looks at every disk until one has both partitions of that root, for at most `patience`.
    pub(crate) fn find(root: &RootHash, patience: Duration) -> Result<Option<Self>> {
        for _ in 0..=patience.as_millis() / POLL.as_millis() {
            for name in disks().doing(|| format!("list {BLOCK_DEVICES}"))? {
                // A disk that cannot be read, or is of others, is no reason not to boot from the next one.
                if let Ok(disk) = Self::open(&name)
                    && disk.table.by_uuid(root.data_uuid()).is_some()
                    && disk.table.by_uuid(root.hash_uuid()).is_some()
                {
                    return Ok(Some(disk));
                }
            }
            sleep(POLL);
        }
        Ok(None)
    }

    fn open(name: &str) -> Result<Self> {
        let device = format!("/dev/{name}");
        let number = |file: &str| -> Result<u64> {
            let path = format!("{BLOCK_DEVICES}/{name}/{file}");
            let text = fs::read_to_string(&path).doing(|| format!("read {path}"))?;
            text.trim().parse().doing(|| format!("read {path}"))
        };
        let sector_bytes = number("queue/logical_block_size")?;
        let sector = usize::try_from(sector_bytes)
            .ok()
            .filter(|size| size.is_power_of_two() && (512..=65536).contains(size))
            .ok_or_else(|| Failure::new(format!("use {device}"), "its sector size is odd"))?;
        // sysfs counts in 512 bytes whatever the sector is.
        let sectors = number("size")? / (sector_bytes / 512);
        let file = File::open(&device).doing(|| format!("open {device}"))?;
        let mut disk = Self {
            name: name.to_owned(),
            sector,
            sectors,
            table: read_table(&file, 1, sector)
                .or_else(|_| read_table(&file, sectors.saturating_sub(1), sector))
                .doing(|| format!("read the partition table of {device}"))?,
        };
        disk.restore(&file)?;
        Ok(disk)
    }

    /// If the first copy of the table is broken (power was cut while it was written), the kernel saw no partitions: the
    /// copy is written again from the second one, and the kernel reads it.
    fn restore(&mut self, file: &File) -> Result<()> {
        if self.partition_names()?.is_empty() && read_table(file, 1, self.sector).is_err() {
            let writes = self
                .table
                .writes(self.sectors)
                .doing(|| format!("restore the partition table of {}", self.name))?;
            let file = self.write(&writes)?;
            // SAFETY: the request takes no argument and the descriptor is open.
            if unsafe { libc::ioctl(file.as_raw_fd(), BLKRRPART) } < 0 {
                let why = io::Error::last_os_error();
                return Err(Failure::new(format!("read {} again", self.name), why));
            }
        }
        Ok(())
    }

    /// The node of the partition with that UUID.
    pub(crate) fn node_by_uuid(&self, uuid: [u8; 16]) -> Result<String> {
        let partition = self.table.by_uuid(uuid);
        self.node(&partition.ok_or_else(|| Failure::new("find the root", "its partition is gone"))?)
    }

    /// The node of the partition with that label, if there is one.
    pub(crate) fn node_by_label(&self, label: &str) -> Result<Option<String>> {
        self.table
            .by_label(label)
            .map(|partition| self.node(&partition))
            .transpose()
    }

    /// Makes a partition over all that is free behind the last one, on the disk and in the kernel.
    pub(crate) fn add(&mut self, label: &str, uuid: [u8; 16], at_least: u64) -> Result<String> {
        let doing = || format!("add the partition {label} to /dev/{}", self.name);
        let (partition, writes) = self
            .table
            .with_last(label, uuid, self.sectors, at_least)
            .doing(doing)?;
        let file = self.write(&writes)?;
        self.table = read_table(&file, 1, self.sector)
            .doing(|| format!("read back the partition table of {}", self.name))?;
        self.tell_kernel(&file, &partition)?;
        self.node(&partition)
    }

    /// Gives the partition of that label another one, on the disk.
    pub(crate) fn rename(&mut self, label: &str, new: &str) -> Result<()> {
        let writes = self
            .table
            .with_label(label, new, self.sectors)
            .doing(|| format!("rename the partition {label} of /dev/{}", self.name))?;
        let file = self.write(&writes)?;
        self.table = read_table(&file, 1, self.sector)
            .doing(|| format!("read back the partition table of {}", self.name))?;
        Ok(())
    }

    fn write(&self, writes: &[gpt::Write]) -> Result<File> {
        let device = format!("/dev/{}", self.name);
        let doing = || format!("write the partition table of {device}");
        let file = File::options()
            .read(true)
            .write(true)
            .open(&device)
            .doing(doing)?;
        for write in writes {
            file.write_all_at(&write.bytes, write.offset).doing(doing)?;
            file.sync_all().doing(doing)?;
        }
        Ok(file)
    }

    /// Adds one partition without reading the whole table again, which the kernel refuses while the root is in use.
    fn tell_kernel(&self, file: &File, partition: &Partition) -> Result<()> {
        let doing = || {
            format!(
                "show the kernel partition {} of {}",
                partition.number, self.name
            )
        };
        let bytes = |sectors: u64| {
            sectors
                .checked_mul(self.sector as u64)
                .and_then(|bytes| i64::try_from(bytes).ok())
                .ok_or("it is too large")
        };
        let mut data = BlkpgPartition {
            start: bytes(partition.first).doing(doing)?,
            length: bytes(partition.last - partition.first + 1).doing(doing)?,
            number: i32::try_from(partition.number).doing(doing)?,
            names: [0; 128],
        };
        let argument = BlkpgArgument {
            operation: BLKPG_ADD_PARTITION,
            flags: 0,
            length: 152,
            data: &raw mut data,
        };
        // SAFETY: both structures live through the call and have the kernel's layout (linux/blkpg.h).
        if unsafe { libc::ioctl(file.as_raw_fd(), BLKPG, &raw const argument) } < 0 {
            return Err(Failure::new(doing(), io::Error::last_os_error()));
        }
        Ok(())
    }

    fn node(&self, partition: &Partition) -> Result<String> {
        for name in self.partition_names()? {
            let path = format!("{BLOCK_DEVICES}/{name}/partition");
            let number = fs::read_to_string(&path).doing(|| format!("read {path}"))?;
            if number.trim().parse() == Ok(partition.number) {
                return Ok(format!("/dev/{name}"));
            }
        }
        Err(Failure::new(
            format!("open partition {} of {}", partition.number, self.name),
            "the kernel does not know it",
        ))
    }

    fn partition_names(&self) -> Result<Vec<String>> {
        let folder = format!("{BLOCK_DEVICES}/{}", self.name);
        let mut names = names(Path::new(&folder)).doing(|| format!("list {folder}"))?;
        names.retain(|name| Path::new(&format!("{BLOCK_DEVICES}/{name}/partition")).exists());
        Ok(names)
    }
}

const BLKRRPART: libc::Ioctl = 0x125f;
const BLKPG: libc::Ioctl = 0x1269;
const BLKPG_ADD_PARTITION: i32 = 1;

/// `struct blkpg_ioctl_arg`.
#[repr(C)]
struct BlkpgArgument {
    operation: i32,
    flags: i32,
    length: i32,
    data: *mut BlkpgPartition,
}

/// `struct blkpg_partition`, in bytes.
#[repr(C)]
struct BlkpgPartition {
    start: i64,
    length: i64,
    number: i32,
    names: [u8; 128],
}

/// The names in a folder of sysfs, in an order that does not change.
fn names(folder: &Path) -> io::Result<Vec<String>> {
    let mut names: Vec<String> = fs::read_dir(folder)?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    names.sort();
    Ok(names)
}

/// Whole disks only: no partitions, and none of the devices that are made of others.
fn disks() -> io::Result<Vec<String>> {
    let mut names = names(Path::new(BLOCK_DEVICES))?;
    names.retain(|name| {
        !NOT_DISKS.iter().any(|prefix| name.starts_with(prefix))
            && !Path::new(&format!("{BLOCK_DEVICES}/{name}/partition")).exists()
    });
    Ok(names)
}

/// Reads the copy of the table whose header is at that sector.
fn read_table(file: &File, at: u64, sector: usize) -> io::Result<Table> {
    let invalid = |why: GptError| io::Error::new(io::ErrorKind::InvalidData, why.to_string());
    let mut header = vec![0; sector];
    file.read_exact_at(&mut header, at.saturating_mul(sector as u64))?;
    let entries_at = gpt::entries_at(&header, sector).map_err(invalid)?;
    let mut entries = vec![0; entries_at.len];
    file.read_exact_at(&mut entries, entries_at.offset)?;
    Table::parse(&header, &entries, sector).map_err(invalid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structures_have_the_kernels_layout() {
        assert_eq!(std::mem::size_of::<BlkpgPartition>(), 152);
        assert_eq!(std::mem::offset_of!(BlkpgArgument, data), 16);
    }
}
