//! `skep`, the command line: Docker's verbs, over D-Bus on a node and over the Engine API from elsewhere.

mod bus;
mod container;
mod debug;
mod dependency;
mod engine;
mod explain;
mod r#gen;
mod logs;
mod network;
mod node;
mod output;
mod progress;
mod service;
mod service_dependencies;
mod service_flags;
mod service_list;
mod service_mode;
mod swarm;
mod swarm_lock;
mod system;
mod table;
mod task;
mod transport;
mod units;

#[cfg(test)]
mod tests;

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::{Parser, Subcommand};
use skep_core::api::dependency::Kind;

use engine::{Engine, Host};
use transport::Transport;

/// What Docker's client ends with when a command is used wrongly or could not be run at all.
const USAGE: u8 = 125;

/// Manages a node and its swarm.
#[derive(Debug, Parser)]
#[command(name = "skep", version, disable_help_subcommand = true)]
struct Cli {
    /// The node to talk to: tcp://ADDRESS:2376; this node, by D-Bus, if left out [env: DOCKER_HOST]
    #[arg(short = 'H', long, global = true)]
    host: Option<String>,
    /// Folder with ca.pem, cert.pem and key.pem of an operator [env: DOCKER_CERT_PATH]
    #[arg(long, global = true)]
    certs: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The swarm: init, join, join-token, leave
    #[command(subcommand)]
    Swarm(swarm::Verb),
    /// Its nodes
    #[command(subcommand)]
    Node(node::Verb),
    /// Its services
    #[command(subcommand)]
    Service(service::Verb),
    /// Its networks
    #[command(subcommand)]
    Network(network::Verb),
    /// Its secrets
    #[command(subcommand)]
    Secret(dependency::Verb),
    /// Its configs
    #[command(subcommand)]
    Config(dependency::Verb),
    /// Say what keeps a service's tasks from running
    Explain(explain::Arguments),
    /// Show this node and its swarm
    Info(system::Info),
    /// Show the versions
    Version(system::Version),
    /// List the node's own containers
    Ps(container::Ps),
    /// Show the log of one of the node's containers
    Logs(logs::Logs),
    /// Run a throw-away privileged container on a node
    Debug(debug::Arguments),
    /// Make, off line, what a swarm needs to boot
    #[command(subcommand)]
    Gen(r#gen::Verb),
}

/// Runs the command line; `arguments` begin with the program's name.
#[must_use]
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are errors to clap, but not to us.
            let code = if error.use_stderr() { USAGE } else { 0 };
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let result = match runtime {
        Ok(runtime) => {
            let result = runtime.block_on(execute(cli));
            // A read of standard input that nobody waits for any more must not hold up the end.
            runtime.shutdown_background();
            result
        }
        Err(error) => Err(error.into()),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            let text = format!("{error:#}").replace('\n', " ");
            output::warn(&format!("skep: {text}"));
            ExitCode::FAILURE
        }
    }
}

async fn execute(cli: Cli) -> Result<ExitCode> {
    if let Command::Gen(verb) = &cli.command {
        output::print(&r#gen::run(verb)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let host = cli.host.or_else(|| std::env::var("DOCKER_HOST").ok());
    let certs = cli
        .certs
        .or_else(|| std::env::var_os("DOCKER_CERT_PATH").map(PathBuf::from));
    let transport: Box<dyn Transport> = match host.filter(|host| !host.is_empty()) {
        Some(host) => Box::new(Engine::new(Host::parse(&host)?, certs.as_deref())?),
        None => Box::new(bus::Bus::connect().await?),
    };
    carry_out(transport.as_ref(), cli.command).await
}

async fn carry_out(transport: &dyn Transport, command: Command) -> Result<ExitCode> {
    match command {
        Command::Swarm(verb) => swarm::run(transport, verb).await?,
        Command::Node(verb) => node::run(transport, verb).await?,
        Command::Service(verb) => service::run(transport, verb).await?,
        Command::Network(verb) => network::run(transport, verb).await?,
        Command::Secret(verb) => dependency::run(transport, Kind::Secret, verb).await?,
        Command::Config(verb) => dependency::run(transport, Kind::Config, verb).await?,
        Command::Explain(arguments) => explain::run(transport, arguments).await?,
        Command::Info(arguments) => system::info(transport, arguments).await?,
        Command::Version(arguments) => system::version(transport, arguments).await?,
        Command::Ps(arguments) => container::ps(transport, arguments).await?,
        Command::Logs(arguments) => logs::of_container(transport, arguments).await?,
        Command::Debug(arguments) => return debug::run(transport, arguments).await,
        // Needs no node and is carried out before one is looked for.
        Command::Gen(_) => {}
    }
    Ok(ExitCode::SUCCESS)
}

/// `--filter key=value`, repeated, as the document that lists take.
fn filters(given: &[String]) -> Result<String> {
    let mut keys = serde_json::Map::new();
    for filter in given {
        let Some((key, value)) = filter.split_once('=') else {
            anyhow::bail!("--filter {filter:?}: use --filter KEY=VALUE");
        };
        let values = keys
            .entry(key.to_owned())
            .or_insert_with(|| serde_json::json!({}));
        values[value] = true.into();
    }
    if keys.is_empty() {
        return Ok(String::new());
    }
    Ok(serde_json::Value::Object(keys).to_string())
}

/// Does something for each name; the first failure is reported when all are done, as Docker does.
fn all_or_first_error(results: Vec<Result<()>>) -> Result<()> {
    let mut failures = results.into_iter().filter_map(Result::err);
    let Some(first) = failures.next() else {
        return Ok(());
    };
    for further in failures {
        output::warn(&format!("skep: {further:#}"));
    }
    Err(first)
}

/// The elements of a document that is a list.
fn items(document: &serde_json::Value) -> impl Iterator<Item = &serde_json::Value> {
    document.as_array().into_iter().flatten()
}

/// A text of a document; empty if there is none.
fn text<'a>(document: &'a serde_json::Value, pointer: &str) -> &'a str {
    document
        .pointer(pointer)
        .and_then(serde_json::Value::as_str)
        .unwrap_or_default()
}

/// An id in the form of tables: its first twelve characters.
fn short(id: &str) -> String {
    id.chars().take(12).collect()
}

/// A word with a capital first letter.
fn capitalized(word: &str) -> String {
    let mut letters = word.chars();
    match letters.next() {
        Some(first) => first.to_uppercase().chain(letters).collect(),
        None => String::new(),
    }
}
