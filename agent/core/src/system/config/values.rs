//! The values of the keys, one function each: into the configuration, or why not.

use std::net::{IpAddr, Ipv6Addr};

use super::{Config, Start, Tokens};
use crate::wire::token::JoinToken;

/// Port of the control plane.
const CONTROL_PORT: u16 = 2377;
/// More managers, registries or names than anybody gives.
const MAX_ITEMS: usize = 64;

pub(super) fn name(value: &str, config: &mut Config) -> Result<(), String> {
    let value = value.trim();
    if value.len() > 64 || !is_host_name(value) {
        return Err(format!(
            "{:?} is not a host name: use letters, digits, - and dots, at most 64",
            shown(value)
        ));
    }
    config.name = Some(value.to_owned());
    Ok(())
}

pub(super) fn swarm(value: &str, config: &mut Config) -> Result<(), String> {
    if value.trim() != "init" {
        return Err(format!("{:?} is not understood: give init", shown(value)));
    }
    config.start = Start::Init;
    Ok(())
}

/// `TOKEN@ADDR[,ADDR]`. The token is a secret: no message repeats the value.
pub(super) fn join(value: &str, config: &mut Config) -> Result<(), String> {
    let (token, addresses) = value
        .trim()
        .split_once('@')
        .ok_or("it has no @: give TOKEN@ADDRESS[,ADDRESS]")?;
    let token = JoinToken::parse(token).map_err(|error| error.to_string())?;
    let managers: Result<Vec<String>, String> = items(addresses)?
        .into_iter()
        .map(|address| {
            host_and_port(address, Some(CONTROL_PORT)).ok_or_else(|| {
                format!(
                    "{:?} is not an address of a manager: give ADDRESS[:PORT]",
                    shown(address)
                )
            })
        })
        .collect();
    config.start = Start::Join {
        token: token.to_string(),
        managers: managers?,
    };
    Ok(())
}

pub(super) fn advertise(value: &str, config: &mut Config) -> Result<(), String> {
    let parsed: Option<IpAddr> = value.trim().parse().ok();
    let usable = |addr: &IpAddr| !addr.is_unspecified() && !addr.is_multicast();
    let addr = parsed.filter(usable).ok_or_else(|| {
        format!(
            "{:?} is not an address of this machine: give an IP address",
            shown(value)
        )
    })?;
    config.advertise = Some(addr);
    Ok(())
}

pub(super) fn mirrors(value: &str, config: &mut Config) -> Result<(), String> {
    for item in items(value)? {
        let scheme = ["http://", "https://"].iter().find_map(|scheme| {
            let rest = item.strip_prefix(scheme)?;
            Some((*scheme, rest.trim_end_matches('/')))
        });
        let (scheme, host) = scheme.unwrap_or(("", item));
        let host = registry(host)?;
        push(&mut config.registry_mirrors, format!("{scheme}{host}"))?;
    }
    Ok(())
}

pub(super) fn insecure(value: &str, config: &mut Config) -> Result<(), String> {
    for item in items(value)? {
        let host = registry(item)?;
        push(&mut config.insecure_registries, host)?;
    }
    Ok(())
}

pub(super) fn api_san(value: &str, config: &mut Config) -> Result<(), String> {
    for item in items(value)? {
        if item.parse::<IpAddr>().is_err() && !is_host_name(item) {
            return Err(format!(
                "{:?} is neither a host name nor an IP address",
                shown(item)
            ));
        }
        push(&mut config.api_names, item.to_owned())?;
    }
    Ok(())
}

pub(super) fn ca(value: &str, config: &mut Config) -> Result<(), String> {
    let has = |label: &str| value.contains(&format!("-----BEGIN {label}"));
    let has_key = has("PRIVATE KEY-----") || has("EC PRIVATE KEY-----");
    if !has("CERTIFICATE-----") || !has_key {
        return Err(
            "it is not PEM of a certificate and its private key: use what skep gen swarm made"
                .to_owned(),
        );
    }
    config.ca = Some(value.to_owned());
    Ok(())
}

