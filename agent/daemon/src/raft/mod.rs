//! Consensus among the managers: openraft over redb and gRPC; the state machine is `skep_core::store`.

mod handle;
mod log;
mod network;
mod state;
#[cfg(test)]
mod tests;
mod types;

pub use handle::{ProposeError, RaftHandle, StartError};
pub use state::Published;
pub use types::{Member, Outcome, RaftEntry, RaftTypes, raft_id};
