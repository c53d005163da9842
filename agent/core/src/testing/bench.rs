//! A store and a manager without anything between them: each proposal is committed at once.

use std::{net::IpAddr, sync::Arc, time::Duration};

use crate::{
    api::{
        ApiError, Cluster, ClusterRequest, ClusterResponse, ClusterSpec, Config, ConfigSpec,
        ContainerSpec, EngineDescription, JoinTokens, Meta, Network, NetworkAttachmentConfig,
        NetworkSpec, Node, NodeDescription, NodeSpec, NodeState, NodeStatus, Platform, Resources,
        Role, RootCa, Secret, SecretSpec, Service, ServiceMode, ServiceSpec, Task, TaskSpec,
        TaskState, TaskStatus,
        node::Certificate,
        service::{Global, Replicated, ReplicatedJob},
    },
    id::Id,
    manager::{self, Ctx, control},
    rng::Rng,
    store::{Applied, ApplyError, Change, Entry, Proposal, Store, View},
    time::Timestamp,
};

/// A cluster on a work bench.
#[derive(Debug)]
pub struct Bench {
    /// The state.
    pub store: Store,
    /// Time and randomness of the leader.
    pub ctx: Ctx,
    index: u64,
}

/// A cluster object with the defaults of `swarm init`.
#[must_use]
pub fn cluster(rng: &mut Rng, now: Timestamp) -> Cluster {
    Cluster {
        id: Id::draw(rng),
        meta: Meta {
            version: 0,
            created_at: now,
            updated_at: now,
        },
        spec: ClusterSpec {
            name: "default".to_owned(),
            ..ClusterSpec::default()
        },
        root_ca: RootCa {
            join_tokens: JoinTokens {
                worker: "worker-token".to_owned(),
                manager: "manager-token".to_owned(),
            },
            ..RootCa::default()
        },
        data_path_port: 4789,
        default_addr_pool: vec!["10.0.0.0/8".to_owned()],
        subnet_size: 24,
        ingress_subnet: "10.255.0.0/16".to_owned(),
        unlock_key: None,
        removed_nodes: std::collections::BTreeMap::new(),
    }
}

/// What a node of four cores and 8 GiB says of itself.
#[must_use]
pub fn description(hostname: &str) -> NodeDescription {
    NodeDescription {
        hostname: hostname.to_owned(),
        platform: Platform {
            architecture: "x86_64".to_owned(),
            os: "linux".to_owned(),
        },
        resources: Resources {
            nano_cpus: 4_000_000_000,
            memory_bytes: 8 << 30,
            ..Resources::default()
        },
        engine: EngineDescription::default(),
        routes: Vec::new(),
        machine_id: format!("machine-{hostname}"),
    }
}

/// A node that is ready.
#[must_use]
pub fn node(rng: &mut Rng, hostname: &str, addr: IpAddr, role: Role) -> Node {
    Node {
        id: Id::draw(rng),
        meta: Meta::default(),
        spec: NodeSpec {
            role,
            ..NodeSpec::default()
        },
        description: Some(description(hostname)),
        status: NodeStatus {
            state: NodeState::Ready,
            addr: Some(addr),
            ..NodeStatus::default()
        },
        manager_status: None,
        certificate: Certificate::default(),
        networks: Vec::new(),
    }
}

/// A replicated service.
#[must_use]
pub fn service(name: &str, replicas: u64) -> ServiceSpec {
    ServiceSpec {
        name: name.to_owned(),
        task_template: TaskSpec {
            container_spec: Some(ContainerSpec {
                image: "busybox:latest".to_owned(),
                ..ContainerSpec::default()
            }),
            ..TaskSpec::default()
        },
        mode: ServiceMode {
            replicated: Some(Replicated {
                replicas: Some(replicas),
            }),
            ..ServiceMode::default()
        },
        ..ServiceSpec::default()
    }
}

/// A service with one task on each eligible node.
#[must_use]
pub fn global(name: &str) -> ServiceSpec {
    ServiceSpec {
        mode: ServiceMode {
            global: Some(Global {}),
            ..ServiceMode::default()
        },
        ..service(name, 0)
    }
}

/// A job of `total` tasks, of which `concurrent` run at a time.
#[must_use]
pub fn job(name: &str, concurrent: u64, total: u64) -> ServiceSpec {
    ServiceSpec {
        mode: ServiceMode {
            replicated_job: Some(ReplicatedJob {
                max_concurrent: Some(concurrent),
                total_completions: Some(total),
            }),
            ..ServiceMode::default()
        },
        ..service(name, 0)
    }
}

