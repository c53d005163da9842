//! Streams on D-Bus: one end of a socket goes to the caller.

use std::os::unix::net::UnixStream as StdUnixStream;

use futures_util::StreamExt;
use tokio::{io::AsyncWriteExt, net::UnixStream};
use zbus::OwnedFd;

use super::error::Error;
use crate::management::{debug, logs::FrameStream, port::DebugSession};

/// A socket that gives these frames and then ends.
pub(super) fn frames(mut frames: FrameStream) -> Result<OwnedFd, Error> {
    let (mut ours, theirs) = pair()?;
    tokio::spawn(async move {
        while let Some(frame) = frames.next().await {
            match frame {
                Ok(bytes) if ours.write_all(&bytes).await.is_ok() => {}
                Ok(_) => return,
                Err(error) => {
                    tracing::info!(%error, "a log could not be read to its end");
                    return;
                }
            }
        }
    });
    Ok(theirs)
}

/// A socket that is joined to a debug container.
pub(super) fn debug(session: DebugSession) -> Result<OwnedFd, Error> {
    let (ours, theirs) = pair()?;
    tokio::spawn(debug::relay(session, ours));
    Ok(theirs)
}

/// Our end, and the end for the caller.
fn pair() -> Result<(UnixStream, OwnedFd), Error> {
    let sockets = || -> std::io::Result<_> {
        let (ours, theirs) = StdUnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let theirs = std::os::fd::OwnedFd::from(theirs);
        Ok((UnixStream::from_std(ours)?, OwnedFd::from(theirs)))
    };
    sockets().map_err(|error| Error::Unavailable(format!("no socket for the stream: {error}")))
}
