//! The leader's machine. Everything here reads a [`View`] and answers with proposals; the loops of
//! a [`pass`] never call one another, they meet in the store.
//!
//! - [`pass`]: retire, orchestrate, allocate, schedule, reap. Level-triggered: a pass at the start
//!   and one after any crash give the same result as no crash.
//! - [`control`]: requests of users become proposals, or a clear refusal.
//! - [`query`]: lookups and lists for every front door.
//! - [`dispatcher`]: sessions of nodes, their assignments, what they report.
//! - [`mesh`]: what each node must know of its networks.
//! - [`logs`]: whose lines a subscription of logs wants.
//! - [`ca`]: who may join, and as what.

pub mod allocator;
pub mod ca;
pub mod constraint;
pub mod control;
pub mod dispatcher;
pub mod found;
pub mod lock;
pub mod logs;
pub mod mesh;
pub mod orchestrator;
mod plan;
pub mod query;
pub mod reaper;
pub mod recover;
pub mod retire;
pub mod role;
pub mod scheduler;

use crate::{
    rng::Rng,
    store::{Proposal, View},
    time::Timestamp,
};

/// What a loop may use besides the view: the time, randomness, and a way to ask for another look.
#[derive(Debug, Clone)]
pub struct Ctx {
    /// The wall clock, sampled once for the whole pass or request.
    pub now: Timestamp,
    /// Draws ids.
    pub rng: Rng,
    wake_at: Option<Timestamp>,
}

impl Ctx {
    /// A context for one moment.
    #[must_use]
    pub fn new(now: Timestamp, rng: Rng) -> Self {
        Self {
            now,
            rng,
            wake_at: None,
        }
    }

    /// Asks for a pass at this time at the latest, even if nothing is committed until then.
    pub(crate) fn wake(&mut self, at: Timestamp) {
        self.wake_at = Some(self.wake_at.map_or(at, |earlier| earlier.min(at)));
    }
}

/// What a pass wants.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Pass {
    /// Proposals for one entry. Each is independent of the others: if one is refused because its
    /// objects were changed in the meantime, the rest holds, and the next pass sees to it.
    pub proposals: Vec<Proposal>,
    /// When to run the next pass if nothing is committed until then.
    pub wake_at: Option<Timestamp>,
}

/// One loop of the manager: what it wants changed, given the state.
pub type Loop = fn(&View, &mut Ctx) -> Vec<Proposal>;

/// The loops in their order; each one sees what those before it want.
pub const LOOPS: [Loop; 5] = [
    retire::retire,
    orchestrator::orchestrate,
    allocator::allocate,
    scheduler::schedule,
    reaper::reap,
];

/// At most so many changes leave one pass; the pass after the commit goes on.
const MAX_CHANGES: usize = 4096;

/// Runs every loop once. The leader runs it after a commit and at [`Pass::wake_at`], with one pass's
/// proposals in flight at a time.
///
/// A new leader runs the first pass once it has applied an entry of its own term: after that, nothing that
/// an earlier leader wanted can be committed any more, so no two leaders give one address twice.
#[must_use]
pub fn pass(view: &View, ctx: &mut Ctx) -> Pass {
    ctx.wake_at = None;
    let mut plan = plan::Plan::new(view);
    for step in LOOPS {
        let proposals = step(plan.view(), ctx);
        plan.add(&proposals);
    }
    Pass {
        proposals: plan.finish(ctx.now, MAX_CHANGES),
        wake_at: ctx.wake_at,
    }
}

#[cfg(test)]
mod tests;
