//! IPv4 networks and MAC addresses.

use std::{fmt, net::Ipv4Addr, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// An IPv4 address with the length of its network's prefix: `10.0.1.3/24`. The host part is kept,
/// so it can stand for an interface's address as well as for a network.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ipv4Net {
    addr: Ipv4Addr,
    prefix: u8,
}

/// Why a text or a pair is not an [`Ipv4Net`] or a [`Mac`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {want}")]
pub struct InvalidAddress {
    /// What was given, cut to a printable length.
    pub text: String,
    /// What it should have been, with an example.
    pub want: &'static str,
}

impl InvalidAddress {
    fn new(text: &str, want: &'static str) -> Self {
        let text = text.chars().take(64).collect();
        Self { text, want }
    }
}

impl Ipv4Net {
    /// An address and its prefix length, at most 32.
    ///
    /// # Errors
    /// When the prefix is longer than an address.
    pub fn new(addr: Ipv4Addr, prefix: u8) -> Result<Self, InvalidAddress> {
        if prefix > 32 {
            return Err(InvalidAddress::new(
                &format!("{addr}/{prefix}"),
                "an IPv4 network such as 10.0.1.0/24",
            ));
        }
        Ok(Self { addr, prefix })
    }

    /// The address alone, `/32`.
    #[must_use]
    pub const fn host(addr: Ipv4Addr) -> Self {
        Self { addr, prefix: 32 }
    }

    /// The same address in the network with this prefix length; at most 32.
    #[must_use]
    pub const fn widened(self, prefix: u8) -> Self {
        let prefix = if prefix > 32 { 32 } else { prefix };
        Self {
            addr: self.addr,
            prefix,
        }
    }

    /// Another address of the same network.
    #[must_use]
    pub const fn with_addr(self, addr: Ipv4Addr) -> Self {
        Self {
            addr,
            prefix: self.prefix,
        }
    }

    /// The address, host part included.
    #[must_use]
    pub const fn addr(self) -> Ipv4Addr {
        self.addr
    }

    /// The prefix length, 0 to 32.
    #[must_use]
    pub const fn prefix(self) -> u8 {
        self.prefix
    }

    /// The same network with the host part cleared.
    #[must_use]
    pub fn network(self) -> Self {
        self.with_addr(Ipv4Addr::from_bits(self.addr.to_bits() & self.mask()))
    }

    /// The highest address of the network.
    #[must_use]
    pub fn broadcast(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.addr.to_bits() | !self.mask())
    }

    /// Whether `addr` lies in the network.
    #[must_use]
    pub fn contains(self, addr: Ipv4Addr) -> bool {
        addr.to_bits() & self.mask() == self.addr.to_bits() & self.mask()
    }

    /// Whether the two networks share an address.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        self.contains(other.network().addr) || other.contains(self.network().addr)
    }

    fn mask(self) -> u32 {
        u32::MAX
            .checked_shl(32 - u32::from(self.prefix))
            .unwrap_or(0)
    }
}

impl fmt::Display for Ipv4Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.prefix)
    }
}

impl fmt::Debug for Ipv4Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Ipv4Net {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        let invalid = || InvalidAddress::new(text, "an IPv4 network such as 10.0.1.0/24");
        let (addr, prefix) = text.split_once('/').ok_or_else(invalid)?;
        // `u8::from_str` takes a leading plus and zeros; a network has one spelling here.
        let plain = matches!(prefix.len(), 1 | 2)
            && prefix.bytes().all(|byte| byte.is_ascii_digit())
            && (prefix.len() == 1 || !prefix.starts_with('0'));
        if !plain {
            return Err(invalid());
        }
        let addr = addr.parse().map_err(|_| invalid())?;
        let prefix = prefix.parse().map_err(|_| invalid())?;
        Self::new(addr, prefix).map_err(|_| invalid())
    }
}

impl Serialize for Ipv4Net {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Ipv4Net {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

/// A MAC address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// The MAC address that goes with an IPv4 address on an overlay or the gateway bridge:
    /// `02:42` and the four bytes (libnetwork's rule, so that nobody has to ask for it).
    #[must_use]
    pub const fn of(addr: Ipv4Addr) -> Self {
        let [a, b, c, d] = addr.octets();
        Self([0x02, 0x42, a, b, c, d])
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Mac {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        let invalid = || InvalidAddress::new(text, "a MAC address such as 02:42:0a:00:01:03");
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().ok_or_else(invalid)?;
            if part.len() != 2 || !part.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(invalid());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| invalid())?;
        }
        parts.next().map_or(Ok(Self(bytes)), |_| Err(invalid()))
    }
}

impl Serialize for Mac {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Mac {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_network_knows_its_borders() {
        let net: Ipv4Net = "10.0.1.3/24".parse().unwrap();
        assert_eq!(net.network().to_string(), "10.0.1.0/24");
        assert_eq!(net.broadcast(), Ipv4Addr::new(10, 0, 1, 255));
        assert!(net.contains(Ipv4Addr::new(10, 0, 1, 200)));
        assert!(!net.contains(Ipv4Addr::new(10, 0, 2, 0)));
        let all: Ipv4Net = "0.0.0.0/0".parse().unwrap();
        assert!(all.overlaps(net) && net.overlaps(all));
        assert!(!net.overlaps("10.0.2.0/24".parse().unwrap()));
    }

    #[test]
    fn one_spelling_only() {
        for text in [
            "",
            "10.0.0.0",
            "10.0.0.0/33",
            "10.0.0.0/+8",
            "10.0.0.0/08",
            "10.0.0/8",
            "::/0",
            "10.0.0.0/",
        ] {
            assert!(text.parse::<Ipv4Net>().is_err(), "{text:?}");
        }
        for text in [
            "",
            "02:42:0a:00:01",
            "02:42:0a:00:01:03:04",
            "2:42:0a:00:01:03",
            "+2:42:0a:00:01:03",
        ] {
            assert!(text.parse::<Mac>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn the_mac_carries_the_address() {
        assert_eq!(
            Mac::of(Ipv4Addr::new(10, 255, 0, 6)).to_string(),
            "02:42:0a:ff:00:06"
        );
    }

    proptest! {
        #[test]
        fn texts_round_trip(bits: u32, prefix in 0..=32u8, mac: [u8; 6]) {
            let net = Ipv4Net::new(Ipv4Addr::from_bits(bits), prefix).unwrap();
            prop_assert_eq!(net.to_string().parse(), Ok(net));
            prop_assert!(net.contains(net.broadcast()) && net.contains(net.network().addr()));
            prop_assert_eq!(Mac(mac).to_string().parse(), Ok(Mac(mac)));
        }

        #[test]
        fn any_text_is_answered(text in ".{0,40}") {
            let _ = text.parse::<Ipv4Net>();
            let _ = text.parse::<Mac>();
        }
    }
}
