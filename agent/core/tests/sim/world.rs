//! One cluster: a log, a leader that comes and goes, nodes, and users.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use skep_core::{
    api::{ClusterRequest, ClusterResponse, Meta, Role, Secret, Service},
    id::Id,
    manager::{
        self, Ctx, control,
        dispatcher::Dispatcher,
        mesh::{Mesh, Watchers},
    },
    rng::Rng,
    store::{Change, Entry, Proposal, View},
    testing::{
        bench,
        fleet::{Managers, SimNode},
        log::{ModelLog, Outcome, Ticket},
    },
    time::{Now, Timestamp},
};

use crate::invariants::Invariants;

/// Virtual time per step.
pub(crate) const STEP_MS: u64 = 250;
const NODES: u8 = 5;

pub(crate) struct World {
    pub(crate) log: ModelLog,
    pub(crate) nodes: Vec<SimNode>,
    pub(crate) leader: Option<Leader>,
    /// The mesh is served by a manager that does not fail.
    pub(crate) watchers: Watchers,
    mesh: Mesh,
    pub(crate) now: Now,
    pub(crate) rng: Rng,
    pub(crate) verbose: bool,
    /// What users have been told.
    pub(crate) acknowledged: BTreeMap<Id<Service>, Promise>,
    pending: BTreeMap<Ticket, Asked>,
    /// Reports whose fate their nodes wait for.
    reports: BTreeMap<Ticket, (usize, u64)>,
    invariants: Invariants,
    terms: u64,
}

/// Content of the one secret.
pub(crate) const SECRET: &[u8] = b"canary-5e1f";

/// The secret that some services use.
fn secret(ids: &mut Rng, now: Timestamp) -> Secret {
    Secret {
        id: Id::draw(ids),
        meta: Meta {
            version: 0,
            created_at: now,
            updated_at: now,
        },
        spec: bench::secret("db", SECRET),
    }
}

/// What a user may rely on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Promise {
    /// It was made, and nobody has asked to remove it.
    Made,
    /// Somebody has asked to remove it, perhaps in vain.
    PerhapsRemoved,
}

/// What a user waits for.
struct Asked(ClusterResponse);

/// What dies with leadership.
pub(crate) struct Leader {
    pub(crate) dispatcher: Dispatcher,
    ctx: Ctx,
    planning: Option<Ticket>,
    nodes_planning: Option<Ticket>,
    planned_at: Option<u64>,
    wake_at: Option<Timestamp>,
}

impl World {
    pub(crate) fn new(seed: u64, verbose: bool) -> Self {
        let rng = Rng::seeded(seed);
        let mut ids = rng.fork("ids");
        let mut log = ModelLog::new(rng.fork("log"));
        let wall = Self::wall_at(Now(0));
        let cluster = bench::cluster(&mut ids, wall);
        let mut changes = vec![Change::put_cluster(cluster)];
        let mut nodes = Vec::new();
        for number in 1..=NODES {
            let (hostname, addr) = (format!("n{number}"), IpAddr::from([192, 168, 77, number]));
            let role = if number == 1 {
                Role::Manager
            } else {
                Role::Worker
            };
            let node = bench::node(&mut ids, &hostname, addr, role);
            nodes.push(SimNode::new(
                node.id.clone(),
                &hostname,
                addr,
                rng.fork(&hostname),
                Now(0),
            ));
            changes.push(Change::put_node(node));
        }
        changes.push(Change::put_secret(secret(&mut ids, wall)));
        log.propose(
            Entry {
                proposals: vec![Proposal::of(changes)],
            },
            Now(0),
        );
        log.step(Now(0));
        let mut world = Self {
            log,
            nodes,
            leader: None,
            watchers: Watchers::default(),
            mesh: Mesh::default(),
            now: Now(0),
            rng: rng.fork("chaos"),
            verbose,
            acknowledged: BTreeMap::new(),
            pending: BTreeMap::new(),
            reports: BTreeMap::new(),
            invariants: Invariants::default(),
            terms: 0,
        };
        world.elect();
        world
    }

    fn wall_at(now: Now) -> Timestamp {
        Timestamp(1_700_000_000_000_000_000 + i128::from(now.0))
    }

    pub(crate) fn wall(&self) -> Timestamp {
        Self::wall_at(self.now)
    }

    #[expect(clippy::print_stdout, reason = "what happened, for who replays a seed")]
    pub(crate) fn say(&self, text: impl FnOnce() -> String) {
        if self.verbose {
            println!("{:>8.2} {}", self.now.0 as f64 / 1e9, text());
        }
    }

