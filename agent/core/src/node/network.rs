//! Making the kernel's network equal to what it must be, and keeping it so.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use crate::{
    network::{
        NetOp, NetState, Ns, Sandbox, Scope, Step, desired::sandbox_scope, plan, state::LinkKind,
    },
    time::Now,
};

/// How often all of the kernel's state is read, whether or not an event told of a change.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// How long events are gathered before the kernel is looked at.
const GATHER: Duration = Duration::from_millis(100);
/// Pause after a failure; it doubles with each further one up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// One thing at a time: looking or changing.
#[derive(Debug)]
enum Busy {
    /// Reading; these namespaces only, or all.
    Looking(Option<BTreeSet<Ns>>),
    /// Changing these namespaces, towards the desired state of this generation.
    Applying(BTreeSet<Ns>),
}

/// What the loop wants done.
#[derive(Debug)]
pub(super) enum NetworkStep {
    /// Read the kernel's state.
    Observe(Scope),
    /// Carry these steps out, in order.
    Apply(Vec<NetOp>),
}

/// The loop: look, plan, apply, look again.
#[derive(Debug)]
pub(super) struct NetworkLoop {
    believed: Option<NetState>,
    /// What the kernel was changed towards since it was read last.
    towards: Option<Arc<NetState>>,
    busy: Option<Busy>,
    /// Namespaces that were changed and must be read before anything is said of them.
    unread: BTreeSet<Ns>,
    /// Namespaces that somebody else has changed.
    foreign: BTreeSet<Ns>,
    foreign_due: Option<Now>,
    next_full: Now,
    /// The generation of the desired state that was applied last.
    applied: Option<u64>,
    /// The generation that the kernel was last seen to equal.
    exact: Option<u64>,
    failures: u32,
    not_before: Option<Now>,
    error: Option<String>,
    /// Nothing has failed since steps were carried out last.
    clean: bool,
}

impl NetworkLoop {
    pub(super) fn new(now: Now) -> Self {
        Self {
            believed: None,
            towards: None,
            busy: None,
            unread: BTreeSet::new(),
            foreign: BTreeSet::new(),
            foreign_due: None,
            next_full: now,
            applied: None,
            exact: None,
            failures: 0,
            not_before: None,
            error: None,
            clean: false,
        }
    }

    /// Somebody has changed something in these namespaces.
    pub(super) fn changed(&mut self, mut namespaces: BTreeSet<Ns>, now: Now) {
        if let Some(Busy::Applying(touched)) = &self.busy {
            // Our own hand, most likely; these are read afterwards anyway.
            namespaces.retain(|ns| !touched.contains(ns));
        }
        if !namespaces.is_empty() {
            self.foreign.append(&mut namespaces);
            self.foreign_due.get_or_insert(now + GATHER);
        }
    }

    /// The kernel was read.
    pub(super) fn observed(&mut self, result: Result<NetState, String>, now: Now) {
        let Some(Busy::Looking(only)) = self.busy.take() else {
            return;
        };
        match result {
            Ok(seen) => self.believe(seen, only),
            Err(error) => {
                match only {
                    Some(only) => self.unread.extend(only),
                    None => self.next_full = now,
                }
                self.failed(error, now);
            }
        }
    }

    fn believe(&mut self, seen: NetState, only: Option<BTreeSet<Ns>>) {
        match (&mut self.believed, only) {
            (Some(believed), Some(only)) => {
                believed.namespaces.retain(|ns, _| !only.contains(ns));
                believed.namespaces.extend(seen.namespaces);
            }
            (believed, _) => *believed = Some(seen),
        }
        // Whatever was changed is read: nothing is changed while something is unread.
        self.towards = None;
    }

    /// Steps were carried out; the errors of those that could not be.
    pub(super) fn applied(&mut self, errors: &[String], now: Now) {
        let Some(Busy::Applying(touched)) = self.busy.take() else {
            return;
        };
        self.unread.extend(touched);
        if let Some(error) = errors.first() {
            self.failed(error.clone(), now);
        }
    }

    fn failed(&mut self, error: String, now: Now) {
        let pause = FIRST_PAUSE.saturating_mul(1 << self.failures.min(10));
        self.failures = self.failures.saturating_add(1);
        self.not_before = Some(now + pause.min(LONGEST_PAUSE));
        tracing::warn!(%error, failures = self.failures, "the network is not as it must be");
        self.error = Some(error);
        self.clean = false;
    }

