//! Lines on the console and in the kernel's log, from where the journal takes them.

use std::fs::File;
use std::io::Write as _;

/// A step of the boot.
pub(crate) fn say(line: &str) {
    log(6, line);
}

/// Why the machine does not boot.
pub(crate) fn complain(line: &str) {
    log(2, line);
}

/// `level` is syslog's. A line that cannot be written has nowhere else to go.
fn log(level: u8, line: &str) {
    if let Ok(mut kmsg) = File::options().write(true).open("/dev/kmsg") {
        let _ = kmsg.write_all(format!("<{level}>skep-init: {line}\n").as_bytes());
    }
}
