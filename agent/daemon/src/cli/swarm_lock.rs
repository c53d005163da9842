//! `skep swarm update`, `unlock-key` and `unlock`.

use std::io::{self, BufRead, IsTerminal};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::{Value, json};
use skep_host::terminal::Hidden;
use zeroize::Zeroizing;

use super::{
    output, text,
    transport::{
        Call, INFO, SWARM_INSPECT, SWARM_UNLOCK, SWARM_UNLOCK_KEY, SWARM_UPDATE, Transport,
    },
    units,
};
use crate::management::port::OutputStream;

const AUTOLOCK: &str = "/Spec/EncryptionConfig/AutoLockManagers";

#[derive(Debug, Args)]
pub(super) struct Update {
    /// Lock the disks of managers: after a restart, each needs the unlock key
    #[arg(long, value_name = "true|false", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    autolock: Option<bool>,
    /// Ended tasks kept per replica
    #[arg(long)]
    task_history_limit: Option<i64>,
    /// Time between two heartbeats of a node
    #[arg(long, value_parser = units::duration)]
    dispatcher_heartbeat: Option<std::time::Duration>,
    /// Life of a node certificate
    #[arg(long, value_parser = units::duration)]
    cert_expiry: Option<std::time::Duration>,
}

#[derive(Debug, Args)]
pub(super) struct UnlockKey {
    /// Show only the key
    #[arg(short, long)]
    quiet: bool,
    /// Make a new one
    #[arg(long)]
    rotate: bool,
}

pub(super) async fn update(transport: &dyn Transport, arguments: Update) -> Result<()> {
    let swarm = transport.call(Call::new(SWARM_INSPECT)).await?;
    let mut spec = swarm["Spec"].clone();
    if let Some(autolock) = arguments.autolock {
        spec["EncryptionConfig"]["AutoLockManagers"] = autolock.into();
    }
    if let Some(limit) = arguments.task_history_limit {
        spec["Orchestration"]["TaskHistoryRetentionLimit"] = limit.into();
    }
    if let Some(period) = arguments.dispatcher_heartbeat {
        spec["Dispatcher"]["HeartbeatPeriod"] = units::nanos(period).into();
    }
    if let Some(expiry) = arguments.cert_expiry {
        spec["CAConfig"]["NodeCertExpiry"] = units::nanos(expiry).into();
    }
    if spec == swarm["Spec"] && arguments.autolock.is_none() {
        bail!("nothing to change: see skep swarm update --help");
    }
    change(transport, &swarm, spec, None).await?;
    output::line("Swarm updated.")?;
    let was_locked = swarm.pointer(AUTOLOCK) == Some(&Value::Bool(true));
    match arguments.autolock {
        Some(true) if !was_locked => show_unlock_key(transport).await,
        Some(_) | None => Ok(()),
    }
}

async fn change(
    transport: &dyn Transport,
    swarm: &Value,
    spec: Value,
    rotation: Option<&str>,
) -> Result<Value> {
    let version = ("version", swarm["Version"]["Index"].to_string());
    let call = match rotation {
        Some(what) => Call::new(SWARM_UPDATE).with([version, (what, "true".to_owned())]),
        None => Call::new(SWARM_UPDATE).with([version]),
    };
    transport.call(call.sending(spec)).await
}

pub(super) async fn unlock_key(transport: &dyn Transport, arguments: UnlockKey) -> Result<()> {
    if arguments.rotate {
        let swarm = transport.call(Call::new(SWARM_INSPECT)).await?;
        if swarm.pointer(AUTOLOCK) != Some(&Value::Bool(true)) {
            bail!("cannot rotate because autolock is not turned on");
        }
        let rotation = Some("rotateManagerUnlockKey");
        change(transport, &swarm, swarm["Spec"].clone(), rotation).await?;
        if !arguments.quiet {
            output::line("Successfully rotated manager unlock key.\n")?;
        }
    }
    if !arguments.quiet {
        return show_unlock_key(transport).await;
    }
    output::line(&fetch(transport).await?)
}

/// The key; an error without autolock.
async fn fetch(transport: &dyn Transport) -> Result<Zeroizing<String>> {
    let answer = transport.call(Call::new(SWARM_UNLOCK_KEY)).await?;
    match text(&answer, "/UnlockKey") {
        "" => bail!("no unlock key is set"),
        key => Ok(Zeroizing::new(key.to_owned())),
    }
}

/// Tells the operator to keep the key.
pub(super) async fn show_unlock_key(transport: &dyn Transport) -> Result<()> {
    let key = fetch(transport).await?;
    output::line(&format!(
        "To unlock a swarm manager after it restarts, run the `skep swarm unlock`\n\
         command and provide the following key:\n\n    {}\n\n\
         Remember to store this key in a password manager, since without it you\n\
         will not be able to restart the manager.",
        *key
    ))
}

pub(super) async fn unlock(transport: &dyn Transport) -> Result<()> {
    // Before the operator is asked for a key that nobody needs.
    check_locked(transport).await?;
    unlock_with(transport, &read_key()?).await
}

async fn check_locked(transport: &dyn Transport) -> Result<()> {
    let info = transport.call(Call::new(INFO)).await?;
    match text(&info, "/Swarm/LocalNodeState") {
        "locked" => Ok(()),
        "inactive" => bail!("this node is not part of a swarm"),
        _ => bail!("swarm is not locked"),
    }
}

/// Unlocks the manager with the text that the operator gave.
pub(super) async fn unlock_with(transport: &dyn Transport, key: &str) -> Result<()> {
    let body = json!({ "UnlockKey": key });
    transport
        .call(Call::new(SWARM_UNLOCK).sending(body))
        .await?;
    Ok(())
}

/// One line of standard input; a terminal does not show it.
fn read_key() -> Result<Zeroizing<String>> {
    let input = io::stdin();
    let mut line = Zeroizing::new(String::new());
    if input.is_terminal() {
        output::bytes(OutputStream::Stderr, b"Please enter unlock key: ")?;
        let hidden = Hidden::new(&input)?;
        input
            .lock()
            .read_line(&mut line)
            .context("cannot read the key")?;
        drop(hidden);
        output::bytes(OutputStream::Stderr, b"\n")?;
    } else {
        input
            .lock()
            .read_line(&mut line)
            .context("cannot read the key")?;
    }
    Ok(line)
}
