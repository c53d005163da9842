//! Reads the json-file log that a shim writes: over its rotated parts, from the end, and as it grows.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use rustix::fs::inotify;
use serde::Deserialize;
use skep_core::time::Timestamp;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

use super::shim::registered;
use super::{LogEntry, LogQuery, Stream};

/// Rotated parts that are looked for.
const MAX_PARTS: u32 = 1000;
/// An entry is never longer: 16 KiB of text, each byte escaped, and its frame.
const MAX_ENTRY: u64 = 256 * 1024;

/// A line of the file.
#[derive(Deserialize)]
struct Entry {
    log: String,
    stream: String,
    time: Timestamp,
}

/// The log and how far it has been read.
pub(super) struct LogReader {
    path: PathBuf,
    query: LogQuery,
    file: Option<BufReader<File>>,
    /// Entries still to be passed over because only the last ones are wanted.
    skip: usize,
    /// Start of an entry whose end is not written yet.
    partial: Vec<u8>,
}

impl LogReader {
    /// A reader of the log at `path`, placed before the first entry that is wanted.
    pub(super) fn open(path: PathBuf, query: LogQuery) -> io::Result<Self> {
        let mut reader = Self {
            skip: 0,
            path,
            query,
            file: None,
            partial: Vec::new(),
        };
        if let Some(tail) = query.tail {
            let mut count = 0_usize;
            while reader.next_raw()?.is_some() {
                count += 1;
            }
            reader.skip = count.saturating_sub(tail);
            reader.file = None;
            reader.partial.clear();
        }
        Ok(reader)
    }

    /// The next entry that is wanted; `None` at the end of what is written.
    pub(super) fn next(&mut self) -> io::Result<Option<LogEntry>> {
        while let Some(line) = self.next_raw()? {
            if self.skip > 0 {
                self.skip -= 1;
                continue;
            }
            // A line that a crash has torn is no reason to hide the others.
            let Some(entry) = parse(&line) else {
                continue;
            };
            let before_end = self.query.until == 0 || entry.time < self.query.until;
            if entry.time >= self.query.since && before_end {
                return Ok(Some(entry));
            }
        }
        Ok(None)
    }

    /// The next line of the files, oldest first.
    fn next_raw(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            if self.file.is_none() {
                let Some(oldest) = self.oldest_part() else {
                    return Ok(None);
                };
                self.file = File::open(oldest).ok().map(BufReader::new);
            }
            let Some(file) = &mut self.file else {
                return Ok(None);
            };
            let room =
                MAX_ENTRY.saturating_sub(u64::try_from(self.partial.len()).unwrap_or(u64::MAX));
            let count = file
                .by_ref()
                .take(room)
                .read_until(b'\n', &mut self.partial)?;
            if self.partial.ends_with(b"\n") || room == 0 {
                return Ok(Some(std::mem::take(&mut self.partial)));
            }
            if count == 0 && !self.advance()? {
                return Ok(None);
            }
        }
    }

    fn part(&self, number: u32) -> PathBuf {
        match number {
            0 => self.path.clone(),
            number => PathBuf::from(format!("{}.{number}", self.path.display())),
        }
    }

    fn oldest_part(&self) -> Option<PathBuf> {
        let rotated = (1..MAX_PARTS).take_while(|number| self.part(*number).exists());
        let oldest = self.part(rotated.last().unwrap_or(0));
        oldest.exists().then_some(oldest)
    }

    /// At the end of one file: goes to the one written after it. False if there is none yet.
    fn advance(&mut self) -> io::Result<bool> {
        let Some(file) = &mut self.file else {
            return Ok(false);
        };
        let read = file.get_ref().metadata()?;
        let same = |path: &Path| {
            path.metadata()
                .is_ok_and(|there| there.ino() == read.ino() && there.dev() == read.dev())
        };
        if same(&self.path) {
            return Ok(false);
        }
        // It was rotated. What was written to it after our last read comes first.
        let position = file.stream_position()?;
        if read.len() > position {
            return Ok(true);
        }
        let next = (1..MAX_PARTS)
            .take_while(|number| self.part(*number).exists())
            .find(|number| same(&self.part(*number)))
            .map(|number| self.part(number - 1))
            // More was rotated away than is kept: go on with the oldest there is.
            .or_else(|| self.oldest_part());
        self.partial.clear();
        self.file = match next.map(File::open) {
            Some(Ok(file)) => Some(BufReader::new(file)),
            // Between the renaming and the new file there is none.
            Some(Err(_)) | None => return Ok(false),
        };
        Ok(true)
    }
}

