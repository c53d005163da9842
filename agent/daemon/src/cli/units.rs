//! Values as users write them: durations, sizes, CPUs, ports, and ages to show.

use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use skep_core::{
    api::{PortConfig, Protocol, PublishMode},
    time::Timestamp,
};

use skep_host::clock;

use crate::management::render::container::duration_in_words;

/// A duration of Go: `10s`, `1m30s`, `500ms`, `1.5h`.
///
/// # Errors
/// For anything else.
pub(super) fn duration(text: &str) -> Result<Duration> {
    let wrong = || anyhow!("{text:?} is not a duration: use 10s, 1m30s or 500ms");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.');
        let (number, after) = rest.split_at(digits.ok_or_else(wrong)?);
        let letters = after.find(|c: char| !c.is_ascii_alphabetic());
        let (unit, after) = after.split_at(letters.unwrap_or(after.len()));
        let seconds = match unit {
            "ms" => 0.001,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3_600.0,
            _ => return Err(wrong()),
        };
        let number: f64 = number.parse().map_err(|_| wrong())?;
        let part = Duration::try_from_secs_f64(number * seconds).map_err(|_| wrong())?;
        total = total.checked_add(part).ok_or_else(wrong)?;
        rest = after;
    }
    if text.is_empty() {
        return Err(wrong());
    }
    Ok(total)
}

/// Nanoseconds as the Engine API has them.
pub(super) fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Bytes: `64M`, `1.5g`, `1024`; units are powers of 1024, as in Docker.
///
/// # Errors
/// For anything else.
pub(super) fn bytes(text: &str) -> Result<i64> {
    let wrong = || anyhow!("{text:?} is not a size: use 64M, 1.5g or a number of bytes");
    let lower = text.to_ascii_lowercase();
    let number = lower.trim_end_matches('b').trim_end_matches('i');
    let (number, factor) = match number.chars().last() {
        Some('k') => (&number[..number.len() - 1], 1_i64 << 10),
        Some('m') => (&number[..number.len() - 1], 1 << 20),
        Some('g') => (&number[..number.len() - 1], 1 << 30),
        Some('t') => (&number[..number.len() - 1], 1 << 40),
        Some(_) => (number, 1),
        None => return Err(wrong()),
    };
    decimal(number, factor).ok_or_else(wrong)
}

/// CPUs, `0.5`, in billionths.
///
/// # Errors
/// For anything else.
pub(super) fn nano_cpus(text: &str) -> Result<i64> {
    decimal(text, 1_000_000_000)
        .ok_or_else(|| anyhow!("{text:?} is not a number of CPUs: use 0.5 or 2"))
}

/// A decimal number with at most nine places times a factor, rounded down.
fn decimal(text: &str, factor: i64) -> Option<i64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if (whole.is_empty() && fraction.is_empty()) || !digits(whole) || !digits(fraction) {
        return None;
    }
    if fraction.len() > 9 {
        return None;
    }
    let whole: i64 = if whole.is_empty() {
        0
    } else {
        whole.parse().ok()?
    };
    let nanos: i64 = format!("{fraction:0<9}").parse().ok()?;
    let part = i128::from(nanos) * i128::from(factor) / 1_000_000_000;
    whole
        .checked_mul(factor)?
        .checked_add(i64::try_from(part).ok()?)
}

/// `[published:]target[/protocol]`, or `published=…,target=…,protocol=…,mode=…`.
///
/// # Errors
/// For anything else.
pub(super) fn port(text: &str) -> Result<PortConfig> {
    if text.contains('=') {
        return long_port(text);
    }
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let (published, target) = match ports.split_once(':') {
        Some((published, target)) => (port_number(text, published)?, target),
        None => (0, ports),
    };
    Ok(PortConfig {
        protocol: protocol_named(text, protocol)?,
        target_port: port_number(text, target)?,
        published_port: published,
        ..PortConfig::default()
    })
}

fn long_port(text: &str) -> Result<PortConfig> {
    let mut port = PortConfig::default();
    for part in text.split(',') {
        let (key, value) = part.split_once('=').unwrap_or((part, ""));
        match key {
            "published" => port.published_port = port_number(text, value)?,
            "target" => port.target_port = port_number(text, value)?,
            "protocol" => port.protocol = protocol_named(text, value)?,
            "mode" if value == "ingress" => port.publish_mode = PublishMode::Ingress,
            "mode" if value == "host" => port.publish_mode = PublishMode::Host,
            _ => bail!(
                "--publish {text:?}: {part:?} is not published=, target=, protocol= or mode=ingress|host"
            ),
        }
    }
    if port.target_port == 0 {
        bail!("--publish {text:?} names no target= port");
    }
    Ok(port)
}

