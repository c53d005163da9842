//! Consensus among the managers: openraft over redb and gRPC; the state machine is `skep_core::store`.

mod disk;
mod handle;
mod keyring;
mod lineage;
mod log;
mod network;
pub mod recover;
mod state;
#[cfg(test)]
mod tests;
mod types;

pub use handle::{ProposeError, RaftHandle, StartError};
pub use state::Published;
pub use types::{Member, Outcome, RaftEntry, RaftTypes, raft_id};
