//! A swarm in memory: a store, the manager's loops, and nodes that do at once what they are told.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream;
use skep_core::{
    api::{
        ApiError, Cluster, ClusterRequest, ClusterResponse, ContainerStatus, EngineDescription,
        JoinTokens, ManagerStatus, Meta, Network, NetworkSpec, Node, NodeDescription, NodeSpec,
        NodeState, NodeStatus, Platform, Reachability, Resources, Role, RootCa, Task, TaskState,
        TaskStatus, node::Certificate,
    },
    id::Id,
    manager::{self, Ctx, control, logs::Selection},
    rng::Rng,
    store::{Change, Entry, Proposal, Store, View},
    time::Timestamp,
    wire::unlock::UnlockKey,
};
use tokio::sync::{mpsc, watch};

use skep_host::clock;

use crate::{
    cluster::{InitParams, JoinParams, LocalNodeState, SwarmStatus},
    management::{
        Management,
        port::{
            ClusterPort, ContainerState, DebugOutput, DebugParams, DebugSession, LocalContainer,
            LocalImage, LocalInfo, LocalPort, LogLine, LogStream, LogsRequest, OutputStream,
            ResolvedImage, TaskLogLine, TaskLogStream,
        },
    },
};

/// Names and addresses of the nodes, the manager first.
pub(crate) const NODES: [(&str, &str); 3] = [
    ("swarm-manager", "192.168.77.11"),
    ("swarm-worker1", "192.168.77.21"),
    ("swarm-worker2", "192.168.77.22"),
];

/// The swarm.
pub(crate) struct Memory {
    state: Mutex<State>,
    version: watch::Sender<u64>,
}

struct State {
    store: Store,
    index: u64,
    rng: Rng,
    me: Option<Id<Node>>,
    /// The manager has restarted and waits for the unlock key.
    locked: bool,
}

impl Memory {
    /// A node that is in no swarm yet, and a thread of control that runs the manager once it is.
    pub(crate) fn start() -> Arc<Self> {
        let memory = Arc::new(Self {
            state: Mutex::new(State {
                store: Store::default(),
                index: 0,
                rng: Rng::seeded(7),
                me: None,
                locked: false,
            }),
            version: watch::Sender::new(0),
        });
        let running = Arc::downgrade(&memory);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_millis(20)).await;
                let Some(memory) = running.upgrade() else {
                    return;
                };
                memory.turn();
            }
        });
        memory
    }

    /// One pass of the manager and one step of every node.
    fn turn(&self) {
        let mut state = self.lock();
        if state.me.is_none() {
            return;
        }
        let view = state.store.view();
        let mut ctx = state.ctx();
        let proposals = manager::pass(&view, &mut ctx).proposals;
        state.commit(proposals);
        let view = state.store.view();
        let reports = view.tasks().filter_map(|task| report(task)).collect();
        state.commit(reports);
        let index = state.index;
        drop(state);
        self.version.send_if_modified(|version| {
            let changed = *version != index;
            *version = index;
            changed
        });
    }

    fn make(&self, params: InitParams) -> Result<Id<Node>, ApiError> {
        let mut state = self.lock();
        if let Some(me) = state.me.clone().filter(|_| params.force_new_cluster) {
            return Ok(me);
        }
        if state.me.is_some() {
            return Err(ApiError::Unavailable(
                "This node is already part of a swarm. Use \"docker swarm leave\" to leave this swarm and join \
                 another one."
                    .to_owned(),
            ));
        }
        let now = clock::timestamp();
        let token = |secret| format!("SWMTKN-1-{:0>50}-{secret:0>25}", 1);
        let mut rng = state.rng.fork("init");
        let unlock_key = params.spec.locks_managers();
        let unlock_key = unlock_key.then(|| UnlockKey::new([7; 32]));
        let cluster = Cluster {
            id: Id::draw(&mut rng),
            meta: meta(now),
            spec: params.spec,
            root_ca: RootCa {
                join_tokens: JoinTokens {
                    worker: token(2),
                    manager: token(3),
                },
                ..RootCa::default()
            },
            data_path_port: 4789,
            default_addr_pool: vec!["10.0.0.0/8".to_owned()],
            subnet_size: 24,
            ingress_subnet: "10.255.0.0/16".to_owned(),
            unlock_key,
            removed_nodes: std::collections::BTreeMap::new(),
        };
        let ingress = Network {
            id: Id::draw(&mut rng),
            meta: meta(now),
            spec: NetworkSpec::ingress("10.255.0.0/16"),
            state: None,
        };
        let nodes = [0, 1, 2].map(|position| node(&mut rng, position, now));
        state.me = Some(nodes[0].id.clone());
        let me = nodes[0].id.clone();
        let mut changes = vec![Change::put_cluster(cluster), Change::put_network(ingress)];
        changes.extend(nodes.map(Change::put_node));
        state.commit(vec![Proposal::of(changes)]);
        Ok(me)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn ctx(&mut self) -> Ctx {
        let seed = self.rng.next_u64();
        Ctx::new(clock::timestamp(), Rng::seeded(seed))
    }

    fn commit(&mut self, proposals: Vec<Proposal>) {
        if !proposals.is_empty() {
            self.index += 1;
            let _ = self.store.apply(self.index, &Entry { proposals });
        }
    }
}

