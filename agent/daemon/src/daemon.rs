//! The daemon: puts the parts together and keeps them until it is told to stop.

use std::{os::fd::OwnedFd, process::ExitCode, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use clap::Parser;
use skep_core::{
    api::{EngineDescription, NodeDescription},
    system::config::Config,
};
use skep_host::{
    machine,
    systemd::{Inherited, ServiceManager, watchdog_period},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};
use tokio_util::sync::CancellationToken;

use crate::{
    cluster::{
        Describe,
        api_certificate::{ApiCertificate, ApiTls},
        membership::{MembershipParts, membership},
    },
    config::{self, Options},
    console, dbus, docker_api, logging,
    management::{Management, port::LocalPort},
    node::{self, NodeParts},
    ports::{self, Ports},
    rpc::{log_publisher, session},
    without_containers::{NoContainers, drain},
};

/// Inputs of the node's machine that wait; a sender waits when there are more.
const INPUTS: usize = 1024;
/// Version of the program.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Runs the daemon; the options are those of the process.
#[must_use]
pub fn main() -> ExitCode {
    let environment = |name| std::env::var(name).ok();
    let listed = Inherited::parse(
        std::process::id(),
        environment("LISTEN_PID").as_deref(),
        environment("LISTEN_FDS").as_deref(),
        environment("LISTEN_FDNAMES").as_deref(),
    );
    // SAFETY: this is the start of the process, nothing has opened a file yet.
    let inherited = unsafe { listed.take() };
    let options = Options::parse();
    logging::init();
    abort_on_panic();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(options, inherited)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            console::say(&format!("skepd stops: {error:#}"));
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// A panic is a bug: the process ends, systemd starts it again, and the state is on disk.
fn abort_on_panic() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        print(info);
        std::process::abort();
    }));
}

async fn run(options: Options, inherited: Vec<(String, OwnedFd)>) -> Result<()> {
    let notify = std::env::var("NOTIFY_SOCKET").ok();
    let manager = Arc::new(ServiceManager::connect(notify.as_deref())?);
    let (ports, sockets) = Ports::new(Arc::clone(&manager), options.listen, inherited);
    let ports = Arc::new(ports);
    let stop = CancellationToken::new();
    let config = Arc::new(configure(&options));
    let hostname = config.name.clone().unwrap_or_else(machine::hostname);
    let (api, api_tls) = api_certificate(&hostname, &config)?;
    let fingerprint = api.fingerprints();
    let (inputs, node_inputs) = mpsc::channel(INPUTS);
    let (link, uplink) = session::link(inputs.clone());
    let (log_orders, given_orders) = log_publisher::orders();
    let (cluster, membership) = membership(MembershipParts {
        config: Arc::clone(&config),
        state: options.state.clone(),
        ports: Arc::clone(&ports),
        link,
        describe: described(&options, &hostname),
        log_orders,
        api,
        stop: stop.clone(),
    })
    .context("cannot use the folder of identities")?;
    let membership = tokio::spawn(membership.run());
    let operators = config.operator_ca.is_some();
    tokio::spawn(console::tell(cluster.clone(), fingerprint, operators));
    let parts = NodeParts {
        inputs: (inputs, node_inputs),
        uplink,
        status: cluster.watch_status(),
        watchdog: watchdog_of_environment(),
    };
    let services = Arc::clone(&manager);
    let local = start_node(&options, config, hostname, services, sockets, parts).await?;
    tokio::spawn(log_publisher::serve(given_orders, Arc::clone(&local)));
    let management = Management::new(Arc::new(cluster), local);
    if operators {
        tokio::spawn(serve_api(Arc::clone(&ports), api_tls, management.clone()));
    }
    if !options.cluster_only {
        tokio::spawn(serve_bus(management, stop.clone()));
    }
    manager.ready()?;
    wait_for_signal().await?;
    tracing::info!("stopping");
    manager.stopping()?;
    stop.cancel();
    membership
        .await
        .context("the node's membership ended badly")
}

/// Reads the configuration, says what is wrong with it, and gives the machine its name.
fn configure(options: &Options) -> Config {
    let (config, complaints) = config::read(options);
    for complaint in complaints {
        tracing::error!("{complaint}");
        console::say(&complaint.to_string());
    }
    let name = config.name.as_ref().filter(|_| !options.cluster_only);
    if let Some(name) = name.filter(|name| **name != machine::hostname())
        && let Err(error) = machine::set_hostname(name)
    {
        tracing::warn!(error = error.chain(), "the machine keeps its name");
    }
    config
}

