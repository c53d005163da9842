//! Bytes that no client sends: the API answers with an error or hangs up, and serves the next client.

use std::{io::ErrorKind, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::watch,
    time::timeout,
};

use super::{
    super::{listener, router},
    certificates::certificates,
    scratch,
};
use crate::management::memory;

const PATIENCE: Duration = Duration::from_secs(20);

/// Deterministic junk.
fn junk(seed: u32, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_be_bytes()[0]
    };
    (0..length).map(|_| next()).collect()
}

/// What comes back until the other side hangs up.
async fn answer(mut stream: UnixStream, sent: &[u8]) -> String {
    // The other side may hang up in the middle.
    let _ = stream.write_all(sent).await;
    let _ = stream.shutdown().await;
    let mut bytes = Vec::new();
    let read = timeout(PATIENCE, stream.read_to_end(&mut bytes)).await;
    let read = read.expect("the API neither answers nor hangs up");
    assert!(read.is_ok() || read.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset));
    String::from_utf8_lossy(&bytes).into_owned()
}

#[tokio::test]
async fn junk_and_cut_requests_harm_nobody() {
    let folder = scratch("hostile");
    let path = folder.join("api.sock");
    let listener = UnixListener::bind(&path).unwrap();
    tokio::spawn(listener::serve_unix(listener, router(memory::management())));
    let good = b"GET /_ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let body = b"POST /swarm/init HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{";
    let mut attempts: Vec<Vec<u8>> = (0..40).map(|seed| junk(seed, 300)).collect();
    attempts.extend((0..good.len()).map(|cut| good[..cut].to_vec()));
    attempts.push(body.to_vec());
    attempts.push(
        b"GET /"
            .to_vec()
            .into_iter()
            .chain(junk(7, 200_000))
            .collect(),
    );
    let long = format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(200_000));
    attempts.push(long.into_bytes());
    let many = "X-Header: y\r\n".repeat(5_000);
    attempts.push(format!("GET / HTTP/1.1\r\nHost: x\r\n{many}\r\n").into_bytes());
    for sent in attempts {
        let stream = UnixStream::connect(&path).await.unwrap();
        let said = answer(stream, &sent).await;
        assert!(
            !said.starts_with("HTTP/1.1 2") && !said.starts_with("HTTP/1.1 5"),
            "{said}"
        );
    }
    let stream = UnixStream::connect(&path).await.unwrap();
    let said = answer(stream, good).await;
    assert!(
        said.starts_with("HTTP/1.1 200") && said.ends_with("OK"),
        "{said}"
    );
    std::fs::remove_dir_all(folder).unwrap();
}

#[tokio::test]
async fn junk_instead_of_tls_is_hung_up_on() {
    let folder = scratch("hostile-tls");
    let config = certificates(&folder);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (_settings, receiver) = watch::channel(Some(Arc::new(config)));
    tokio::spawn(listener::serve_tls(
        listener,
        receiver,
        router(memory::management()),
    ));
    for seed in 0..30 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let mut sent = junk(seed, 400);
        if seed % 2 == 0 {
            // The beginning of a TLS handshake, and then junk.
            sent.splice(..5, [0x16, 3, 1, 1, 0x70]);
        }
        let _ = stream.write_all(&sent).await;
        let mut bytes = Vec::new();
        let read = timeout(PATIENCE, stream.read_to_end(&mut bytes)).await;
        assert!(read.is_ok(), "junk {seed} is not hung up on");
        assert!(bytes.len() < 200, "junk {seed} is answered");
    }
    let stream = TcpStream::connect(address).await.unwrap();
    drop(stream);
    std::fs::remove_dir_all(folder).unwrap();
}
