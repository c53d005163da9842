//! Rolling updates: slots whose task is not what the service's spec says now are replaced, some at a
//! time.
//!
//! Nothing of an update's progress is kept but its status: which slots are done, under way or failed
//! is read off the tasks, so a new leader goes on where the old one stopped.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{ServicePlan, desire, new_task, restart, slots::Slot};
use crate::{
    api::{Service, SlotKey, Task, TaskSpec, TaskState, UpdateConfig, UpdateStatus},
    manager::{Ctx, constraint},
    store::{Change, Proposal, View},
    time::Timestamp,
};

/// How long a new task is watched unless the update's settings say otherwise.
const MONITOR: Duration = Duration::from_secs(5);

/// States of an update, as Docker names them.
pub(crate) mod state {
    pub(crate) const UPDATING: &str = "updating";
    pub(crate) const PAUSED: &str = "paused";
    pub(crate) const COMPLETED: &str = "completed";
    pub(crate) const ROLLBACK_STARTED: &str = "rollback_started";
    pub(crate) const ROLLBACK_PAUSED: &str = "rollback_paused";
    pub(crate) const ROLLBACK_COMPLETED: &str = "rollback_completed";
}

/// Replaces as many outdated slots as may be replaced now; returns those slots.
pub(super) fn plan(
    view: &View,
    service: &Service,
    slots: &BTreeMap<SlotKey, &Slot<'_>>,
    ctx: &mut Ctx,
    plan: &mut ServicePlan<'_>,
) -> BTreeSet<SlotKey> {
    let none = BTreeSet::new();
    let dirty: Vec<SlotKey> = slots
        .iter()
        .filter(|(_, slot)| outdated(view, service, slot))
        .map(|(key, _)| key.clone())
        .collect();
    let phase = Phase::of(service);
    if phase == Phase::Paused {
        return none;
    }
    if dirty.is_empty() {
        let status = completed(service, phase, slots, ctx);
        plan.proposals
            .extend(status.map(|status| with_status(service, status)));
        return none;
    }
    let config = config(service, phase);
    let failed = failure(service, &config, slots).filter(|_| config.failure_action != "continue");
    if let Some(failed) = failed {
        let proposal = on_failure(view, (service, phase), &config, failed, ctx);
        plan.proposals.push(proposal);
        return none;
    }
    if phase == Phase::Idle {
        let status = status(state::UPDATING, "update in progress", Some(ctx.now), None);
        plan.proposals.push(with_status(service, status));
    }
    let busy = slots
        .values()
        .filter(|slot| under_way(service, &config, slot, ctx));
    let budget = match usize::try_from(config.parallelism).unwrap_or(usize::MAX) {
        0 => usize::MAX,
        parallelism => parallelism.saturating_sub(busy.count()),
    };
    let mut replaced = BTreeSet::new();
    for key in in_order(dirty, slots) {
        if replaced.len() >= budget || !plan.has_room(service) {
            break;
        }
        let Some(proposal) = replace(service, &config, &key, slots[&key], ctx) else {
            continue;
        };
        plan.make(service, proposal);
        replaced.insert(key);
    }
    replaced
}

/// Where the service's update stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Idle,
    Updating,
    RollingBack,
    Paused,
}

impl Phase {
    fn of(service: &Service) -> Self {
        let status = service.update_status.as_ref();
        match status.map_or("", |status| status.state.as_str()) {
            state::UPDATING => Phase::Updating,
            state::ROLLBACK_STARTED => Phase::RollingBack,
            state::PAUSED | state::ROLLBACK_PAUSED => Phase::Paused,
            _ => Phase::Idle,
        }
    }
}

fn config(service: &Service, phase: Phase) -> UpdateConfig {
    let spec = &service.spec;
    let config = match phase {
        Phase::RollingBack => spec.rollback_config.clone(),
        Phase::Idle | Phase::Updating | Phase::Paused => spec.update_config.clone(),
    };
    config.unwrap_or(UpdateConfig {
        parallelism: 1,
        ..UpdateConfig::default()
    })
}

fn monitor(config: &UpdateConfig) -> Duration {
    match config.monitor {
        Duration::ZERO => MONITOR,
        chosen => chosen,
    }
}

