//! Watching a service come to what its user wants, drawn as Docker's client draws it.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use serde_json::Value;

use super::{
    output,
    transport::{Call, Refused, SERVICE_INSPECT, TASK_LIST, Transport},
};

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(200);
/// Bars drawn at most; with more tasks only the sum is shown.
const MAX_BARS: u64 = 20;
/// Characters inside a bar.
const BAR: usize = 50;
/// States in the order in which a task goes through them; the last one is the aim.
const STATES: [&str; 8] = [
    "new",
    "pending",
    "assigned",
    "accepted",
    "preparing",
    "ready",
    "starting",
    "running",
];

/// Watches until every task of a service runs and has run for the time that the service's update
/// settings monitor. An interrupt ends the watching, not the work.
///
/// # Errors
/// When the update is paused or rolled back, or the service is removed.
pub(super) async fn watch(transport: &dyn Transport, service: &str) -> Result<()> {
    tokio::select! {
        result = follow(transport, service) => result,
        _ = tokio::signal::ctrl_c() => {
            output::line("Operation continuing in background.")?;
            output::line(&format!("Use `skep service ps {service}` to check progress."))
        }
    }
}

async fn follow(transport: &dyn Transport, service: &str) -> Result<()> {
    let mut screen = Screen::default();
    let mut stable_since: Option<Instant> = None;
    loop {
        let call = Call::new(SERVICE_INSPECT).on(service).with([]);
        let document =
            transport
                .call(call)
                .await
                .map_err(|error| match error.downcast_ref::<Refused>() {
                    Some(refused) if refused.not_found => {
                        anyhow::anyhow!("service {service} was removed")
                    }
                    Some(_) | None => error,
                })?;
        stop_if_failed(&document)?;
        let filters =
            format!(r#"{{"service":{{"{service}":true}},"_up-to-date":{{"true":true}}}}"#);
        let tasks = transport
            .call(Call::new(TASK_LIST).with([("filters", filters)]))
            .await?;
        let sight = Sight::of(&document, &tasks);
        screen.draw(&sight.lines())?;
        if !sight.converged() {
            stable_since = None;
        } else {
            let since = *stable_since.get_or_insert_with(Instant::now);
            let monitor = monitor(&document);
            let Some(left) = monitor.checked_sub(since.elapsed()) else {
                return screen.draw_last("verify: Service converged");
            };
            let seconds = left.as_millis().div_ceil(1_000);
            screen.draw_verify(&format!(
                "verify: Waiting {seconds} seconds to verify that tasks are stable..."
            ))?;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// `UpdateConfig.Monitor`, 5 s if it is not set.
fn monitor(service: &Value) -> Duration {
    let nanos = service["Spec"]["UpdateConfig"]["Monitor"].as_u64();
    Duration::from_nanos(nanos.filter(|nanos| *nanos > 0).unwrap_or(5_000_000_000))
}

fn stop_if_failed(service: &Value) -> Result<()> {
    let status = &service["UpdateStatus"];
    let message = status["Message"].as_str().unwrap_or_default();
    match status["State"].as_str() {
        Some("paused") => bail!("service update paused: {message}"),
        Some("rollback_paused") => bail!("service rollback paused: {message}"),
        Some("rollback_completed") => bail!("service rolled back: {message}"),
        Some(_) | None => Ok(()),
    }
}

/// What one look has shown.
struct Sight {
    wanted: u64,
    updating: bool,
    /// Slot to the newest task's state, and what is wrong with it.
    slots: BTreeMap<u64, (usize, String)>,
}

impl Sight {
    fn of(service: &Value, tasks: &Value) -> Self {
        let replicas = &service["Spec"]["Mode"]["Replicated"]["Replicas"];
        let mut newest: BTreeMap<u64, &Value> = BTreeMap::new();
        for task in tasks.as_array().into_iter().flatten() {
            let slot = task["Slot"].as_u64().unwrap_or(0);
            let kept = newest.entry(slot).or_insert(task);
            if moment(kept) < moment(task) {
                *kept = task;
            }
        }
        let slots = newest
            .into_iter()
            .map(|(slot, task)| {
                let error = task["Status"]["Err"].as_str().unwrap_or_default();
                (slot, (progress(task), error.to_owned()))
            })
            .collect();
        Self {
            wanted: replicas.as_u64().unwrap_or(1),
            updating: service["UpdateStatus"]["State"] == "updating",
            slots,
        }
    }

    fn running(&self) -> u64 {
        let states = self.slots.values();
        states.filter(|(state, _)| *state == STATES.len()).count() as u64
    }

    fn converged(&self) -> bool {
        !self.updating && self.running() >= self.wanted
    }

    fn lines(&self) -> Vec<String> {
        let (running, wanted) = (self.running(), self.wanted);
        let mut lines = vec![format!("overall progress: {running} out of {wanted} tasks")];
        if wanted > MAX_BARS {
            return lines;
        }
        for position in 1..=wanted {
            let line = match self.slots.get(&position) {
                None => String::new(),
                Some((_, error)) if !error.is_empty() => error.replace('\n', " "),
                Some((state, _)) => {
                    let name = state.checked_sub(1).map_or("", |index| STATES[index]);
                    format!("{name:<10}{}", bar(*state))
                }
            };
            lines.push(format!("{position}/{wanted}: {line}"));
        }
        lines
    }
}

fn moment(task: &Value) -> &str {
    task["CreatedAt"].as_str().unwrap_or_default()
}

/// How many of [`STATES`] a task has gone through; none once it has ended or shall end.
fn progress(task: &Value) -> usize {
    let wanted = matches!(task["DesiredState"].as_str(), Some("running" | "ready"));
    let state = task["Status"]["State"].as_str();
    let position = STATES.iter().position(|name| Some(*name) == state);
    position.filter(|_| wanted).map_or(0, |index| index + 1)
}

fn bar(state: usize) -> String {
    let filled = BAR * state / STATES.len();
    let head = if filled < BAR { ">" } else { "" };
    let blank = BAR.saturating_sub(filled + head.len());
    format!("[{}{head}{}] ", "=".repeat(filled), " ".repeat(blank))
}

/// Lines that are drawn over on a terminal, and elsewhere written when they change.
#[derive(Default)]
struct Screen {
    drawn: Vec<String>,
    verify: String,
    height: usize,
}

impl Screen {
    fn draw(&mut self, lines: &[String]) -> Result<()> {
        if output::is_terminal() {
            self.drawn = lines.to_vec();
            return self.redraw();
        }
        let before = std::mem::replace(&mut self.drawn, lines.to_vec());
        let first = before.is_empty();
        let lines = lines.iter().enumerate();
        for (position, line) in lines {
            let changed = before.get(position) != Some(line);
            if (position == 0 && changed) || first {
                output::line(line)?;
            }
        }
        Ok(())
    }

    fn draw_verify(&mut self, text: &str) -> Result<()> {
        if self.verify == text {
            return Ok(());
        }
        text.clone_into(&mut self.verify);
        if output::is_terminal() {
            self.redraw()
        } else {
            output::line(text)
        }
    }

    fn draw_last(&mut self, text: &str) -> Result<()> {
        self.draw_verify(text)
    }

    /// Goes up over what was drawn, and writes each line over the old one.
    fn redraw(&mut self) -> Result<()> {
        let mut text = String::new();
        if self.height > 0 {
            text.push_str(&format!("\x1b[{}A", self.height));
        }
        let lines = self.drawn.iter().chain([&self.verify]);
        let lines: Vec<&String> = lines.filter(|line| !line.is_empty()).collect();
        for line in &lines {
            text.push_str(&format!("\r{line}\x1b[K\n"));
        }
        text.push_str("\x1b[J");
        self.height = lines.len();
        output::print(&text)
    }
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

    #[test]
    fn the_newest_task_of_a_slot_counts() {
        let service = json!({ "Spec": { "Mode": { "Replicated": { "Replicas": 3 } } } });
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
                format!("1/3: preparing {}", bar(5)),
                format!("2/3: running   [{full}] "),
                "3/3: No such image: nothing".to_owned(),
            ]
        );
        assert_eq!(bar(4).len(), bar(8).len());
    }

    #[test]
    fn an_update_that_goes_on_is_not_converged() {
        let service = json!({
            "Spec": { "Mode": { "Replicated": { "Replicas": 1 } } },
            "UpdateStatus": { "State": "updating" },
        });
        let tasks = json!([task(1, 1, "running", "running", "")]);
        assert!(!Sight::of(&service, &tasks).converged());
        assert!(stop_if_failed(&json!({ "UpdateStatus": { "State": "paused" } })).is_err());
    }
}