/// A damaged operators' authority closes 2376 and nothing else.
fn api_certificate(hostname: &str, config: &Config) -> Result<(ApiCertificate, ApiTls)> {
    match ApiCertificate::new(hostname, config) {
        Ok(api) => Ok(api),
        Err(error) => {
            let line = format!("nobody can manage this node from outside: {error}");
            tracing::error!("{line}");
            console::say(&line);
            let without = Config {
                operator_ca: None,
                ..Config::clone(config)
            };
            Ok(ApiCertificate::new(hostname, &without)?)
        }
    }
}

fn described(options: &Options, hostname: &str) -> Describe {
    let (hostname, machine_id) = (hostname.to_owned(), options.machine_id.clone());
    Arc::new(move || describe(&hostname, machine_id.as_deref()))
}

/// Serves the Engine API. A port that is taken keeps nothing else from running: the node stays manageable by
/// D-Bus, and the port is looked at again.
async fn serve_api(ports: Arc<Ports>, tls: ApiTls, management: Management) {
    const MIN_PAUSE: Duration = Duration::from_secs(1);
    const MAX_PAUSE: Duration = Duration::from_secs(30);
    let mut pause = MIN_PAUSE;
    let listener = loop {
        match ports.open(ports::API, API_PORT) {
            Ok(listener) => break listener,
            Err(error) => {
                let line = format!("cannot listen on port {API_PORT}, trying again: {error}");
                tracing::warn!(%error, "{line}");
                if pause == MIN_PAUSE {
                    console::say(&line);
                }
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(MAX_PAUSE);
    };
    let router = docker_api::router(management);
    docker_api::listener::serve_tls(listener, tls, router).await;
}

/// Serves D-Bus. Without a bus the node is managed from outside, and the bus is looked for again.
async fn serve_bus(management: Management, stop: CancellationToken) {
    const RETRY: Duration = Duration::from_secs(5);
    loop {
        match dbus::serve(management.clone()).await {
            Ok(_connection) => return stop.cancelled().await,
            Err(error) => tracing::warn!(%error, "D-Bus cannot be served, trying again: {error}"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// The port of the Engine API.
const API_PORT: u16 = 2376;

/// Starts this node's own half. A node whose host cannot run containers stays manageable.
async fn start_node(
    options: &Options,
    config: Arc<Config>,
    hostname: String,
    manager: Arc<ServiceManager>,
    sockets: Vec<(String, OwnedFd)>,
    parts: NodeParts,
) -> Result<Arc<dyn LocalPort>> {
    let opened = match options.cluster_only {
        true => None,
        false => Some(
            node::open(
                options,
                config,
                hostname.clone(),
                Arc::clone(&manager),
                sockets,
            )
            .await,
        ),
    };
    match opened {
        Some(Ok(host)) => return Ok(Arc::new(host.start(parts)?)),
        Some(Err(error)) => {
            let error = error.chain();
            tracing::error!(error, "this node runs no containers");
            console::say(&format!("this node runs no containers: {error}"));
        }
        None => {}
    }
    tokio::spawn(watchdog(manager, parts.watchdog));
    let (_, inputs) = parts.inputs;
    tokio::spawn(drain(inputs, parts.uplink));
    Ok(Arc::new(NoContainers { hostname }))
}

/// What this node says of itself.
fn describe(hostname: &str, machine_id: Option<&str>) -> NodeDescription {
    let plugin = |kind: &str, name: &str| (kind.to_owned(), name.to_owned());
    NodeDescription {
        hostname: hostname.to_owned(),
        platform: machine::platform(),
        resources: machine::resources(),
        engine: EngineDescription {
            engine_version: VERSION.to_owned(),
            plugins: vec![
                plugin("Log", "json-file"),
                plugin("Network", "bridge"),
                plugin("Network", "host"),
                plugin("Network", "null"),
                plugin("Network", "overlay"),
                plugin("Volume", "local"),
            ],
            ..EngineDescription::default()
        },
        routes: machine::routes(),
        machine_id: machine_id.map_or_else(machine::machine_id, str::to_owned),
    }
}

fn watchdog_of_environment() -> Option<Duration> {
    let variable = |name| std::env::var(name).ok();
    watchdog_period(
        std::process::id(),
        variable("WATCHDOG_PID").as_deref(),
        variable("WATCHDOG_USEC").as_deref(),
    )
}

async fn watchdog(manager: Arc<ServiceManager>, period: Option<Duration>) {
    let Some(period) = period else { return };
    loop {
        if let Err(error) = manager.alive() {
            tracing::warn!(error = %error.chain(), "the watchdog could not be told: {}", error.chain());
        }
        tokio::time::sleep(period).await;
    }
}

async fn wait_for_signal() -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
