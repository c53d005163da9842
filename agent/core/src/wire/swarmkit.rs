//! Messages of `docker.swarmkit.v1`, generated from `proto/swarmkit.proto`.
#![allow(missing_docs, clippy::all, clippy::pedantic)]

use std::fmt;

include!(concat!(env!("OUT_DIR"), "/docker.swarmkit.v1.rs"));

/// Says how long the content is, and nothing else of it.
impl fmt::Debug for SecretSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        redacted(f, "SecretSpec", self.annotations.as_ref(), &self.data)
    }
}

/// The same, since a config may hold what should have been a secret.
impl fmt::Debug for ConfigSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        redacted(f, "ConfigSpec", self.annotations.as_ref(), &self.data)
    }
}

fn redacted(
    f: &mut fmt::Formatter<'_>,
    name: &str,
    annotations: Option<&Annotations>,
    data: &[u8],
) -> fmt::Result {
    f.debug_struct(name)
        .field("annotations", &annotations)
        .field("data", &format_args!("{} bytes", data.len()))
        .finish_non_exhaustive()
}