pub(super) fn tokens(value: &str, config: &mut Config) -> Result<(), String> {
    let why = |_| {
        "it is not JSON with the texts worker and manager: use what skep gen swarm made".to_owned()
    };
    let tokens: Tokens = serde_json::from_str(value).map_err(why)?;
    let worker = JoinToken::parse(&tokens.worker).map_err(|error| format!("worker: {error}"))?;
    let manager = JoinToken::parse(&tokens.manager).map_err(|error| format!("manager: {error}"))?;
    if worker.secret == manager.secret {
        return Err("the two tokens are the same: use what skep gen swarm made".to_owned());
    }
    config.tokens = Some(tokens);
    Ok(())
}

pub(super) fn operator_ca(value: &str, config: &mut Config) -> Result<(), String> {
    if !value.contains("-----BEGIN CERTIFICATE-----") {
        return Err("it is not PEM of a certificate: use what skep gen swarm made".to_owned());
    }
    if value.contains("PRIVATE KEY-----") {
        return Err(
            "it contains a private key, which no node may have: give the certificate alone"
                .to_owned(),
        );
    }
    config.operator_ca = Some(value.to_owned());
    Ok(())
}

/// The parts of a list with commas.
fn items(value: &str) -> Result<Vec<&str>, String> {
    let items: Vec<&str> = value.split(',').map(str::trim).collect();
    if items.iter().any(|item| item.is_empty()) {
        return Err("it has an empty item: give them with single commas between".to_owned());
    }
    if items.len() > MAX_ITEMS {
        return Err(format!(
            "{} items are too many: give at most {MAX_ITEMS}",
            items.len()
        ));
    }
    Ok(items)
}

fn push(list: &mut Vec<String>, item: String) -> Result<(), String> {
    if list.len() >= MAX_ITEMS {
        return Err(format!("too many items: give at most {MAX_ITEMS}"));
    }
    if !list.contains(&item) {
        list.push(item);
    }
    Ok(())
}

fn registry(text: &str) -> Result<String, String> {
    host_and_port(text, None)
        .ok_or_else(|| format!("{:?} is not a registry: give HOST[:PORT]", shown(text)))
}

/// `host[:port]` checked, with the default port added if there is one.
fn host_and_port(text: &str, default: Option<u16>) -> Option<String> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']')?;
            host.parse::<Ipv6Addr>().ok()?;
            (
                format!("[{host}]"),
                port.strip_prefix(':').or(port.is_empty().then_some(""))?,
            )
        }
        None if text.parse::<Ipv6Addr>().is_ok() => (format!("[{text}]"), ""),
        None => {
            let (host, port) = text
                .split_once(':')
                .map_or((text, ""), |(host, port)| (host, port));
            // `host:` has an empty port, which is none.
            if text.ends_with(':') {
                return None;
            }
            (host.to_owned(), port)
        }
    };
    let bare = host.trim_matches(['[', ']']);
    if bare.parse::<IpAddr>().is_err() && !is_host_name(bare) {
        return None;
    }
    let given = match port {
        "" => None,
        digits if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            Some(digits.parse::<u16>().ok().filter(|port| *port != 0)?)
        }
        _ => return None,
    };
    Some(match given.or(default) {
        Some(port) => format!("{host}:{port}"),
        None => host,
    })
}

fn is_host_name(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    let label = |label: &str| {
        let bytes = label.as_bytes();
        let ends = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
        bytes.len() <= 63
            && ends(bytes.first())
            && ends(bytes.last())
            && bytes.iter().all(|byte| inner(*byte))
    };
    // All digits in the last label would be an address that was not understood.
    let last_is_name = text.rsplit('.').next();
    let last_is_name = last_is_name.is_some_and(|it| it.bytes().any(|byte| !byte.is_ascii_digit()));
    let single = !text.contains('.');
    text.len() <= 253 && text.split('.').all(label) && (last_is_name || single)
}

fn shown(value: &str) -> String {
    value.chars().take(80).collect()
}
