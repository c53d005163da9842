//! `skep debug`: an operator's throw-away container, its standard streams and exit status carried over
//! one byte stream in frames.
//!
//! A frame is `[kind, 0, 0, 0, length as 32 bits big-endian]` and so many bytes, the layout of Docker's
//! multiplexed streams. Kinds 1 and 2 are Docker's; 3 and 4 end the stream.

use std::io;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use skep_core::api::ApiError;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

use super::{
    Management, document,
    port::{DebugOutput, DebugParams, DebugSession, OutputStream},
};

/// Most bytes in one frame.
pub const MAX_FRAME: usize = 64 * 1024;

/// The body of `POST /skep/debug`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default, deny_unknown_fields)]
pub struct DebugBody {
    /// Image reference.
    pub image: String,
    /// Program and arguments; the image's own when empty.
    pub cmd: Vec<String>,
    /// `KEY=value` texts over the image's.
    pub env: Vec<String>,
}

/// One piece of a debug stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// Bytes for standard input; none at all close it.
    Stdin(Bytes),
    /// Bytes of standard output.
    Stdout(Bytes),
    /// Bytes of standard error.
    Stderr(Bytes),
    /// The container could not be run or was lost; the last frame.
    Failed(String),
    /// The container ended with this status; the last frame.
    Exit(i32),
}

impl Frame {
    /// The bytes of the frame.
    pub fn encode(&self) -> Vec<u8> {
        let (kind, payload) = match self {
            Frame::Stdin(bytes) => (0, bytes.to_vec()),
            Frame::Stdout(bytes) => (1, bytes.to_vec()),
            Frame::Stderr(bytes) => (2, bytes.to_vec()),
            Frame::Failed(why) => (3, why.as_bytes().to_vec()),
            Frame::Exit(status) => (4, status.to_be_bytes().to_vec()),
        };
        let mut out = header(kind, payload.len()).to_vec();
        out.extend_from_slice(&payload);
        out
    }

    /// Reads the next frame; `None` when the stream ends between frames.
    ///
    /// # Errors
    /// `InvalidData` for bytes that are no frame or one that is too long, else those of the stream.
    pub async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Frame>> {
        let mut head = [0_u8; 8];
        match stream.read_exact(&mut head).await {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        }
        let [kind, 0, 0, 0, length @ ..] = head else {
            return Err(malformed("bytes between frames"));
        };
        let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        if length > MAX_FRAME {
            return Err(malformed("a frame of more than 64 KiB"));
        }
        let mut payload = vec![0; length];
        stream.read_exact(&mut payload).await?;
        Self::decode(kind, payload).map(Some)
    }

    fn decode(kind: u8, payload: Vec<u8>) -> io::Result<Frame> {
        match kind {
            0 => Ok(Frame::Stdin(payload.into())),
            1 => Ok(Frame::Stdout(payload.into())),
            2 => Ok(Frame::Stderr(payload.into())),
            3 => Ok(Frame::Failed(
                String::from_utf8_lossy(&payload).into_owned(),
            )),
            4 => payload
                .try_into()
                .map(|bytes| Frame::Exit(i32::from_be_bytes(bytes)))
                .map_err(|_| malformed("an exit status that is not 4 bytes")),
            _ => Err(malformed("a frame of unknown kind")),
        }
    }
}

/// The eight bytes before a payload, also those of Docker's log streams. Payloads are far below 4 GiB.
pub fn header(kind: u8, length: usize) -> [u8; 8] {
    let [a, b, c, d] = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    [kind, 0, 0, 0, a, b, c, d]
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("{what} in a debug stream"),
    )
}

impl Management {
    /// Starts a debug container; `operator` is who asks, for the audit log.
    ///
    /// # Errors
    /// `Invalid` for the body, else those of the node.
    pub async fn debug(&self, body: &[u8], operator: String) -> Result<DebugSession, ApiError> {
        let body: DebugBody = document::parse(body)?;
        if body.image.is_empty() {
            return Err(ApiError::Invalid {
                field: "Image".to_owned(),
                why: "it is empty: name the image of the debug container".to_owned(),
            });
        }
        let params = DebugParams {
            image: body.image,
            command: body.cmd,
            env: body.env,
            operator,
        };
        self.local.debug(params).await
    }
}