    /// A new leader begins with nothing but the state.
    pub(crate) fn elect(&mut self) {
        self.terms += 1;
        self.log.new_term();
        self.pending.clear();
        let wall = self.wall();
        for (number, batch) in std::mem::take(&mut self.reports).into_values() {
            self.nodes[number].reported(batch, false, self.now, wall);
        }
        let rng = self.rng.fork(&format!("term {}", self.terms));
        let view = self.log.view();
        self.leader = Some(Leader {
            dispatcher: Dispatcher::new(&view, rng.fork("sessions"), self.now),
            ctx: Ctx::new(self.wall(), rng.fork("plans")),
            planning: None,
            nodes_planning: None,
            planned_at: None,
            wake_at: None,
        });
    }

    /// A user asks. Whether it was done is heard later, or never.
    pub(crate) fn ask(&mut self, request: &ClusterRequest) {
        let Some(leader) = &mut self.leader else {
            return;
        };
        if let ClusterRequest::ServiceRemove(reference) = request {
            let id = reference.parse::<Id<Service>>();
            if let Some(promise) = id.ok().and_then(|id| self.acknowledged.get_mut(&id)) {
                *promise = Promise::PerhapsRemoved;
            }
        }
        let decided = control::handle(&self.log.view(), request, &mut leader.ctx);
        if let Ok((proposal, response)) = decided {
            let ticket = self.log.propose(
                Entry {
                    proposals: vec![proposal],
                },
                self.now,
            );
            self.pending.insert(ticket, Asked(response));
        }
    }

    pub(crate) fn step(&mut self) {
        self.now = self.now + Duration::from_millis(STEP_MS);
        for (ticket, outcome) in self.log.step(self.now) {
            self.hear(ticket, &outcome);
        }
        let view = self.log.view();
        self.lead(&view);
        self.run_nodes(&view);
        let view = self.log.view();
        let mut invariants = std::mem::take(&mut self.invariants);
        invariants.check(self, &view);
        self.invariants = invariants;
    }

    fn run_nodes(&mut self, view: &View) {
        let wall = self.wall();
        if self.mesh.version() != view.version() {
            self.mesh = Mesh::of(view);
        }
        for (number, node) in self.nodes.iter_mut().enumerate() {
            let managers = Managers {
                view,
                mesh: &self.mesh,
                watchers: &mut self.watchers,
                leader: self.leader.as_mut().map(|leader| &mut leader.dispatcher),
            };
            for report in node.step(managers, self.now, wall) {
                let proposals = report.changes.into_iter();
                let proposals = proposals.map(|change| Proposal::of([change])).collect();
                let ticket = self.log.propose(Entry { proposals }, self.now);
                self.reports.insert(ticket, (number, report.batch));
            }
        }
    }

    fn hear(&mut self, ticket: Ticket, outcome: &Outcome) {
        if let Some(leader) = &mut self.leader {
            for waiting in [&mut leader.planning, &mut leader.nodes_planning] {
                if *waiting == Some(ticket) {
                    *waiting = None;
                    leader.planned_at = None;
                }
            }
        }
        if let Some((number, batch)) = self.reports.remove(&ticket) {
            let accepted = matches!(outcome, Outcome::Committed(_));
            let wall = self.wall();
            self.nodes[number].reported(batch, accepted, self.now, wall);
        }
        let Some(Asked(response)) = self.pending.remove(&ticket) else {
            return;
        };
        let done = match outcome {
            Outcome::Committed(results) => results.iter().all(Result::is_ok),
            Outcome::Unknown => false,
        };
        if let ClusterResponse::ServiceCreated(id) = response
            && done
        {
            self.acknowledged.entry(id).or_insert(Promise::Made);
        }
    }

    /// The leader's turn: its loops, and what it knows of the nodes.
    fn lead(&mut self, view: &View) {
        let wall = self.wall();
        let Some(leader) = &mut self.leader else {
            return;
        };
        leader.ctx.now = wall;
        leader.dispatcher.tick(self.now);
        if leader.nodes_planning.is_none() {
            let proposals = leader.dispatcher.wishes(view, wall);
            if !proposals.is_empty() {
                leader.nodes_planning = Some(self.log.propose(Entry { proposals }, self.now));
            }
        }
        let due = leader.wake_at.is_some_and(|at| at <= wall);
        let news = leader.planned_at != Some(view.version());
        if leader.planning.is_none() && (due || news) {
            let pass = manager::pass(view, &mut leader.ctx);
            leader.planned_at = Some(view.version());
            leader.wake_at = pass.wake_at;
            if !pass.proposals.is_empty() {
                let entry = Entry {
                    proposals: pass.proposals,
                };
                leader.planning = Some(self.log.propose(entry, self.now));
            }
        }
    }

    /// Whether the leader has nothing to do for now.
    pub(crate) fn leader_is_idle(&self) -> bool {
        let leader = self.leader.as_ref();
        leader.is_some_and(|it| it.planning.is_none() && it.nodes_planning.is_none())
    }
}
