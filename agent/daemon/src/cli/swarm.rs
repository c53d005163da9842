//! `skep swarm`.

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};

use super::{
    output, swarm_lock, text,
    transport::{
        Call, INFO, NODE_INSPECT, SWARM_INIT, SWARM_INSPECT, SWARM_JOIN, SWARM_LEAVE, SWARM_UPDATE,
        Transport,
    },
    units,
};

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Make a new swarm with this node as its first manager
    Init(Init),
    /// Join a swarm
    Join(Join),
    /// Show or rotate the token for workers or managers
    JoinToken(JoinToken),
    /// Change settings of the swarm
    Update(swarm_lock::Update),
    /// Show or rotate the key that unlocks managers
    UnlockKey(swarm_lock::UnlockKey),
    /// Unlock this manager: reads the key from standard input
    Unlock,
    /// Leave the swarm
    Leave {
        /// Leave even as a manager
        #[arg(short, long)]
        force: bool,
    },
}

/// Whether a node takes tasks.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum Availability {
    Active,
    Pause,
    Drain,
}

impl Availability {
    pub(super) fn word(self) -> &'static str {
        match self {
            Availability::Active => "active",
            Availability::Pause => "pause",
            Availability::Drain => "drain",
        }
    }
}

#[derive(Debug, Args)]
pub(super) struct Init {
    /// Address by which the other nodes reach this one
    #[arg(long, default_value = "")]
    advertise_addr: String,
    /// UDP port of the VXLAN
    #[arg(long, default_value_t = 0)]
    data_path_port: u16,
    /// Pool of subnets for overlay networks; may be repeated
    #[arg(long, value_name = "CIDR")]
    default_addr_pool: Vec<String>,
    /// Prefix length of an overlay network's subnet
    #[arg(long, default_value_t = 0)]
    default_addr_pool_mask_length: u8,
    /// Whether this node takes tasks
    #[arg(long, default_value = "active")]
    availability: Availability,
    /// Lock the disks of managers: after a restart, each needs the unlock key
    #[arg(long)]
    autolock: bool,
    /// Go on alone with the state of this manager, when most managers are lost
    #[arg(long)]
    force_new_cluster: bool,
    /// Ended tasks kept per replica
    #[arg(long)]
    task_history_limit: Option<i64>,
    /// Time between two heartbeats of a node
    #[arg(long, value_parser = units::duration)]
    dispatcher_heartbeat: Option<std::time::Duration>,
    /// Life of a node certificate
    #[arg(long, value_parser = units::duration)]
    cert_expiry: Option<std::time::Duration>,
}