fn parse(line: &[u8]) -> Option<LogEntry> {
    let entry: Entry = serde_json::from_slice(line).ok()?;
    let stream = match entry.stream.as_str() {
        "stdout" => Stream::Stdout,
        "stderr" => Stream::Stderr,
        _ => return None,
    };
    Some(LogEntry {
        stream,
        time: u64::try_from(entry.time.0).unwrap_or(0),
        line: Bytes::from(entry.log),
    })
}

/// Sends what is wanted of a log and, if it is to be followed, what is added until `end` is over.
pub(super) async fn stream(
    mut reader: LogReader,
    output: mpsc::Sender<LogEntry>,
    end: impl Future<Output = ()>,
) -> io::Result<()> {
    let follow = reader.query.follow;
    let dir = reader.path.parent().map(Path::to_owned).unwrap_or_default();
    // Watched before the first reading, so that nothing falls between.
    let watch = follow.then(|| Watch::new(&dir)).transpose()?;
    tokio::pin!(end);
    let mut ended = false;
    loop {
        while let Some(entry) = reader.next()? {
            if output.send(entry).await.is_err() {
                return Ok(());
            }
        }
        let Some(watch) = watch.as_ref().filter(|_| !ended) else {
            return Ok(());
        };
        tokio::select! {
            changed = watch.changed() => changed?,
            () = &mut end => ended = true,
            () = output.closed() => return Ok(()),
        }
    }
}

/// Tells when something in a directory is written.
struct Watch {
    fd: AsyncFd<OwnedFd>,
}

impl Watch {
    fn new(dir: &Path) -> io::Result<Self> {
        use inotify::{CreateFlags, WatchFlags};
        let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let events = WatchFlags::MODIFY | WatchFlags::CREATE | WatchFlags::MOVED_TO;
        inotify::add_watch(&fd, dir, events)?;
        Ok(Self {
            fd: registered(fd)?,
        })
    }

    /// Waits for a change. Which one does not matter: the reader looks again.
    async fn changed(&self) -> io::Result<()> {
        let mut buffer = [MaybeUninit::<u8>::uninit(); 4096];
        loop {
            let mut ready = self.fd.readable().await?;
            let result = ready.try_io(|fd| Ok(rustix::io::read(fd, &mut buffer)?.0.len()));
            match result {
                Ok(result) => return result.map(|_| ()),
                Err(_would_block) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn line(text: &str, second: u32) -> String {
        format!(
            r#"{{"log":"{text}\n","stream":"stdout","time":"2026-01-01T00:00:{second:02}.5Z"}}"#
        ) + "\n"
    }

    fn texts(reader: &mut LogReader) -> Vec<String> {
        std::iter::from_fn(|| reader.next().unwrap())
            .map(|entry| {
                String::from_utf8(entry.line.to_vec())
                    .unwrap()
                    .trim_end()
                    .to_owned()
            })
            .collect()
    }

    #[test]
    fn rotated_parts_are_read_in_order_and_followed() {
        let dir = std::env::temp_dir().join(format!("skep-logs-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("x-json.log");
        std::fs::write(dir.join("x-json.log.2"), line("a", 1) + &line("b", 2)).unwrap();
        std::fs::write(dir.join("x-json.log.1"), line("c", 3) + "torn\n").unwrap();
        std::fs::write(&path, line("d", 4)).unwrap();

        let open = |query| LogReader::open(path.clone(), query).unwrap();
        let mut reader = open(LogQuery::default());
        assert_eq!(texts(&mut reader), ["a", "b", "c", "d"]);
        let tail = LogQuery {
            tail: Some(1),
            ..LogQuery::default()
        };
        assert_eq!(texts(&mut open(tail)), ["d"]);
        let since = LogQuery {
            since: 1_767_225_603_000_000_000,
            ..LogQuery::default()
        };
        assert_eq!(texts(&mut open(since)), ["c", "d"]);

        // Half a line, its other half, then a rotation with lines on both sides of it.
        let mut file = File::options().append(true).open(&path).unwrap();
        let whole = line("e", 5);
        file.write_all(&whole.as_bytes()[..20]).unwrap();
        assert!(texts(&mut reader).is_empty());
        file.write_all(&whole.as_bytes()[20..]).unwrap();
        file.write_all(line("f", 6).as_bytes()).unwrap();
        std::fs::rename(dir.join("x-json.log.1"), dir.join("x-json.log.2")).unwrap();
        std::fs::rename(&path, dir.join("x-json.log.1")).unwrap();
        std::fs::write(&path, line("g", 7)).unwrap();
        assert_eq!(texts(&mut reader), ["e", "f", "g"]);
        std::fs::remove_dir_all(&dir).unwrap();
    }

    proptest::proptest! {
        #[test]
        fn no_line_makes_the_parser_panic(line in "\\PC{0,100}") {
            let _ = parse(line.as_bytes());
        }
    }
}
