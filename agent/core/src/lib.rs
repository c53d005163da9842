//! Every decision of Skep, and nothing else.
//!
//! This crate has no I/O, clock, entropy, threads or async: time ([`time::Now`]) and randomness
//! ([`rng::Rng`]) are arguments, effects are values that it returns. `agent/README.md` draws the
//! house; `tests/layers.rs` and `clippy.toml` hold its walls.
#![forbid(unsafe_code)]

pub mod api;
pub mod id;
pub mod manager;
pub mod network;
pub mod node;
pub mod rng;
pub mod store;
pub mod system;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod time;
pub mod wire;
pub mod worker;