    /// Decides what to do next. `generation` grows with each change of `desired`.
    pub(super) fn step(
        &mut self,
        desired: &Arc<NetState>,
        generation: u64,
        now: Now,
    ) -> Option<NetworkStep> {
        if self.busy.is_some() || self.not_before.is_some_and(|at| at > now) {
            return None;
        }
        if let Some(scope) = self.look(desired, now) {
            self.busy = Some(Busy::Looking(scope.only.clone()));
            return Some(NetworkStep::Observe(scope));
        }
        let ops = plan(desired, self.believed.as_ref()?);
        if ops.is_empty() {
            self.exact = Some(generation);
            self.failures = 0;
            self.not_before = None;
            self.error = None;
            return None;
        }
        if self.exact != Some(generation) && self.applied == Some(generation) && self.clean {
            // All steps were carried out and the kernel still differs: no use in haste.
            self.failed(
                format!(
                    "{} steps are still to do after all were done: {:?}",
                    ops.len(),
                    ops.first()
                ),
                now,
            );
            return None;
        }
        self.clean = true;
        self.exact = None;
        self.applied = Some(generation);
        self.towards = Some(Arc::clone(desired));
        self.busy = Some(Busy::Applying(self.touched(&ops)));
        Some(NetworkStep::Apply(ops))
    }

    /// What to read now, if anything.
    fn look(&mut self, desired: &NetState, now: Now) -> Option<Scope> {
        if self.believed.is_none() || now >= self.next_full {
            self.next_full = now + LOOK_EVERY;
            self.unread.clear();
            self.take_foreign();
            return Some(Scope::all(desired));
        }
        let mut only = std::mem::take(&mut self.unread);
        if self.foreign_due.is_some_and(|at| at <= now) {
            only.append(&mut self.take_foreign());
        }
        (!only.is_empty()).then(|| Scope::only(desired, only))
    }

    fn take_foreign(&mut self) -> BTreeSet<Ns> {
        self.foreign_due = None;
        std::mem::take(&mut self.foreign)
    }

    /// The namespaces that these steps change: of a pair of links, both.
    fn touched(&self, ops: &[NetOp]) -> BTreeSet<Ns> {
        let mut touched = BTreeSet::new();
        for op in ops {
            touched.insert(op.ns.clone());
            if let Step::CreateVeth(_, peer) = &op.step {
                touched.insert(peer.ns.clone());
            }
            if let Step::DeleteLink(name) = &op.step {
                touched.extend(self.peer(&op.ns, name));
            }
        }
        touched
    }

    fn peer(&self, ns: &Ns, name: &str) -> Option<Ns> {
        let link = self
            .believed
            .as_ref()?
            .namespaces
            .get(ns)?
            .links
            .get(name)?;
        match &link.kind {
            LinkKind::Veth(peer) => peer.as_ref().map(|peer| peer.ns.clone()),
            LinkKind::Loopback | LinkKind::Bridge | LinkKind::Vxlan(_) | LinkKind::Other(_) => None,
        }
    }

    /// Whether the kernel was seen to equal this generation.
    pub(super) fn is_exact(&self, generation: u64) -> bool {
        self.exact == Some(generation)
    }

    /// Whether the kernel was seen to have all of this sandbox, whatever else is wrong, and has lost nothing of it by a
    /// change towards a state without it since.
    pub(super) fn has(&self, sandbox: &Sandbox, desired: &NetState) -> bool {
        let scope = Scope::only(desired, sandbox_scope(sandbox));
        let wanted = desired.restricted(&scope);
        let is_in = |state: &NetState| plan(&wanted, &state.restricted(&scope)).is_empty();
        self.believed.as_ref().is_some_and(is_in) && self.towards.as_deref().is_none_or(is_in)
    }

    /// What failed last.
    pub(super) fn error(&self) -> Option<&str> {
        self.error.as_deref()
    }

    /// When to step again, at the latest.
    pub(super) fn deadline(&self) -> Option<Now> {
        if self.busy.is_some() {
            return None;
        }
        let due = self
            .foreign_due
            .map_or(self.next_full, |at| at.min(self.next_full));
        Some(self.not_before.unwrap_or(due))
    }
}
