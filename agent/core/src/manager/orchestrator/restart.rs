//! What follows when a task has ended: whether another takes its place, and when that one runs.

use std::time::Duration;

use super::{desire, new_task, slots::Slot};
use crate::{
    api::{NodeState, RestartPolicy, Service, SlotKey, Task, TaskState, task::RestartCondition},
    manager::Ctx,
    store::{Change, Proposal, View},
    time::Timestamp,
};

/// Docker's pause before a task that ended is started again.
const DELAY: Duration = Duration::from_secs(5);
/// A predecessor that has not stopped by then is not waited for.
const PREDECESSOR_TIMEOUT: Duration = Duration::from_secs(60);

/// The proposal that replaces the newest task of a slot in which nothing lives any more, or that settles
/// it when its policy says that nothing shall follow. `None`: there is nothing to do now.
pub(super) fn after_end(
    service: &Service,
    key: &SlotKey,
    slot: &Slot<'_>,
    ctx: &mut Ctx,
) -> Option<Proposal> {
    let ended = slot.newest()?;
    let policy = service.spec.task_template.restart_policy.as_ref();
    let settled = desire(ended, TaskState::Shutdown);
    if !allowed(policy, slot, ended, ctx.now) {
        return settled.map(|change| Proposal::of([change]));
    }
    if pauses(ended, ctx) {
        return None;
    }
    let next = replacement(service, key, ended, ctx);
    Some(Proposal::of(
        settled.into_iter().chain([Change::put_task(next)]),
    ))
}

/// A task that takes the place of one that has ended: it is prepared at once, and runs after the delay.
pub(super) fn replacement(service: &Service, key: &SlotKey, ended: &Task, ctx: &mut Ctx) -> Task {
    let policy = service.spec.task_template.restart_policy.as_ref();
    let mut next = new_task(service, key, Some(ended), ctx);
    next.desired_state = TaskState::Ready;
    // The delay keeps a program that crashes from spinning. One that was moved did not crash.
    if ended_by_itself(ended) {
        let delay = policy.and_then(|policy| policy.delay).unwrap_or(DELAY);
        next.not_before = Some(ctx.now + delay);
    }
    next
}

/// Whether a task ended in the pause before its own start, as one whose image cannot be had does. That pause goes on, or
/// such tasks would follow one another as fast as they fail.
pub(super) fn pauses(ended: &Task, ctx: &mut Ctx) -> bool {
    let end = ended.not_before.filter(|end| *end > ctx.now);
    if let Some(end) = end {
        ctx.wake(end);
    }
    end.is_some()
}

/// Whether a task came to an end that the managers did not want.
pub(super) fn ended_by_itself(task: &Task) -> bool {
    matches!(
        task.status.state,
        TaskState::Complete | TaskState::Failed | TaskState::Rejected
    )
}

/// Whether the policy lets another task follow the newest one of the slot.
pub(super) fn allowed(
    policy: Option<&RestartPolicy>,
    slot: &Slot<'_>,
    ended: &Task,
    now: Timestamp,
) -> bool {
    let condition = policy.and_then(|policy| policy.condition);
    let wanted = match condition.unwrap_or_default() {
        RestartCondition::None => false,
        RestartCondition::OnFailure => ended.status.state != TaskState::Complete,
        RestartCondition::Any => true,
    };
    let attempts = policy.and_then(|policy| policy.max_attempts).unwrap_or(0);
    if !wanted || attempts == 0 {
        return wanted;
    }
    let window = policy.and_then(|policy| policy.window).unwrap_or_default();
    let of_version = |task: &&&Task| task.spec_version == ended.spec_version;
    // The first task of a version is no restart.
    let restarts = slot.tasks.iter().filter(of_version).skip(1);
    let counted = restarts.filter(|task| window.is_zero() || task.meta.created_at + window >= now);
    (counted.count() as u64) < attempts
}

/// Lets a prepared task of a slot run once its delay is over and those before it have stopped.
pub(super) fn promote(
    view: &View,
    slot: &Slot<'_>,
    task: &Task,
    ctx: &mut Ctx,
) -> Option<Proposal> {
    if task.desired_state != TaskState::Ready {
        return None;
    }
    if let Some(not_before) = task.not_before.filter(|moment| *moment > ctx.now) {
        ctx.wake(not_before);
        return None;
    }
    let predecessor = task.predecessor.as_ref().and_then(|id| view.task(id));
    // Its predecessor may never have come so far that it stopped the one before.
    let ending = slot.tasks.iter().copied().filter(|it| !it.is_wanted());
    let mut before = ending.chain(predecessor.map(|it| &**it));
    if before.any(|it| may_still_run(view, it)) {
        let timeout = task.meta.created_at + PREDECESSOR_TIMEOUT;
        if timeout > ctx.now {
            ctx.wake(timeout);
            return None;
        }
    }
    desire(task, task.goal()).map(|change| Proposal::of([change]))
}

fn may_still_run(view: &View, task: &Task) -> bool {
    if task.status.state.is_terminal() || !task.is_assigned() {
        return false;
    }
    let node = task.node_id.as_ref().and_then(|id| view.node(id));
    node.is_some_and(|node| node.status.state != NodeState::Down)
}
