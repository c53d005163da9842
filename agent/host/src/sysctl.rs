//! Kernel settings below `/proc/sys`. Those of a network namespace are those of the calling thread's.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::error::{Context, HostError, Result};

/// The value of a setting without its line end; none when this kernel does not have it. Where there
/// is no IPv6 at all, it counts as switched off.
#[must_use]
pub fn read(key: &str) -> Option<String> {
    let path = path(key).ok()?;
    match fs::read_to_string(path) {
        Ok(text) => Some(text.trim_end_matches('\n').to_owned()),
        Err(_) if key.ends_with("/disable_ipv6") && !has_ipv6() => Some("1".to_owned()),
        Err(_) => None,
    }
}

fn has_ipv6() -> bool {
    Path::new("/proc/sys/net/ipv6").exists()
}

/// Writes a setting.
///
/// # Errors
/// When the kernel does not have it or refuses the value.
pub fn write(key: &str, value: &str) -> Result<()> {
    fs::write(path(key)?, value).context("set", format!("{key} to {value}"))
}

fn path(key: &str) -> Result<PathBuf> {
    if key.starts_with('/') || key.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err(HostError::new("set", key, "not a path below /proc/sys"));
    }
    Ok(PathBuf::from("/proc/sys").join(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_key_leaves_the_directory() {
        for key in [
            "../etc/passwd",
            "/etc/passwd",
            "net/../../etc/passwd",
            "",
            "net//ipv4",
        ] {
            assert_eq!(read(key), None, "{key}");
            assert!(write(key, "1").is_err(), "{key}");
        }
        assert!(read("kernel/ostype").is_some_and(|value| value == "Linux"));
    }
}
