//! nftables by the `nft` program: the one thing that is executed, never on the path of a start.

use std::{
    fs::File,
    io::{self, Read, Seek, Write},
    os::fd::{AsFd, BorrowedFd},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use skep_core::network::ruleset::Ruleset;

use crate::error::{Context, HostError, Result};

const NFT: &str = "/usr/sbin/nft";
/// A transaction takes milliseconds.
const DEADLINE: Duration = Duration::from_secs(20);
/// What of its complaints is kept.
const MAX_COMPLAINT: usize = 4096;

/// Replaces our table in the calling thread's namespace by these rules, in one transaction.
///
/// # Errors
/// What `nft` says.
pub fn replace(ruleset: &Ruleset) -> Result<()> {
    run("replace nftables table", &ruleset.replacement())
}

/// Removes our table from the calling thread's namespace; none is fine.
///
/// # Errors
/// What `nft` says.
pub fn remove() -> Result<()> {
    run("remove nftables table", &Ruleset::removal())
}

fn run(op: &'static str, script: &str) -> Result<()> {
    let mut nft = Command::new(NFT)
        .args(["-f", "-"])
        .env_clear()
        .stdin(file_with(script).context(op, NFT)?)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context(op, NFT)?;
    let complaint = complaint(&mut nft);
    if complaint.is_none() {
        // It may have ended meanwhile; then there is nothing to kill.
        let _ = nft.kill();
    }
    let status = nft.wait().context(op, NFT)?;
    match complaint {
        None => Err(HostError::new(op, NFT, "it did not end in time").temporary()),
        Some(_) if status.success() => Ok(()),
        Some(complaint) => Err(HostError::new(op, NFT, format!("{status}: {complaint}"))),
    }
}

/// The script in memory, to be read from its start. Unlike a pipe it takes all of it at once, whatever the reader does.
fn file_with(script: &str) -> io::Result<File> {
    let mut file = File::from(memfd_create("skep-nft", MemfdFlags::CLOEXEC)?);
    file.write_all(script.as_bytes())?;
    file.rewind()?;
    Ok(file)
}

/// All that `nft` writes to its standard error until it closes it; none when it does not in time.
fn complaint(nft: &mut Child) -> Option<String> {
    let start = Instant::now();
    let mut stderr = nft.stderr.take()?;
    let mut text = Vec::new();
    let mut chunk = [0; 1024];
    loop {
        let left = DEADLINE.checked_sub(start.elapsed())?;
        if !readable(stderr.as_fd(), left) {
            return None;
        }
        let length = stderr.read(&mut chunk).unwrap_or(0);
        if length == 0 {
            let text = String::from_utf8_lossy(&text);
            return Some(text.split_whitespace().collect::<Vec<_>>().join(" "));
        }
        let room = MAX_COMPLAINT.saturating_sub(text.len()).min(length);
        text.extend_from_slice(&chunk[..room]);
    }
}

fn readable(fd: BorrowedFd<'_>, wait: Duration) -> bool {
    let timeout = PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX);
    let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
    poll(&mut fds, timeout).is_ok_and(|ready| ready > 0)
}
