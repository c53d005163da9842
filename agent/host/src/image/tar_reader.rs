//! Reads a tar archive from a stranger: ustar, GNU long names and PAX headers, and nothing else.
//!
//! What is ambiguous is refused rather than guessed, because two readers that guess differently are how files are smuggled
//! past a check; what has a length has a limit. Facts: POSIX.1-2017 `pax`, GNU tar manual "Basic Tar Format".

use std::io::{self, Read};

/// Tar counts in blocks.
const BLOCK: usize = 512;
/// Longest path or link target: the kernel's own limit.
const MAX_PATH: u64 = 4096;
/// Longest PAX header; it may hold extended attributes.
const MAX_PAX: u64 = 1024 * 1024;
/// Headers before one entry that only say something about it or about the archive: at most one of each kind makes sense.
const MAX_EXTENSIONS: u32 = 4;

/// Why an archive cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum TarError {
    /// The input failed or ended too early.
    #[error(transparent)]
    Read(#[from] io::Error),
    /// A header is damaged.
    #[error("damaged tar header: {0}")]
    Header(&'static str),
    /// An entry is of a kind that no layer has.
    #[error("tar entry {0:?}: {1}")]
    Entry(String, &'static str),
}

impl TarError {
    /// Whether the input ended too early, as it does when a connection breaks.
    pub(super) fn is_early_end(&self) -> bool {
        matches!(self, Self::Read(error) if error.kind() == io::ErrorKind::UnexpectedEof)
    }
}

type Result<T> = std::result::Result<T, TarError>;

/// What an entry makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A file with data.
    File,
    /// Another name of a file.
    HardLink,
    /// A symbolic link.
    Symlink,
    /// A character device.
    Character,
    /// A block device.
    Block,
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
}

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// The path as it is written.
    pub(super) path: Vec<u8>,
    /// The target of a link.
    pub(super) link: Vec<u8>,
    /// What it makes.
    pub(super) kind: Kind,
    /// Permission bits, setuid and the like included.
    pub(super) mode: u32,
    /// Owner.
    pub(super) uid: u32,
    /// Group.
    pub(super) gid: u32,
    /// Bytes of data that follow; 0 for all but files.
    pub(super) size: u64,
    /// Modification time: seconds and nanoseconds.
    pub(super) mtime: (i64, u32),
    /// Device numbers.
    pub(super) device: (u32, u32),
    /// Extended attributes.
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What PAX and GNU headers say about the entry that follows.
#[derive(Default)]
struct Overrides {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<(i64, u32)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// The archive.
pub(super) struct TarReader<R> {
    input: R,
    /// Data of the current entry that has not been read.
    data: u64,
    /// Bytes after it up to the next block.
    padding: u64,
}

impl<R: Read> TarReader<R> {
    /// Reads from the start of an archive.
    pub(super) fn new(input: R) -> Self {
        Self {
            input,
            data: 0,
            padding: 0,
        }
    }

    /// The next entry; `None` at the end. What was not read of the data before is passed over.
    pub(super) fn next(&mut self) -> Result<Option<Entry>> {
        let mut overrides = Overrides::default();
        for _ in 0..=MAX_EXTENSIONS {
            self.skip_data()?;
            let Some(block) = self.header()? else {
                return Ok(None);
            };
            let size = number(&block[124..136]).ok_or(TarError::Header("size"))?;
            match block[156] {
                b'L' => overrides.path = Some(self.text(size)?),
                b'K' => overrides.link = Some(self.text(size)?),
                b'x' => {
                    let records = self.body(size, MAX_PAX)?;
                    read_pax(&records, &mut overrides)?;
                }
                // A global header says nothing that a layer needs (git writes its commit there).
                b'g' => drop(self.body(size, MAX_PAX)?),
                flag => return self.entry(&block, flag, size, overrides).map(Some),
            }
        }
        Err(TarError::Header("too many headers before one entry"))
    }

    /// The input after the archive.
    pub(super) fn into_inner(self) -> R {
        self.input
    }

    fn entry(
        &mut self,
        block: &[u8; BLOCK],
        flag: u8,
        size: u64,
        overrides: Overrides,
    ) -> Result<Entry> {
        let path = overrides.path.unwrap_or_else(|| header_path(block));
        let named = |why| TarError::Entry(String::from_utf8_lossy(&path).into_owned(), why);
        let kind = match flag {
            // Before ustar, a directory was a file whose name ends with a slash.
            b'0' | 0 | b'7' if path.ends_with(b"/") => Kind::Directory,
            b'0' | 0 | b'7' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::Character,
            b'4' => Kind::Block,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            b'S' => return Err(named("sparse files are not supported")),
            _ => return Err(named("unknown type")),
        };
        let size = overrides.size.unwrap_or(size);
        if kind != Kind::File && size != 0 {
            return Err(named("data where there can be none"));
        }
        if path.contains(&0)
            || overrides
                .link
                .as_ref()
                .is_some_and(|link| link.contains(&0))
        {
            return Err(named("a NUL byte in a name"));
        }
        let field = |range: std::ops::Range<usize>, what| {
            number(&block[range]).ok_or(TarError::Header(what))
        };
        let id = |value: u64| u32::try_from(value).ok().filter(|id| *id != u32::MAX);
        let uid = overrides.uid.map_or_else(|| field(108..116, "uid"), Ok)?;
        let gid = overrides.gid.map_or_else(|| field(116..124, "gid"), Ok)?;
        let device = match kind {
            Kind::Character | Kind::Block => {
                (field(329..337, "device")?, field(337..345, "device")?)
            }
            Kind::File | Kind::HardLink | Kind::Symlink | Kind::Directory | Kind::Fifo => (0, 0),
        };
        let seconds = || signed(&block[136..148]).map(|seconds| (seconds, 0));
        let entry = Entry {
            kind,
            link: overrides
                .link
                .unwrap_or_else(|| until_nul(&block[157..257])),
            mode: u32::try_from(field(100..108, "mode")? & 0o7777).unwrap_or(0),
            uid: id(uid).ok_or_else(|| named("the user number is out of range"))?,
            gid: id(gid).ok_or_else(|| named("the group number is out of range"))?,
            size,
            mtime: overrides
                .mtime
                .or_else(seconds)
                .ok_or(TarError::Header("mtime"))?,
            device: (
                u32::try_from(device.0).map_err(|_| TarError::Header("device"))?,
                u32::try_from(device.1).map_err(|_| TarError::Header("device"))?,
            ),
            xattrs: overrides.xattrs,
            path,
        };
        self.expect(size);
        Ok(entry)
    }

    /// The next header; `None` for the block of zeros, or the end of the input, that ends an archive.
    fn header(&mut self) -> Result<Option<[u8; BLOCK]>> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.input.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(TarError::Read(io::ErrorKind::UnexpectedEof.into())),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let sum = number(&block[148..156]).ok_or(TarError::Header("checksum"))?;
        let spaces = block.iter().enumerate().map(|(at, byte)| {
            if (148..156).contains(&at) {
                b' '
            } else {
                *byte
            }
        });
        if spaces.map(u64::from).sum::<u64>() != sum {
            return Err(TarError::Header("checksum"));
        }
        Ok(Some(block))
    }

    fn expect(&mut self, size: u64) {
        self.data = size;
        self.padding = size.next_multiple_of(512) - size;
    }

    fn skip_data(&mut self) -> Result<()> {
        let rest = self.data + self.padding;
        let skipped = io::copy(&mut self.input.by_ref().take(rest), &mut io::sink())?;
        (self.data, self.padding) = (0, 0);
        if skipped == rest {
            Ok(())
        } else {
            Err(TarError::Read(io::ErrorKind::UnexpectedEof.into()))
        }
    }

    /// The whole data of a header's header.
    fn body(&mut self, size: u64, limit: u64) -> Result<Vec<u8>> {
        if size > limit {
            return Err(TarError::Header("a header of a header is too long"));
        }
        self.expect(size);
        let mut body = Vec::new();
        self.read_to_end(&mut body)?;
        if u64::try_from(body.len()) != Ok(size) {
            return Err(TarError::Read(io::ErrorKind::UnexpectedEof.into()));
        }
        Ok(body)
    }

    fn text(&mut self, size: u64) -> Result<Vec<u8>> {
        // GNU counts the final NUL.
        let body = self.body(size, MAX_PATH + 1)?;
        Ok(until_nul(&body))
    }
}

/// The data of the current entry.
impl<R: Read> Read for TarReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.by_ref().take(self.data).read(buffer)?;
        if count == 0 && self.data > 0 && !buffer.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.data -= u64::try_from(count).unwrap_or(0);
        Ok(count)
    }
}

