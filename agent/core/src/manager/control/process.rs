//! What a container's process is given: signals, capabilities, limits, sysctls, its log.

use super::{invalid, names::check_count, unsupported};
use crate::api::{ApiError, ContainerSpec, container::Ulimit, task::LogDriver};

const FIELD: &str = "TaskTemplate.ContainerSpec";

/// Signals 1 to 31 of Linux, in order.
const SIGNALS: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
    "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
    "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];
/// capabilities(7).
const CAPABILITIES: [&str; 41] = [
    "AUDIT_CONTROL",
    "AUDIT_READ",
    "AUDIT_WRITE",
    "BLOCK_SUSPEND",
    "BPF",
    "CHECKPOINT_RESTORE",
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "IPC_LOCK",
    "IPC_OWNER",
    "KILL",
    "LEASE",
    "LINUX_IMMUTABLE",
    "MAC_ADMIN",
    "MAC_OVERRIDE",
    "MKNOD",
    "NET_ADMIN",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_RAW",
    "PERFMON",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYSLOG",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_CHROOT",
    "SYS_MODULE",
    "SYS_NICE",
    "SYS_PACCT",
    "SYS_PTRACE",
    "SYS_RAWIO",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "WAKE_ALARM",
];
/// setrlimit(2).
const ULIMITS: [&str; 16] = [
    "as",
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];
/// Settings of a container's own IPC namespace; those of its network begin with `net.`.
const IPC_SYSCTLS: [&str; 8] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shm_rmid_forced",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
];

pub(super) fn check(spec: &ContainerSpec) -> Result<(), ApiError> {
    if spec.init == Some(true) {
        return Err(unsupported(format!("{FIELD}.Init (--init)")));
    }
    if !is_signal(&spec.stop_signal) {
        return Err(invalid(
            format!("{FIELD}.StopSignal"),
            format!(
                "{:?} is not a signal: give a name such as SIGTERM or a number from 1 to 64",
                spec.stop_signal
            ),
        ));
    }
    for (name, list) in [
        ("CapabilityAdd", &spec.capability_add),
        ("CapabilityDrop", &spec.capability_drop),
    ] {
        if let Some(unknown) = list.iter().find(|capability| !is_capability(capability)) {
            return Err(invalid(
                format!("{FIELD}.{name}"),
                format!("unknown capability {unknown:?}: give a name of capabilities(7) or ALL"),
            ));
        }
    }
    check_ulimits(&spec.ulimits)?;
    check_count(&format!("{FIELD}.Sysctls"), spec.sysctls.len())?;
    for (name, value) in &spec.sysctls {
        let own = name.starts_with("net.") || name.starts_with("fs.mqueue.");
        let plain = name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
        if !(plain && (own || IPC_SYSCTLS.contains(&name.as_str()))) {
            return Err(invalid(
                format!("{FIELD}.Sysctls[{name}]"),
                "it is not a setting of the container's own namespaces: use net.*, fs.mqueue.* or those of System V IPC",
            ));
        }
        super::names::check_text(&format!("{FIELD}.Sysctls[{name}]"), value)?;
    }
    Ok(())
}

/// A name with or without `SIG`, a number, or nothing for the image's own.
fn is_signal(text: &str) -> bool {
    if text.is_empty() {
        return true;
    }
    if let Ok(number) = text.parse::<u8>() {
        return (1..=64).contains(&number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let offset = |text: &str, sign: char| {
        let digits = text.strip_prefix(sign).unwrap_or("");
        text.is_empty() || digits.parse::<u8>().is_ok_and(|offset| offset <= 30)
    };
    let from_first = name.strip_prefix("RTMIN").is_some_and(|it| offset(it, '+'));
    let from_last = name.strip_prefix("RTMAX").is_some_and(|it| offset(it, '-'));
    SIGNALS.contains(&name) || from_first || from_last
}

fn is_capability(text: &str) -> bool {
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
    name == "ALL" || CAPABILITIES.contains(&name)
}

fn check_ulimits(ulimits: &[Ulimit]) -> Result<(), ApiError> {
    check_count(&format!("{FIELD}.Ulimits"), ulimits.len())?;
    for (position, ulimit) in ulimits.iter().enumerate() {
        let field = format!("{FIELD}.Ulimits[{position}]");
        if !ULIMITS.contains(&ulimit.name.as_str()) {
            return Err(invalid(
                format!("{field}.Name"),
                format!(
                    "unknown limit {:?}: use one of {}",
                    ulimit.name,
                    ULIMITS.join(", ")
                ),
            ));
        }
        // -1 is no limit: the largest.
        let value = |value: i64| u64::try_from(value).unwrap_or(u64::MAX);
        if value(ulimit.soft) > value(ulimit.hard) {
            return Err(invalid(
                format!("{field}.Soft"),
                format!(
                    "soft limit {} is above hard limit {}",
                    ulimit.soft, ulimit.hard
                ),
            ));
        }
    }
    Ok(())
}

/// Drivers `json-file`, with `max-size` and `max-file`, and `none`.
pub(super) fn check_log(driver: &LogDriver) -> Result<(), ApiError> {
    let field = "TaskTemplate.LogDriver";
    if !["", "json-file", "none"].contains(&driver.name.as_str()) {
        return Err(unsupported(format!(
            "{field}.Name {:?} (json-file and none are)",
            driver.name
        )));
    }
    for (option, value) in &driver.options {
        let (good, want) = match option.as_str() {
            "max-size" => (is_size(value), "a size from 4k, such as 10m"),
            "max-file" => {
                let files = value.parse::<u32>();
                (
                    files.is_ok_and(|files| (1..=1000).contains(&files)),
                    "a number from 1 to 1000",
                )
            }
            _ => {
                return Err(unsupported(format!(
                    "{field}.Options {option:?} (max-size and max-file are)"
                )));
            }
        };
        if !good {
            return Err(invalid(
                format!("{field}.Options[{option}]"),
                format!("{value:?} is no good: give {want}"),
            ));
        }
    }
    Ok(())
}

/// `10m`, `1g`, `500k`, `8192`, with or without a final `b`.
fn is_size(text: &str) -> bool {
    let lower = text.trim().to_ascii_lowercase();
    let text = lower.strip_suffix('b').unwrap_or(&lower);
    let (digits, unit) = match text.char_indices().last() {
        Some((at, 'k')) => (&text[..at], 1 << 10),
        Some((at, 'm')) => (&text[..at], 1 << 20),
        Some((at, 'g')) => (&text[..at], 1 << 30),
        Some(_) | None => (text, 1_u64),
    };
    let count = digits.parse::<u64>().ok();
    let bytes = count.and_then(|count| count.checked_mul(unit));
    bytes.is_some_and(|bytes| bytes >= 4096)
}
