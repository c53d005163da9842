//! The types that openraft is made with.

use std::io::Cursor;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use skep_core::{
    api::Node,
    id::Id,
    store::{Applied, ApplyError, Entry},
};

openraft::declare_raft_types!(
    /// Entries of the cluster's store, applied in order.
    pub RaftTypes:
        D = Entry,
        R = Outcome,
        NodeId = u64,
        Node = Member,
        SnapshotData = Cursor<Vec<u8>>,
);

/// One entry of the log.
pub type RaftEntry = openraft::Entry<RaftTypes>;

/// A manager in the raft group.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Member {
    /// The node id.
    pub node_id: String,
    /// `address:port` of its 2377.
    pub addr: String,
}

/// What came of each proposal of an entry. It never leaves the process.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Outcome {
    /// In the order of the proposals; empty for entries of raft's own.
    #[serde(skip)]
    pub results: Vec<Result<Applied, ApplyError>>,
}

/// The number under which a node takes part in raft: it follows from the node's id.
#[must_use]
pub fn raft_id(node: &Id<Node>) -> u64 {
    let digest: [u8; 32] = Sha256::digest(node.as_str()).into();
    let [a, b, c, d, e, f, g, h, ..] = digest;
    u64::from_be_bytes([a, b, c, d, e, f, g, h])
}
