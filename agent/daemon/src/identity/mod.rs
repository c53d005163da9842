//! Who is who: the cluster's authority and the certificates of nodes, the operators' authority, and the
//! TLS that follows from them.
//!
//! Three kinds of certificates never mix. Node certificates (cluster authority, organisational unit
//! `swarm-manager` or `swarm-worker`) speak on 2377. API certificates (cluster authority, unit `skep-api`,
//! server use only) present a node on 2376. Operator certificates (operators' authority) are the clients
//! of 2376. A node certificate is refused on 2376, an operator's on 2377.

pub mod authority;
pub mod certificate;
pub mod lock;
pub mod storage;
#[cfg(test)]
mod tests;
pub mod tls;

pub use authority::{Authority, KeyAndRequest, NodeSubject};
pub use certificate::PeerIdentity;
pub use lock::LogKeys;
pub use storage::{NodeIdentity, Vault};

/// Why something about identities failed; one line for the journal or the caller.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A certificate, key or request is not what it should be.
    #[error("{what}: {why}")]
    Malformed {
        /// `root certificate`, `node key`, `certificate request` …
        what: &'static str,
        /// What is wrong.
        why: String,
    },
    /// The library refused to sign.
    #[error("cannot sign the {what}")]
    Signing {
        /// What was to be signed.
        what: &'static str,
        /// Why.
        #[source]
        source: rcgen::Error,
    },
    /// TLS could not be set up.
    #[error("cannot set up TLS")]
    Tls(#[from] rustls::Error),
    /// The node's secrets are locked.
    #[error("this manager is locked")]
    Locked,
    /// The key does not unlock them.
    #[error("the key does not unlock this manager")]
    WrongKey,
    /// A file could not be read or written.
    #[error(transparent)]
    Host(#[from] skep_host::HostError),
}

impl IdentityError {
    pub(crate) fn malformed(what: &'static str, why: impl ToString) -> Self {
        Self::Malformed {
            what,
            why: why.to_string(),
        }
    }
}
