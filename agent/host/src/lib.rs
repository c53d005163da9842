//! Every effect of Skep on Linux: containers, images, netlink, files. What can be decided without a kernel is decided in
//! `skep_core`; what is here does as it is told and reports what it sees.

pub mod clock;
pub mod container;
pub mod entropy;
pub mod error;
pub mod image;
pub mod machine;
pub mod netlink;
pub mod netns;
pub mod network;
pub mod nftables;
pub mod resolver;
mod rooted;
pub mod socket;
pub mod storage;
pub mod sysctl;
pub mod systemd;
pub mod terminal;

pub use error::{HostError, Result};