/// A job with one task on each eligible node.
#[must_use]
pub fn global_job(name: &str) -> ServiceSpec {
    ServiceSpec {
        mode: ServiceMode {
            global_job: Some(Global {}),
            ..ServiceMode::default()
        },
        ..service(name, 0)
    }
}

/// An overlay network.
#[must_use]
pub fn network(name: &str) -> NetworkSpec {
    NetworkSpec {
        name: name.to_owned(),
        driver: "overlay".to_owned(),
        ..NetworkSpec::default()
    }
}

/// A secret.
#[must_use]
pub fn secret(name: &str, data: &[u8]) -> SecretSpec {
    SecretSpec {
        name: name.to_owned(),
        data: data.to_vec().into(),
        ..SecretSpec::default()
    }
}

/// A config.
#[must_use]
pub fn config(name: &str, data: &[u8]) -> ConfigSpec {
    ConfigSpec {
        name: name.to_owned(),
        data: data.to_vec().into(),
        ..ConfigSpec::default()
    }
}

/// The entry of a template that joins a network.
#[must_use]
pub fn joins(target: &str) -> NetworkAttachmentConfig {
    NetworkAttachmentConfig {
        target: target.to_owned(),
        ..NetworkAttachmentConfig::default()
    }
}

impl Bench {
    /// A cluster with so many ready nodes, `node1` and on, the first a manager.
    #[must_use]
    pub fn new(nodes: u8) -> Self {
        let now = Timestamp(1_700_000_000_000_000_000);
        let mut bench = Self {
            store: Store::default(),
            ctx: Ctx::new(now, Rng::seeded(7)),
            index: 0,
        };
        let cluster = cluster(&mut bench.ctx.rng, now);
        bench.must([Change::put_cluster(cluster)]);
        for number in 1..=nodes {
            let role = if number == 1 {
                Role::Manager
            } else {
                Role::Worker
            };
            let addr = IpAddr::from([192, 168, 77, 10 + number]);
            let node = node(&mut bench.ctx.rng, &format!("node{number}"), addr, role);
            bench.must([Change::put_node(node)]);
        }
        bench
    }

    /// The state now.
    #[must_use]
    pub fn view(&self) -> View {
        self.store.view()
    }

    /// Commits one proposal.
    ///
    /// # Errors
    /// What the store refused it for.
    pub fn commit(&mut self, proposal: Proposal) -> Result<Applied, ApplyError> {
        self.commit_all(vec![proposal]).remove(0)
    }

    /// Commits one entry.
    pub fn commit_all(&mut self, proposals: Vec<Proposal>) -> Vec<Result<Applied, ApplyError>> {
        self.index += 1;
        self.store.apply(self.index, &Entry { proposals })
    }

    /// Commits changes that can't be refused.
    ///
    /// # Panics
    /// When they are.
    pub fn must(&mut self, changes: impl IntoIterator<Item = Change>) {
        if let Err(error) = self.commit(Proposal::of(changes)) {
            panic!("refused: {error}");
        }
    }

    /// Carries out a request.
    ///
    /// # Errors
    /// What it was refused for.
    pub fn request(&mut self, request: &ClusterRequest) -> Result<ClusterResponse, ApiError> {
        let (proposal, response) = control::handle(&self.view(), request, &mut self.ctx)?;
        self.commit(proposal)
            .map_err(|error| control::refused(&error))?;
        Ok(response)
    }

    /// Makes a service and returns its id.
    ///
    /// # Panics
    /// When it is refused.
    pub fn create(&mut self, spec: &ServiceSpec) -> Id<Service> {
        let request = ClusterRequest::ServiceCreate(Box::new(spec.clone()));
        match self.request(&request) {
            Ok(ClusterResponse::ServiceCreated(id)) => id,
            other => panic!("{other:?}"),
        }
    }

    /// Changes a service's spec.
    ///
    /// # Panics
    /// When it is refused.
    pub fn update(&mut self, id: &Id<Service>, change: impl FnOnce(&mut ServiceSpec)) {
        let service = Arc::clone(self.view().service(id).expect("the service is there"));
        let mut spec = service.spec.clone();
        change(&mut spec);
        let request = ClusterRequest::ServiceUpdate {
            service: id.to_string(),
            version: service.meta.version,
            spec: Box::new(spec),
            rollback: false,
        };
        self.request(&request).expect("a good update");
    }

    /// Makes a network and returns its id.
    ///
    /// # Panics
    /// When it is refused.
    pub fn create_network(&mut self, spec: &NetworkSpec) -> Id<Network> {
        let request = ClusterRequest::NetworkCreate(Box::new(spec.clone()));
        match self.request(&request) {
            Ok(ClusterResponse::NetworkCreated(id)) => id,
            other => panic!("{other:?}"),
        }
    }

