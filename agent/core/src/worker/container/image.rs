//! Names of images, and what an image says about the containers made from it. No bytes of an image come here but its
//! configuration, which is parsed as what it is: text from a stranger.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize};

/// The registry of names without one.
const DEFAULT_REGISTRY: &str = "docker.io";
/// Longest name, registry included, without tag and digest (distribution/reference).
const MAX_NAME: usize = 255;
/// Longest tag.
const MAX_TAG: usize = 128;

/// A name of an image as Docker understands it: `[registry/]repository[:tag][@sha256:…]`, completed by Docker's rules
/// (`busybox` is `docker.io/library/busybox:latest`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<String>,
}

/// Why a text names no image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid reference format: {text:?}: {why}")]
pub struct InvalidReference {
    /// The text, cut to a printable length.
    pub text: String,
    /// What is wrong with it.
    pub why: &'static str,
}

impl Reference {
    /// `host[:port]` of the registry; `docker.io` when none was given.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The path on the registry, with `library/` for Docker's official images.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag; `latest` when neither tag nor digest was given.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest `sha256:…` of the manifest or index, if one was given.
    pub fn digest(&self) -> Option<&str> {
        self.digest.as_deref()
    }

    /// What a registry is asked for: the digest, else the tag.
    pub fn wanted(&self) -> &str {
        self.digest
            .as_deref()
            .or(self.tag.as_deref())
            .unwrap_or("latest")
    }

    /// Registry and repository without tag and digest.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// The short form that Docker shows: no `docker.io/`, no `library/`.
    pub fn familiar_name(&self) -> String {
        if self.registry != DEFAULT_REGISTRY {
            return self.name();
        }
        let official = self
            .repository
            .strip_prefix("library/")
            .filter(|rest| !rest.contains('/'));
        official.unwrap_or(&self.repository).to_owned()
    }

    /// The same name with another digest.
    #[must_use]
    pub fn with_digest(&self, digest: &Digest) -> Self {
        Self {
            digest: Some(digest.as_str().to_owned()),
            ..self.clone()
        }
    }

    /// The same name with its tag only; `None` if it has none.
    pub fn tagged(&self) -> Option<Self> {
        self.tag.as_ref()?;
        Some(Self {
            digest: None,
            ..self.clone()
        })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for Reference {
    type Err = InvalidReference;

    fn from_str(text: &str) -> Result<Self, InvalidReference> {
        parse_reference(text).map_err(|why| InvalidReference {
            text: text.chars().take(MAX_NAME).collect(),
            why,
        })
    }
}

fn parse_reference(text: &str) -> Result<Reference, &'static str> {
    if text.is_empty() {
        return Err("it is empty");
    }
    if text.len() > 2 * MAX_NAME + MAX_TAG {
        return Err("it is too long");
    }
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (text, None),
    };
    if digest.is_some_and(|digest| Digest::parse(digest).is_none()) {
        return Err("the digest must be sha256: and 64 lower-case hexadecimal digits");
    }
    let (name, tag) = match rest.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        Some(_) | None => (rest, None),
    };
    if tag.is_some_and(|tag| !is_tag(tag)) {
        return Err("the tag must be 1 to 128 of letters, digits, '_', '.', '-'");
    }
    if tag.is_none() && digest.is_none() && name.len() == 64 && name.bytes().all(is_hex) {
        return Err("64 hexadecimal digits are an image id, not a name");
    }
    let (registry, path) = split_registry(name);
    if !is_registry(registry) {
        return Err("the registry must be a host name or address, with an optional port");
    }
    if path.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Err("repository name must be lowercase");
    }
    if !path.split('/').all(is_component) {
        return Err("the repository must be lower-case words joined by '/', '.', '_', '-'");
    }
    let repository = if registry == DEFAULT_REGISTRY && !path.contains('/') {
        format!("library/{path}")
    } else {
        path.to_owned()
    };
    if registry.len() + 1 + repository.len() > MAX_NAME {
        return Err("the name has more than 255 characters");
    }
    let tag = match (tag, digest) {
        (None, None) => Some("latest".to_owned()),
        (tag, _) => tag.map(str::to_owned),
    };
    Ok(Reference {
        registry: registry.to_owned(),
        repository,
        tag,
        digest: digest.map(str::to_owned),
    })
}

/// The first component is a registry if it could not be a part of a repository: it has a dot, a port or capitals, or is `localhost`.
fn split_registry(name: &str) -> (&str, &str) {
    match name.split_once('/') {
        Some(("index.docker.io", rest)) => (DEFAULT_REGISTRY, rest),
        Some((first, rest))
            if first == "localhost"
                || first.contains(['.', ':'])
                || first.bytes().any(|byte| byte.is_ascii_uppercase()) =>
        {
            (first, rest)
        }
        Some(_) | None => (DEFAULT_REGISTRY, name),
    }
}

fn is_hex(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

fn is_tag(tag: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    tag.len() <= MAX_TAG
        && tag.bytes().next().is_some_and(plain)
        && tag
            .bytes()
            .all(|byte| plain(byte) || matches!(byte, b'.' | b'-'))
}

fn is_registry(host: &str) -> bool {
    let (host, port) = match host.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (host, None),
    };
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    host.split('.').all(label) && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|p| p > 0))
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_component(component: &str) -> bool {
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = component.as_bytes();
    let ends = bytes.first().zip(bytes.last());
    if !ends.is_some_and(|(first, last)| alphanumeric(*first) && alphanumeric(*last)) {
        return false;
    }
    bytes
        .split(|byte| alphanumeric(*byte))
        .all(|joint| matches!(joint, b"" | b"." | b"_" | b"__") || joint.iter().all(|b| *b == b'-'))
}