/// Whether no wanted task of the slot is what the spec says.
fn outdated(view: &View, service: &Service, slot: &Slot<'_>) -> bool {
    let newest = slot.live().next_back().or_else(|| slot.newest());
    newest.is_some_and(|task| is_outdated(view, service, task))
}

/// Whether a task is not what its service's spec says now. A change of constraints that the task's node
/// satisfies is no reason to replace it.
#[must_use]
pub(crate) fn is_outdated(view: &View, service: &Service, task: &Task) -> bool {
    if task.spec_version == service.spec_version {
        return false;
    }
    let wanted = &service.spec.task_template;
    if task.endpoint.spec != service.spec.endpoint_spec {
        return true;
    }
    if task.spec == *wanted {
        return false;
    }
    let unplaced = |spec: &TaskSpec| TaskSpec {
        placement: None,
        ..spec.clone()
    };
    if unplaced(&task.spec) != unplaced(wanted) {
        return true;
    }
    let node = task.node_id.as_ref().and_then(|id| view.node(id));
    let placement = wanted.placement.clone().unwrap_or_default();
    let fits = node.is_some_and(|node| {
        let constraints = constraint::parse_all(&placement.constraints);
        constraints.is_some_and(|all| all.iter().all(|one| one.matches(node)))
    });
    !fits
}

/// Slots where nothing runs are updated first: nobody misses them.
fn in_order(mut dirty: Vec<SlotKey>, slots: &BTreeMap<SlotKey, &Slot<'_>>) -> Vec<SlotKey> {
    dirty.sort_by_cached_key(|key| {
        let mut live = slots[key].live();
        let runs = live.any(|task| task.status.state == TaskState::Running);
        (runs, key.clone())
    });
    dirty
}

/// Whether a slot still takes one of the places of the update's parallelism: its new task does not
/// run yet, or has not run for the delay.
fn under_way(service: &Service, config: &UpdateConfig, slot: &Slot<'_>, ctx: &mut Ctx) -> bool {
    let Some(task) = slot.live().next_back() else {
        return false;
    };
    let by_update = task.predecessor.as_ref().is_some_and(|predecessor| {
        let before = slot.tasks.iter().find(|task| task.id == *predecessor);
        before.is_some_and(|before| before.spec_version != task.spec_version)
    });
    if task.spec_version != service.spec_version || !by_update {
        return false;
    }
    let Some(since) = task.running_since else {
        return true;
    };
    let free = since + config.delay;
    if free > ctx.now {
        ctx.wake(free);
    }
    free > ctx.now
}

fn replace(
    service: &Service,
    config: &UpdateConfig,
    key: &SlotKey,
    slot: &Slot<'_>,
    ctx: &mut Ctx,
) -> Option<Proposal> {
    let old = slot.newest()?;
    // The new version was tried in this slot and ended: its restart policy decides.
    let retry = old.spec_version == service.spec_version;
    let policy = service.spec.task_template.restart_policy.as_ref();
    if retry && (!restart::allowed(policy, slot, old, ctx.now) || restart::pauses(old, ctx)) {
        return None;
    }
    let mut task = if retry {
        restart::replacement(service, key, old, ctx)
    } else {
        new_task(service, key, Some(old), ctx)
    };
    let start_first = config.order == "start-first";
    if !start_first {
        task.desired_state = TaskState::Ready;
    }
    // With start-first the one that serves stays until the new one does.
    let mut serving = slot
        .live()
        .filter(|it| it.status.state == TaskState::Running);
    let stays = serving.next_back().filter(|_| start_first).map(|it| &it.id);
    let goes = slot.tasks.iter().filter(|task| Some(&task.id) != stays);
    let shut = goes.filter_map(|task| desire(task, TaskState::Shutdown));
    Some(Proposal::of(shut.chain([Change::put_task(task.clone())])))
}

/// A task of the new version that failed before or soon after it ran, if there are too many of them.
fn failure<'a>(
    service: &Service,
    config: &UpdateConfig,
    slots: &BTreeMap<SlotKey, &Slot<'a>>,
) -> Option<&'a Task> {
    let status = service.update_status.as_ref()?;
    let begun = status.started_at?;
    let watched = monitor(config);
    let failed: Vec<&Task> = slots
        .values()
        .filter_map(|slot| {
            let tasks = slot.tasks.iter().copied();
            tasks.into_iter().find(|task| {
                let of_update = task.spec_version == service.spec_version;
                of_update && task.meta.created_at >= begun && failed_early(task, watched)
            })
        })
        .collect();
    // Counts far below 2^52: the conversion is exact.
    #[allow(clippy::cast_precision_loss)]
    let share = failed.len() as f64 / slots.len().max(1) as f64;
    let too_many = share > f64::from(config.max_failure_ratio);
    failed.last().copied().filter(|_| too_many)
}

