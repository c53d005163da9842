//! Debian's stock `docker` clients, unpacked from their packages: no daemon, nothing installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::packages::Suite;
use crate::paths::Paths;
use crate::progress::Step;

/// A release of the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Release {
    /// 20.10, Debian 12.
    #[value(name = "20.10")]
    Bookworm,
    /// 26.1, Debian 13.
    #[value(name = "26.1")]
    Trixie,
}

impl Release {
    fn suite_and_package(self) -> (&'static str, &'static str) {
        match self {
            Release::Bookworm => ("bookworm", "docker.io"),
            Release::Trixie => ("trixie", "docker-cli"),
        }
    }
}

/// The client's program, downloaded and unpacked the first time.
pub fn program(paths: &Paths, release: Release) -> Result<PathBuf> {
    let (suite, package) = release.suite_and_package();
    let folder = paths.folder("docker")?.join(suite);
    let program = folder.join("usr/bin/docker");
    if !program.exists() {
        let step = Step::begin(format!("fetching the docker client of {suite}"));
        Suite::open(paths, suite)?.unpack(&[package], &folder)?;
        // docker.io brings the daemon too: it is not wanted here.
        let _ = fs::remove_file(folder.join("usr/sbin/dockerd"));
        step.done();
    }
    Ok(program)
}

/// The client, set up to talk to the management API on this port of the host's loopback.
pub fn command(paths: &Paths, release: Release, port: u16, certs: &Path) -> Result<Command> {
    let mut command = Command::new(program(paths, release)?);
    command
        .env("DOCKER_HOST", format!("tcp://127.0.0.1:{port}"))
        .env("DOCKER_TLS_VERIFY", "1")
        .env("DOCKER_CERT_PATH", certs)
        .env("DOCKER_CONFIG", paths.folder("docker/config")?)
        .env_remove("DOCKER_CONTEXT")
        .env_remove("DOCKER_API_VERSION");
    Ok(command)
}