fn until_nul(field: &[u8]) -> Vec<u8> {
    field
        .split(|byte| *byte == 0)
        .next()
        .unwrap_or_default()
        .to_vec()
}

/// Name and, in ustar, the prefix before it. GNU uses the place of the prefix for something else.
fn header_path(block: &[u8; BLOCK]) -> Vec<u8> {
    let name = until_nul(&block[..100]);
    let prefix = until_nul(&block[345..500]);
    if &block[257..263] == b"ustar\0" && !prefix.is_empty() {
        [prefix, name].join(&b'/')
    } else {
        name
    }
}

/// An unsigned number: octal text, or big-endian binary marked by the first bit.
fn number(field: &[u8]) -> Option<u64> {
    let (first, rest) = field.split_first()?;
    if *first & 0x80 != 0 {
        let start = u64::from(*first & 0x7f);
        return rest.iter().try_fold(start, |sum, byte| {
            sum.checked_mul(256)?.checked_add(u64::from(*byte))
        });
    }
    let text = until_nul(field);
    let text = std::str::from_utf8(&text).ok()?.trim_matches(' ');
    if text.is_empty() {
        return Some(0);
    }
    if text.bytes().all(|byte| matches!(byte, b'0'..=b'7')) {
        u64::from_str_radix(text, 8).ok()
    } else {
        None
    }
}

