//! Randomness of the kernel, for keys, tokens and the seeds of the core's generators.

use std::{fs::File, io::Read};

use crate::error::{Context, Result};

/// 128 random bits.
///
/// # Errors
/// When the kernel's device cannot be read.
pub fn bits128() -> Result<u128> {
    let mut bytes = [0; 16];
    fill(&mut bytes)?;
    Ok(u128::from_be_bytes(bytes))
}

/// 256 random bits: a key.
///
/// # Errors
/// When the kernel's device cannot be read.
pub fn bits256() -> Result<[u8; 32]> {
    let mut bytes = [0; 32];
    fill(&mut bytes)?;
    Ok(bytes)
}

/// 64 random bits.
///
/// # Errors
/// When the kernel's device cannot be read.
pub fn bits64() -> Result<u64> {
    let mut bytes = [0; 8];
    fill(&mut bytes)?;
    Ok(u64::from_be_bytes(bytes))
}

/// The device rather than the system call: systemd has seeded the pool before this program starts, and
/// a file needs no unsafe code.
fn fill(bytes: &mut [u8]) -> Result<()> {
    File::open("/dev/urandom")
        .and_then(|mut device| device.read_exact(bytes))
        .context("read randomness from", "/dev/urandom")
}
