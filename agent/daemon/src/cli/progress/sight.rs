//! What one look at a service has shown, and how far that is from what its user wants.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::cli::short;

/// Bars drawn at most; with more tasks only the sum is shown.
const MAX_BARS: u64 = 20;
/// Characters inside a bar.
const BAR: usize = 50;
/// States in the order in which a task goes through them. The last one is the aim of a job, the one before it of
/// others.
const STATES: [&str; 9] = [
    "new",
    "pending",
    "assigned",
    "accepted",
    "preparing",
    "ready",
    "starting",
    "running",
    "complete",
];

/// One look.
pub(super) struct Sight {
    kind: Kind,
    /// Tasks that shall come to the aim.
    wanted: u64,
    /// Tasks of a job that may run at a time.
    concurrent: u64,
    updating: bool,
    /// In the order in which their bars are drawn.
    slots: BTreeMap<Place, Slot>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Replicated,
    Global,
    ReplicatedJob,
    GlobalJob,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Number(u64),
    Node(String),
}

/// The newest task of a slot.
struct Slot {
    /// How many of [`STATES`] it has gone through; none once it has ended otherwise or shall end.
    progress: usize,
    error: String,
    /// It has failed, and no other follows.
    given_up: bool,
}

impl Kind {
    fn of(mode: &Value) -> Self {
        let has = |key: &str| mode.get(key).is_some();
        if has("Global") {
            Kind::Global
        } else if has("ReplicatedJob") {
            Kind::ReplicatedJob
        } else if has("GlobalJob") {
            Kind::GlobalJob
        } else {
            Kind::Replicated
        }
    }

    fn is_job(self) -> bool {
        matches!(self, Kind::ReplicatedJob | Kind::GlobalJob)
    }

    fn is_per_node(self) -> bool {
        matches!(self, Kind::Global | Kind::GlobalJob)
    }

    /// How many of [`STATES`] its tasks shall go through.
    fn aim(self) -> usize {
        match self.is_job() {
            true => STATES.len(),
            false => STATES.len() - 1,
        }
    }
}

impl Sight {
    pub(super) fn of(service: &Value, tasks: &Value) -> Self {
        let mode = &service["Spec"]["Mode"];
        let kind = Kind::of(mode);
        let mut newest: BTreeMap<Place, &Value> = BTreeMap::new();
        let tasks = tasks.as_array().into_iter().flatten();
        for task in tasks.filter(|task| !kind.is_per_node() || is_of_its_node(task)) {
            let kept = newest.entry(place(kind, task)).or_insert(task);
            if rank(kind, kept) < rank(kind, task) {
                *kept = task;
            }
        }
        let number = |value: &Value| value.as_u64().unwrap_or(1);
        let job = &mode["ReplicatedJob"];
        let wanted = match kind {
            Kind::Replicated => number(&mode["Replicated"]["Replicas"]),
            Kind::ReplicatedJob => number(&job["TotalCompletions"]),
            Kind::Global | Kind::GlobalJob => newest.len() as u64,
        };
        let slots = newest.into_iter();
        Self {
            kind,
            wanted,
            concurrent: number(&job["MaxConcurrent"]),
            updating: service["UpdateStatus"]["State"] == "updating",
            slots: slots.map(|(place, task)| (place, Slot::of(task))).collect(),
        }
    }

    /// Whether all is as the user wants it.
    pub(super) fn converged(&self) -> bool {
        // Before its first task nobody knows how many nodes a service is for.
        let known = !self.kind.is_per_node() || !self.slots.is_empty();
        known && !self.updating && self.reached() >= self.wanted
    }

    /// Whether the tasks are to end, and need not be watched once they have.
    pub(super) fn is_job(&self) -> bool {
        self.kind.is_job()
    }

    /// Why a job will never be complete: every part of it that is not done has failed for the last time.
    pub(super) fn hopeless(&self) -> Option<&str> {
        let mut open = self.slots.values();
        let settled = open.all(|slot| slot.given_up || slot.progress == self.kind.aim());
        let all = self.slots.len() as u64 >= self.wanted;
        let mut given_up = self.slots.values().filter(|slot| slot.given_up);
        let first = given_up.next().filter(|_| self.is_job() && settled && all);
        first.map(|slot| slot.error.as_str())
    }

    fn reached(&self) -> u64 {
        let slots = self.slots.values();
        slots.filter(|it| it.progress == self.kind.aim()).count() as u64
    }

