//! The json-file log, as Docker writes it: one object per line with `log`, `stream` and `time`.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::protocol::{Log as Settings, MAX_FRAME};

/// A bounded log file with its older parts.
pub(crate) struct Log {
    settings: Settings,
    file: Option<File>,
    size: u64,
}

#[derive(Serialize)]
struct Entry<'a> {
    log: &'a str,
    stream: &'a str,
    time: &'a str,
}

impl Log {
    /// Opens the log for appending.
    pub(crate) fn open(settings: Settings) -> Self {
        let mut log = Self {
            settings,
            file: None,
            size: 0,
        };
        log.reopen();
        log
    }

    fn reopen(&mut self) {
        use std::os::unix::fs::OpenOptionsExt;
        let file = File::options()
            .append(true)
            .create(true)
            .mode(0o640)
            .open(&self.settings.path);
        match file {
            Ok(file) => {
                self.size = file.metadata().map_or(0, |metadata| metadata.len());
                self.file = Some(file);
            }
            Err(error) => crate::complain(&format!("open {}: {error}", self.settings.path)),
        }
    }

    /// Writes entries made by [`Lines`]. No file gets longer than its limit, unless one entry alone is. A full disk loses
    /// entries, it does not stop the container.
    pub(crate) fn write(&mut self, mut entries: &[u8]) {
        while !entries.is_empty() {
            let room = self.settings.max_size.saturating_sub(self.size);
            let room = usize::try_from(room).unwrap_or(usize::MAX);
            let mut fits = whole_entries(entries, room);
            if fits == 0 && self.size > 0 {
                self.rotate();
                continue;
            }
            if fits == 0 {
                let first = entries.iter().position(|byte| *byte == b'\n');
                fits = first.map_or(entries.len(), |at| at + 1);
            }
            let (now, later) = entries.split_at(fits);
            self.append(now);
            entries = later;
        }
    }

    fn append(&mut self, entries: &[u8]) {
        // Counted even if it cannot be written: a file that is not there must not keep the loop above going.
        self.size = self
            .size
            .saturating_add(u64::try_from(entries.len()).unwrap_or(u64::MAX));
        let written = self
            .file
            .as_mut()
            .map_or(Ok(()), |file| file.write_all(entries));
        if let Err(error) = written {
            crate::complain(&format!("write {}: {error}", self.settings.path));
        }
    }

    fn rotate(&mut self) {
        self.file = None;
        self.size = 0;
        let kept = self.settings.max_files.saturating_sub(1);
        for number in (1..=kept).rev() {
            // Those that are not there yet cannot be renamed, and need not be.
            let _ = fs::rename(self.part(number - 1), self.part(number));
        }
        if kept == 0 {
            let _ = fs::remove_file(self.part(0));
        }
        self.reopen();
    }

    fn part(&self, number: u32) -> PathBuf {
        let path = &self.settings.path;
        match number {
            0 => Path::new(path).to_owned(),
            number => PathBuf::from(format!("{path}.{number}")),
        }
    }
}

/// The length of as many entries as have room.
fn whole_entries(entries: &[u8], room: usize) -> usize {
    if entries.len() <= room {
        return entries.len();
    }
    let last = entries[..room].iter().rposition(|byte| *byte == b'\n');
    last.map_or(0, |at| at + 1)
}

/// Cuts one output into entries: a line each, or 16 KiB of a longer one.
pub(crate) struct Lines {
    stream: &'static str,
    pending: Vec<u8>,
}

impl Lines {
    /// Lines of `stdout` or `stderr`.
    pub(crate) fn new(stream: &'static str) -> Self {
        Self {
            stream,
            pending: Vec::new(),
        }
    }

    /// Takes bytes that came at `time` (Unix nanoseconds) and gives the entries they complete.
    pub(crate) fn push(&mut self, mut data: &[u8], time: u64) -> Vec<u8> {
        let time = format_time(time);
        let mut entries = Vec::new();
        while !data.is_empty() {
            let room = MAX_FRAME - self.pending.len();
            let window = &data[..data.len().min(room)];
            let newline = window.iter().position(|byte| *byte == b'\n');
            let taken = newline.map_or(window.len(), |at| at + 1);
            self.pending.extend_from_slice(&data[..taken]);
            data = &data[taken..];
            if newline.is_some() {
                self.emit(self.pending.len(), &time, &mut entries);
            } else if self.pending.len() == MAX_FRAME {
                self.emit(whole_characters(&self.pending), &time, &mut entries);
            }
        }
        entries
    }

    /// The last line, if it had no end.
    pub(crate) fn finish(&mut self, time: u64) -> Vec<u8> {
        let mut entries = Vec::new();
        if !self.pending.is_empty() {
            self.emit(self.pending.len(), &format_time(time), &mut entries);
        }
        entries
    }

