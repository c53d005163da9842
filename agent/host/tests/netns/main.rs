//! A node's network on a real kernel, looked at from outside with `ip`, `bridge` and `nft`.
//!
//! Every test has machines of its own: throw-away namespaces that stand for hosts. They need root,
//! and say so when they do not have it. What the kernel of the build host may lack (IPVS) is tested
//! by the same binary in a guest: a test whose kernel lacks it says that too.

#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test fails by panicking and says what it skips"
)]

mod machine;
mod model;
mod repair;
mod state;
mod traffic;