/// Joins a debug container and a client until either ends. A client that goes away stops the container.
pub async fn relay(session: DebugSession, stream: impl AsyncRead + AsyncWrite + Unpin) {
    let DebugSession { input, mut output } = session;
    let (mut reader, mut writer) = tokio::io::split(stream);
    tokio::select! {
        () = forward_input(&mut reader, input) => {}
        _ = forward_output(&mut output, &mut writer) => {
            // The client may be gone; there is nobody left to tell.
            let _ = writer.shutdown().await;
        }
    }
}

/// Ends when the client goes away or breaks the protocol.
async fn forward_input(reader: &mut (impl AsyncRead + Unpin), input: mpsc::Sender<Bytes>) {
    let mut input = Some(input);
    while let Ok(Some(frame)) = Frame::read(reader).await {
        match frame {
            Frame::Stdin(bytes) if bytes.is_empty() => input = None,
            Frame::Stdin(bytes) => {
                if let Some(open) = &input
                    && open.send(bytes).await.is_err()
                {
                    input = None;
                }
            }
            Frame::Stdout(_) | Frame::Stderr(_) | Frame::Failed(_) | Frame::Exit(_) => return,
        }
    }
}

async fn forward_output(
    output: &mut mpsc::Receiver<DebugOutput>,
    writer: &mut (impl AsyncWrite + Unpin),
) -> io::Result<()> {
    while let Some(piece) = output.recv().await {
        match piece {
            DebugOutput::Bytes(stream, bytes) => {
                for start in (0..bytes.len()).step_by(MAX_FRAME) {
                    let part = bytes.slice(start..bytes.len().min(start + MAX_FRAME));
                    let frame = match stream {
                        OutputStream::Stdout => Frame::Stdout(part),
                        OutputStream::Stderr => Frame::Stderr(part),
                    };
                    writer.write_all(&frame.encode()).await?;
                }
                writer.flush().await?;
            }
            DebugOutput::Exit(status) => return last(writer, Frame::Exit(status)).await,
            DebugOutput::Failed(why) => return last(writer, Frame::Failed(why)).await,
        }
    }
    let lost = Frame::Failed("the debug container was lost".to_owned());
    last(writer, lost).await
}

async fn last(writer: &mut (impl AsyncWrite + Unpin), frame: Frame) -> io::Result<()> {
    writer.write_all(&frame.encode()).await?;
    writer.flush().await
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        runtime.unwrap().block_on(future)
    }

    #[test]
    fn frames_come_back_as_they_were() {
        let frames = [
            Frame::Stdin(Bytes::new()),
            Frame::Stdin("in".into()),
            Frame::Stdout("out".into()),
            Frame::Stderr(vec![0xff; MAX_FRAME].into()),
            Frame::Failed("no such image".to_owned()),
            Frame::Exit(-1),
        ];
        let bytes: Vec<u8> = frames.iter().flat_map(Frame::encode).collect();
        let read = block_on(async {
            let mut rest = bytes.as_slice();
            let mut read = Vec::new();
            while let Some(frame) = Frame::read(&mut rest).await.unwrap() {
                read.push(frame);
            }
            read
        });
        assert_eq!(read, frames);
    }

    #[test]
    fn input_output_and_status_pass_and_a_closed_input_is_seen() {
        block_on(async {
            let (input, mut given) = mpsc::channel::<Bytes>(1);
            let (sender, output) = mpsc::channel(1);
            let (near, far) = tokio::io::duplex(1024);
            let container = async move {
                let mut all = Vec::new();
                while let Some(bytes) = given.recv().await {
                    all.extend_from_slice(&bytes);
                }
                let echo = DebugOutput::Bytes(OutputStream::Stdout, all.into());
                sender.send(echo).await.unwrap();
                sender.send(DebugOutput::Exit(7)).await.unwrap();
            };
            let client = async move {
                let (mut reader, mut writer) = tokio::io::split(far);
                for bytes in ["one ", "two", ""] {
                    let frame = Frame::Stdin(bytes.into());
                    writer.write_all(&frame.encode()).await.unwrap();
                }
                let mut frames = Vec::new();
                while let Some(frame) = Frame::read(&mut reader).await.unwrap() {
                    frames.push(frame);
                }
                frames
            };
            let session = DebugSession { input, output };
            let ((), (), frames) = tokio::join!(relay(session, near), container, client);
            assert_eq!(frames, [Frame::Stdout("one two".into()), Frame::Exit(7)]);
        });
    }

    proptest! {
        #[test]
        fn hostile_streams_are_errors_not_panics(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            block_on(async {
                let mut rest = bytes.as_slice();
                while let Ok(Some(_)) = Frame::read(&mut rest).await {}
            });
        }
    }
}
