//! One leadership after another.

use std::{collections::BTreeMap, future::pending, time::Duration};

use skep_core::{
    api::Node,
    id::Id,
    manager::{self, Ctx, ca, dispatcher::Dispatcher, role},
    rng::Rng,
    store::{Proposal, View},
    time::{Now, Timestamp},
};
use skep_host::clock;
use tokio::{sync::mpsc, task::JoinHandle, time::sleep};
use tokio_util::sync::CancellationToken;

use super::{Call, Session};
use crate::{
    identity::{Authority, NodeSubject, authority::DEFAULT_NODE_LIFE},
    raft::RaftHandle,
};

/// Pause after a pass that could not be proposed, or whose proposals were all refused.
const RETRY: Duration = Duration::from_millis(500);

/// What a pass or a batch of wishes left to do.
struct Done {
    /// The wall clock's time of the next pass.
    wake_at: Option<Timestamp>,
    /// Nothing of it got into the store.
    fruitless: bool,
}

/// The leader's task.
pub(super) struct Leader {
    raft: RaftHandle,
    calls: mpsc::Receiver<Call>,
    rng: Rng,
}

/// What lives as long as one leadership.
struct Term {
    dispatcher: Dispatcher,
    sessions: BTreeMap<Id<Node>, Session>,
    /// A pass of the loops is under way, or was done and asked to be called again.
    pass: Option<JoinHandle<Done>>,
    /// What the dispatcher and the authority want written is on its way.
    wishes: Option<JoinHandle<Done>>,
    /// A manager is being taken out of the raft group.
    removal: Option<JoinHandle<Done>>,
    /// The raft group as it was looked at last.
    group: role::Group,
    pass_outdated: bool,
    wishes_outdated: bool,
    wake_at: Option<Timestamp>,
    /// Not before this moment, after a fruitless attempt.
    pause: Now,
}

impl Leader {
    pub(super) fn new(raft: RaftHandle, calls: mpsc::Receiver<Call>, rng: Rng) -> Self {
        Self { raft, calls, rng }
    }

    /// Leads whenever raft says so, until `stop`.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        loop {
            let leads = self.raft.leads();
            let ended = match leads {
                Some(term) => {
                    tracing::info!(raft.term = term, "this manager leads");
                    self.lead(term, &stop).await
                }
                None => self.follow(&stop).await,
            };
            if ended {
                return;
            }
        }
    }

    /// Answers calls by dropping them until leadership comes. Returns whether all is over.
    async fn follow(&mut self, stop: &CancellationToken) -> bool {
        loop {
            tokio::select! {
                () = stop.cancelled() => return true,
                () = self.raft.leadership_changed(None) => return false,
                call = self.calls.recv() => if call.is_none() { return true },
            }
        }
    }

    async fn lead(&mut self, term: u64, stop: &CancellationToken) -> bool {
        // Whatever was committed before is applied before the first decision.
        let Ok(view) = self.raft.linearizable().await else {
            sleep(Duration::from_millis(100)).await;
            return stop.is_cancelled();
        };
        self.raft.begin_to_reach();
        let mut states = self.raft.published().subscribe();
        let dispatcher = Dispatcher::new(&view, self.rng.fork("dispatcher"), clock::now());
        let mut state = Term::new(dispatcher);
        let over = loop {
            state.work(&self.raft, &mut self.rng);
            let deadline = state.deadline();
            tokio::select! {
                () = stop.cancelled() => break true,
                () = self.raft.leadership_changed(Some(term)) => break false,
                changed = states.changed() => {
                    if changed.is_err() { break true }
                    state.look_again();
                }
                call = self.calls.recv() => match call {
                    Some(call) => state.answer(call, &self.raft.view().unwrap_or_default()),
                    None => break true,
                },
                done = finished(&mut state.pass) => state.pass_done(&done),
                done = finished(&mut state.wishes) => state.rest_after(&done),
                done = finished(&mut state.removal) => state.rest_after(&done),
                () = self.raft.group_changed(&state.group) => {}
                () = sleep_until(deadline) => state.tick(&self.raft.view().unwrap_or_default()),
            }
        };
        tracing::info!(raft.term = term, "this manager no longer leads");
        state.end();
        over
    }
}

