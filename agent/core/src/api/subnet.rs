//! IPv4 ranges.

use std::{fmt, net::Ipv4Addr, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// An IPv4 range `a.b.c.d/n`; the address has no bit set behind the prefix.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subnet {
    base: u32,
    prefix: u8,
}

/// Why a text is not an IPv4 range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSubnet {
    /// Not of the form `a.b.c.d/n`.
    #[error("{0:?} is not an IPv4 range: give it as a.b.c.d/n, such as 10.0.9.0/24")]
    Form(String),
    /// An address inside the range instead of the range.
    #[error("{given:?} has bits set behind the prefix: did you mean {meant}?")]
    HostBits {
        /// What was given.
        given: String,
        /// The range around it.
        meant: Subnet,
    },
}

impl Subnet {
    /// The range of this prefix length around an address. A length above 32 counts as 32.
    #[must_use]
    pub fn around(address: Ipv4Addr, prefix: u8) -> Self {
        let prefix = prefix.min(32);
        Self {
            base: u32::from(address) & mask(prefix),
            prefix,
        }
    }

    /// Reads `a.b.c.d/n` and takes the range around the address, as routes and interfaces are written.
    ///
    /// # Errors
    /// When the text has another form.
    pub fn parse_around(text: &str) -> Result<Self, InvalidSubnet> {
        let invalid = || InvalidSubnet::Form(text.chars().take(64).collect());
        let (address, prefix) = text.split_once('/').ok_or_else(invalid)?;
        let address: Ipv4Addr = address.parse().map_err(|_| invalid())?;
        let digits = prefix.len() <= 2 && prefix.bytes().all(|byte| byte.is_ascii_digit());
        let prefix: u8 = prefix.parse().map_err(|_| invalid())?;
        if !digits || prefix > 32 {
            return Err(invalid());
        }
        Ok(Self::around(address, prefix))
    }

    /// The first address: the range's name.
    #[must_use]
    pub fn network(&self) -> Ipv4Addr {
        Ipv4Addr::from(self.base)
    }

    /// The last address: broadcast.
    #[must_use]
    pub fn broadcast(&self) -> Ipv4Addr {
        Ipv4Addr::from(self.base | !mask(self.prefix))
    }

    /// The prefix length.
    #[must_use]
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// How many addresses it has, those for network and broadcast included.
    #[must_use]
    pub fn size(&self) -> u64 {
        1 << (32 - u32::from(self.prefix))
    }

    /// The address this far from the first one, if it is inside.
    #[must_use]
    pub fn nth(&self, offset: u64) -> Option<Ipv4Addr> {
        let address = u64::from(self.base).checked_add(offset)?;
        let inside = offset < self.size();
        u32::try_from(address)
            .ok()
            .filter(|_| inside)
            .map(Ipv4Addr::from)
    }

    /// Whether the address is inside.
    #[must_use]
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        u32::from(address) & mask(self.prefix) == self.base
    }

    /// Whether the whole other range is inside.
    #[must_use]
    pub fn encloses(&self, other: &Subnet) -> bool {
        self.prefix <= other.prefix && self.contains(other.network())
    }

    /// Whether the two have an address in common.
    #[must_use]
    pub fn overlaps(&self, other: &Subnet) -> bool {
        self.encloses(other) || other.encloses(self)
    }
}

fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

impl FromStr for Subnet {
    type Err = InvalidSubnet;

    fn from_str(text: &str) -> Result<Self, InvalidSubnet> {
        let subnet = Self::parse_around(text)?;
        let address = text.split_once('/').map(|(address, _)| address.parse());
        if address == Some(Ok(subnet.network())) {
            return Ok(subnet);
        }
        Err(InvalidSubnet::HostBits {
            given: text.to_owned(),
            meant: subnet,
        })
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network(), self.prefix)
    }
}

impl fmt::Debug for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Subnet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Subnet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ranges_are_read_and_refused() {
        let good: Subnet = "10.0.9.0/24".parse().unwrap();
        assert_eq!(good.broadcast(), Ipv4Addr::new(10, 0, 9, 255));
        assert_eq!("0.0.0.0/0".parse::<Subnet>().unwrap().size(), 1 << 32);
        for bad in [
            "",
            "10.0.9.0",
            "10.0.9.0/33",
            "10.0.9.0/+4",
            "10.0.9/24",
            "10.0.9.0/024",
            "::/0",
        ] {
            assert!(
                matches!(bad.parse::<Subnet>(), Err(InvalidSubnet::Form(_))),
                "{bad}"
            );
        }
        let host = "10.0.9.7/24".parse::<Subnet>().unwrap_err();
        assert!(
            host.to_string().ends_with("did you mean 10.0.9.0/24?"),
            "{host}"
        );
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,24}") {
            if let Ok(subnet) = text.parse::<Subnet>() {
                prop_assert_eq!(subnet.to_string(), text);
            }
        }

        #[test]
        fn overlap_is_having_an_address_in_common(a: u32, b: u32, p in 0..=32u8, q in 0..=32u8) {
            let (x, y) = (Subnet::around(a.into(), p), Subnet::around(b.into(), q));
            let share = x.contains(y.network()) || y.contains(x.network());
            prop_assert_eq!(x.overlaps(&y), share);
            prop_assert_eq!(y.overlaps(&x), share);
        }

        #[test]
        fn nth_stays_inside(a: u32, p in 0..=32u8, n: u64) {
            let subnet = Subnet::around(a.into(), p);
            prop_assert_eq!(subnet.nth(n).is_some(), n < subnet.size());
            prop_assert!(subnet.nth(n).is_none_or(|address| subnet.contains(address)));
        }
    }
}
