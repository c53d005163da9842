//! nftables rules as values, and their text.
//!
//! Only what we use exists here, and nothing takes free text from outside: what is not a number or
//! an address is a link name of ours. So no rule can be injected, and equal values mean equal rules.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::{self, Display, Write as _},
    net::Ipv4Addr,
};

use sha2::{Digest as _, Sha256};

use super::address::Ipv4Net;
use crate::api::Protocol;

/// Name of our one table, family `ip`, in every namespace.
pub const TABLE: &str = "skep";

/// The whole of our table in one namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ruleset {
    /// Its chains, in the order of the text.
    pub chains: Vec<Chain>,
}

/// A base chain. Its name is the hook's, with the type in front unless that is `filter`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// What it may do.
    pub kind: ChainKind,
    /// Where it sits.
    pub hook: Hook,
    /// What happens to packets that no rule decides on.
    pub policy: Policy,
    /// In order.
    pub rules: Vec<Rule>,
}

/// Types of chains, each at its usual priority.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChainKind {
    /// Accept or drop.
    Filter,
    /// Translate addresses of new connections.
    Nat,
    /// Set marks before everything else.
    Mangle,
}

/// Hooks of the IPv4 stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// Every packet that comes in.
    Prerouting,
    /// Packets for this namespace.
    Input,
    /// Packets that pass through.
    Forward,
    /// Packets made here.
    Output,
    /// Every packet that goes out.
    Postrouting,
}

/// Default verdicts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// Pass.
    Accept,
    /// Discard silently.
    Drop,
}

/// All of `matches` hold, then `action`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Conditions, in order.
    pub matches: Vec<Match>,
    /// What to do.
    pub action: Action,
}

/// A transport port.
pub type Port = (Protocol, u16);

/// Conditions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Match {
    /// It came in by this link.
    InLink(String),
    /// It goes out by this link.
    OutLink(String),
    /// Its source is in this network.
    Source(Ipv4Net),
    /// Its source is none of these.
    SourceNotIn(BTreeSet<Ipv4Addr>),
    /// Its destination is in this network.
    Destination(Ipv4Net),
    /// Its source is an address of this namespace.
    LocalSource,
    /// Its destination is an address of this namespace.
    LocalDestination,
    /// Its destination port is this one.
    Port(Port),
    /// Its destination port is one of these.
    PortIn(BTreeSet<Port>),
    /// It is ICMP.
    Icmp,
    /// It is of a transport protocol that IPVS balances.
    Transport,
    /// It belongs to a known connection.
    Established,
    /// It belongs to no known connection.
    NotEstablished,
    /// The destination of its connection was translated here.
    Translated,
}

/// What to do with a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Pass.
    Accept,
    /// Discard.
    Drop,
    /// New destination address, same port.
    DestinationNat(Ipv4Addr),
    /// New source address.
    SourceNat(Ipv4Addr),
    /// New source address by mark; none for other marks.
    SourceNatByMark(BTreeMap<u32, Ipv4Addr>),
    /// New source: the address of the link it goes out by.
    Masquerade,
    /// To this port of this namespace.
    Redirect(u16),
    /// Mark by destination address; none for others.
    MarkByAddress(BTreeMap<Ipv4Addr, u32>),
    /// Mark by destination port; none for others.
    MarkByPort(BTreeMap<Port, u32>),
}

impl Ruleset {
    /// The text that replaces whatever our table was by this, in one transaction.
    #[must_use]
    pub fn replacement(&self) -> String {
        format!("{}{self}", Self::removal())
    }

    /// The SHA-256 digest of the text.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        Sha256::digest(self.to_string()).into()
    }

    /// The text that removes our table, whether or not there is one.
    #[must_use]
    pub fn removal() -> String {
        format!("table ip {TABLE}\ndelete table ip {TABLE}\n")
    }

    /// Appends a chain, unless it would do nothing.
    pub fn push(&mut self, kind: ChainKind, hook: Hook, policy: Policy, rules: Vec<Rule>) {
        if !rules.is_empty() || policy == Policy::Drop {
            self.chains.push(Chain {
                kind,
                hook,
                policy,
                rules,
            });
        }
    }
}

impl Rule {
    /// A rule.
    #[must_use]
    pub fn new(matches: impl Into<Vec<Match>>, action: Action) -> Self {
        Self {
            matches: matches.into(),
            action,
        }
    }
}

impl Display for Ruleset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "table ip {TABLE} {{")?;
        for chain in &self.chains {
            write!(f, "{chain}")?;
        }
        writeln!(f, "}}")
    }
}