fn failed_early(task: &Task, watched: Duration) -> bool {
    let failed = matches!(task.status.state, TaskState::Failed | TaskState::Rejected);
    let ran = task
        .running_since
        .map(|since| task.status.timestamp.since(since));
    failed && ran.is_none_or(|ran| ran < watched)
}

fn on_failure(
    view: &View,
    (service, phase): (&Service, Phase),
    config: &UpdateConfig,
    failed: &Task,
    ctx: &Ctx,
) -> Proposal {
    let because = format!("due to failure or early termination of task {}", failed.id);
    let begun = service.update_status.as_ref().and_then(|it| it.started_at);
    let rolling_back = phase == Phase::RollingBack;
    if config.failure_action == "rollback" && !rolling_back && may_roll_back(view, service) {
        let message = format!("update rolled back {because}");
        let mut service = service.clone();
        roll_back(&mut service, ctx.now, &message);
        return Proposal::of([Change::put_service(service)]);
    }
    let (name, message) = if rolling_back {
        (state::ROLLBACK_PAUSED, format!("rollback paused {because}"))
    } else {
        (state::PAUSED, format!("update paused {because}"))
    };
    with_status(service, status(name, &message, begun, None))
}

/// Whether the service can have its previous spec back: its networks are there, its ports still free.
fn may_roll_back(view: &View, service: &Service) -> bool {
    let Some(previous) = &service.previous_spec else {
        return false;
    };
    let networks = &previous.task_template.networks;
    let known = |target: &str| target.parse().is_ok_and(|id| view.network(&id).is_some());
    let mut ports = previous.endpoint_spec.iter().flat_map(|spec| &spec.ports);
    let free = ports.all(|port| {
        let holder = view.port_holder(port.protocol, port.published_port);
        holder.is_none_or(|holder| holder.id == service.id)
    });
    free && networks.iter().all(|wanted| known(&wanted.target))
}

/// Gives a service its previous spec back. One level only: the spec that it leaves is not kept.
pub(crate) fn roll_back(service: &mut Service, now: Timestamp, message: &str) {
    if let Some(previous) = service.previous_spec.take() {
        service.spec = previous;
        service.spec_version = service.meta.version;
        service.update_status = Some(status(state::ROLLBACK_STARTED, message, Some(now), None));
    }
}

/// Whether the update that had begun is over: every new task has run for the time of the monitor.
fn completed(
    service: &Service,
    phase: Phase,
    slots: &BTreeMap<SlotKey, &Slot<'_>>,
    ctx: &mut Ctx,
) -> Option<UpdateStatus> {
    let (name, message) = match phase {
        Phase::Updating => (state::COMPLETED, "update completed"),
        Phase::RollingBack => (state::ROLLBACK_COMPLETED, "rollback completed"),
        Phase::Idle | Phase::Paused => return None,
    };
    let begun = service.update_status.as_ref().and_then(|it| it.started_at);
    let live = slots.values().filter_map(|slot| slot.live().next_back());
    let mut end = ctx.now;
    for task in live.filter(|task| begun.is_some_and(|begun| task.meta.created_at >= begun)) {
        let since = task.running_since?;
        end = end.max(since + monitor(&config(service, phase)));
    }
    if end > ctx.now {
        ctx.wake(end);
        return None;
    }
    Some(status(name, message, begun, Some(ctx.now)))
}

fn status(
    state: &str,
    message: &str,
    started_at: Option<Timestamp>,
    completed_at: Option<Timestamp>,
) -> UpdateStatus {
    UpdateStatus {
        state: state.to_owned(),
        started_at,
        completed_at,
        message: message.to_owned(),
    }
}

fn with_status(service: &Service, status: UpdateStatus) -> Proposal {
    Proposal::of([Change::put_service(Service {
        update_status: Some(status),
        ..service.clone()
    })])
}
