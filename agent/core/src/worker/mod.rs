//! What every node does with the tasks it is given.
//!
//! [`Worker`] holds one task machine per assigned task and decides, from what is wanted
//! ([`assignments`]) and what is on the host ([`effect::Container`]), the next [`effect::Effect`] of each.
//! It is level-triggered: a pass after any input, and after any crash, gives the same decisions.

pub mod assignments;
pub mod container;
pub mod dependencies;
pub mod effect;
mod reporter;
mod retry;
mod stop;
mod task;
mod tasks;
#[cfg(test)]
mod tests;

pub use task::{Environment, NetworkFact, TaskFacts};
pub use tasks::{Worker, WorkerOutput};