/// A time, which may lie before 1970 in the binary form.
fn signed(field: &[u8]) -> Option<i64> {
    if field.first().is_some_and(|first| *first == 0xff) {
        let tail: [u8; 8] = field.get(field.len().checked_sub(8)?..)?.try_into().ok()?;
        return Some(i64::from_be_bytes(tail)).filter(|value| *value < 0);
    }
    i64::try_from(number(field)?).ok()
}

/// Reads `<length> <key>=<value>\n` records.
fn read_pax(mut records: &[u8], overrides: &mut Overrides) -> Result<()> {
    const BAD: TarError = TarError::Header("PAX record");
    while !records.is_empty() {
        let space = records
            .iter()
            .take(20)
            .position(|byte| *byte == b' ')
            .ok_or(BAD)?;
        let length = std::str::from_utf8(&records[..space])
            .ok()
            .and_then(|text| text.parse().ok());
        let length = length.filter(|length| (space + 1..=records.len()).contains(length));
        let (record, rest) = records.split_at(length.ok_or(BAD)?);
        records = rest;
        let record = record[space + 1..].strip_suffix(b"\n").ok_or(BAD)?;
        let equals = record.iter().position(|byte| *byte == b'=').ok_or(BAD)?;
        pax_record(&record[..equals], &record[equals + 1..], overrides)?;
    }
    Ok(())
}

fn pax_record(key: &[u8], value: &[u8], overrides: &mut Overrides) -> Result<()> {
    const BAD: TarError = TarError::Header("PAX value");
    let text = || std::str::from_utf8(value).map_err(|_| BAD);
    let count = || text()?.parse::<u64>().map_err(|_| BAD);
    let path = || {
        let fits = u64::try_from(value.len()).is_ok_and(|length| length <= MAX_PATH);
        fits.then(|| value.to_vec()).ok_or(BAD)
    };
    match key {
        b"path" => overrides.path = Some(path()?),
        b"linkpath" => overrides.link = Some(path()?),
        b"size" => overrides.size = Some(count()?),
        b"uid" => overrides.uid = Some(count()?),
        b"gid" => overrides.gid = Some(count()?),
        b"mtime" => overrides.mtime = Some(pax_time(text()?).ok_or(BAD)?),
        _ if key.starts_with(b"GNU.sparse.") => {
            return Err(TarError::Header("sparse files are not supported"));
        }
        _ => {
            if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                overrides.xattrs.push((name.to_vec(), value.to_vec()));
            }
        }
    }
    Ok(())
}

