//! What this machine is: read-only facts for the node's description.

use std::{collections::BTreeSet, fs, net::Ipv4Addr};

use skep_core::api::{Platform, Resources};

use crate::error::{Context, Result};

/// Routes of the machine that are told to managers; more are no use to anybody.
const MAX_ROUTES: usize = 64;

/// Processor kind and operating system, in the kernel's words.
#[must_use]
pub fn platform() -> Platform {
    let name = rustix::system::uname();
    Platform {
        architecture: name.machine().to_string_lossy().into_owned(),
        os: "linux".to_owned(),
    }
}

/// The kernel's version, `6.12.0`.
#[must_use]
pub fn kernel_version() -> String {
    let name = rustix::system::uname();
    name.release().to_string_lossy().into_owned()
}

/// What the image calls itself: `PRETTY_NAME` of `os-release`.
#[must_use]
pub fn operating_system() -> String {
    let text = fs::read_to_string("/etc/os-release").unwrap_or_default();
    pretty_name(&text).unwrap_or_else(|| "Linux".to_owned())
}

fn pretty_name(os_release: &str) -> Option<String> {
    let line = |line: &str| {
        Some(
            line.strip_prefix("PRETTY_NAME=")?
                .trim_matches(['"', '\''])
                .to_owned(),
        )
    };
    os_release.lines().find_map(line)
}

/// The name that the machine has.
#[must_use]
pub fn hostname() -> String {
    let name = rustix::system::uname();
    name.nodename().to_string_lossy().into_owned()
}

/// Gives the machine a name, until it is turned off.
///
/// # Errors
/// When this program may not.
pub fn set_hostname(name: &str) -> Result<()> {
    nix::unistd::sethostname(name).context("name the machine", name)
}

/// Processors and memory.
#[must_use]
pub fn resources() -> Resources {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    Resources {
        nano_cpus: i64::try_from(cpus).unwrap_or(1) * 1_000_000_000,
        memory_bytes: total_memory(&memory),
        ..Resources::default()
    }
}

fn total_memory(meminfo: &str) -> i64 {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<i64>().ok());
    kib.unwrap_or(0) * 1024
}

/// The id of this machine; empty if it has none.
#[must_use]
pub fn machine_id() -> String {
    let text = fs::read_to_string("/etc/machine-id").unwrap_or_default();
    text.trim().chars().take(32).collect()
}

/// IPv4 ranges, `a.b.c.d/n`, that the machine's own routes use, without the default route and without
/// those of `docker_gwbridge`.
#[must_use]
pub fn routes() -> Vec<String> {
    let table = fs::read_to_string("/proc/net/route").unwrap_or_default();
    let routes: BTreeSet<String> = table.lines().skip(1).filter_map(route).collect();
    routes.into_iter().take(MAX_ROUTES).collect()
}

/// One line of `/proc/net/route`: interface, destination, gateway, flags, …, mask; addresses are
/// hexadecimal in the byte order of the machine.
fn route(line: &str) -> Option<String> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let (interface, destination, mask) = (*fields.first()?, *fields.get(1)?, *fields.get(7)?);
    let address = |text| {
        let number = u32::from_str_radix(text, 16).ok()?;
        Some(Ipv4Addr::from(number.to_ne_bytes()))
    };
    let (destination, mask) = (address(destination)?, address(mask)?);
    let prefix = u32::from(mask).count_ones();
    (prefix != 0 && interface != "docker_gwbridge").then(|| format!("{destination}/{prefix}"))
}

/// The address by which this machine would reach the world: the one that it advertises when nothing
/// else is said. `None` without a default route.
#[must_use]
pub fn default_address() -> Option<std::net::IpAddr> {
    // Connecting a datagram socket sends nothing; the kernel only picks route and source address.
    let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

/// The address by which this machine reaches `peer`.
#[must_use]
pub fn address_towards(peer: std::net::IpAddr) -> Option<std::net::IpAddr> {
    let any: std::net::IpAddr = match peer {
        std::net::IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        std::net::IpAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = std::net::UdpSocket::bind((any, 0)).ok()?;
    socket.connect((peer, 9)).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

/// The machine's own addresses: not those of loopback, of link-local scope, or of our bridges and
/// tunnels.
#[must_use]
pub fn addresses() -> Vec<std::net::IpAddr> {
    let ours = |name: &str| {
        ["docker_gwbridge", "veth", "vx-", "ov-"]
            .iter()
            .any(|prefix| name.starts_with(prefix))
    };
    let interfaces = nix::ifaddrs::getifaddrs().into_iter().flatten();
    let addresses: BTreeSet<std::net::IpAddr> = interfaces
        .filter(|interface| !ours(&interface.interface_name))
        .filter_map(|interface| {
            let address = interface.address?;
            let v4 = address.as_sockaddr_in().map(|it| it.ip().into());
            v4.or_else(|| address.as_sockaddr_in6().map(|it| it.ip().into()))
        })
        .filter(|address: &std::net::IpAddr| match address {
            std::net::IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local(),
            std::net::IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local(),
        })
        .collect();
    addresses.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_in_kib() {
        assert_eq!(
            total_memory("MemTotal:       2048 kB\nMemFree: 1 kB\n"),
            2048 * 1024
        );
        assert_eq!(total_memory("nonsense"), 0);
    }

    #[test]
    fn the_system_is_named_without_quotes() {
        let text = "ID=skep\nPRETTY_NAME=\"Skep 0.1\"\n";
        assert_eq!(pretty_name(text).as_deref(), Some("Skep 0.1"));
        assert_eq!(pretty_name("ID=skep"), None);
    }

    #[cfg(target_endian = "little")]
    #[test]
    fn routes_are_read_without_the_default_and_our_bridge() {
        let line = |interface, destination, mask| {
            format!("{interface}\t{destination}\t00000000\t0001\t0\t0\t0\t{mask}\t0\t0\t0")
        };
        assert_eq!(
            route(&line("eth0", "004DA8C0", "00FFFFFF")),
            Some("192.168.77.0/24".to_owned())
        );
        assert_eq!(route(&line("eth0", "00000000", "00000000")), None);
        assert_eq!(
            route(&line("docker_gwbridge", "000012AC", "0000FFFF")),
            None
        );
        assert_eq!(route("damaged"), None);
    }
}
