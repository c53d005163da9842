//! What tests of this and other crates build clusters from.

pub mod bench;
pub mod fleet;
pub mod log;

pub use bench::Bench;
