//! Why libcontainer failed.
//!
//! Its errors pass between processes as the text of the outermost alone («failed to prepare rootfs»); what really happened
//! is in its log events. They are kept in memory that all the processes share, and the first one is the cause.

use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

use nix::sys::memfd::{MemFdCreateFlag, memfd_create};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use crate::{Result, Trying};

/// Longest cause that is told.
const MAX_CAUSE: usize = 400;
/// Where events go.
static EVENTS: OnceLock<File> = OnceLock::new();

/// Begins to keep events.
pub(crate) fn keep() -> Result<()> {
    let memory = memfd_create(c"causes", MemFdCreateFlag::MFD_CLOEXEC).trying("keep events")?;
    // Only ever called once.
    let _ = EVENTS.set(File::from(memory));
    tracing::subscriber::set_global_default(Events).trying("keep events")
}

/// Forgets what was kept, before something is tried.
pub(crate) fn forget() {
    if let Some(mut events) = EVENTS.get() {
        // Without this an old cause is told, which is no harm worth failing for.
        let _ = events.set_len(0);
        let _ = std::io::Seek::rewind(&mut events);
    }
}

/// `why` without libcontainer's own story of its processes, and with the first event since [`forget`] if that says more.
pub(crate) fn with_cause(why: &str) -> String {
    let mut text = [0; MAX_CAUSE];
    let length = EVENTS
        .get()
        .and_then(|events| events.read_at(&mut text, 0).ok());
    let text = String::from_utf8_lossy(&text[..length.unwrap_or(0)]);
    combine(why, text.lines().next().unwrap_or_default().trim())
}

fn combine(mut why: &str, cause: &str) -> String {
    const STORY: [&str; 4] = [
        "failed to create container: ",
        "exec process failed with error ",
        "intermediate process error ",
        "error in executing process : ",
    ];
    for part in STORY {
        why = why.strip_prefix(part).unwrap_or(why);
    }
    let detail = cause.split_once(": ").map_or(cause, |(_, detail)| detail);
    if detail.is_empty() || why.contains(detail) {
        why.to_owned()
    } else if cause.starts_with(why) {
        cause.to_owned()
    } else {
        format!("{why} ({cause})")
    }
}

/// Takes error events and nothing else.
struct Events;

impl Subscriber for Events {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() == Level::ERROR
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line::default();
        event.record(&mut line);
        let text = format!("{}{}", line.message, line.fields).replace('\n', " ");
        if let Some(mut events) = EVENTS.get() {
            // An event that is lost costs a detail.
            let _ = writeln!(events, "{text}");
        }
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// An event as text: the message, then the fields.
#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing into a string cannot fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            "err" | "error" => write!(self.fields, ": {value:?}"),
            name => write!(self.fields, ", {name} {value:?}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::combine;

    #[test]
    fn a_cause_is_told_once_and_without_its_story() {
        let story = "failed to create container: exec process failed with error error in executing process : ";
        let cases = [
            (
                "exec: \"x\": not found",
                "failed to initialize container process: exec: \"x\": not found",
                "exec: \"x\": not found",
            ),
            (
                "failed to prepare rootfs",
                "failed to prepare rootfs: EBUSY",
                "failed to prepare rootfs: EBUSY",
            ),
            (
                "cgroup error",
                "failed to write: EPERM",
                "cgroup error (failed to write: EPERM)",
            ),
            ("other", "", "other"),
        ];
        for (why, cause, told) in cases {
            assert_eq!(combine(&format!("{story}{why}"), cause), told);
        }
    }
}
