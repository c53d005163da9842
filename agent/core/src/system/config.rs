//! The configuration of a node: `skep.*` keys of the kernel command line, and systemd credentials of the
//! same names, which go first.
//!
//! Nothing here stops a node from coming up: what can't be used is named in a [`Complaint`], and the rest
//! goes on. Values that may be secret are never repeated in a problem.

mod values;

use std::{collections::BTreeMap, fmt, net::IpAddr};

use serde::Deserialize;

/// More than any command line or credential of ours; longer ones are refused unread.
const MAX_VALUE: usize = 64 * 1024;

/// What a node was told.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Config {
    /// `skep.name`: the node's host name; the machine's own when absent.
    pub name: Option<String>,
    /// `skep.swarm`, `skep.join`: how it gets into a swarm.
    pub start: Start,
    /// `skep.advertise`: the address by which the others reach this node.
    pub advertise: Option<IpAddr>,
    /// `skep.registry.mirror`: asked in this order before docker.io; `host[:port]`, with or without
    /// `http://` or `https://`.
    pub registry_mirrors: Vec<String>,
    /// `skep.registry.insecure`: registries reached by plain HTTP, `host[:port]`.
    pub insecure_registries: Vec<String>,
    /// `skep.api.san`: more names and addresses of the management endpoint.
    pub api_names: Vec<String>,
    /// `skep.ca`: PEM of the cluster's CA certificate and key.
    pub ca: Option<String>,
    /// `skep.tokens`: the join tokens of the swarm that is to be made.
    pub tokens: Option<Tokens>,
    /// `skep.operator-ca`: PEM of the CA of those who may manage the node.
    pub operator_ca: Option<String>,
}

/// What to do about a swarm at boot. A node that is in one already goes on in it.
#[derive(Clone, PartialEq, Eq, Default)]
pub enum Start {
    /// Wait for an operator.
    #[default]
    Wait,
    /// Begin one.
    Init,
    /// Join one.
    Join {
        /// A complete token: pins the swarm's CA and gives the role.
        token: String,
        /// Managers to ask, `host:port`.
        managers: Vec<String>,
    },
}

/// The cluster's join tokens, complete texts.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tokens {
    /// Joins as worker.
    pub worker: String,
    /// Joins as manager.
    pub manager: String,
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Keys and tokens stay out of logs.
        f.debug_struct("Config")
            .field("name", &self.name)
            .field("start", &self.start)
            .field("advertise", &self.advertise)
            .field("registry_mirrors", &self.registry_mirrors)
            .field("insecure_registries", &self.insecure_registries)
            .field("api_names", &self.api_names)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Start {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Start::Wait => f.write_str("Wait"),
            Start::Init => f.write_str("Init"),
            Start::Join { managers, .. } => write!(f, "Join({})", managers.join(",")),
        }
    }
}

/// Something that the operator gave and that is not used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key} ({source_name}): {why}", source_name = .place.name())]
pub struct Complaint {
    /// The key.
    pub key: String,
    /// Where it was given.
    pub place: Place,
    /// What is wrong with it and what to do.
    pub why: String,
}

/// Where a key was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// On the kernel command line.
    CommandLine,
    /// As a systemd credential.
    Credential,
}

impl Place {
    fn name(self) -> &'static str {
        match self {
            Place::CommandLine => "kernel command line",
            Place::Credential => "credential",
        }
    }
}

/// How one key is read.
struct Key {
    name: &'static str,
    /// Keys and certificates do not belong on a command line.
    credential_only: bool,
    /// Whether more than one value adds up.
    list: bool,
    take: fn(&str, &mut Config) -> Result<(), String>,
}

const KEYS: [Key; 10] = [
    Key::new("skep.name", values::name),
    Key::new("skep.swarm", values::swarm),
    Key::new("skep.join", values::join),
    Key::new("skep.advertise", values::advertise),
    Key::new("skep.registry.mirror", values::mirrors).list(),
    Key::new("skep.registry.insecure", values::insecure).list(),
    Key::new("skep.api.san", values::api_san).list(),
    Key::new("skep.ca", values::ca).credential(),
    Key::new("skep.tokens", values::tokens).credential(),
    Key::new("skep.operator-ca", values::operator_ca).credential(),
];

impl Key {
    const fn new(name: &'static str, take: fn(&str, &mut Config) -> Result<(), String>) -> Self {
        Self {
            name,
            credential_only: false,
            list: false,
            take,
        }
    }

    const fn list(mut self) -> Self {
        self.list = true;
        self
    }

    const fn credential(mut self) -> Self {
        self.credential_only = true;
        self
    }
}