/// A SHA-256 digest in the form `sha256:<64 lower-case hexadecimal digits>`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

impl Digest {
    /// Parses a digest; other algorithms than SHA-256 are refused, since nothing uses them.
    pub fn parse(text: &str) -> Option<Self> {
        let hex = text.strip_prefix("sha256:")?;
        (hex.len() == 64 && hex.bytes().all(is_hex)).then(|| Self(text.to_owned()))
    }

    /// The digest of 32 bytes that a hash function gave.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(format!("sha256:{}", data_encoding::HEXLOWER.encode(&bytes)))
    }

    /// With `sha256:`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The 64 digits alone: safe as a file name.
    pub fn hex(&self) -> &str {
        self.0.strip_prefix("sha256:").unwrap_or(&self.0)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Digest {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text).ok_or_else(|| {
            let start: String = text.chars().take(80).collect();
            format!("not a sha256 digest: {start:?}")
        })
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.0
    }
}

/// The `config` part of an image's configuration: what a container takes when its own specification says nothing.
/// Fields that we do not use are skipped, as the OCI image specification asks; of Docker's that is `Healthcheck`: an
/// image's own health check does not run here.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ImageConfig {
    /// User in Docker's form.
    #[serde(deserialize_with = "or_default")]
    pub user: String,
    /// `NAME=value`.
    #[serde(deserialize_with = "or_default")]
    pub env: Vec<String>,
    /// The fixed part of the command line.
    #[serde(deserialize_with = "or_default")]
    pub entrypoint: Vec<String>,
    /// The default arguments.
    #[serde(deserialize_with = "or_default")]
    pub cmd: Vec<String>,
    /// Paths that want a volume.
    #[serde(deserialize_with = "or_default")]
    pub volumes: BTreeMap<String, serde_json::Value>,
    /// The working directory.
    #[serde(deserialize_with = "or_default")]
    pub working_dir: String,
    /// Labels.
    #[serde(deserialize_with = "or_default")]
    pub labels: BTreeMap<String, String>,
    /// Name or number of the stop signal.
    #[serde(deserialize_with = "or_default")]
    pub stop_signal: String,
    /// `80/tcp` …
    #[serde(deserialize_with = "or_default")]
    pub exposed_ports: BTreeMap<String, serde_json::Value>,
}

/// Go writes empty lists and maps as `null`.
fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn names_are_completed_as_docker_does() {
        let cases = [
            ("busybox", "docker.io/library/busybox:latest", "busybox"),
            (
                "jwilder/whoami",
                "docker.io/jwilder/whoami:latest",
                "jwilder/whoami",
            ),
            ("busybox:1.36", "docker.io/library/busybox:1.36", "busybox"),
            (
                "index.docker.io/busybox",
                "docker.io/library/busybox:latest",
                "busybox",
            ),
            (
                "docker.io/library/busybox",
                "docker.io/library/busybox:latest",
                "busybox",
            ),
            ("localhost/a", "localhost/a:latest", "localhost/a"),
            (
                "localhost:5000/a/b:c",
                "localhost:5000/a/b:c",
                "localhost:5000/a/b",
            ),
            (
                "192.168.76.2:5000/whoami",
                "192.168.76.2:5000/whoami:latest",
                "192.168.76.2:5000/whoami",
            ),
            (
                "registry.example/x/y/z",
                "registry.example/x/y/z:latest",
                "registry.example/x/y/z",
            ),
            ("a--b/c__d.e", "docker.io/a--b/c__d.e:latest", "a--b/c__d.e"),
        ];
        for (text, full, familiar) in cases {
            let reference: Reference = text.parse().unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(reference.to_string(), full, "{text}");
            assert_eq!(reference.familiar_name(), familiar, "{text}");
            assert_eq!(full.parse(), Ok(reference), "{text}");
        }
    }

    #[test]
    fn a_digest_is_kept_and_wins_over_the_tag() {
        let reference: Reference = format!("busybox:1@{DIGEST}").parse().unwrap();
        assert_eq!(reference.tag(), Some("1"));
        assert_eq!(reference.wanted(), DIGEST);
        let reference: Reference = format!("busybox@{DIGEST}").parse().unwrap();
        assert_eq!(reference.tag(), None);
        assert_eq!(
            reference.to_string(),
            format!("docker.io/library/busybox@{DIGEST}")
        );
    }

    #[test]
    fn what_docker_refuses_is_refused() {
        let id = "a".repeat(64);
        for text in [
            "",
            "Busybox",
            "busybox:",
            "busybox:-x",
            "a//b",
            "/a",
            "a/",
            "a:b:c/d",
            "-a",
            "a-",
            "a..b",
            "a___b",
            "busybox@sha256:12",
            "busybox@md5:12",
            "host:0/a",
            "host:99999/a",
            "ho_st.x/a",
            "a b",
            "a\nb",
            "..",
            "a/../b",
            "x.y/",
            &id,
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text:?}");
        }
        assert!("a".repeat(256).parse::<Reference>().is_err());
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic_and_what_it_takes_reads_back(text in ".{0,80}|[a-z0-9./:@_-]{0,80}") {
            if let Ok(reference) = text.parse::<Reference>() {
                prop_assert_eq!(reference.to_string().parse(), Ok(reference));
            }
        }
    }

    #[test]
    fn a_configuration_with_nulls_and_strangers_is_read() {
        let text = r#"{"Env":null,"Cmd":["sh"],"Volumes":{"/data":{}},"OnBuild":null,"Healthcheck":{"Test":["NONE"]}}"#;
        let config: ImageConfig = serde_json::from_str(text).unwrap();
        assert_eq!(config.cmd, ["sh"]);
        assert!(config.env.is_empty());
        assert!(config.volumes.contains_key("/data"));
    }
}