    pub(super) fn lines(&self) -> Vec<String> {
        let (reached, wanted) = (self.reached(), self.wanted);
        let mut lines = match self.kind {
            Kind::Global if self.slots.is_empty() => {
                vec!["overall progress: waiting for new tasks".to_owned()]
            }
            Kind::GlobalJob if self.slots.is_empty() => {
                vec!["job progress: waiting for tasks".to_owned()]
            }
            Kind::Replicated | Kind::Global => {
                vec![format!("overall progress: {reached} out of {wanted} tasks")]
            }
            Kind::ReplicatedJob | Kind::GlobalJob => {
                vec![format!("job progress: {reached} out of {wanted} complete")]
            }
        };
        if self.kind == Kind::ReplicatedJob {
            let active = self.slots.values();
            let active = active.filter(|it| (1..self.kind.aim()).contains(&it.progress));
            let may = self.concurrent.min(wanted.saturating_sub(reached));
            lines.push(format!(
                "active tasks: {} out of {may} tasks",
                active.count()
            ));
        }
        if wanted <= MAX_BARS {
            lines.extend(self.bars());
        }
        lines
    }

    fn bars(&self) -> Vec<String> {
        if self.kind.is_per_node() {
            let slots = self.slots.iter();
            let line = |(place, slot): (&Place, &Slot)| match place {
                Place::Node(node) => format!("{}: {}", short(node), self.bar(slot)),
                Place::Number(number) => format!("{number}: {}", self.bar(slot)),
            };
            return slots.map(line).collect();
        }
        let first = if self.is_job() { 0 } else { 1 };
        let line = |position: u64| {
            let slot = self.slots.get(&Place::Number(first + position));
            let bar = slot.map_or_else(String::new, |slot| self.bar(slot));
            format!("{}/{}: {bar}", position + 1, self.wanted)
        };
        (0..self.wanted).map(line).collect()
    }

    fn bar(&self, slot: &Slot) -> String {
        if !slot.error.is_empty() {
            return slot.error.replace('\n', " ");
        }
        let state = slot.progress;
        let name = state.checked_sub(1).map_or("", |index| STATES[index]);
        format!("{name:<10}{}", bar(state, self.kind.aim()))
    }
}

impl Slot {
    fn of(task: &Value) -> Self {
        let state = task["Status"]["State"].as_str();
        let desired = task["DesiredState"].as_str();
        let wanted = matches!(desired, Some("running" | "ready" | "complete"));
        let done = state == Some("complete");
        let position = STATES.iter().position(|name| Some(*name) == state);
        let failed = matches!(state, Some("failed" | "rejected"));
        let error = task["Status"]["Err"].as_str().unwrap_or_default();
        Self {
            progress: position
                .filter(|_| wanted || done)
                .map_or(0, |index| index + 1),
            error: error.to_owned(),
            given_up: failed && !wanted,
        }
    }
}

/// Whether a task tells of what its node shall run, and not only of what it ran before it was drained or lost.
fn is_of_its_node(task: &Value) -> bool {
    let state = task["Status"]["State"].as_str();
    let ended = matches!(state, Some("complete" | "failed" | "rejected"));
    let desired = task["DesiredState"].as_str();
    ended || matches!(desired, Some("running" | "ready" | "complete"))
}

fn place(kind: Kind, task: &Value) -> Place {
    match kind.is_per_node() {
        true => Place::Node(task["NodeID"].as_str().unwrap_or_default().to_owned()),
        false => Place::Number(task["Slot"].as_u64().unwrap_or(0)),
    }
}

/// The newest task of a slot counts; of a job, one that is done.
fn rank(kind: Kind, task: &Value) -> (bool, &str) {
    let done = kind.is_job() && task["Status"]["State"] == "complete";
    (done, task["CreatedAt"].as_str().unwrap_or_default())
}