    fn emit(&mut self, length: usize, time: &str, entries: &mut Vec<u8>) {
        let entry = Entry {
            log: &String::from_utf8_lossy(&self.pending[..length]),
            stream: self.stream,
            time,
        };
        // Writing strings into a vector cannot fail.
        if serde_json::to_writer(&mut *entries, &entry).is_ok() {
            entries.push(b'\n');
        }
        self.pending.drain(..length);
        if self.pending.is_empty() && self.pending.capacity() > 1024 {
            self.pending = Vec::new();
        }
    }
}

/// How much of a cut line to write so that no UTF-8 character is torn: all but the start of a last, incomplete one.
fn whole_characters(bytes: &[u8]) -> usize {
    let tail = bytes.len().saturating_sub(3);
    for start in (tail..bytes.len()).rev() {
        let needed = match bytes[start] {
            0xC2..=0xDF => 2,
            0xE0..=0xEF => 3,
            0xF0..=0xF4 => 4,
            0x80..=0xBF => continue,
            _ => return bytes.len(),
        };
        return if start + needed > bytes.len() {
            start
        } else {
            bytes.len()
        };
    }
    bytes.len()
}

/// RFC 3339 with nanoseconds, in UTC.
fn format_time(nanos: u64) -> String {
    let (seconds, fraction) = (nanos / 1_000_000_000, nanos % 1_000_000_000);
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Civil date from a day count, in years that begin in March so that the leap day is the last
    // (Howard Hinnant, "chrono-compatible low-level date algorithms").
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_index = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_index + 2) / 5 + 1;
    let month = if month_index < 10 {
        month_index + 3
    } else {
        month_index - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{fraction:09}Z")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn times_are_rfc_3339() {
        let cases = [
            (0, "1970-01-01T00:00:00.000000000Z"),
            (951_782_400_000_000_001, "2000-02-29T00:00:00.000000001Z"),
            (1_582_934_400_123_456_789, "2020-02-29T00:00:00.123456789Z"),
            (1_735_689_599_999_999_999, "2024-12-31T23:59:59.999999999Z"),
            (4_107_542_400_000_000_000, "2100-03-01T00:00:00.000000000Z"),
        ];
        for (nanos, text) in cases {
            assert_eq!(format_time(nanos), text);
        }
    }

    fn texts(entries: &[u8]) -> Vec<String> {
        let lines = entries.split(|byte| *byte == b'\n');
        lines
            .filter(|line| !line.is_empty())
            .map(|line| {
                let value: serde_json::Value = serde_json::from_slice(line).unwrap();
                value["log"].as_str().unwrap().to_owned()
            })
            .collect()
    }

    #[test]
    fn an_entry_is_a_line() {
        let mut lines = Lines::new("stdout");
        assert_eq!(texts(&lines.push(b"a\nb", 0)), ["a\n"]);
        assert_eq!(texts(&lines.push(b"c\n\n", 0)), ["bc\n", "\n"]);
        assert_eq!(texts(&lines.push(b"end", 0)), [""; 0]);
        assert_eq!(texts(&lines.finish(0)), ["end"]);
        assert!(lines.finish(0).is_empty());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn nothing_is_lost_or_torn_however_the_bytes_arrive(
            text in "(\\PC|\n|é|€|😀){0,3000}", repeat in 1..12usize, chunk in 1..20_000usize,
        ) {
            let text = text.repeat(repeat);
            let mut lines = Lines::new("stderr");
            let mut entries = Vec::new();
            for part in text.as_bytes().chunks(chunk) {
                entries.extend(lines.push(part, 1));
            }
            entries.extend(lines.finish(1));
            let texts = texts(&entries);
            prop_assert_eq!(texts.concat(), text);
            for entry in &texts {
                prop_assert!(entry.len() <= MAX_FRAME);
                prop_assert!(!entry.trim_end_matches('\n').contains('\n') || entry == "\n");
            }
        }
    }

    #[test]
    fn the_log_is_bounded() {
        let dir = std::env::temp_dir().join(format!("skep-shim-log-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join("x-json.log");
        let settings = Settings {
            path: path.to_str().unwrap().to_owned(),
            max_size: 1000,
            max_files: 3,
        };
        let mut log = Log::open(settings);
        let entry = [&[b'x'; 98][..], b"\n"].concat();
        for _ in 0..20 {
            log.write(&entry.repeat(5));
        }
        log.write(&[&[b'y'; 1500][..], b"\n"].concat());
        for _ in 0..12 {
            log.write(&entry);
        }
        let sizes: Vec<_> = ["", ".1", ".2", ".3"]
            .iter()
            .map(|suffix| {
                let part = format!("{}{suffix}", path.display());
                fs::metadata(part).map(|metadata| metadata.len()).ok()
            })
            .collect();
        fs::remove_dir_all(&dir).unwrap();
        // One entry that is too long has a file of its own.
        assert_eq!(sizes, [Some(198), Some(990), Some(1501), None]);
    }
}
