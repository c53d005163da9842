//! The name servers of the machine itself.

use std::{
    fs::File,
    io::{self, Read},
    net::IpAddr,
};

/// More servers are not asked, as with the C library.
const MAX_SERVERS: usize = 3;
/// Bytes that are read of a file.
const MAX_FILE: u64 = 64 * 1024;

/// The machine's name servers in order, from `/etc/resolv.conf`; those behind the local stub of
/// systemd-resolved where that is all there is. None when nothing is configured.
#[must_use]
pub fn name_servers() -> Vec<IpAddr> {
    let configured = parse(&text_of("/etc/resolv.conf"));
    let (stubs, servers): (Vec<_>, Vec<_>) = configured.into_iter().partition(IpAddr::is_loopback);
    if !servers.is_empty() {
        return servers;
    }
    let behind = parse(&text_of("/run/systemd/resolve/resolv.conf"));
    if behind.is_empty() { stubs } else { behind }
}

fn text_of(path: &str) -> String {
    let read = || -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(path)?.take(MAX_FILE).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    String::from_utf8_lossy(&read().unwrap_or_default()).into_owned()
}

fn parse(resolv_conf: &str) -> Vec<IpAddr> {
    let server = |line: &str| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next()?.parse().ok())?
    };
    resolv_conf
        .lines()
        .filter_map(server)
        .take(MAX_SERVERS)
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn servers_are_read_in_order() {
        let text = "# nameserver 9.9.9.9\nsearch a\nnameserver 10.0.0.1\nnameserver\nnameserver x\n\
                    nameserver fe80::1\nnameserver 1.1.1.1\nnameserver 8.8.8.8\n";
        let servers: Vec<String> = parse(text).iter().map(IpAddr::to_string).collect();
        assert_eq!(servers, ["10.0.0.1", "fe80::1", "1.1.1.1"]);
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in ".{0,200}") {
            prop_assert!(parse(&text).len() <= MAX_SERVERS);
        }
    }
}
