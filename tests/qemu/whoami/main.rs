//! The service of the walk-through: says on port 8000 (or `PORT`) who it is, by HTTP, and sends UDP datagrams back.
//!
//! It uses nothing but std, so that a static build of it is the whole container image.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::process::exit;
use std::time::Duration;

/// Longest request head that is read; a client that sends more gets its answer early.
const REQUEST_MAX: usize = 8192;
/// How many clients are served at the same time; the others wait in the kernel's queue.
const CLIENTS_MAX: usize = 16;
const CLIENT_PATIENCE: Duration = Duration::from_secs(5);
const SIGTERM: i32 = 15;

unsafe extern "C" {
    /// signal(2): `handler` is called on the signal.
    safe fn signal(number: i32, handler: extern "C" fn(i32)) -> usize;
    /// _exit(2).
    safe fn _exit(status: i32) -> !;
}

/// A container's first process ignores SIGTERM unless it has a handler. Calls only what a handler may call.
extern "C" fn end(_signal: i32) {
    _exit(0);
}

fn main() {
    signal(SIGTERM, end);
    if let Err(error) = serve() {
        let _ = writeln!(io::stderr(), "whoami: {error}");
        exit(1);
    }
}

fn serve() -> io::Result<()> {
    let port: u16 = match std::env::var("PORT") {
        Ok(text) => text
            .parse()
            .map_err(|e| io::Error::other(format!("PORT={text}: {e}")))?,
        Err(_) => 8000,
    };
    let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname")?;
    let answer = format!("I'm {}\n", hostname.trim());
    let listener = TcpListener::bind(("0.0.0.0", port))?;
    let datagrams = UdpSocket::bind(("0.0.0.0", port))?;
    std::thread::spawn(move || echo(&datagrams));
    writeln!(io::stdout(), "listening on port {port}")?;
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS_MAX {
            scope.spawn(|| answer_clients(&listener, &answer));
        }
    });
    Ok(())
}

fn answer_clients(listener: &TcpListener, answer: &str) {
    for client in listener.incoming() {
        // A client that hangs or goes away is its own loss: the next one is waiting.
        let _ = client.and_then(|client| say_who(client, answer));
    }
}

fn say_who(mut client: TcpStream, answer: &str) -> io::Result<()> {
    client.set_read_timeout(Some(CLIENT_PATIENCE))?;
    client.set_write_timeout(Some(CLIENT_PATIENCE))?;
    let mut request = Vec::new();
    let mut chunk = [0; 1024];
    while !request.windows(4).any(|w| w == b"\r\n\r\n") && request.len() < REQUEST_MAX {
        match client.read(&mut chunk)? {
            0 => return Ok(()),
            n => request.extend_from_slice(&chunk[..n]),
        }
    }
    let length = answer.len();
    client.write_all(
        format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{answer}")
            .as_bytes(),
    )
}

fn echo(socket: &UdpSocket) {
    let mut datagram = [0; 65536];
    loop {
        if let Ok((length, from)) = socket.recv_from(&mut datagram) {
            let _ = socket.send_to(&datagram[..length], from);
        }
    }
}