/// What a node that does as it is told says of a task next.
fn report(task: &Task) -> Option<Proposal> {
    let node = task.node_id.clone().filter(|_| task.is_assigned())?;
    let next = match (task.desired_state, task.status.state) {
        (_, state) if state.is_terminal() => return None,
        (TaskState::Shutdown | TaskState::Remove, _) => TaskState::Shutdown,
        (_, TaskState::Assigned) => TaskState::Preparing,
        (_, TaskState::Preparing) => TaskState::Ready,
        (TaskState::Running | TaskState::Complete, TaskState::Ready) => TaskState::Running,
        (TaskState::Complete, TaskState::Running) => TaskState::Complete,
        (_, _) => return None,
    };
    let status = TaskStatus {
        timestamp: clock::timestamp(),
        state: next,
        message: "as told".to_owned(),
        container_status: Some(ContainerStatus {
            container_id: format!("{:0<64}", task.id.as_str().replace(|c: char| c > 'f', "0")),
            pid: 4711,
            exit_code: 0,
        }),
        ..TaskStatus::default()
    };
    Some(Proposal::of([Change::TaskStatus {
        task: task.id.clone(),
        node,
        status,
    }]))
}

fn node(rng: &mut Rng, position: usize, now: Timestamp) -> Node {
    let (hostname, addr) = NODES[position];
    let role = if position == 0 {
        Role::Manager
    } else {
        Role::Worker
    };
    Node {
        id: Id::draw(rng),
        meta: meta(now),
        spec: NodeSpec {
            role,
            ..NodeSpec::default()
        },
        description: Some(NodeDescription {
            hostname: hostname.to_owned(),
            platform: platform(),
            resources: Resources {
                nano_cpus: 2_000_000_000,
                memory_bytes: 2_062_471_168,
                ..Resources::default()
            },
            engine: EngineDescription {
                engine_version: "0.1.0".to_owned(),
                plugins: vec![("Network".to_owned(), "overlay".to_owned())],
                ..EngineDescription::default()
            },
            ..NodeDescription::default()
        }),
        status: NodeStatus {
            state: NodeState::Ready,
            addr: addr.parse().ok(),
            since: now,
            ..NodeStatus::default()
        },
        manager_status: (role == Role::Manager).then(|| ManagerStatus {
            raft_id: 1,
            leader: true,
            reachability: Reachability::Reachable,
            addr: format!("{addr}:2377"),
        }),
        certificate: Certificate::default(),
        networks: Vec::new(),
    }
}

fn meta(now: Timestamp) -> Meta {
    Meta {
        version: 0,
        created_at: now,
        updated_at: now,
    }
}

fn platform() -> Platform {
    Platform {
        architecture: "x86_64".to_owned(),
        os: "linux".to_owned(),
    }
}

