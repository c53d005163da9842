//! `cargo lab`: a swarm of VMs on this machine, and the tests that run on it.
//!
//! It sees of a node only what a user of the machine sees: the console, the network, the management API.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line program: results go to stdout, progress to stderr"
)]

pub mod accelerator;
pub mod api;
pub mod archive;
pub mod bench;
pub mod check;
pub mod cli;
pub mod cluster;
pub mod commands;
pub mod console;
pub mod cpio;
pub mod docker;
pub mod generated;
pub mod guest;
pub mod http;
pub mod image;
pub mod images;
pub mod packages;
pub mod paths;
pub mod process;
pub mod progress;
pub mod qmp;
pub mod registry;
pub mod runner;
pub mod swarm;
pub mod switch;
pub mod tests;
pub mod vm;
