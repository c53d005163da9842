//! Decides which tasks there shall be.

mod global;
mod job;
mod replicated;
pub(crate) mod restart;
mod slots;
pub(crate) mod update;

use super::Ctx;
use crate::{
    api::{Meta, ModeKind, Service, SlotKey, Task, TaskState, TaskStatus, encoded_len},
    id::Id,
    store::{Change, Proposal, View},
};

/// At most so many new tasks in one pass; the next pass goes on.
const MAX_NEW_TASKS: usize = 2000;
/// At most so many bytes of new tasks in one pass, whose proposals become one entry of the log.
const MAX_NEW_BYTES: usize = 4 << 20;

/// Makes, replaces, starts and ends tasks until each service has what its spec says.
#[must_use]
pub fn orchestrate(view: &View, ctx: &mut Ctx) -> Vec<Proposal> {
    let mut proposals = Vec::new();
    let mut room = Room {
        tasks: MAX_NEW_TASKS,
        bytes: MAX_NEW_BYTES,
    };
    for service in view.services() {
        if service.pending_delete {
            let tasks = view.tasks_of_service(&service.id);
            proposals.extend(tasks.filter_map(|task| remove(task)));
            continue;
        }
        let plan = match service.spec.mode.kind() {
            ModeKind::Replicated => replicated::plan,
            ModeKind::Global => global::plan,
            ModeKind::ReplicatedJob | ModeKind::GlobalJob => job::plan,
        };
        proposals.extend(plan(view, service, &mut room, ctx));
    }
    let stray = view
        .tasks()
        .filter(|task| view.service(&task.service_id).is_none());
    proposals.extend(stray.filter_map(|task| remove(task)));
    proposals
}

/// What may still be made in this pass.
struct Room {
    tasks: usize,
    bytes: usize,
}

/// What a service wants changed.
struct ServicePlan<'a> {
    proposals: Vec<Proposal>,
    room: &'a mut Room,
    /// What one of its tasks takes, once that has been asked for.
    task_bytes: Option<usize>,
}

impl<'a> ServicePlan<'a> {
    fn new(room: &'a mut Room) -> Self {
        Self {
            proposals: Vec::new(),
            room,
            task_bytes: None,
        }
    }

    /// Whether another task of the service may be made; the first of a pass always may.
    fn has_room(&mut self, service: &Service) -> bool {
        if self.room.tasks == MAX_NEW_TASKS {
            return true;
        }
        self.room.tasks > 0 && self.task_bytes(service) <= self.room.bytes
    }

    /// Adds a proposal that makes a task.
    fn make(&mut self, service: &Service, proposal: Proposal) {
        self.room.tasks = self.room.tasks.saturating_sub(1);
        self.room.bytes = self.room.bytes.saturating_sub(self.task_bytes(service));
        self.proposals.push(proposal);
    }

    /// Adds a change that stands alone.
    fn change(&mut self, change: Option<Change>) {
        let proposal = change.map(|change| Proposal::of([change]));
        self.proposals.extend(proposal);
    }

    fn task_bytes(&mut self, service: &Service) -> usize {
        let spec = &service.spec;
        *self.task_bytes.get_or_insert_with(|| {
            encoded_len(&(&spec.task_template, &spec.labels, &spec.endpoint_spec))
        })
    }
}

/// A task of a service as its spec is now. It comes after `predecessor` in its slot.
fn new_task(service: &Service, key: &SlotKey, predecessor: Option<&Task>, ctx: &mut Ctx) -> Task {
    let (slot, node_id) = match key {
        SlotKey::Number(slot) => (*slot, None),
        SlotKey::Node(node) => (0, Some(node.clone())),
    };
    // The order in a slot is the order of creation, also when the clock was set back.
    let after = predecessor.map(|task| task.meta.created_at.0 + 1);
    let created_at = crate::time::Timestamp(after.map_or(ctx.now.0, |after| after.max(ctx.now.0)));
    let task = Task {
        id: Id::draw(&mut ctx.rng),
        meta: Meta {
            version: 0,
            created_at,
            updated_at: created_at,
        },
        spec: service.spec.task_template.clone(),
        spec_version: service.spec_version,
        service_id: service.id.clone(),
        service_name: service.spec.name.clone(),
        service_labels: service.spec.labels.clone(),
        slot,
        node_id,
        status: TaskStatus {
            timestamp: ctx.now,
            state: TaskState::New,
            message: "created".to_owned(),
            ..TaskStatus::default()
        },
        desired_state: TaskState::Running,
        networks: Vec::new(),
        endpoint: crate::api::Endpoint {
            spec: service.spec.endpoint_spec.clone(),
            ..crate::api::Endpoint::default()
        },
        not_before: None,
        predecessor: predecessor.map(|task| task.id.clone()),
        running_since: None,
        job_iteration: service.iteration(),
    };
    Task {
        desired_state: task.goal(),
        ..task
    }
}

/// The change that gives a task a later desired state, if it has not come that far.
fn desire(task: &Task, state: TaskState) -> Option<Change> {
    (task.desired_state < state).then(|| {
        Change::put_task(Task {
            desired_state: state,
            ..task.clone()
        })
    })
}

fn remove(task: &Task) -> Option<Proposal> {
    desire(task, TaskState::Remove).map(|change| Proposal::of([change]))
}
