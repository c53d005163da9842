//! The agent on a bus of its own, with the client of the command line and with a plain one.

use std::{
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use bytes::Bytes;
use futures_util::StreamExt;
use tokio::{io::AsyncWriteExt, net::UnixStream};
use zbus::{Connection, OwnedFd, connection::Builder};

use super::{BUS_NAME, OBJECT_PATH, serve_on};
use crate::management::{Management, debug::Frame, memory};

/// A `dbus-daemon` for one test.
pub(crate) struct PrivateBus {
    daemon: Child,
    address: String,
}

impl PrivateBus {
    pub(crate) fn start() -> Self {
        let mut daemon = Command::new("dbus-daemon")
            .args(["--session", "--nofork", "--print-address"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("dbus-daemon is needed: apt install dbus");
        let mut address = String::new();
        let stdout = daemon.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut address).unwrap();
        Self {
            daemon,
            address: address.trim().to_owned(),
        }
    }

    fn builder(&self) -> Builder<'_> {
        Builder::address(self.address.as_str())
    }

    pub(crate) async fn serve(&self, management: Management) -> Connection {
        serve_on(self.builder(), management).await.unwrap()
    }

    pub(crate) async fn connect(&self) -> Connection {
        self.builder().build().await.unwrap()
    }
}

impl Drop for PrivateBus {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

async fn call(
    bus: &Connection,
    interface: &str,
    member: &str,
    body: &[&str],
) -> zbus::Result<String> {
    let mut arguments = zbus::Structure::builder();
    for argument in body {
        arguments = arguments.add_field(*argument);
    }
    let interface = format!("io.skep.{interface}1");
    let answer = if body.is_empty() {
        bus.call_method(
            Some(BUS_NAME),
            OBJECT_PATH,
            Some(interface.as_str()),
            member,
            &(),
        )
        .await?
    } else {
        let body = arguments.build().unwrap();
        bus.call_method(
            Some(BUS_NAME),
            OBJECT_PATH,
            Some(interface.as_str()),
            member,
            &body,
        )
        .await?
    };
    answer.body().deserialize()
}

#[tokio::test]
async fn documents_errors_and_signals_pass_the_bus() {
    let private = PrivateBus::start();
    let _agent = private.serve(memory::management()).await;
    let bus = private.connect().await;
    let rule = zbus::MatchRule::builder()
        .msg_type(zbus::message::Type::Signal)
        .member("Changed")
        .build()
        .unwrap();
    let mut signals = zbus::MessageStream::for_match_rule(rule, &bus, None)
        .await
        .unwrap();

    let error = call(&bus, "Nodes", "List", &["{}"]).await.unwrap_err();
    let zbus::Error::MethodError(name, _, _) = &error else {
        panic!("{error}")
    };
    assert_eq!(name.as_str(), "io.skep.Error.Unavailable");
    let init = r#"{"AdvertiseAddr":"192.168.77.11"}"#;
    call(&bus, "Swarm", "Init", &[init]).await.unwrap();
    let error = call(&bus, "Services", "Inspect", &["x", ""])
        .await
        .unwrap_err();
    assert!(error.to_string().starts_with(super::NOT_FOUND), "{error}");
    let error = call(&bus, "Services", "Create", &["{"]).await.unwrap_err();
    assert!(
        error.to_string().starts_with("io.skep.Error.Invalid"),
        "{error}"
    );
    let network = r#"{"Name":"my-demo","Driver":"overlay"}"#;
    call(&bus, "Networks", "Create", &[network]).await.unwrap();

    let mut names = Vec::new();
    while !names.contains(&("create".to_owned(), "my-demo".to_owned())) {
        let message = signals.next().await.unwrap().unwrap();
        let (action, _, name): (String, String, String) = message.body().deserialize().unwrap();
        names.push((action, name));
    }
}

#[tokio::test]
async fn a_debug_container_is_a_socket() {
    let private = PrivateBus::start();
    let _agent = private.serve(memory::management()).await;
    let bus = private.connect().await;
    let body = r#"{"Image":"tools","Cmd":["sh","-c","cat"]}"#;
    let answer = bus
        .call_method(
            Some(BUS_NAME),
            OBJECT_PATH,
            Some("io.skep.System1"),
            "Debug",
            &body,
        )
        .await
        .unwrap();
    let descriptor: OwnedFd = answer.body().deserialize().unwrap();
    let stream = std::os::unix::net::UnixStream::from(std::os::fd::OwnedFd::from(descriptor));
    stream.set_nonblocking(true).unwrap();
    let mut stream = UnixStream::from_std(stream).unwrap();
    for bytes in ["hello", ""] {
        let frame = Frame::Stdin(Bytes::from(bytes)).encode();
        stream.write_all(&frame).await.unwrap();
    }
    let echo = Frame::read(&mut stream).await.unwrap();
    assert_eq!(echo, Some(Frame::Stdout("hello".into())));
    assert_eq!(
        Frame::read(&mut stream).await.unwrap(),
        Some(Frame::Exit(3))
    );
}

/// The interfaces are written down for those who call them; set `SKEP_WRITE_INTERFACES` to write them anew.
#[tokio::test]
async fn the_interfaces_are_as_written_down() {
    let private = PrivateBus::start();
    let _agent = private.serve(memory::management()).await;
    let bus = private.connect().await;
    let introspectable = Some("org.freedesktop.DBus.Introspectable");
    let answer = bus
        .call_method(
            Some(BUS_NAME),
            OBJECT_PATH,
            introspectable,
            "Introspect",
            &(),
        )
        .await
        .unwrap();
    let introspection: String = answer.body().deserialize().unwrap();
    let folder = PathBuf::from(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../systemd/dbus/interfaces"
    ));
    let mut interfaces = 0;
    for part in introspection.split("<interface name=\"io.skep.").skip(1) {
        let name = part.split('"').next().unwrap();
        let end = part.find("</interface>").unwrap();
        let head = "<!DOCTYPE node PUBLIC \"-//freedesktop//DTD D-BUS Object Introspection 1.0//EN\"\n \
                    \"http://www.freedesktop.org/standards/dbus/1.0/introspect.dtd\">\n<node>\n  ";
        let text = format!(
            "{head}<interface name=\"io.skep.{}</interface>\n</node>\n",
            &part[..end]
        );
        let path = folder.join(format!("io.skep.{name}.xml"));
        if std::env::var_os("SKEP_WRITE_INTERFACES").is_some() {
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(&path, &text).unwrap();
        }
        let written = std::fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(written, text, "{} is old", path.display());
        interfaces += 1;
    }
    assert_eq!(interfaces, 10);
}
