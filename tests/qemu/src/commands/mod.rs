//! The commands that a person types; each in a few lines over the parts of the lab.

mod mesh;
mod up;

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::fs::{FlockOperation, flock};
use serde::Serialize;

use crate::archive::Archive;
use crate::cluster::{Cluster, Place, Role};
use crate::docker::Release;
use crate::images::TOOLS;
use crate::packages::{FOR_COMPILING, FOR_MKOSI, ensure_installed};
use crate::paths::Paths;
use crate::progress::say;
use crate::registry::Registry;
use crate::{guest, image};

pub use mesh::{Mesh, answers_of_every_replica, who_answers};
pub use up::{Prepared, READY_PATIENCE, prepare, up};

/// The name of the cluster that `up` makes; tests use others.
pub const DEFAULT: &str = "default";

/// How long an orderly stop of a node may take, emulated and under load.
const STOP_PATIENCE: Duration = Duration::from_secs(120);

/// One command changes the lab at a time; the lock goes with the file.
pub fn lock(paths: &Paths) -> Result<File> {
    let file = File::create(paths.lab.join("lock"))?;
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        say("waiting for another cargo lab to end …");
        flock(&file, FlockOperation::LockExclusive).context("cannot lock .lab")?;
    }
    Ok(file)
}

fn cluster(paths: &Paths) -> Result<Cluster> {
    Cluster::find(paths, DEFAULT)?.context("nothing is up; begin with: cargo lab up")
}

/// `down`
pub fn down(paths: &Paths) -> Result<()> {
    let _lock = lock(paths)?;
    let folder = paths.folder("clusters")?;
    for entry in std::fs::read_dir(&folder)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        match Cluster::find(paths, &name)? {
            Some(cluster) => cluster.down()?,
            // Half set up: nothing of it ever ran.
            None => std::fs::remove_dir_all(folder.join(name))?,
        }
    }
    guest::stop_all(paths)?;
    Registry::at(paths)?.stop()
}

/// A node as `up --json` and `status --json` print it.
#[derive(Debug, Serialize)]
struct NodeStatus {
    name: String,
    role: Role,
    address: String,
    state: &'static str,
    docker: String,
    certs: String,
    console: String,
}

fn status_of(cluster: &Cluster) -> Result<Vec<NodeStatus>> {
    let ready = cluster.ready_nodes().unwrap_or_default();
    let ports = cluster.ports().unwrap_or_default();
    let state = |place: &Place| -> Result<&'static str> {
        let vm = cluster.vm(&place.name)?;
        let cut = ports.iter().any(|port| port.name == place.name && port.cut);
        Ok(match () {
            () if !vm.running() => "off",
            () if vm.paused() => "paused",
            () if cut => "cut",
            () if ready.contains(&place.name) => "ready",
            () => "not ready",
        })
    };
    let row = |place: &Place| -> Result<NodeStatus> {
        let vm = cluster.vm(&place.name)?;
        Ok(NodeStatus {
            name: place.name.clone(),
            role: place.role,
            address: place.address(),
            state: state(place)?,
            docker: format!("127.0.0.1:{}", vm.api_port().unwrap_or_default()),
            certs: cluster.certs().display().to_string(),
            console: vm.console_file().display().to_string(),
        })
    };
    cluster.places().iter().map(row).collect()
}

/// `status`
pub fn status(paths: &Paths, json: bool) -> Result<()> {
    let rows = match Cluster::find(paths, DEFAULT)? {
        Some(cluster) => status_of(&cluster)?,
        None => Vec::new(),
    };
    if json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
        return Ok(());
    }
    if rows.is_empty() {
        println!("nothing is up; begin with: cargo lab up");
        return Ok(());
    }
    println!(
        "{:<16} {:<8} {:<15} {:<10} DOCKER",
        "NAME", "ROLE", "ADDRESS", "STATE"
    );
    for row in rows {
        let role = match row.role {
            Role::Manager => "manager",
            Role::Worker => "worker",
        };
        println!(
            "{:<16} {role:<8} {:<15} {:<10} {}",
            row.name, row.address, row.state, row.docker
        );
    }
    let running = Registry::at(paths)?.running();
    println!("registry: {}", if running { "running" } else { "off" });
    Ok(())
}

/// `forward`
pub fn forward(paths: &Paths, node: &str, port: u16, udp: bool) -> Result<()> {
    let _lock = lock(paths)?;
    let host = cluster(paths)?.vm(node)?.forward(udp, port)?;
    println!("127.0.0.1:{host}");
    Ok(())
}

