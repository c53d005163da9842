//! Placement constraints: `node.role==manager`, `node.labels.zone != a` …

use std::net::IpAddr;

use crate::api::{Node, Role, Subnet};

/// One constraint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Constraint {
    key: Key,
    equal: bool,
    value: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Key {
    Id,
    Hostname,
    Ip,
    Role,
    Os,
    Arch,
    NodeLabel(String),
    EngineLabel(String),
}

/// Why a text is not a constraint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidConstraint {
    /// Neither `==` nor `!=` is in it.
    #[error("constraint expected one operator from ==, != in {0:?}")]
    Operator(String),
    /// A key that no node has.
    #[error(
        "key {0:?} is unknown: use node.id, node.hostname, node.ip, node.role, node.platform.os, node.platform.arch, node.labels.<key> or engine.labels.<key>"
    )]
    Key(String),
    /// A value that the key can't have.
    #[error("value {0:?} is invalid: {1}")]
    Value(String, &'static str),
}

impl std::str::FromStr for Constraint {
    type Err = InvalidConstraint;

    fn from_str(text: &str) -> Result<Self, InvalidConstraint> {
        let shown = || text.chars().take(128).collect::<String>();
        let equal = text.find("==");
        let unequal = text.find("!=");
        let (at, equal) = match (equal, unequal) {
            (Some(at), None) => (at, true),
            (Some(at), Some(other)) if at < other => (at, true),
            (_, Some(at)) => (at, false),
            (None, None) => return Err(InvalidConstraint::Operator(shown())),
        };
        let (key, value) = (text[..at].trim(), text[at + 2..].trim());
        let key = parse_key(key)?;
        check_value(&key, value)?;
        Ok(Self {
            key,
            equal,
            value: value.to_owned(),
        })
    }
}

fn parse_key(text: &str) -> Result<Key, InvalidConstraint> {
    let unknown = || InvalidConstraint::Key(text.chars().take(128).collect());
    let lower = text.to_ascii_lowercase();
    let label = |prefix: &str| {
        let is_label = lower.starts_with(prefix) && text.len() > prefix.len();
        is_label.then(|| text[prefix.len()..].to_owned())
    };
    if let Some(label) = label("node.labels.") {
        return Ok(Key::NodeLabel(label));
    }
    if let Some(label) = label("engine.labels.") {
        return Ok(Key::EngineLabel(label));
    }
    match lower.as_str() {
        "node.id" => Ok(Key::Id),
        "node.hostname" => Ok(Key::Hostname),
        "node.ip" => Ok(Key::Ip),
        "node.role" => Ok(Key::Role),
        "node.platform.os" => Ok(Key::Os),
        "node.platform.arch" => Ok(Key::Arch),
        _ => Err(unknown()),
    }
}

fn check_value(key: &Key, value: &str) -> Result<(), InvalidConstraint> {
    let refuse = |why| {
        Err(InvalidConstraint::Value(
            value.chars().take(128).collect(),
            why,
        ))
    };
    if value.is_empty() || value.len() > 256 {
        return refuse("give 1 to 256 characters");
    }
    let is_address = value.parse::<IpAddr>().is_ok() || value.parse::<Subnet>().is_ok();
    let is_role = ["worker", "manager"].contains(&value.to_ascii_lowercase().as_str());
    match key {
        Key::Ip if !is_address => refuse("give an address or an IPv4 range a.b.c.d/n"),
        Key::Role if !is_role => refuse("give worker or manager"),
        Key::Id
        | Key::Hostname
        | Key::Ip
        | Key::Role
        | Key::Os
        | Key::Arch
        | Key::NodeLabel(_)
        | Key::EngineLabel(_) => Ok(()),
    }
}

impl Constraint {
    /// Whether the node satisfies it. A label that the node does not have equals nothing.
    #[must_use]
    pub fn matches(&self, node: &Node) -> bool {
        let description = node.description.as_ref();
        let same = |value: &str| value.eq_ignore_ascii_case(&self.value);
        let found = match &self.key {
            Key::Id => same(node.id.as_str()),
            Key::Hostname => description.is_some_and(|it| same(&it.hostname)),
            Key::Ip => node.status.addr.is_some_and(|addr| self.covers(addr)),
            Key::Role => same(match node.spec.role {
                Role::Worker => "worker",
                Role::Manager => "manager",
            }),
            Key::Os => description.is_some_and(|it| same(&it.platform.os)),
            Key::Arch => description.is_some_and(|it| {
                architecture(&it.platform.architecture) == architecture(&self.value)
            }),
            Key::NodeLabel(key) => node.spec.labels.get(key).is_some_and(|it| same(it)),
            Key::EngineLabel(key) => {
                let labels = description.map(|it| &it.engine.labels);
                labels.and_then(|it| it.get(key)).is_some_and(|it| same(it))
            }
        };
        found == self.equal
    }

    fn covers(&self, addr: IpAddr) -> bool {
        if let Ok(wanted) = self.value.parse::<IpAddr>() {
            return wanted == addr;
        }
        match (self.value.parse::<Subnet>(), addr) {
            (Ok(range), IpAddr::V4(addr)) => range.contains(addr),
            (Ok(_), IpAddr::V6(_)) | (Err(_), _) => false,
        }
    }
}

/// One name for the two that Docker's images and the kernel use for a machine kind.
#[must_use]
pub fn architecture(name: &str) -> String {
    let name = name.to_ascii_lowercase();
    match name.as_str() {
        "x86_64" => "amd64".to_owned(),
        "aarch64" => "arm64".to_owned(),
        _ => name,
    }
}

/// The constraints of a list of texts; those that validation would have refused match no node.
#[must_use]
pub fn parse_all(texts: &[String]) -> Option<Vec<Constraint>> {
    texts.iter().map(|text| text.parse().ok()).collect()
}
