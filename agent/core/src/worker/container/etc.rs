//! The files of `/etc` that the node writes for a container.

use std::net::IpAddr;

use super::invalid;
use crate::api::ApiError;
use crate::api::container::DnsConfig;

/// `/etc/hosts` as Docker writes it. Each extra entry is `IP name…`.
pub(super) fn hosts(
    hostname: &str,
    addresses: &[IpAddr],
    extra: &[String],
) -> Result<String, ApiError> {
    let mut text = "127.0.0.1\tlocalhost\n\
        ::1\tlocalhost ip6-localhost ip6-loopback\n\
        fe00::\tip6-localnet\n\
        ff00::\tip6-mcastprefix\n\
        ff02::1\tip6-allnodes\n\
        ff02::2\tip6-allrouters\n"
        .to_owned();
    for entry in extra {
        let mut words = entry.split_whitespace();
        let address = words.next().and_then(|word| word.parse::<IpAddr>().ok());
        let names: Vec<&str> = words.collect();
        match address {
            Some(address) if !names.is_empty() => {
                text.push_str(&format!("{address}\t{}\n", names.join(" ")));
            }
            Some(_) | None => {
                return Err(invalid(
                    "Hosts",
                    format!("{entry:?} is not an address and a name"),
                ));
            }
        }
    }
    for address in addresses {
        text.push_str(&format!("{address}\t{hostname}\n"));
    }
    Ok(text)
}

/// `/etc/resolv.conf`: the node's own server, and what the service says of searching.
pub(super) fn resolv_conf(dns: Option<&DnsConfig>) -> String {
    let none = DnsConfig::default();
    let dns = dns.unwrap_or(&none);
    // A line break would let a value write lines of its own.
    let clean = |values: &[String]| values.join(" ").replace(['\n', '\r'], " ");
    let mut text = "nameserver 127.0.0.11\n".to_owned();
    if !dns.search.is_empty() {
        text.push_str(&format!("search {}\n", clean(&dns.search)));
    }
    let mut options = dns.options.clone();
    if !options.iter().any(|option| option.starts_with("ndots:")) {
        options.push("ndots:0".to_owned());
    }
    text.push_str(&format!("options {}\n", clean(&options)));
    text
}