/// `seconds[.fraction]`, perhaps negative.
fn pax_time(text: &str) -> Option<(i64, u32)> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = seconds.parse().ok()?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let digits: String = fraction
        .chars()
        .chain("000000000".chars())
        .take(9)
        .collect();
    let nanos: u32 = digits.parse().ok()?;
    // -1.25 s is 2 s before the epoch and 0.75 s on.
    if text.starts_with('-') && nanos > 0 {
        return Some((seconds.checked_sub(1)?, 1_000_000_000 - nanos));
    }
    Some((seconds, nanos))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn archive(build: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        build(&mut builder);
        builder.into_inner().unwrap()
    }

    fn read_all(bytes: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>> {
        let mut reader = TarReader::new(bytes);
        let mut entries = Vec::new();
        while let Some(entry) = reader.next()? {
            let mut data = Vec::new();
            reader.read_to_end(&mut data)?;
            entries.push((entry, data));
        }
        Ok(entries)
    }

    fn file(path: &str, data: &[u8], builder: &mut tar::Builder<Vec<u8>>) {
        let mut header = tar::Header::new_gnu();
        header.set_size(u64::try_from(data.len()).unwrap());
        header.set_mode(0o4755);
        header.set_uid(1000);
        builder.append_data(&mut header, path, data).unwrap();
    }

    #[test]
    fn names_long_and_short_and_their_data_are_read() {
        let long = "d/".repeat(200) + "file";
        let bytes = archive(|builder| {
            file("short", b"hello", builder);
            file(&long, &[7; 1000], builder);
            builder
                .append_pax_extensions([
                    ("mtime", &b"12.5"[..]),
                    ("uid", b"70000"),
                    ("SCHILY.xattr.security.capability", b"\x01\x00\x02"),
                ])
                .unwrap();
            file("pax", b"", builder);
        });
        let entries = read_all(&bytes).unwrap();
        assert_eq!(entries[0].0.path, b"short");
        assert_eq!((entries[0].0.mode, entries[0].0.uid), (0o4755, 1000));
        assert_eq!(entries[0].1, b"hello");
        assert_eq!(entries[1].0.path, long.as_bytes());
        assert_eq!(entries[1].1, [7; 1000]);
        assert_eq!(
            (entries[2].0.mtime, entries[2].0.uid),
            ((12, 500_000_000), 70000)
        );
        assert_eq!(
            entries[2].0.xattrs,
            [(b"security.capability".to_vec(), vec![1, 0, 2])]
        );
        assert_eq!(entries.len(), 3);
    }

    #[test]
    fn lies_about_sizes_are_refused() {
        // A symbolic link with data: one reader skips the data, another takes it for headers.
        let bytes = archive(|builder| {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_size(512);
            header.set_path("link").unwrap();
            header.set_cksum();
            builder.append(&header, &[0_u8; 512][..]).unwrap();
        });
        assert!(matches!(read_all(&bytes), Err(TarError::Entry(..))));
        // A name of many gigabytes.
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::GNULongName);
        header.set_size(8 << 30);
        header.set_cksum();
        assert!(matches!(
            read_all(header.as_bytes()),
            Err(TarError::Header(_))
        ));
        // The archive ends inside an entry.
        let whole = archive(|builder| file("x", &[1; 2000], builder));
        assert!(matches!(read_all(&whole[..1024]), Err(TarError::Read(_))));
        // A header that was changed.
        let mut damaged = whole.clone();
        damaged[0] ^= 1;
        assert!(matches!(
            read_all(&damaged),
            Err(TarError::Header("checksum"))
        ));
    }

    #[test]
    fn numbers_are_read_in_both_forms() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b"   644 \0"), Some(0o644));
        assert_eq!(number(b"\x80\0\0\0\0\0\x01\0"), Some(256));
        assert_eq!(number(b"0000648\0"), None);
        assert_eq!(number(b"-1\0\0\0\0\0\0"), None);
        assert_eq!(number(&[0xff; 12]), None);
        assert_eq!(signed(&[0xff; 12]), Some(-1));
        assert_eq!(pax_time("-1.25"), Some((-2, 750_000_000)));
        assert_eq!(pax_time("1.x"), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic_or_wander(
            bytes in proptest::collection::vec(any::<u8>(), 0..3000),
            flips in proptest::collection::vec((0..4096_usize, any::<u8>()), 0..6),
        ) {
            let _ = read_all(&bytes);
            let mut bytes = archive(|builder| {
                file("a", b"data", builder);
                builder.append_pax_extensions([("path", &b"b"[..])]).unwrap();
                file("x", &[3; 600], builder);
            });
            for (at, byte) in flips {
                if let Some(place) = bytes.get_mut(at) {
                    *place = byte;
                }
            }
            // Checksums made right again, so that the fields themselves are reached.
            for start in (0..bytes.len()).step_by(512) {
                let sum: u32 = bytes[start..start + 512].iter().enumerate()
                    .map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u32::from(*byte) }).sum();
                if bytes[start + 257..].starts_with(b"ustar") {
                    bytes[start + 148..start + 156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
                }
            }
            let _ = read_all(&bytes);
        }

        /// Where both this reader and the `tar` crate take an archive, they see the same files.
        #[test]
        fn another_reader_sees_the_same(names in proptest::collection::vec("[a-z]{1,120}(/[a-z]{1,60})?", 1..6), size in 0..2000_usize) {
            let bytes = archive(|builder| names.iter().for_each(|name| file(name, &vec![9; size], builder)));
            let ours: Vec<_> = read_all(&bytes).unwrap().into_iter().map(|(entry, data)| (entry.path, data)).collect();
            let mut other = tar::Archive::new(&bytes[..]);
            let theirs: Vec<_> = other.entries().unwrap().map(|entry| {
                let mut entry = entry.unwrap();
                let mut data = Vec::new();
                entry.read_to_end(&mut data).unwrap();
                (entry.path_bytes().into_owned(), data)
            }).collect();
            prop_assert_eq!(ours, theirs);
        }
    }
}
