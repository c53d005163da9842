//! The three netlink families that a node's network is made with.

pub mod generation;
pub mod ipvs;
pub mod monitor;
pub mod observe;
pub mod route;

use std::{
    fmt, io,
    os::fd::{AsRawFd, BorrowedFd},
};

use neli::socket::synchronous::NlSocketHandle;
use nix::sys::{
    socket::{setsockopt, sockopt::ReceiveTimeout},
    time::TimeVal,
};

use crate::error::HostError;

/// A failed system call or netlink request; the error number says whether another try may help.
pub(crate) fn failed(op: &'static str, object: impl fmt::Display, error: io::Error) -> HostError {
    let temporary = matches!(
        error.raw_os_error(),
        Some(
            libc::EAGAIN
                | libc::EINTR
                | libc::EBUSY
                | libc::ENOMEM
                | libc::ENOBUFS
                | libc::EMFILE
                | libc::ENFILE
                | libc::ETIMEDOUT
        )
    ) || error.kind() == io::ErrorKind::TimedOut;
    let error = HostError::new(op, object.to_string(), error);
    if temporary { error.temporary() } else { error }
}

/// Bounds how long a read waits: the kernel answers at once or something is broken.
pub(crate) fn bound_waiting(socket: &NlSocketHandle) -> io::Result<()> {
    // SAFETY: the descriptor is the socket's, which outlives this borrow.
    let fd = unsafe { BorrowedFd::borrow_raw(socket.as_raw_fd()) };
    setsockopt(&fd, ReceiveTimeout, &TimeVal::new(10, 0)).map_err(io::Error::from)
}

/// Takes an error with one of these numbers for success.
pub(crate) fn unless(result: io::Result<()>, fine: &[i32]) -> io::Result<()> {
    match result {
        Err(error)
            if error
                .raw_os_error()
                .is_some_and(|code| fine.contains(&code)) =>
        {
            Ok(())
        }
        other => other,
    }
}