impl Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hook = self.hook.as_str();
        // A chain of type route sends a packet through routing again when its mark has changed; only
        // the output hook has it.
        let (prefix, kind, priority) = match (self.kind, self.hook) {
            (ChainKind::Filter, _) => ("", "filter", 0),
            (ChainKind::Nat, Hook::Postrouting | Hook::Input) => ("nat_", "nat", 100),
            (ChainKind::Nat, _) => ("nat_", "nat", -100),
            (ChainKind::Mangle, Hook::Output) => ("mangle_", "route", -150),
            (ChainKind::Mangle, _) => ("mangle_", "filter", -150),
        };
        let policy = match self.policy {
            Policy::Accept => "accept",
            Policy::Drop => "drop",
        };
        writeln!(f, "\tchain {prefix}{hook} {{")?;
        writeln!(
            f,
            "\t\ttype {kind} hook {hook} priority {priority}; policy {policy};"
        )?;
        for rule in &self.rules {
            writeln!(f, "\t\t{rule}")?;
        }
        writeln!(f, "\t}}")
    }
}

impl Hook {
    fn as_str(self) -> &'static str {
        match self {
            Hook::Prerouting => "prerouting",
            Hook::Input => "input",
            Hook::Forward => "forward",
            Hook::Output => "output",
            Hook::Postrouting => "postrouting",
        }
    }
}

impl Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for one in &self.matches {
            write!(f, "{one} ")?;
        }
        write!(f, "{}", self.action)
    }
}

impl Display for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Match::InLink(name) => write!(f, "iifname \"{name}\""),
            Match::OutLink(name) => write!(f, "oifname \"{name}\""),
            Match::Source(net) => write!(f, "ip saddr {}", NetText(*net)),
            Match::SourceNotIn(addrs) => write!(f, "ip saddr != {}", Set(addrs.iter())),
            Match::Destination(net) => write!(f, "ip daddr {}", NetText(*net)),
            Match::LocalSource => f.write_str("fib saddr type local"),
            Match::LocalDestination => f.write_str("fib daddr type local"),
            Match::Port((protocol, port)) => write!(f, "{} dport {port}", protocol.as_str()),
            Match::PortIn(ports) => write!(
                f,
                "meta l4proto . th dport {}",
                Set(ports.iter().map(|port| PortText(*port)))
            ),
            Match::Icmp => f.write_str("ip protocol icmp"),
            Match::Transport => f.write_str("meta l4proto { tcp, udp, sctp }"),
            Match::Established => f.write_str("ct state established,related"),
            Match::NotEstablished => f.write_str("ct state != { established, related }"),
            Match::Translated => f.write_str("ct status dnat"),
        }
    }
}

impl Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Action::Accept => f.write_str("accept"),
            Action::Drop => f.write_str("drop"),
            Action::DestinationNat(addr) => write!(f, "dnat to {addr}"),
            Action::SourceNat(addr) => write!(f, "snat to {addr}"),
            Action::SourceNatByMark(map) => write!(
                f,
                "snat to meta mark map {}",
                Set(map
                    .iter()
                    .map(|(mark, addr)| format!("{mark:#010x} : {addr}")))
            ),
            Action::Masquerade => f.write_str("masquerade"),
            Action::Redirect(port) => write!(f, "redirect to :{port}"),
            Action::MarkByAddress(map) => write!(
                f,
                "meta mark set ip daddr map {}",
                Set(map
                    .iter()
                    .map(|(addr, mark)| format!("{addr} : {mark:#010x}")))
            ),
            Action::MarkByPort(map) => write!(
                f,
                "meta mark set meta l4proto . th dport map {}",
                Set(map
                    .iter()
                    .map(|(port, mark)| format!("{} : {mark:#010x}", PortText(*port))))
            ),
        }
    }
}

/// `{ a, b }`.
struct Set<I>(I);

impl<I: Iterator<Item: Display> + Clone> Display for Set<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('{')?;
        for (index, item) in self.0.clone().enumerate() {
            let comma = if index == 0 { " " } else { ", " };
            write!(f, "{comma}{item}")?;
        }
        f.write_str(" }")
    }
}

/// A network; a single address without its prefix.
struct NetText(Ipv4Net);

impl Display for NetText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.prefix() == 32 {
            write!(f, "{}", self.0.addr())
        } else {
            write!(f, "{}", self.0.network())
        }
    }
}

struct PortText(Port);

impl Display for PortText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (protocol, port) = self.0;
        write!(f, "{} . {port}", protocol.as_str())
    }
}