/// The result of a task that may not be there.
async fn finished(task: &mut Option<JoinHandle<Done>>) -> Done {
    let Some(handle) = task else {
        return pending().await;
    };
    let done = handle.await;
    *task = None;
    // A panic in a pass ends the process; only cancellation comes here.
    done.unwrap_or(Done {
        wake_at: None,
        fruitless: true,
    })
}

async fn sleep_until(deadline: Option<Now>) {
    match deadline {
        Some(deadline) => sleep(deadline.since(clock::now())).await,
        None => pending().await,
    }
}

impl Term {
    fn new(dispatcher: Dispatcher) -> Self {
        Self {
            dispatcher,
            sessions: BTreeMap::new(),
            pass: None,
            wishes: None,
            removal: None,
            group: role::Group::default(),
            pass_outdated: true,
            wishes_outdated: true,
            wake_at: None,
            pause: Now::default(),
        }
    }

    fn look_again(&mut self) {
        self.pass_outdated = true;
        self.wishes_outdated = true;
    }

    /// Starts what there is to do: one pass and one batch of wishes at a time.
    fn work(&mut self, raft: &RaftHandle, rng: &mut Rng) {
        let now = clock::now();
        let wall = clock::timestamp();
        let group = raft.group();
        if group != self.group {
            self.group = group;
            self.look_again();
        }
        if now < self.pause {
            return;
        }
        let due = self.wake_at.is_some_and(|at| at <= wall);
        if self.pass.is_none() && (self.pass_outdated || due) {
            self.pass_outdated = false;
            self.wake_at = None;
            let ctx = Ctx::new(wall, Rng::seeded(rng.next_u64()));
            self.pass = Some(tokio::spawn(run_pass(raft.clone(), ctx)));
        }
        if self.wishes.is_none() && self.wishes_outdated {
            self.wishes_outdated = false;
            let Some(view) = raft.view() else { return };
            let ctx = Ctx::new(wall, Rng::seeded(rng.next_u64()));
            let mut proposals = self.dispatcher.wishes(&view, wall);
            proposals.extend(sign_requests(&view, &ctx));
            proposals.extend(role::marks(&view, &self.group, wall));
            if !proposals.is_empty() {
                self.wishes = Some(tokio::spawn(propose(raft.clone(), proposals, None)));
            }
            if self.removal.is_none() {
                let surplus = role::surplus(&view, &self.group);
                self.removal = surplus.map(|id| tokio::spawn(remove(raft.clone(), id)));
            }
        }
    }

    fn pass_done(&mut self, done: &Done) {
        self.wake_at = done.wake_at;
        self.rest_after(done);
    }

    /// Proposals that come to nothing are not repeated at the speed of the disk.
    fn rest_after(&mut self, done: &Done) {
        if done.fruitless {
            self.pause = clock::now() + RETRY;
            self.look_again();
        }
    }

    fn deadline(&self) -> Option<Now> {
        let now = clock::now();
        let pause = (self.pause > now).then_some(self.pause);
        // No pass begins before the pause is over: to wake up earlier would be to spin.
        let wake = self.wake_at.map(|at| now + at.since(clock::timestamp()));
        let wake = wake.map(|wake| pause.map_or(wake, |pause| wake.max(pause)));
        [pause, wake, self.dispatcher.deadline()]
            .into_iter()
            .flatten()
            .min()
    }

    fn tick(&mut self, view: &View) {
        let deadline = self.dispatcher.deadline();
        if deadline.is_none_or(|deadline| deadline > clock::now()) {
            return;
        }
        self.dispatcher.tick(clock::now());
        self.wishes_outdated = true;
        let dispatcher = &mut self.dispatcher;
        self.sessions.retain(|node, session| {
            let stands = dispatcher.check_session(view, node, &session.id).is_ok();
            if !stands {
                tracing::warn!(node.id = %node, "a node was silent for too long: it is down");
                session.over.cancel();
            }
            stands
        });
    }

    fn answer(&mut self, call: Call, view: &View) {
        let now = clock::now();
        // Who no longer waits does not need the answer: results of `send` are of no use here.
        match call {
            Call::Register {
                node,
                description,
                addr,
                answer,
            } => {
                let registered = self
                    .dispatcher
                    .register(view, &node, *description, addr, now)
                    .map(|id| self.open(node, id));
                self.wishes_outdated = true;
                let _ = answer.send(registered);
            }
            Call::Heartbeat {
                node,
                session,
                answer,
            } => {
                let _ = answer.send(self.dispatcher.heartbeat(view, &node, &session, now));
            }
            Call::Check {
                node,
                session,
                answer,
            } => {
                let checked = self.dispatcher.check_session(view, &node, &session);
                let over = self.sessions.get(&node).map(|it| it.over.clone());
                let _ = answer.send(checked.map(|()| over.unwrap_or_default()));
            }
            Call::Leave {
                node,
                session,
                answer,
            } => {
                let left = self.dispatcher.left(view, &node, &session);
                if left.is_ok() {
                    self.close(&node);
                }
                self.wishes_outdated = true;
                let _ = answer.send(left);
            }
        }
    }

