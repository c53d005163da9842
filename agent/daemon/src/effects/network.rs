//! The kernel's network on a thread of its own: its sockets live there, and a long look holds up nothing else.

use std::thread;

use skep_core::{
    network::{NetOp, Scope},
    node::Input,
};
use skep_host::{HostError, network::NetHost};
use tokio::sync::mpsc;

use super::KeptNamespaces;

/// What waits for the thread: the machine has one thing under way at a time.
const COMMANDS: usize = 4;

/// What the thread does.
#[derive(Debug)]
pub(super) enum Command {
    /// Look, and say what is seen.
    Observe(Scope),
    /// Carry out steps, and say which could not be.
    Apply(Vec<NetOp>),
}

/// Starts the thread; it tells of changes that others make, too.
pub(super) fn start(
    network: (NetHost, KeptNamespaces),
    inputs: mpsc::Sender<Input>,
) -> Result<mpsc::Sender<Command>, HostError> {
    let error = |error| HostError::new("start the thread of", "the kernel's network", error);
    let (sender, commands) = mpsc::channel(COMMANDS);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(error)?;
    let work = move || runtime.block_on(run(&network, commands, inputs));
    let thread = thread::Builder::new()
        .name("network".to_owned())
        .spawn(work);
    thread.map(drop).map_err(error)?;
    Ok(sender)
}

async fn run(
    (network, kept): &(NetHost, KeptNamespaces),
    mut commands: mpsc::Receiver<Command>,
    inputs: mpsc::Sender<Input>,
) {
    loop {
        let input = tokio::select! {
            biased;
            command = commands.recv() => match command {
                Some(command) => carry_out(network, kept, command).await,
                None => return,
            },
            changed = network.changed() => Input::NetworkChanged(changed),
        };
        if inputs.send(input).await.is_err() {
            return;
        }
    }
}

async fn carry_out(network: &NetHost, kept: &KeptNamespaces, command: Command) -> Input {
    match command {
        Command::Observe(scope) => {
            let seen = network.observe(&scope).await;
            Input::NetworkSeen(seen.map_err(|error| error.chain()))
        }
        Command::Apply(ops) => {
            kept.before(&ops);
            let results = network.apply(&ops).await;
            kept.after(&ops);
            let errors = results.into_iter().filter_map(Result::err);
            Input::NetworkApplied(errors.map(|error| error.chain()).collect())
        }
    }
}
