//! QEMU's control socket (QMP): one connection per request, events skipped.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::paths::connect;

/// The socket's name in a VM's folder.
pub const SOCKET: &str = "qmp.sock";

const PATIENCE: Duration = Duration::from_secs(15);
/// Longest answer that is read.
const ANSWER_MAX: u64 = 1 << 20;

/// Runs one command on the VM whose folder this is, and gives what it returns.
///
/// # Errors
/// When no VM runs there, or it refuses the command: then with QEMU's own words.
pub fn execute(folder: &Path, command: &str, arguments: Value) -> Result<Value> {
    let stream = connect(folder, SOCKET).context("the VM does not run")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut answers = BufReader::new(stream.try_clone()?.take(ANSWER_MAX));
    let request = |command: &str, arguments: &Value| -> Result<()> {
        let line = json!({ "execute": command, "arguments": arguments });
        writeln!(&stream, "{line}").context("cannot write to QEMU's control socket")
    };
    request("qmp_capabilities", &json!({}))?;
    next_return(&mut answers)?;
    request(command, &arguments)?;
    // A VM that ends on the command may close the socket before it answers.
    match next_return(&mut answers) {
        Err(_) if command == "quit" => Ok(Value::Null),
        answer => answer.with_context(|| format!("QEMU refuses {command}")),
    }
}

/// Runs a command of QEMU's human monitor; its words are its only answer.
pub fn monitor(folder: &Path, line: &str) -> Result<String> {
    let arguments = json!({ "command-line": line });
    let answer = execute(folder, "human-monitor-command", arguments)?;
    Ok(answer.as_str().unwrap_or_default().trim().to_owned())
}

fn next_return(answers: &mut impl BufRead) -> Result<Value> {
    loop {
        let mut line = String::new();
        if answers.read_line(&mut line)? == 0 {
            bail!("QEMU closed its control socket");
        }
        let mut answer: Value = serde_json::from_str(&line).context("QEMU answers no JSON")?;
        if let Some(value) = answer.get_mut("return") {
            return Ok(value.take());
        }
        if let Some(why) = answer.pointer("/error/desc").and_then(Value::as_str) {
            bail!("{why}");
        }
    }
}