    fn open(&mut self, node: Id<Node>, id: String) -> Session {
        self.close(&node);
        let session = Session {
            id,
            over: CancellationToken::new(),
        };
        self.sessions.insert(node, session.clone());
        session
    }

    fn close(&mut self, node: &Id<Node>) {
        if let Some(session) = self.sessions.remove(node) {
            session.over.cancel();
        }
    }

    fn end(self) {
        for session in self.sessions.values() {
            session.over.cancel();
        }
        for task in [self.pass, self.wishes, self.removal].into_iter().flatten() {
            task.abort();
        }
    }
}

/// Runs the loops once over the last state, away from the threads that answer nodes.
async fn run_pass(raft: RaftHandle, ctx: Ctx) -> Done {
    let Some(view) = raft.view() else {
        return Done {
            wake_at: None,
            fruitless: false,
        };
    };
    let run = move || {
        let mut ctx = ctx;
        manager::pass(&view, &mut ctx)
    };
    match tokio::task::spawn_blocking(run).await {
        Ok(pass) => propose(raft, pass.proposals, pass.wake_at).await,
        Err(_) => Done {
            wake_at: None,
            fruitless: true,
        },
    }
}

async fn propose(raft: RaftHandle, proposals: Vec<Proposal>, wake_at: Option<Timestamp>) -> Done {
    if proposals.is_empty() {
        return Done {
            wake_at,
            fruitless: false,
        };
    }
    let fruitless = match raft.propose_all(proposals).await {
        Ok(results) => {
            for error in results.iter().filter_map(|result| result.as_ref().err()) {
                tracing::debug!(%error, "a proposal of the manager was refused, the next pass looks again");
            }
            results.iter().all(Result::is_err)
        }
        Err(error) => {
            tracing::warn!(%error, "proposals of the manager did not get into the log: {error}");
            true
        }
    };
    Done { wake_at, fruitless }
}

/// Takes a member out of the raft group.
async fn remove(raft: RaftHandle, id: u64) -> Done {
    let removed = raft.remove_member(id).await;
    match &removed {
        Ok(()) => tracing::info!(raft.id = id, "a manager was taken out of the raft group"),
        Err(error) => {
            tracing::warn!(raft.id = id, %error, "a manager could not be taken out of the raft group: {error}");
        }
    }
    Done {
        wake_at: None,
        fruitless: removed.is_err(),
    }
}

/// Signs the requests that wait for it.
fn sign_requests(view: &View, ctx: &Ctx) -> Vec<Proposal> {
    let Some(cluster) = view.cluster() else {
        return Vec::new();
    };
    let mut unsigned = ca::unsigned(view).peekable();
    if unsigned.peek().is_none() {
        return Vec::new();
    }
    let authority = match Authority::from_pem(&cluster.root_ca.certificate, &cluster.root_ca.key) {
        Ok(authority) => authority,
        Err(error) => {
            tracing::error!(%error, "the cluster's authority is damaged: no certificate can be signed: {error}");
            return Vec::new();
        }
    };
    let life = match cluster.spec.ca_config.node_cert_expiry {
        Duration::ZERO => DEFAULT_NODE_LIFE,
        chosen => chosen,
    };
    let sign = |node: &Node| {
        let subject = NodeSubject {
            node_id: node.id.clone(),
            role: node.certificate.role,
            cluster_id: cluster.id.clone(),
        };
        let request = &node.certificate.csr;
        let outcome = authority.sign_node(request, &subject, life, ctx.now);
        if let Err(error) = &outcome {
            tracing::warn!(node.id = %node.id, %error, "a certificate request was refused: {error}");
        }
        let outcome = outcome.map_err(|error| error.to_string());
        ca::signed(view, &node.id, request, outcome, ctx)
    };
    unsigned.filter_map(sign).collect()
}