/// `docker`: becomes the docker client.
pub fn docker(
    paths: &Paths,
    node: &str,
    client: Release,
    arguments: &[String],
) -> Result<ExitCode> {
    become_program(cluster(paths)?.docker(paths, client, node)?.args(arguments))
}

/// `skep`: becomes skep.
pub fn skep(paths: &Paths, node: &str, arguments: &[String]) -> Result<ExitCode> {
    become_program(skep_command(paths, &cluster(paths)?, node)?.args(arguments))
}

/// `debug`: becomes skep debug.
pub fn debug(paths: &Paths, node: &str, command: &[String]) -> Result<ExitCode> {
    become_program(
        skep_command(paths, &cluster(paths)?, node)?
            .args(["debug", TOOLS, "--"])
            .args(command),
    )
}

/// The host-built command line program, set up for a node.
pub fn skep_command(paths: &Paths, cluster: &Cluster, node: &str) -> Result<Command> {
    let program = paths.lab.join("bin/skep");
    let port = cluster
        .vm(node)?
        .api_port()
        .context("a node without an API port")?;
    let mut command = Command::new(program);
    command
        .arg("--host")
        .arg(format!("tcp://127.0.0.1:{port}"))
        .env("DOCKER_CERT_PATH", cluster.certs())
        .env("DOCKER_TLS_VERIFY", "1");
    Ok(command)
}

fn become_program(command: &mut Command) -> Result<ExitCode> {
    let error = command.exec();
    Err(error).with_context(|| format!("cannot run {}", command.get_program().display()))
}

/// `console`
pub fn console(paths: &Paths, node: &str) -> Result<()> {
    let vm = cluster(paths)?.vm(node)?;
    let mut file = File::open(vm.console_file()).context("the node has never been on")?;
    let mut at = 0;
    let mut out = std::io::stdout();
    loop {
        file.seek(SeekFrom::Start(at))?;
        let mut text = Vec::new();
        at += u64::try_from(file.read_to_end(&mut text)?)?;
        // Whoever reads us may have enough of it.
        if out.write_all(&text).and_then(|()| out.flush()).is_err() {
            return Ok(());
        }
        if !vm.running() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// `kill`
pub fn kill(paths: &Paths, node: &str) -> Result<()> {
    cluster(paths)?.vm(node)?.power_cut()
}

/// `start`
pub fn start(paths: &Paths, node: &str) -> Result<()> {
    let _lock = lock(paths)?;
    let cluster = cluster(paths)?;
    cluster.start_switch()?;
    Registry::at(paths)?.start(paths)?;
    cluster.vm(node)?.power_on()
}

/// `stop`
pub fn stop(paths: &Paths, node: &str) -> Result<()> {
    cluster(paths)?.vm(node)?.power_button(STOP_PATIENCE)
}

/// `pause`
pub fn pause(paths: &Paths, node: &str) -> Result<()> {
    cluster(paths)?.vm(node)?.pause()
}

/// `resume`
pub fn resume(paths: &Paths, node: &str) -> Result<()> {
    cluster(paths)?.vm(node)?.resume()
}

/// `cut` and `heal`
pub fn set_link(paths: &Paths, node: &str, up: bool) -> Result<()> {
    cluster(paths)?.set_link(node, up)
}

/// `image`
pub fn image(paths: &Paths, json: bool) -> Result<()> {
    let _lock = lock(paths)?;
    ensure_installed(&[FOR_COMPILING, FOR_MKOSI].concat())?;
    let image = image::build(&paths.repository, &say)?;
    if json {
        println!("{}", serde_json::to_string_pretty(&image)?);
        return Ok(());
    }
    println!("kernel   {}", image.kernel.display());
    println!("initrd   {}", image.initrd.display());
    println!("cmdline  {}", image.cmdline);
    println!("disk     {}", image.disk.display());
    println!("uki      {}", image.uki.display());
    let mib = |bytes: u64| format!("{}.{} MiB", bytes >> 20, ((bytes & 0xf_ffff) * 10) >> 20);
    let sizes = image.sizes;
    println!(
        "sizes    root {}, UKI {}, agent {}",
        mib(sizes.root),
        mib(sizes.uki),
        mib(sizes.agent)
    );
    Ok(())
}

/// `push`
pub fn push(paths: &Paths, archive: &Path, name: &str) -> Result<()> {
    let _lock = lock(paths)?;
    let registry = Registry::at(paths)?;
    registry.start(paths)?;
    registry.push(&Archive::read(archive)?, name)
}

/// Whether a node's management API answers.
pub fn api_answers(cluster: &Cluster, node: &str) -> bool {
    let asked = cluster
        .api(node)
        .and_then(|client| client.get("/_ping")?.good());
    asked.is_ok()
}
