//! `skep debug`: a throw-away privileged container on a node, with its streams and exit status.

use std::{io::Read, process::ExitCode};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use clap::Args;
use serde_json::json;
use tokio::{
    io::{AsyncWriteExt, ReadHalf, WriteHalf},
    sync::mpsc,
};

use super::{
    USAGE, items, output, text,
    transport::{Call, Connection, DEBUG, INFO, NODE_LIST, Transport},
};
use crate::management::{
    debug::{Frame, MAX_FRAME},
    port::OutputStream,
};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The node, if it is not the one that is talked to, and the image
    #[arg(value_names = ["NODE", "IMAGE"], num_args = 1..=2, required = true)]
    node_and_image: Vec<String>,
    /// Set an environment variable, KEY=VALUE
    #[arg(short, long)]
    env: Vec<String>,
    /// Command and arguments; the image's own if left out
    #[arg(last = true)]
    command: Vec<String>,
}

pub(super) async fn run(transport: &dyn Transport, arguments: Arguments) -> Result<ExitCode> {
    let (node, image) = match arguments.node_and_image.as_slice() {
        [node, image] => (Some(node.as_str()), image),
        [image] => (None, image),
        _ => bail!("name one image, and the node before it"),
    };
    let body = json!({ "Image": image, "Cmd": arguments.command, "Env": arguments.env });
    let call = Call::new(DEBUG).sending(body);
    let stream = match elsewhere(transport, node).await? {
        Some(address) => transport.to_node(&address).await?.open(call).await?,
        None => transport.open(call).await?,
    };
    let (reader, writer) = tokio::io::split(stream);
    let input = tokio::spawn(send_input(writer));
    let end = show_output(reader).await;
    input.abort();
    match end? {
        Frame::Exit(status) => Ok(ExitCode::from(u8::try_from(status & 0xff).unwrap_or(1))),
        Frame::Failed(why) => {
            output::warn(&format!("skep: {why}"));
            Ok(ExitCode::from(USAGE))
        }
        Frame::Stdin(_) | Frame::Stdout(_) | Frame::Stderr(_) => {
            bail!("the debug stream was cut off")
        }
    }
}

/// The address of a node that is not the one that is talked to.
async fn elsewhere(transport: &dyn Transport, node: Option<&str>) -> Result<Option<String>> {
    let Some(node) = node else {
        return Ok(None);
    };
    let info = transport.call(Call::new(INFO)).await?;
    let me = text(&info, "/Swarm/NodeID");
    if text(&info, "/Name") == node || (!me.is_empty() && me.starts_with(node)) {
        return Ok(None);
    }
    let nodes = transport.call(Call::new(NODE_LIST).with([])).await?;
    let found = items(&nodes).find(|candidate| {
        text(candidate, "/Description/Hostname") == node || text(candidate, "/ID").starts_with(node)
    });
    match found.map(|node| text(node, "/Status/Addr")) {
        Some("") => bail!("node {node} has no address yet"),
        Some(address) => Ok(Some(address.to_owned())),
        None => bail!("node {node} not found: see skep node ls"),
    }
}

/// Sends standard input until it ends.
async fn send_input(mut writer: WriteHalf<Box<dyn Connection>>) -> std::io::Result<()> {
    let mut input = read_input();
    loop {
        // Nothing, at the end, is the frame that closes the container's input.
        let bytes = input.recv().await.unwrap_or_default();
        let last = bytes.is_empty();
        writer.write_all(&Frame::Stdin(bytes).encode()).await?;
        writer.flush().await?;
        if last {
            // The writer must live: a connection that is closed on this side stops the container.
            return std::future::pending().await;
        }
    }
}

/// Standard input, read by a thread of its own: a read of a terminal cannot be called off.
fn read_input() -> mpsc::Receiver<Bytes> {
    let (sender, receiver) = mpsc::channel(1);
    std::thread::spawn(move || {
        let mut input = std::io::stdin();
        let mut buffer = vec![0; MAX_FRAME];
        while let Ok(count) = input.read(&mut buffer) {
            let bytes = Bytes::copy_from_slice(&buffer[..count]);
            if count == 0 || sender.blocking_send(bytes).is_err() {
                return;
            }
        }
    });
    receiver
}

/// Shows what comes; the last frame.
async fn show_output(mut reader: ReadHalf<Box<dyn Connection>>) -> Result<Frame> {
    loop {
        let frame = Frame::read(&mut reader)
            .await
            .context("the debug stream was cut off")?
            .context("the debug stream was cut off")?;
        match frame {
            Frame::Stdout(bytes) => output::bytes(OutputStream::Stdout, &bytes)?,
            Frame::Stderr(bytes) => output::bytes(OutputStream::Stderr, &bytes)?,
            last @ (Frame::Exit(_) | Frame::Failed(_)) => return Ok(last),
            Frame::Stdin(_) => bail!("the node sent what only a client sends"),
        }
    }
}
