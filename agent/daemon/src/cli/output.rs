//! What the command line writes. A reader that went away is no error.

use std::io::{self, IsTerminal, Write};

use anyhow::Result;
use serde_json::Value;

use crate::management::port::OutputStream;

/// How lists are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub(super) enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs: one document, as the Engine API has it.
    Json,
}

/// Writes text to standard output.
///
/// # Errors
/// When it cannot be written, unless the reader went away.
pub(super) fn print(text: &str) -> Result<()> {
    bytes(OutputStream::Stdout, text.as_bytes())
}

/// Writes bytes to an output.
///
/// # Errors
/// As [`print`].
pub(super) fn bytes(stream: OutputStream, bytes: &[u8]) -> Result<()> {
    #[cfg(test)]
    if capture::take_up(stream, bytes) {
        return Ok(());
    }
    fn write(mut out: impl Write, bytes: &[u8]) -> io::Result<()> {
        out.write_all(bytes)?;
        out.flush()
    }
    let written = match stream {
        OutputStream::Stdout => write(io::stdout().lock(), bytes),
        OutputStream::Stderr => write(io::stderr().lock(), bytes),
    };
    match written {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Writes a line to standard output.
///
/// # Errors
/// As [`print`].
pub(super) fn line(text: &str) -> Result<()> {
    print(&format!("{text}\n"))
}

/// Writes a document, indented as Docker's `inspect` does.
///
/// # Errors
/// As [`print`].
pub(super) fn document(value: &Value) -> Result<()> {
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut out = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, formatter);
    serde::Serialize::serialize(value, &mut serializer)?;
    line(&String::from_utf8_lossy(&out))
}

/// Writes a line to standard error. Where that fails there is nobody to tell.
pub(super) fn warn(text: &str) {
    let _ = bytes(OutputStream::Stderr, format!("{text}\n").as_bytes());
}

/// Whether people are watching.
pub(super) fn is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// What a test's thread would have written.
#[cfg(test)]
pub(super) mod capture {
    use std::cell::RefCell;

    use super::OutputStream;

    thread_local! {
        static WRITTEN: RefCell<Option<[Vec<u8>; 2]>> = const { RefCell::new(None) };
    }

    /// Begins to take up what this thread writes.
    pub(in crate::cli) fn start() {
        WRITTEN.set(Some([Vec::new(), Vec::new()]));
    }

    /// What it has written to standard output and standard error.
    pub(in crate::cli) fn end() -> (String, String) {
        let [out, errors] = WRITTEN.take().unwrap_or_default();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (text(out), text(errors))
    }

    pub(super) fn take_up(stream: OutputStream, bytes: &[u8]) -> bool {
        WRITTEN.with_borrow_mut(|written| {
            let Some([out, errors]) = written else {
                return false;
            };
            match stream {
                OutputStream::Stdout => out.extend_from_slice(bytes),
                OutputStream::Stderr => errors.extend_from_slice(bytes),
            }
            true
        })
    }
}