fn port_number(text: &str, number: &str) -> Result<u16> {
    match number.parse() {
        Ok(port) if port > 0 => Ok(port),
        Ok(_) | Err(_) => bail!("--publish {text:?}: {number:?} is not a port from 1 to 65535"),
    }
}

fn protocol_named(text: &str, name: &str) -> Result<Protocol> {
    match name {
        "tcp" => Ok(Protocol::Tcp),
        "udp" => Ok(Protocol::Udp),
        "sctp" => Ok(Protocol::Sctp),
        _ => bail!("--publish {text:?}: {name:?} is not tcp, udp or sctp"),
    }
}

/// How long ago a moment of a document is, in a sentence: `about a minute ago`.
pub(super) fn ago(moment: &str) -> String {
    age(moment).to_lowercase()
}

/// The same by itself: `About a minute ago`.
pub(super) fn age(moment: &str) -> String {
    match serde_json::from_value::<Timestamp>(moment.into()) {
        Ok(moment) => {
            let words = duration_in_words(clock::timestamp().since(moment));
            format!("{words} ago")
        }
        Err(_) => String::new(),
    }
}

/// A size to show: `1.921GiB`.
pub(super) fn human_bytes(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut divisor: u64 = 1;
    let mut unit = 0;
    while bytes / divisor >= 1_024 && unit + 1 < units.len() {
        divisor *= 1_024;
        unit += 1;
    }
    let thousandths = u128::from(bytes) * 1_000 / u128::from(divisor);
    let (whole, rest) = (thousandths / 1_000, thousandths % 1_000);
    if rest == 0 {
        format!("{whole}{}", units[unit])
    } else {
        let number = format!("{whole}.{rest:03}");
        format!("{}{}", number.trim_end_matches('0'), units[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_gos() {
        assert_eq!(duration("10s").unwrap(), Duration::from_secs(10));
        assert_eq!(duration("1m30s").unwrap(), Duration::from_secs(90));
        assert_eq!(duration("500ms").unwrap(), Duration::from_millis(500));
        assert_eq!(duration("1.5h").unwrap(), Duration::from_secs(5_400));
        assert_eq!(duration("0").unwrap(), Duration::ZERO);
        for wrong in ["", "10", "s", "-1s", "1x", "1..5s", "9e9s"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes_and_cpus_are_exact() {
        assert_eq!(bytes("64M").unwrap(), 64 << 20);
        assert_eq!(bytes("1.5g").unwrap(), 3 << 29);
        assert_eq!(bytes("10GiB").unwrap(), 10 << 30);
        assert_eq!(bytes("1024").unwrap(), 1_024);
        assert_eq!(nano_cpus("0.5").unwrap(), 500_000_000);
        assert_eq!(nano_cpus("2").unwrap(), 2_000_000_000);
        for wrong in [
            "",
            "M",
            "x",
            "-1",
            "1e3",
            "99999999999999999999",
            "1.0000000001",
        ] {
            assert!(bytes(wrong).is_err(), "{wrong}");
            assert!(nano_cpus(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn ports_have_two_forms() {
        let both = port("8000:80").unwrap();
        assert_eq!((both.published_port, both.target_port), (8000, 80));
        assert_eq!(port("53:53/udp").unwrap().protocol, Protocol::Udp);
        assert_eq!(port("80").unwrap().published_port, 0);
        let long = port("published=8002,target=8000,mode=host").unwrap();
        assert_eq!(
            (long.published_port, long.publish_mode),
            (8002, PublishMode::Host)
        );
        for wrong in [
            "",
            "0:80",
            "80/x",
            "1:2:3",
            "70000",
            "target=80,colour=red",
            "mode=host",
        ] {
            assert!(port(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes_read_as_dockers() {
        assert_eq!(human_bytes(2_062_471_168), "1.92GiB");
        assert_eq!(human_bytes(512), "512B");
        assert_eq!(human_bytes(1 << 30), "1GiB");
    }
}