    /// Makes a secret and returns its id.
    ///
    /// # Panics
    /// When it is refused.
    pub fn create_secret(&mut self, name: &str, data: &[u8]) -> Id<Secret> {
        let request = ClusterRequest::SecretCreate(Box::new(secret(name, data)));
        match self.request(&request) {
            Ok(ClusterResponse::SecretCreated(id)) => id,
            other => panic!("{other:?}"),
        }
    }

    /// Makes a config and returns its id.
    ///
    /// # Panics
    /// When it is refused.
    pub fn create_config(&mut self, name: &str, data: &[u8]) -> Id<Config> {
        let request = ClusterRequest::ConfigCreate(Box::new(config(name, data)));
        match self.request(&request) {
            Ok(ClusterResponse::ConfigCreated(id)) => id,
            other => panic!("{other:?}"),
        }
    }

    /// Passes until one wants nothing more; returns when the next one wants to run.
    ///
    /// # Panics
    /// When the manager does not come to rest.
    pub fn settle(&mut self) -> Option<Timestamp> {
        for _ in 0..50 {
            let pass = manager::pass(&self.view(), &mut self.ctx);
            if pass.proposals.is_empty() {
                return pass.wake_at;
            }
            for result in self.commit_all(pass.proposals) {
                result.expect("nobody else writes");
            }
        }
        panic!("the manager does not come to rest");
    }

    /// Lets time go by.
    pub fn wait(&mut self, time: Duration) {
        self.ctx.now = self.ctx.now + time;
    }

    /// The tasks of a service in order of slot and creation.
    #[must_use]
    pub fn tasks(&self, service: &Id<Service>) -> Vec<Arc<Task>> {
        let view = self.view();
        let mut tasks: Vec<_> = view.tasks_of_service(service).cloned().collect();
        tasks.sort_by_key(|task| (task.slot, task.meta.created_at));
        tasks
    }

    /// Those that are wanted and have not ended.
    #[must_use]
    pub fn live(&self, service: &Id<Service>) -> Vec<Arc<Task>> {
        let mut tasks = self.tasks(service);
        tasks.retain(|task| task.is_live());
        tasks
    }

    /// A task's node reports a state.
    pub fn report(&mut self, task: &Task, state: TaskState) {
        if let Some(node) = &task.node_id {
            let status = TaskStatus {
                timestamp: self.ctx.now,
                state,
                ..TaskStatus::default()
            };
            self.must([Change::TaskStatus {
                task: task.id.clone(),
                node: node.clone(),
                status,
            }]);
        }
    }

    /// Every node that is not down does what it is told at once, until nothing changes: tasks run, are
    /// stopped, go away.
    ///
    /// # Panics
    /// When the manager does not come to rest.
    pub fn obey(&mut self) {
        for _ in 0..50 {
            self.settle();
            let tasks: Vec<_> = self.view().tasks().cloned().collect();
            let mut news = false;
            for task in tasks {
                let state = task.status.state;
                let view = self.view();
                let node = task.node_id.as_ref().and_then(|id| view.node(id));
                let obeys = node.is_some_and(|node| node.status.state != NodeState::Down);
                if !obeys || state.is_terminal() {
                    continue;
                }
                // A job's program runs on until a test lets it end.
                let to = match task.is_wanted() {
                    true => task.desired_state.min(TaskState::Running),
                    false => TaskState::Shutdown,
                };
                if state < to && task.is_assigned() {
                    self.report(&task, to);
                    news = true;
                }
            }
            if !news {
                return;
            }
        }
        panic!("the cluster does not come to rest");
    }

    /// The node with this host name.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn node(&self, hostname: &str) -> Node {
        let node = manager::query::find_node(&self.view(), hostname);
        Node::clone(&node.expect("the node is there"))
    }

    /// Changes a node.
    pub fn change_node(&mut self, hostname: &str, change: impl FnOnce(&mut Node)) {
        let mut node = self.node(hostname);
        change(&mut node);
        self.must([Change::put_node(node)]);
    }

    /// Another ready worker joins.
    pub fn join(&mut self, hostname: &str, addr: IpAddr) {
        let node = node(&mut self.ctx.rng, hostname, addr, Role::Worker);
        self.must([Change::put_node(node)]);
    }

    /// The manager has seen a node go down.
    pub fn lose(&mut self, hostname: &str) {
        let now = self.ctx.now;
        self.change_node(hostname, |node| {
            node.status.state = NodeState::Down;
            node.status.since = now;
        });
    }
}