#[derive(Debug, Args)]
pub(super) struct Join {
    /// Token of the swarm: SWMTKN-1-…
    #[arg(long)]
    token: String,
    /// Address by which the other nodes reach this one
    #[arg(long, default_value = "")]
    advertise_addr: String,
    /// Whether this node takes tasks
    #[arg(long, default_value = "active")]
    availability: Availability,
    /// A manager: ADDRESS[:2377]
    #[arg(value_name = "ADDRESS:PORT", required = true)]
    managers: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct JoinToken {
    /// For which role
    role: Role,
    /// Show only the token
    #[arg(short, long)]
    quiet: bool,
    /// Make a new one; the old one joins nobody any more
    #[arg(long)]
    rotate: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Role {
    Worker,
    Manager,
}

impl Role {
    pub(super) fn word(self) -> &'static str {
        match self {
            Role::Worker => "worker",
            Role::Manager => "manager",
        }
    }

    /// Where the token stands in the swarm's document, and the switch that rotates it.
    fn token(self) -> (&'static str, &'static str) {
        match self {
            Role::Worker => ("/JoinTokens/Worker", "rotateWorkerToken"),
            Role::Manager => ("/JoinTokens/Manager", "rotateManagerToken"),
        }
    }
}

pub(super) async fn run(transport: &dyn Transport, verb: Verb) -> Result<()> {
    match verb {
        Verb::Init(arguments) => init(transport, arguments).await,
        Verb::Join(arguments) => join(transport, arguments).await,
        Verb::JoinToken(arguments) => join_token(transport, arguments).await,
        Verb::Update(arguments) => swarm_lock::update(transport, arguments).await,
        Verb::UnlockKey(arguments) => swarm_lock::unlock_key(transport, arguments).await,
        Verb::Unlock => swarm_lock::unlock(transport).await,
        Verb::Leave { force } => {
            let call = Call::new(SWARM_LEAVE).with([("force", force.to_string())]);
            transport.call(call).await?;
            output::line("Node left the swarm.")
        }
    }
}

async fn init(transport: &dyn Transport, arguments: Init) -> Result<()> {
    let nanos = |time: Option<std::time::Duration>| units::nanos(time.unwrap_or_default());
    let mut orchestration = json!({});
    if let Some(limit) = arguments.task_history_limit {
        orchestration["TaskHistoryRetentionLimit"] = limit.into();
    }
    let body = json!({
        "ListenAddr": "0.0.0.0:2377",
        "AdvertiseAddr": arguments.advertise_addr,
        "DataPathPort": arguments.data_path_port,
        "DefaultAddrPool": arguments.default_addr_pool,
        "SubnetSize": arguments.default_addr_pool_mask_length,
        "Availability": arguments.availability.word(),
        "AutoLockManagers": arguments.autolock,
        "ForceNewCluster": arguments.force_new_cluster,
        "Spec": {
            "Orchestration": orchestration,
            "Dispatcher": { "HeartbeatPeriod": nanos(arguments.dispatcher_heartbeat) },
            "CAConfig": { "NodeCertExpiry": nanos(arguments.cert_expiry) },
        },
    });
    let node = transport.call(Call::new(SWARM_INIT).sending(body)).await?;
    let node = node.as_str().context("the node gave no id")?;
    output::line(&format!(
        "Swarm initialized: current node ({node}) is now a manager.\n"
    ))?;
    let swarm = transport.call(Call::new(SWARM_INSPECT)).await?;
    let command = join_command(transport, &swarm, Role::Worker, node).await?;
    output::line(&format!(
        "To add a worker to this swarm, run the following command:\n\n    {command}\n\n\
         To add a manager to this swarm, run 'skep swarm join-token manager' and follow the instructions.\n"
    ))?;
    match arguments.autolock {
        true => swarm_lock::show_unlock_key(transport).await,
        false => Ok(()),
    }
}

async fn join(transport: &dyn Transport, arguments: Join) -> Result<()> {
    let body = json!({
        "ListenAddr": "0.0.0.0:2377",
        "AdvertiseAddr": arguments.advertise_addr,
        "RemoteAddrs": arguments.managers,
        "JoinToken": arguments.token,
        "Availability": arguments.availability.word(),
    });
    transport.call(Call::new(SWARM_JOIN).sending(body)).await?;
    let info = transport.call(Call::new(INFO)).await?;
    let role = if info["Swarm"]["ControlAvailable"] == true {
        "manager"
    } else {
        "worker"
    };
    output::line(&format!("This node joined a swarm as a {role}."))
}

async fn join_token(transport: &dyn Transport, arguments: JoinToken) -> Result<()> {
    let role = arguments.role;
    if arguments.rotate {
        let swarm = transport.call(Call::new(SWARM_INSPECT)).await?;
        let version = swarm["Version"]["Index"].to_string();
        let (_, switch) = role.token();
        let call = Call::new(SWARM_UPDATE)
            .with([("version", version), (switch, "true".to_owned())])
            .sending(swarm["Spec"].clone());
        transport.call(call).await?;
        if !arguments.quiet {
            output::line(&format!(
                "Successfully rotated {} join token.\n",
                role.word()
            ))?;
        }
    }
    let swarm = transport.call(Call::new(SWARM_INSPECT)).await?;
    if arguments.quiet {
        return output::line(text(&swarm, role.token().0));
    }
    let info = transport.call(Call::new(INFO)).await?;
    let me = text(&info, "/Swarm/NodeID");
    let command = join_command(transport, &swarm, role, me).await?;
    output::line(&format!(
        "To add a {} to this swarm, run the following command:\n\n    {command}\n",
        role.word()
    ))
}

async fn join_command(
    transport: &dyn Transport,
    swarm: &Value,
    role: Role,
    manager: &str,
) -> Result<String> {
    let node = transport.call(Call::new(NODE_INSPECT).on(manager)).await?;
    let address = text(&node, "/ManagerStatus/Addr");
    if address.is_empty() {
        bail!("node {manager} is not a manager: ask a manager for the token");
    }
    let token = text(swarm, role.token().0);
    Ok(format!("skep swarm join --token {token} {address}"))
}
