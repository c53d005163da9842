//! The node agent: composition of the decisions of `skep-core` and the effects of `skep-host`.
//!
//! `main` picks the daemon or the command line by `argv[0]`. The daemon reads its [`config`], starts the
//! cluster plumbing ([`identity`], [`raft`], [`rpc`]) behind one [`cluster::ClusterHandle`], the node's
//! own machine ([`event_loop`], [`effects`], [`dns_server`]) behind one [`local::LocalHandle`], and the two
//! front doors ([`docker_api`], [`dbus`]) on those handles.

pub mod cli;
pub mod cluster;
pub mod config;
pub mod console;
pub mod daemon;
pub mod dbus;
pub mod dns_server;
pub mod docker_api;
pub mod effects;
pub mod event_loop;
pub mod identity;
pub mod local;
pub mod logging;
pub mod management;
pub mod manager;
pub mod node;
pub mod ports;
pub mod raft;
pub mod rpc;
pub mod seal;
pub mod without_containers;

use std::{
    ffi::{OsStr, OsString},
    path::Path,
    process::ExitCode,
};

/// Runs what the program's name says: `skep` is the command line, anything else the daemon.
#[must_use]
pub fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let name = arguments.first().map(Path::new).and_then(Path::file_name);
    if name == Some(OsStr::new("skep")) {
        cli::run(arguments)
    } else {
        daemon::main()
    }
}
