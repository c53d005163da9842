//! Options of TCP sockets that the standard library has no name for.

use std::{os::fd::AsFd, time::Duration};

use rustix::net::sockopt;

use crate::error::{Context, Result};

/// A peer that has vanished is noticed after about this time, with or without data under way.
const PATIENCE: Duration = Duration::from_secs(15);
const PROBE: Duration = Duration::from_secs(5);

/// Has the kernel find out when the peer of a connection has vanished. gRPC's own pings are not to be
/// used with Docker's managers.
///
/// # Errors
/// When the socket is not TCP.
pub fn notice_vanished_peer(socket: impl AsFd) -> Result<()> {
    let set = || -> rustix::io::Result<()> {
        sockopt::set_socket_keepalive(&socket, true)?;
        sockopt::set_tcp_keepidle(&socket, PROBE)?;
        sockopt::set_tcp_keepintvl(&socket, PROBE)?;
        sockopt::set_tcp_keepcnt(&socket, 2)?;
        let patience = u32::try_from(PATIENCE.as_millis()).unwrap_or(u32::MAX);
        sockopt::set_tcp_user_timeout(&socket, patience)
    };
    set().context("set the time limits of", "a connection")
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn the_options_are_taken() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        super::notice_vanished_peer(&stream).unwrap();
    }
}
