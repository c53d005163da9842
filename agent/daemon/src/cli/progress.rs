//! Watching a service come to what its user wants, drawn as Docker's client draws it.

mod sight;

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::Value;

use sight::Sight;

use super::{
    output,
    transport::{Call, Refused, SERVICE_INSPECT, TASK_LIST, Transport},
};

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(200);
/// Watches until every task of a service runs and has run for the time that the service's update
/// settings monitor, or until every task of a job has ended well. An interrupt ends the watching, not the work.
///
/// # Errors
/// When the update is paused or rolled back, the service is removed, or the job can't be completed.
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
        if let Some(error) = sight.hopeless() {
            bail!("job {service} can't be completed, no attempts are left: {error}");
        }
        if !sight.converged() {
            stable_since = None;
        } else if sight.is_job() {
            return screen.draw_last("job complete");
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

    #[test]
    fn a_paused_update_ends_the_watching() {
        assert!(stop_if_failed(&json!({ "UpdateStatus": { "State": "paused" } })).is_err());
        assert!(stop_if_failed(&json!({ "UpdateStatus": { "State": "updating" } })).is_ok());
    }
}