fn bar(state: usize, aim: usize) -> String {
    let filled = BAR * state.min(aim) / aim;
    let head = if filled < BAR { ">" } else { "" };
    let blank = BAR.saturating_sub(filled + head.len());
    format!("[{}{head}{}] ", "=".repeat(filled), " ".repeat(blank))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn task(slot: u64, created: u64, state: &str, desired: &str, error: &str) -> Value {
        json!({
            "Slot": slot,
            "CreatedAt": format!("2026-11-21T01:00:0{created}Z"),
            "DesiredState": desired,
            "Status": { "State": state, "Err": error },
        })
    }

    fn on(node: &str, created: u64, state: &str, desired: &str) -> Value {
        let mut task = task(0, created, state, desired, "");
        task["NodeID"] = node.into();
        task
    }

    fn service(mode: &Value) -> Value {
        json!({ "Spec": { "Mode": mode } })
    }

    #[test]
    fn the_newest_task_of_a_slot_counts() {
        let service = service(&json!({ "Replicated": { "Replicas": 3 } }));
        let tasks = json!([
            task(1, 1, "running", "running", ""),
            task(1, 2, "preparing", "ready", ""),
            task(2, 1, "running", "running", ""),
            task(3, 1, "rejected", "shutdown", "No such image: nothing"),
        ]);
        let sight = Sight::of(&service, &tasks);
        assert!(!sight.converged());
        let full = "=".repeat(BAR);
        assert_eq!(
            sight.lines(),
            [
                "overall progress: 1 out of 3 tasks".to_owned(),
                format!("1/3: preparing {}", bar(5, 8)),
                format!("2/3: running   [{full}] "),
                "3/3: No such image: nothing".to_owned(),
            ]
        );
        assert_eq!(bar(4, 8).len(), bar(8, 8).len());
        assert_eq!(sight.hopeless(), None);
    }

    #[test]
    fn an_update_that_goes_on_is_not_converged() {
        let mut service = service(&json!({ "Replicated": { "Replicas": 1 } }));
        service["UpdateStatus"] = json!({ "State": "updating" });
        let tasks = json!([task(1, 1, "running", "running", "")]);
        assert!(!Sight::of(&service, &tasks).converged());
    }

    #[test]
    fn a_global_service_is_wanted_on_the_nodes_that_have_a_task() {
        let service = service(&json!({ "Global": {} }));
        let none = Sight::of(&service, &json!([]));
        assert!(!none.converged());
        assert_eq!(none.lines(), ["overall progress: waiting for new tasks"]);
        let tasks = json!([
            on("one456789012345", 1, "running", "running"),
            on("two456789012345", 1, "shutdown", "shutdown"),
            on("two456789012345", 2, "assigned", "running"),
            // Drained meanwhile: nothing is wanted there.
            on("off456789012345", 1, "shutdown", "shutdown"),
        ]);
        let sight = Sight::of(&service, &tasks);
        assert!(!sight.converged());
        let full = "=".repeat(BAR);
        assert_eq!(
            sight.lines(),
            [
                "overall progress: 1 out of 2 tasks".to_owned(),
                format!("one456789012: running   [{full}] "),
                format!("two456789012: assigned  {}", bar(3, 8)),
            ]
        );
        let tasks = json!([on("one456789012345", 1, "running", "running")]);
        assert!(Sight::of(&service, &tasks).converged());
    }

    #[test]
    fn a_job_counts_what_has_ended_well() {
        let mode = json!({ "ReplicatedJob": { "MaxConcurrent": 2, "TotalCompletions": 3 } });
        let service = service(&mode);
        let mut tasks = vec![
            task(0, 1, "complete", "complete", ""),
            task(1, 1, "failed", "shutdown", "task: non-zero exit (1)"),
            task(1, 2, "running", "complete", ""),
        ];
        let sight = Sight::of(&service, &json!(tasks));
        assert!(sight.is_job() && !sight.converged());
        let full = "=".repeat(BAR);
        assert_eq!(
            sight.lines(),
            [
                "job progress: 1 out of 3 complete".to_owned(),
                "active tasks: 1 out of 2 tasks".to_owned(),
                format!("1/3: complete  [{full}] "),
                format!("2/3: running   {}", bar(8, 9)),
                "3/3: ".to_owned(),
            ]
        );
        assert_eq!(sight.hopeless(), None);
        tasks.push(task(1, 3, "failed", "shutdown", "task: non-zero exit (2)"));
        let sight = Sight::of(&service, &json!(tasks));
        assert_eq!(sight.hopeless(), None, "the third part has not begun");
        tasks.push(task(2, 3, "complete", "complete", ""));
        let sight = Sight::of(&service, &json!(tasks));
        assert_eq!(sight.hopeless(), Some("task: non-zero exit (2)"));
        tasks.push(task(1, 4, "complete", "complete", ""));
        assert!(Sight::of(&service, &json!(tasks)).converged());
    }

    #[test]
    fn a_global_job_is_complete_on_each_node() {
        let service = service(&json!({ "GlobalJob": {} }));
        let none = Sight::of(&service, &json!([]));
        assert_eq!(none.lines(), ["job progress: waiting for tasks"]);
        let tasks = json!([on("one456789012345", 1, "complete", "complete")]);
        let sight = Sight::of(&service, &tasks);
        assert!(sight.converged());
        assert_eq!(sight.lines()[0], "job progress: 1 out of 1 complete");
    }
}
