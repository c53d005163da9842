//! The console: what somebody without access to the journal must know.

use std::{fs::OpenOptions, io::Write, time::Duration};

use tokio::sync::watch;

use crate::cluster::{ClusterHandle, LocalNodeState, SwarmStatus};

/// The next line comes after this time at the earliest.
const QUIET: Duration = Duration::from_secs(5);

/// Shows a line where somebody without access to the journal can read it.
pub fn say(line: &str) {
    // Without a console there is nobody to read it, and the journal has it too.
    if let Ok(mut console) = OpenOptions::new().write(true).open("/dev/console") {
        let _ = console.write_all(format!("skep: {line}\r\n").as_bytes());
    }
}

/// Tells how this node stands: its fingerprint while it waits for an operator, and what keeps it from its
/// swarm. `operators` says whether anybody can be one.
pub async fn tell(
    cluster: ClusterHandle,
    mut fingerprint: watch::Receiver<String>,
    operators: bool,
) {
    let mut status = cluster.watch_status();
    let mut last = String::new();
    loop {
        let state = status.borrow_and_update().clone();
        let print = fingerprint.borrow_and_update().clone();
        let line = line(&state, &print, operators);
        if let Some(line) = line.filter(|line| *line != last) {
            say(&line);
            last = line;
            tokio::time::sleep(QUIET).await;
        }
        tokio::select! {
            changed = status.changed() => if changed.is_err() { return },
            changed = fingerprint.changed() => if changed.is_err() { return },
        }
    }
}

fn line(status: &SwarmStatus, fingerprint: &str, operators: bool) -> Option<String> {
    match status.state {
        LocalNodeState::Inactive if fingerprint.is_empty() => None,
        LocalNodeState::Inactive if operators => Some(format!(
            "this node is in no swarm and waits for an operator. API certificate SHA-256 {fingerprint}"
        )),
        LocalNodeState::Inactive => Some(
            "this node is in no swarm and no operator can reach it: give the credential skep.operator-ca"
                .to_owned(),
        ),
        LocalNodeState::Pending | LocalNodeState::Locked | LocalNodeState::Error => {
            Some(status.error.clone()).filter(|error| !error.is_empty())
        }
        LocalNodeState::Active => {
            let id = status.node_id.as_ref()?;
            Some(format!("this node is {id} of its swarm"))
        }
    }
}