#[async_trait]
impl ClusterPort for Memory {
    fn status(&self) -> SwarmStatus {
        let (me, locked) = {
            let state = self.lock();
            (state.me.clone(), state.locked)
        };
        let (_, addr) = NODES[0];
        match me {
            None => SwarmStatus::default(),
            Some(me) => SwarmStatus {
                state: match locked {
                    true => LocalNodeState::Locked,
                    false => LocalNodeState::Active,
                },
                role: Role::Manager,
                node_addr: addr.parse().ok(),
                managers: vec![(me.to_string(), format!("{addr}:2377"))],
                node_id: Some(me),
                error: String::new(),
            },
        }
    }

    fn view(&self) -> Option<View> {
        let state = self.lock();
        let manages = state.me.is_some() && !state.locked;
        manages.then(|| state.store.view())
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    async fn request(&self, request: ClusterRequest) -> Result<ClusterResponse, ApiError> {
        let answer = {
            let mut state = self.lock();
            let view = state.store.view();
            let mut ctx = state.ctx();
            let (proposal, response) = control::handle(&view, &request, &mut ctx)?;
            state.index += 1;
            let index = state.index;
            let proposals = vec![proposal];
            let mut results = state.store.apply(index, &Entry { proposals });
            match results.pop() {
                Some(Err(error)) => Err(control::refused(&error)),
                Some(Ok(_)) | None => Ok(response),
            }
        };
        std::future::ready(answer).await
    }

    async fn init(&self, params: InitParams) -> Result<Id<Node>, ApiError> {
        std::future::ready(self.make(params)).await
    }

    async fn join(&self, _: JoinParams) -> Result<Id<Node>, ApiError> {
        let error = ApiError::Unavailable("nobody to join".to_owned());
        std::future::ready(Err(error)).await
    }

    async fn leave(&self, force: bool) -> Result<(), ApiError> {
        let error = ApiError::Unavailable(
            "You are attempting to leave the swarm on a node that is participating as a manager."
                .to_owned(),
        );
        if !force {
            return Err(error);
        }
        self.lock().me = None;
        std::future::ready(Ok(())).await
    }

    /// Each task of the selection that has a container has said one thing.
    async fn logs(&self, selection: Selection, _: LogsRequest) -> Result<TaskLogStream, ApiError> {
        let view = self.lock().store.view();
        let lines: Vec<_> = view
            .tasks()
            .filter(|task| selection.has(task))
            .filter_map(|task| {
                Some(Ok(TaskLogLine {
                    node: task.node_id.as_ref()?.to_string(),
                    service: task.service_id.to_string(),
                    task: task.id.to_string(),
                    line: LogLine {
                        stream: OutputStream::Stdout,
                        time: Timestamp(1_700_000_000_000_000_000),
                        line: Bytes::from(format!("I'm slot {}\n", task.slot)),
                    },
                }))
            })
            .collect();
        let stream: TaskLogStream = Box::pin(stream::iter(lines));
        std::future::ready(Ok(stream)).await
    }

    async fn unlock(&self, key: UnlockKey) -> Result<(), ApiError> {
        let answer = {
            let mut state = self.lock();
            let view = state.store.view();
            let own = view.cluster().and_then(|it| it.unlock_key.clone());
            if !state.locked {
                Err(ApiError::Conflict("swarm is not locked".to_owned()))
            } else if own == Some(key) {
                state.locked = false;
                Ok(())
            } else {
                Err(ApiError::Unauthorized(
                    "swarm could not be unlocked: invalid key provided".to_owned(),
                ))
            }
        };
        std::future::ready(answer).await
    }
}

/// The manager's own node: what runs there, by the store.
pub(crate) struct MemoryNode(pub(super) Arc<Memory>);

#[async_trait]
impl LocalPort for MemoryNode {
    fn info(&self) -> LocalInfo {
        LocalInfo {
            name: NODES[0].0.to_owned(),
            machine_id: "0123456789abcdef0123456789abcdef".to_owned(),
            platform: platform(),
            kernel: "6.12.0".to_owned(),
            operating_system: "Skep".to_owned(),
            cpus: 2,
            memory: 2_062_471_168,
            images: 1,
            root: "/var/lib/skep".to_owned(),
            ..LocalInfo::default()
        }
    }

