//! The command line of `cargo lab`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

use crate::docker::Release;
use crate::paths::Paths;
use crate::{bench, check, commands, console, runner, switch};

/// A swarm of VMs on this machine: boot the image, use it, break it, test it.
///
/// All state lies in `.lab`. No root is needed, except once to install missing packages; as another user the command
/// that installs them is printed.
#[derive(Parser)]
#[command(
    name = "cargo lab",
    bin_name = "cargo lab",
    disable_help_subcommand = true
)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build the image, boot a swarm of VMs from it, and run the whoami mesh on them.
    Up(Up),
    /// Turn everything off and remove the VMs; leaves no process.
    Down,
    /// What runs.
    Status(Json),
    /// Open a port on 127.0.0.1 that leads to a port of a node, and print it.
    Forward {
        /// The node's name.
        node: String,
        /// The port on the node.
        #[arg(value_parser = clap::value_parser!(u16).range(1..))]
        port: u16,
        /// Forward UDP instead of TCP.
        #[arg(long)]
        udp: bool,
    },
    /// Run Debian's stock docker client against a node.
    Docker {
        /// The node's name.
        node: String,
        /// Which release of the client.
        #[arg(long, value_enum, default_value = "26.1")]
        client: Release,
        /// What to give to docker.
        #[arg(last = true)]
        arguments: Vec<String>,
    },
    /// Run skep on this machine against a node.
    Skep {
        /// The node's name.
        node: String,
        /// What to give to skep.
        #[arg(last = true)]
        arguments: Vec<String>,
    },
    /// Run a command of the tools image on a node, in a privileged container that sees the whole node.
    Debug {
        /// The node's name.
        node: String,
        /// The command.
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Show a node's console and follow it.
    Console {
        /// The node's name.
        node: String,
    },
    /// Pull a node's power cord.
    Kill {
        /// The node's name.
        node: String,
    },
    /// Turn a node on.
    Start {
        /// The node's name.
        node: String,
    },
    /// Press a node's power button and wait until it is off.
    Stop {
        /// The node's name.
        node: String,
    },
    /// Make a node hang: its CPUs stop.
    Pause {
        /// The node's name.
        node: String,
    },
    /// Let a node that hangs go on.
    Resume {
        /// The node's name.
        node: String,
    },
    /// Cut a node's link to the others.
    Cut {
        /// The node's name.
        node: String,
    },
    /// Heal a node's link.
    Heal {
        /// The node's name.
        node: String,
    },
    /// Build the image, and print where it lies and its sizes.
    Image(Json),
    /// Push a container image (an archive of docker save, or an OCI archive) to the lab's registry.
    Push {
        /// The archive.
        archive: PathBuf,
        /// NAME[:TAG], as nodes will call it.
        name: String,
    },
    /// Check the sources: format, clippy, layers, documentation, licences, duplicate crates.
    Check {
        /// Also install cargo-deny if it is missing.
        #[arg(long)]
        all: bool,
    },
    /// Run the tests, or those whose id or description contains one of NAMES.
    Test {
        /// Part of a test's name; several run all that match one of them.
        names: Vec<String>,
        /// Also the slow tests.
        #[arg(long)]
        all: bool,
        /// Only say what there is.
        #[arg(long)]
        list: bool,
    },
    /// Measure, one JSON line each.
    Bench {
        /// Part of a measurement's name.
        name: Option<String>,
    },
    /// The segment between the VMs (started by the others).
    #[command(hide = true)]
    InternalSwitch {
        /// Its ports.
        ports: Vec<String>,
    },
    /// The process that attends a VM (started by the others).
    #[command(hide = true)]
    InternalMachine,
}

/// What `up` makes.
#[derive(Args)]
pub struct Up {
    /// How many VMs.
    #[arg(long, default_value_t = 3)]
    pub nodes: u8,
    /// How many of them are managers.
    #[arg(long, default_value_t = 1)]
    pub managers: u8,
    /// Print only JSON.
    #[arg(long)]
    pub json: bool,
}

/// How the answer is printed.
#[derive(Args)]
struct Json {
    /// Print only JSON.
    #[arg(long)]
    json: bool,
}

/// Runs the program; a failure is one line on stderr and status 1.
pub fn main() -> ExitCode {
    let command = CommandLine::parse().command;
    match run(command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("lab: error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    let paths = || Paths::find();
    match command {
        Command::InternalSwitch { ports } => switch::serve(&ports)?,
        Command::InternalMachine => console::attend()?,
        Command::Up(options) => commands::up(&paths()?, &options)?,
        Command::Down => commands::down(&paths()?)?,
        Command::Status(Json { json }) => commands::status(&paths()?, json)?,
        Command::Forward { node, port, udp } => commands::forward(&paths()?, &node, port, udp)?,
        Command::Docker {
            node,
            client,
            arguments,
        } => {
            return commands::docker(&paths()?, &node, client, &arguments);
        }
        Command::Skep { node, arguments } => return commands::skep(&paths()?, &node, &arguments),
        Command::Debug { node, command } => return commands::debug(&paths()?, &node, &command),
        Command::Console { node } => commands::console(&paths()?, &node)?,
        Command::Kill { node } => commands::kill(&paths()?, &node)?,
        Command::Start { node } => commands::start(&paths()?, &node)?,
        Command::Stop { node } => commands::stop(&paths()?, &node)?,
        Command::Pause { node } => commands::pause(&paths()?, &node)?,
        Command::Resume { node } => commands::resume(&paths()?, &node)?,
        Command::Cut { node } => commands::set_link(&paths()?, &node, false)?,
        Command::Heal { node } => commands::set_link(&paths()?, &node, true)?,
        Command::Image(Json { json }) => commands::image(&paths()?, json)?,
        Command::Push { archive, name } => commands::push(&paths()?, &archive, &name)?,
        Command::Check { all } => check::run_all(&paths()?, all)?,
        Command::Test { names, all, list } => {
            return runner::main(&paths()?, &names, all, list);
        }
        Command::Bench { name } => bench::run(&paths()?, name.as_deref())?,
    }
    Ok(ExitCode::SUCCESS)
}