/// Reads the configuration. `cmdline` is `/proc/cmdline`; credentials are the files of
/// `$CREDENTIALS_DIRECTORY` by name, of which those that do not begin with `skep.` are left alone.
#[must_use]
pub fn parse(cmdline: &str, credentials: &BTreeMap<String, Vec<u8>>) -> (Config, Vec<Complaint>) {
    let mut reader = Reader::default();
    let words = command_line(cmdline);
    let from_line = words.iter().filter(|(key, _)| key.starts_with("skep."));
    for (key, value) in from_line {
        reader.note(key, value.as_deref(), Place::CommandLine);
    }
    for (key, bytes) in credentials
        .iter()
        .filter(|(key, _)| key.starts_with("skep."))
    {
        match text(bytes) {
            Ok(value) => reader.note(key, Some(value), Place::Credential),
            Err(why) => reader.refuse(key, Place::Credential, why),
        }
    }
    reader.finish()
}

fn text(bytes: &[u8]) -> Result<&str, &'static str> {
    if bytes.len() > MAX_VALUE {
        return Err("it is longer than 64 KiB: give a shorter one");
    }
    let text = std::str::from_utf8(bytes).map_err(|_| "it is not UTF-8 text")?;
    Ok(text.trim_end_matches(['\n', '\0']))
}

#[derive(Default)]
struct Reader {
    /// The values of each key and where they are from.
    given: BTreeMap<&'static str, (Place, Vec<String>)>,
    complaints: Vec<Complaint>,
}

impl Reader {
    fn refuse(&mut self, key: &str, place: Place, why: impl Into<String>) {
        let key = key.chars().take(64).collect();
        let why = why.into();
        self.complaints.push(Complaint { key, place, why });
    }

    fn note(&mut self, name: &str, value: Option<&str>, place: Place) {
        let Some(key) = KEYS.iter().find(|key| key.name == name) else {
            let known: Vec<_> = KEYS.iter().map(|key| key.name).collect();
            return self.refuse(
                name,
                place,
                format!("unknown key: the keys are {}", known.join(", ")),
            );
        };
        if key.credential_only && place == Place::CommandLine {
            return self.refuse(name, place, "it may only be given as a credential");
        }
        let Some(value) = value.filter(|value| !value.trim().is_empty()) else {
            return self.refuse(name, place, format!("it has no value: give {name}=…"));
        };
        match self.given.get_mut(key.name) {
            Some((before, values)) if *before == place => {
                if !key.list {
                    values.clear();
                }
                values.push(value.to_owned());
                if !key.list {
                    self.refuse(name, place, "given more than once: the last one counts");
                }
            }
            // A credential takes the place of what the command line says.
            Some(_) | None => {
                self.given.insert(key.name, (place, vec![value.to_owned()]));
            }
        }
    }

    fn finish(mut self) -> (Config, Vec<Complaint>) {
        let mut config = Config::default();
        let given = std::mem::take(&mut self.given);
        let both = given.contains_key("skep.swarm") && given.contains_key("skep.join");
        for key in &KEYS {
            let Some((place, values)) = given.get(key.name) else {
                continue;
            };
            if both && ["skep.swarm", "skep.join"].contains(&key.name) {
                self.refuse(
                    key.name,
                    *place,
                    "skep.swarm and skep.join exclude each other: give one of them",
                );
                continue;
            }
            for value in values {
                if let Err(why) = (key.take)(value, &mut config) {
                    self.refuse(key.name, *place, why);
                }
            }
        }
        self.check_swarm(&mut config);
        (config, self.complaints)
    }

    /// The CA and the tokens are for the swarm that this node makes, and must fit each other.
    fn check_swarm(&mut self, config: &mut Config) {
        if config.start != Start::Init {
            for (key, given) in [
                ("skep.ca", config.ca.is_some()),
                ("skep.tokens", config.tokens.is_some()),
            ] {
                if given {
                    self.refuse(
                        key,
                        Place::Credential,
                        "it is only for the node with skep.swarm=init: it is not used",
                    );
                }
            }
            config.ca = None;
            config.tokens = None;
        }
        if config.tokens.is_some() && config.ca.is_none() {
            self.refuse(
                "skep.tokens",
                Place::Credential,
                "tokens need skep.ca, whose certificate they pin: they are not used",
            );
            config.tokens = None;
        }
    }
}

/// The words `key` and `key=value` of a command line; a value may be in double quotes, as the kernel
/// reads it.
fn command_line(line: &str) -> Vec<(String, Option<String>)> {
    let mut words = Vec::new();
    let (mut word, mut quoted) = (String::new(), false);
    for character in line.chars().take(MAX_VALUE).chain([' ']) {
        match character {
            '"' => quoted = !quoted,
            space if space.is_whitespace() && !quoted => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
            }
            other => word.push(other),
        }
    }
    // A quote that is never closed takes the rest of the line.
    words.extend(Some(word.trim_end().to_owned()).filter(|word| !word.is_empty()));
    let split = |word: String| match word.split_once('=') {
        Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
        None => (word, None),
    };
    // What follows `--` is for init.
    let ours = words.into_iter().take_while(|word| word != "--");
    ours.map(split).collect()
}

#[cfg(test)]
mod tests;
