//! `TaskTemplate.ContainerSpec`, field by field.

use std::net::IpAddr;

use super::{
    invalid, is_empty, is_template, mount,
    names::{check_count, check_labels, check_text, check_texts},
    unsupported,
};
use crate::api::{ApiError, ContainerSpec, container::DnsConfig};

pub(super) const FIELD: &str = "TaskTemplate.ContainerSpec";

pub(super) fn check(spec: &ContainerSpec) -> Result<(), ApiError> {
    check_image(&spec.image)?;
    refuse_unsupported(spec)?;
    check_labels(&format!("{FIELD}.Labels"), &spec.labels)?;
    for (name, texts) in [
        ("Command", &spec.command),
        ("Args", &spec.args),
        ("Groups", &spec.groups),
        ("CapabilityAdd", &spec.capability_add),
        ("CapabilityDrop", &spec.capability_drop),
    ] {
        check_texts(&format!("{FIELD}.{name}"), texts)?;
    }
    for (name, text) in [
        ("Dir", &spec.dir),
        ("User", &spec.user),
        ("StopSignal", &spec.stop_signal),
    ] {
        check_text(&format!("{FIELD}.{name}"), text)?;
    }
    super::process::check(spec)?;
    check_env(&spec.env)?;
    check_hostname(&spec.hostname)?;
    check_hosts(&spec.hosts)?;
    if let Some(dns) = &spec.dns_config {
        check_dns(dns)?;
    }
    mount::check_all(&format!("{FIELD}.Mounts"), &spec.mounts)?;
    if !(-1000..=1000).contains(&spec.oom_score_adj) {
        return Err(invalid(
            format!("{FIELD}.OomScoreAdj"),
            format!("{} is not from -1000 to 1000", spec.oom_score_adj),
        ));
    }
    Ok(())
}

fn refuse_unsupported(spec: &ContainerSpec) -> Result<(), ApiError> {
    let values = [
        ("Privileges", spec.privileges.as_ref()),
        ("Healthcheck (--health-cmd)", health(spec)),
    ];
    for (name, value) in values {
        if value.is_some_and(|value| !is_empty(value)) {
            return Err(unsupported(format!("{FIELD}.{name}")));
        }
    }
    if !["", "default"].contains(&spec.isolation.as_str()) {
        return Err(unsupported(format!(
            "{FIELD}.Isolation {:?}",
            spec.isolation
        )));
    }
    Ok(())
}

/// A health check, unless it says that there shall be none.
fn health(spec: &ContainerSpec) -> Option<&serde_json::Value> {
    let check = spec.healthcheck.as_ref()?;
    let off = check["Test"] == serde_json::json!(["NONE"]);
    (!off).then_some(check)
}

/// Docker's reference grammar, roughly: `[host[:port]/]name[/name…][:tag][@sha256:…]`. The node that
/// pulls it parses it in full.
fn check_image(image: &str) -> Result<(), ApiError> {
    let field = format!("{FIELD}.Image");
    if image.is_empty() {
        return Err(invalid(field, "image reference must be provided"));
    }
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/:@".contains(&byte);
    let (name, digest) = image
        .split_once('@')
        .map_or((image, None), |(name, digest)| (name, Some(digest)));
    let (path, tag) = match name.rsplit_once(':') {
        Some((path, tag)) if !tag.contains('/') => (path, Some(tag)),
        Some(_) | None => (name, None),
    };
    let host_end = path.find('/').unwrap_or(0);
    let lower = !path[host_end..]
        .bytes()
        .any(|byte| byte.is_ascii_uppercase());
    let component = |part: &str| {
        let ends = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
        ends(part.as_bytes().first()) && ends(part.as_bytes().last())
    };
    let lower = lower && (host_end > 0 || !path.bytes().any(|byte| byte.is_ascii_uppercase()));
    let tag_good = tag.is_none_or(|tag| !tag.is_empty() && tag.len() <= 128);
    let digest_good = digest.is_none_or(|digest| {
        let hex = digest.strip_prefix("sha256:");
        hex.is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()))
    });
    let good = image.len() <= 512
        && image.bytes().all(allowed)
        && lower
        && path.split('/').all(component)
        && tag_good
        && digest_good;
    if good {
        return Ok(());
    }
    let shown: String = image.chars().take(128).collect();
    Err(invalid(
        field,
        format!(
            "{shown:?} is not a valid repository/tag: give [registry/]name[:tag][@digest] in lower case"
        ),
    ))
}

fn check_env(env: &[String]) -> Result<(), ApiError> {
    let field = format!("{FIELD}.Env");
    check_texts(&field, env)?;
    // Docker fills templates in on the node; every node of ours would reject such a task, again and again.
    if let Some(position) = env.iter().position(|text| is_template(text)) {
        return Err(unsupported(format!("{field}[{position}] with a template")));
    }
    match env
        .iter()
        .position(|text| text.is_empty() || text.starts_with('='))
    {
        Some(position) => Err(invalid(
            format!("{field}[{position}]"),
            format!(
                "invalid environment variable {:?}: give KEY=value",
                env[position]
            ),
        )),
        None => Ok(()),
    }
}

fn check_hostname(hostname: &str) -> Result<(), ApiError> {
    // Docker lets templates through; here they would become part of the name.
    if is_template(hostname) {
        return Err(unsupported(format!("{FIELD}.Hostname with a template")));
    }
    let label = |label: &str| super::is_dns_label(label) && !label.contains('_');
    let good = hostname.len() <= 64 && hostname.split('.').all(label);
    if hostname.is_empty() || good {
        return Ok(());
    }
    let shown: String = hostname.chars().take(80).collect();
    Err(invalid(
        format!("{FIELD}.Hostname"),
        format!("{shown:?} is not a host name: use letters, digits, - and dots, at most 64"),
    ))
}

fn check_hosts(hosts: &[String]) -> Result<(), ApiError> {
    let field = format!("{FIELD}.Hosts");
    check_texts(&field, hosts)?;
    for (position, line) in hosts.iter().enumerate() {
        let mut words = line.split_whitespace();
        let address = words.next().is_some_and(|it| it.parse::<IpAddr>().is_ok());
        if !address || words.next().is_none() || line.contains('\n') {
            return Err(invalid(
                format!("{field}[{position}]"),
                format!("{line:?} is no line of a hosts file: give an address and a name"),
            ));
        }
    }
    Ok(())
}

fn check_dns(dns: &DnsConfig) -> Result<(), ApiError> {
    let field = format!("{FIELD}.DNSConfig");
    check_texts(&format!("{field}.Search"), &dns.search)?;
    check_texts(&format!("{field}.Options"), &dns.options)?;
    check_count(&format!("{field}.Nameservers"), dns.nameservers.len())?;
    for server in &dns.nameservers {
        if server.parse::<IpAddr>().is_err() {
            return Err(invalid(
                format!("{field}.Nameservers"),
                format!("invalid nameserver {server:?}: give an IP address"),
            ));
        }
    }
    let lines = dns.search.iter().chain(&dns.options);
    match lines
        .into_iter()
        .find(|text| text.contains(char::is_whitespace))
    {
        Some(text) => Err(invalid(&field, format!("{text:?} contains white space"))),
        None => Ok(()),
    }
}