    async fn containers(&self) -> Result<Vec<LocalContainer>, ApiError> {
        let (me, view) = {
            let state = self.0.lock();
            (state.me.clone(), state.store.view())
        };
        let mine = me.iter().flat_map(|me| view.tasks_on_node(me));
        let containers = mine.filter_map(|task| {
            let container = task.status.container_status.as_ref()?;
            let spec = task.spec.container_spec.as_ref()?;
            let running = task.status.state == TaskState::Running;
            Some(LocalContainer {
                id: container.container_id.clone(),
                name: task.name(),
                image: spec.image.clone(),
                args: spec.args.clone(),
                state: if running {
                    ContainerState::Running
                } else {
                    ContainerState::Exited
                },
                created: task.meta.created_at,
                started: Some(task.status.timestamp),
                ..LocalContainer::default()
            })
        });
        std::future::ready(Ok(containers.collect())).await
    }

    async fn logs(&self, _: &str, request: LogsRequest) -> Result<LogStream, ApiError> {
        let lines = [
            (OutputStream::Stdout, "I'm ready\n"),
            (OutputStream::Stderr, "a warning\n"),
            (OutputStream::Stdout, "GET /\n"),
        ];
        let skip = request.tail.map_or(0, |tail| {
            lines
                .len()
                .saturating_sub(usize::try_from(tail).unwrap_or(usize::MAX))
        });
        let lines = lines.into_iter().skip(skip).map(|(stream, line)| {
            Ok(LogLine {
                stream,
                time: Timestamp(1_700_000_000_000_000_000),
                line: Bytes::from(line),
            })
        });
        let stream: LogStream = Box::pin(stream::iter(lines));
        std::future::ready(Ok(stream)).await
    }

    async fn images(&self) -> Result<Vec<LocalImage>, ApiError> {
        std::future::ready(Ok(Vec::new())).await
    }

    async fn resolve_image(&self, reference: &str) -> Result<ResolvedImage, ApiError> {
        let answer = if reference.contains("unknown") {
            Err(ApiError::NotFound {
                kind: "image",
                reference: reference.to_owned(),
            })
        } else {
            Ok(ResolvedImage {
                media_type: "application/vnd.oci.image.manifest.v1+json".to_owned(),
                digest: format!("sha256:{:0>64}", 1),
                size: 500,
                platforms: vec![Platform {
                    architecture: "amd64".to_owned(),
                    os: "linux".to_owned(),
                }],
            })
        };
        std::future::ready(answer).await
    }

    /// Echoes its input and ends with the length of its command.
    async fn debug(&self, params: DebugParams) -> Result<DebugSession, ApiError> {
        let (input, mut given) = mpsc::channel::<Bytes>(1);
        let (sender, output) = mpsc::channel(1);
        tokio::spawn(async move {
            while let Some(bytes) = given.recv().await {
                let echo = DebugOutput::Bytes(OutputStream::Stdout, bytes);
                if sender.send(echo).await.is_err() {
                    return;
                }
            }
            let status = i32::try_from(params.command.len()).unwrap_or(-1);
            let _ = sender.send(DebugOutput::Exit(status)).await;
        });
        std::future::ready(Ok(DebugSession { input, output })).await
    }
}

/// The handle that the front doors hold, and the swarm behind it.
pub(crate) fn management() -> Management {
    let memory = Memory::start();
    Management::new(memory.clone(), Arc::new(MemoryNode(memory)))
}

/// The same after the restart of a manager whose swarm has autolock, and the key.
pub(crate) fn locked() -> (Management, UnlockKey) {
    let memory = Memory::start();
    let mut params = InitParams::default();
    let encryption = params.spec.encryption_config.get_or_insert_default();
    encryption.auto_lock_managers = true;
    memory.make(params).unwrap();
    let key = {
        let mut state = memory.lock();
        state.locked = true;
        let view = state.store.view();
        view.cluster().unwrap().unlock_key.clone().unwrap()
    };
    let management = Management::new(memory.clone(), Arc::new(MemoryNode(memory)));
    (management, key)
}
