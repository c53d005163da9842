//! D-Bus as transport: the agent of the node that the command runs on.

use anyhow::{Context, Result, anyhow, bail};
use async_trait::async_trait;
use serde_json::Value;
use tokio::net::UnixStream;
use zbus::{Message, OwnedFd, Structure};

use super::transport::{Call, Connection, Refused, Transport};
use crate::dbus::{BUS_NAME, NOT_FOUND, OBJECT_PATH};

/// The agent on the system bus.
pub(super) struct Bus {
    connection: zbus::Connection,
}

impl Bus {
    /// Connects to the system bus.
    ///
    /// # Errors
    /// When there is none.
    pub(super) async fn connect() -> Result<Self> {
        let connection = crate::dbus::system_bus().build().await.context(
            "cannot reach the agent by D-Bus: run this on a node, or name one with --host tcp://ADDRESS:2376",
        )?;
        Ok(Self { connection })
    }

    /// The agent over a connection that a test has made.
    #[cfg(test)]
    pub(super) fn over(connection: zbus::Connection) -> Self {
        Self { connection }
    }

    async fn send(&self, call: Call) -> Result<Message> {
        let interface = format!("io.skep.{}1", call.operation.resource);
        let mut arguments: Vec<String> = Vec::new();
        arguments.extend(call.reference);
        if let Some(params) = call.params {
            arguments.push(serde_json::to_string(&params)?);
        }
        arguments.extend(call.body.map(|body| body.to_string()));
        let member = call.operation.member;
        let sent = if arguments.is_empty() {
            let bus = &self.connection;
            bus.call_method(
                Some(BUS_NAME),
                OBJECT_PATH,
                Some(interface.as_str()),
                member,
                &(),
            )
            .await
        } else {
            let mut body = Structure::builder();
            for argument in arguments {
                body = body.add_field(argument);
            }
            let body = body.build()?;
            let bus = &self.connection;
            bus.call_method(
                Some(BUS_NAME),
                OBJECT_PATH,
                Some(interface.as_str()),
                member,
                &body,
            )
            .await
        };
        sent.map_err(explain)
    }
}

/// An error of the agent in its own words; one of the bus with what to do.
fn explain(error: zbus::Error) -> anyhow::Error {
    let zbus::Error::MethodError(name, text, _) = error else {
        return anyhow!(error).context("cannot reach the agent by D-Bus");
    };
    match name.as_str() {
        "org.freedesktop.DBus.Error.ServiceUnknown" => {
            anyhow!("the agent does not run on this node: see journalctl -u skepd")
        }
        "org.freedesktop.DBus.Error.AccessDenied" => anyhow!("only root may manage this node"),
        name => Refused {
            message: text.unwrap_or_else(|| name.to_owned()),
            not_found: name == NOT_FOUND,
        }
        .into(),
    }
}

#[async_trait]
impl Transport for Bus {
    async fn call(&self, call: Call) -> Result<Value> {
        let answer = self.send(call).await?;
        let text: String = answer.body().deserialize()?;
        serde_json::from_str(&text).context("the agent's answer is not JSON")
    }

    async fn open(&self, call: Call) -> Result<Box<dyn Connection>> {
        let answer = self.send(call).await?;
        let descriptor: OwnedFd = answer.body().deserialize()?;
        let stream = std::os::unix::net::UnixStream::from(std::os::fd::OwnedFd::from(descriptor));
        stream.set_nonblocking(true)?;
        Ok(Box::new(UnixStream::from_std(stream)?))
    }

    async fn to_node(&self, address: &str) -> Result<Box<dyn Transport>> {
        let nothing = std::future::ready(()).await;
        let () = nothing;
        bail!(
            "that is another node, and D-Bus reaches only this one: run skep --host tcp://{address}:2376 --certs DIR \
             from a machine with an operator's certificate"
        )
    }
}
