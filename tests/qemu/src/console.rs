//! The serial console of a VM, kept in a file with the time before each line.
//!
//! A small process of ours stands between QEMU and the file (`lab internal-machine`): it starts QEMU, reads its
//! standard output and goes when QEMU goes.

use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};

use crate::process::Background;

/// The console's file in a VM's folder.
pub const CONSOLE: &str = "console.log";
/// The file with QEMU's process id in a VM's folder.
pub const QEMU_PID: &str = "qemu.pid";
/// The file with QEMU's arguments in a VM's folder, a JSON list.
pub const ARGUMENTS: &str = "qemu.json";

/// Runs QEMU in the current folder with the arguments that lie there, to its end.
///
/// # Errors
/// When QEMU cannot be started, or the console cannot be written.
pub fn attend() -> Result<()> {
    let text = fs::read(ARGUMENTS).with_context(|| format!("cannot read {ARGUMENTS}"))?;
    let arguments: Vec<String> = serde_json::from_slice(&text)?;
    let (program, arguments) = arguments.split_first().context("no program to run")?;
    let mut console = OpenOptions::new().create(true).append(true).open(CONSOLE)?;
    writeln!(console, "{} --- power on", clock())?;
    let mut qemu = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {program}"))?;
    Background::at(QEMU_PID).record(qemu.id())?;
    let mut serial = qemu.stdout.take().context("QEMU has no serial console")?;
    let copied = copy_with_clock(&mut serial, &mut console);
    let status = qemu.wait()?;
    writeln!(console, "\n{} --- power off ({status})", clock())?;
    copied.context("cannot write the console")
}

/// Copies bytes as they come, the time before each line.
fn copy_with_clock(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut chunk = [0; 4096];
    let mut at_begin = true;
    loop {
        let length = match from.read(&mut chunk) {
            Ok(0) => return Ok(()),
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let mut text = Vec::with_capacity(length + 32);
        for byte in chunk[..length].iter().filter(|byte| **byte != b'\r') {
            if at_begin {
                text.extend(clock().bytes());
                text.push(b' ');
            }
            text.push(*byte);
            at_begin = *byte == b'\n';
        }
        to.write_all(&text)?;
    }
}

/// The time of day (UTC), to the millisecond.
fn clock() -> String {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let seconds = since.as_secs() % 86400;
    format!(
        "{:02}:{:02}:{:02}.{:03}",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60,
        since.subsec_millis()
    )
}

/// What the console in this folder says; nothing when there is none yet.
pub fn read(folder: &Path) -> String {
    let bytes = fs::read(folder.join(CONSOLE)).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The last lines of the console, without escape sequences.
pub fn tail(folder: &Path, lines: usize) -> String {
    let text = read(folder);
    let mut last: Vec<String> = text
        .lines()
        .rev()
        .map(without_escapes)
        .filter(|line| line.len() > CLOCK_LENGTH)
        .take(lines)
        .collect();
    last.reverse();
    last.join("\n")
}

const CLOCK_LENGTH: usize = "00:00:00.000 ".len();

/// The text without terminal control sequences.
pub fn without_escapes(line: &str) -> String {
    let mut plain = String::with_capacity(line.len());
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        match character {
            '\u{1b}' => {
                // CSI sequences end with a letter; the few others are two characters long.
                if characters.next() == Some('[') {
                    let _ = characters.find(|c| c.is_ascii_alphabetic());
                }
            }
            c if c.is_control() && c != '\t' => {}
            c => plain.push(c),
        }
    }
    plain
}

/// Lines that no sound node ever writes.
///
/// The kernel's panic, oops, WARNING, hung tasks and out of memory, dm-verity's errors, and systemd's failed units.
pub fn faults(console: &str) -> Vec<String> {
    const SIGNS: &[&str] = &[
        "Kernel panic",
        "Oops:",
        "BUG:",
        "WARNING: CPU",
        "WARNING: possible",
        "general protection fault",
        "blocked for more than",
        "Out of memory",
        "unregister_netdevice: waiting",
        "Failed to start",
        "Dependency failed",
        "Failed with result",
        "emergency mode",
        "EXT4-fs error",
    ];
    console
        .lines()
        .map(without_escapes)
        .filter(|line| {
            let verity = line.contains("verity") && line.contains("corrupt");
            verity || SIGNS.iter().any(|sign| line.contains(sign))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_gets_the_time_also_when_it_comes_in_pieces() {
        let mut out = Vec::new();
        copy_with_clock(&mut &b"one\r\ntwo\n"[..], &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        let lines: Vec<&str> = text.lines().map(|l| &l[CLOCK_LENGTH..]).collect();
        assert_eq!(lines, ["one", "two"]);
    }

    #[test]
    fn faults_are_seen_through_colours() {
        let console = "12:00:00.000 [    1.0] Linux version 6.12\n\
                       12:00:01.000 \u{1b}[0;1;31mFAILED\u{1b}[0m] Failed to start \u{1b}[0;1;39mskepd.service\u{1b}[0m.\n\
                       12:00:02.000 device-mapper: verity: 254:2: data block 3 is corrupted\n";
        let found = faults(console);
        assert_eq!(found.len(), 2);
        assert!(found[0].ends_with("FAILED] Failed to start skepd.service."));
    }
}
