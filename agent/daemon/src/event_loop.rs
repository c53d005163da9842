//! The node's loop: one thread owns [`Node`]; it takes an input, decides, and hands on what is to be done. It never waits
//! for anything but the next input.

use std::{sync::Arc, thread, time::Duration};

use skep_core::node::{Boot, Input, Node, Output};
use skep_host::{HostError, clock, systemd::ServiceManager};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until, timeout_at},
};

/// The longest time without a look at the clock.
const LONGEST: Duration = Duration::from_secs(3600);

/// How the service manager is told that the loop goes round.
pub struct Watchdog {
    /// The service manager.
    pub manager: Arc<ServiceManager>,
    /// How often; never when absent.
    pub period: Option<Duration>,
}

/// Starts the loop on a thread of its own. It ends when nobody can send inputs any more. `carry_out` begins what the
/// machine wants done and must not wait; results come back as inputs.
///
/// # Errors
/// When no thread can be had.
pub fn start(
    boot: Boot,
    inputs: mpsc::Receiver<Input>,
    carry_out: impl FnMut(Output) + Send + 'static,
    watchdog: Watchdog,
) -> Result<(), HostError> {
    let error = |error| HostError::new("start the thread of", "the node's loop", error);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .map_err(error)?;
    let work = move || {
        let turn = Turn {
            node: Node::new(boot, clock::now()),
            carry_out,
        };
        runtime.block_on(run(turn, inputs, watchdog));
    };
    let thread = thread::Builder::new().name("node".to_owned()).spawn(work);
    thread.map(drop).map_err(error)
}

struct Turn<F> {
    node: Node,
    carry_out: F,
}

async fn run(
    mut turn: Turn<impl FnMut(Output)>,
    mut inputs: mpsc::Receiver<Input>,
    watchdog: Watchdog,
) {
    let mut input = Some(Input::Tick);
    let mut feed = Instant::now();
    loop {
        if let Some(input) = input.take() {
            turn.take(input);
        }
        feed = feed_watchdog(&watchdog, feed);
        let now = clock::now();
        let wait = turn
            .node
            .deadline()
            .map_or(LONGEST, |at| at.since(now))
            .min(LONGEST);
        let until = Instant::now() + wait;
        let until = if watchdog.period.is_some() {
            until.min(feed)
        } else {
            until
        };
        match timeout_at(until, inputs.recv()).await {
            Ok(Some(next)) => input = Some(next),
            Ok(None) => return,
            Err(_) => {
                // Two clocks are at work: never turn faster than this.
                sleep_until(until + Duration::from_millis(1)).await;
                input = turn
                    .node
                    .deadline()
                    .filter(|at| *at <= clock::now())
                    .map(|_| Input::Tick);
            }
        }
    }
}

fn feed_watchdog(watchdog: &Watchdog, due: Instant) -> Instant {
    let now = Instant::now();
    let Some(period) = watchdog.period.filter(|_| now >= due) else {
        return due;
    };
    if let Err(error) = watchdog.manager.alive() {
        tracing::warn!(error = %error.chain(), "the watchdog is not fed: {}", error.chain());
    }
    now + period
}

impl<F: FnMut(Output)> Turn<F> {
    fn take(&mut self, input: Input) {
        self.node.handle(input, clock::now(), clock::timestamp());
        while let Some(output) = self.node.poll_output() {
            (self.carry_out)(output);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use skep_core::{
        id::Id,
        network::{MeshMap, NetState, NodeNet, example},
    };
    use tokio::time::timeout;

    use super::*;

    fn boot() -> Boot {
        Boot {
            node: NodeNet {
                node_id: None,
                vtep: IpAddr::V4(Ipv4Addr::LOCALHOST),
                gateway_bridge: NodeNet::DEFAULT_GATEWAY_BRIDGE,
                name_servers: Vec::new(),
            },
            saved: None,
            containers: Vec::new(),
        }
    }

    /// The loop against a model of a kernel that does what it is told.
    #[tokio::test]
    async fn a_map_of_the_mesh_is_applied_and_acknowledged() {
        let (handle, inputs) = mpsc::channel(8);
        let (sender, mut outputs) = mpsc::unbounded_channel();
        let watchdog = Watchdog {
            manager: Arc::new(ServiceManager::connect(None).unwrap()),
            period: Some(Duration::from_millis(1)),
        };
        let carry_out = move |output| drop(sender.send(output));
        start(boot(), inputs, carry_out, watchdog).unwrap();
        let mut mesh = example::whoami(0).mesh;
        mesh.networks.retain(|_, network| network.ingress);
        let mesh = MeshMap { version: 9, ..mesh };
        let mut kernel = NetState::booted();
        let serve = async {
            handle
                .send(Input::SessionBegun(Id::from_entropy(1)))
                .await
                .unwrap();
            handle.send(Input::Mesh(Arc::new(mesh))).await.unwrap();
            loop {
                let input = match outputs.recv().await.unwrap() {
                    Output::Observe(scope) => Input::NetworkSeen(Ok(kernel.restricted(&scope))),
                    Output::Apply(ops) => {
                        ops.iter().for_each(|op| kernel.apply(op).unwrap());
                        Input::NetworkApplied(Vec::new())
                    }
                    Output::Save(_) => Input::SavedDone(Ok(())),
                    Output::MeshApplied(version) => return version,
                    Output::Effect(..)
                    | Output::Status { .. }
                    | Output::ReopenAssignments
                    | Output::Names(_) => {
                        continue;
                    }
                };
                handle.send(input).await.unwrap();
            }
        };
        let version = timeout(Duration::from_secs(10), serve).await.unwrap();
        assert_eq!(version, 9);
    }
}
