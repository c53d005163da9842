//! Asking the node's own name servers. Question and answer pass as they are, whatever types of records they are about.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    time::timeout,
};

use super::reply::Transport;

/// How long a name server may take before the next one is asked.
const PATIENCE: Duration = Duration::from_secs(3);
/// The longest answer by UDP that is taken.
const MAX_UDP: usize = 4096;
/// Port of name servers.
const PORT: u16 = 53;
/// Bytes of a header.
const HEADER: usize = 12;
/// Response codes after which the next server is asked (RFC 1035: SERVFAIL, REFUSED).
const NEXT: [u8; 2] = [2, 5];

/// Asks one server after the other with a fresh `id` in place of the client's; the first answer of use.
pub(super) async fn forward(
    servers: &[IpAddr],
    packet: &[u8],
    transport: Transport,
    id: u16,
) -> Option<Vec<u8>> {
    let mut last = None;
    for server in servers {
        let server = SocketAddr::new(*server, PORT);
        let answer = ask(server, packet, transport, id).await;
        match answer {
            Some(answer) if NEXT.contains(&(answer[3] & 0x0f)) => last = Some(answer),
            Some(answer) => return Some(answer),
            None => {}
        }
    }
    last
}

/// Asks one server; its answer has the client's id again.
pub(super) async fn ask(
    server: SocketAddr,
    packet: &[u8],
    transport: Transport,
    id: u16,
) -> Option<Vec<u8>> {
    let client_id = [*packet.first()?, *packet.get(1)?];
    let mut question = packet.to_vec();
    question[..2].copy_from_slice(&id.to_be_bytes());
    let asked = async {
        match transport {
            Transport::Udp => by_udp(server, &question).await,
            Transport::Tcp => by_tcp(server, &question).await,
        }
    };
    let mut answer = match timeout(PATIENCE, asked).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => {
            tracing::debug!(%server, %error, "a name server cannot be asked");
            return None;
        }
        Err(_) => {
            tracing::debug!(%server, "a name server does not answer");
            return None;
        }
    };
    answer[..2].copy_from_slice(&client_id);
    Some(answer)
}

async fn by_udp(server: SocketAddr, question: &[u8]) -> std::io::Result<Vec<u8>> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    // A socket of its own for each question: the port is as hard to guess as the kernel makes it.
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(question).await?;
    let mut buffer = vec![0; MAX_UDP];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if answers(question, &buffer[..length]) {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}

async fn by_tcp(server: SocketAddr, question: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(question.len()).map_err(std::io::Error::other)?;
    let mut message = length.to_be_bytes().to_vec();
    message.extend_from_slice(question);
    stream.write_all(&message).await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    match answers(question, &answer) {
        true => Ok(answer),
        false => Err(std::io::Error::other("the answer is to another question")),
    }
}

/// Whether a packet answers this question: the same id, an answer, and if it repeats a question, the same one.
fn answers(question: &[u8], packet: &[u8]) -> bool {
    if packet.len() < HEADER || packet[..2] != question[..2] || packet[2] & 0x80 == 0 {
        return false;
    }
    let repeated = u16::from_be_bytes([packet[4], packet[5]]);
    let end = question_end(question).unwrap_or(HEADER);
    repeated == 0
        || packet
            .get(HEADER..end)
            .is_some_and(|theirs| theirs.eq_ignore_ascii_case(&question[HEADER..end]))
}

/// Where the one question of a request ends: its name, type and class.
fn question_end(packet: &[u8]) -> Option<usize> {
    let mut at = HEADER;
    loop {
        let length = usize::from(*packet.get(at)?);
        at += 1;
        match length {
            0 => break,
            1..=63 => at += length,
            _ => return None,
        }
    }
    (at + 4 <= packet.len()).then_some(at + 4)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `a. IN A`, id 7.
    const QUESTION: [u8; 19] = [0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, b'a', 0, 0, 1, 0, 1];

    fn answer() -> Vec<u8> {
        let mut packet = QUESTION.to_vec();
        packet[2] |= 0x80;
        packet
    }

    #[test]
    fn only_the_answer_to_this_question_is_taken() {
        assert!(answers(&QUESTION, &answer()));
        let with = |at: usize, byte| {
            let mut packet = answer();
            packet[at] = byte;
            packet
        };
        assert!(answers(&QUESTION, &with(13, b'A')), "in any case");
        for wrong in [
            with(1, 8),
            with(2, 1),
            with(13, b'b'),
            with(16, 2),
            vec![0, 7, 0x80],
        ] {
            assert!(!answers(&QUESTION, &wrong), "{wrong:?}");
        }
    }

    #[tokio::test]
    async fn the_clients_id_comes_back() {
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = server.local_addr().unwrap();
        let serve = async {
            let mut buffer = [0; 64];
            let (length, client) = server.recv_from(&mut buffer).await.unwrap();
            assert_eq!(buffer[..2], 0x1234_u16.to_be_bytes());
            // Somebody guesses: not taken.
            server.send_to(&answer(), client).await.unwrap();
            buffer[2] |= 0x80;
            server.send_to(&buffer[..length], client).await.unwrap();
        };
        let (given, ()) = tokio::join!(ask(address, &QUESTION, Transport::Udp, 0x1234), serve);
        assert_eq!(given.unwrap(), answer());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(question in prop::collection::vec(any::<u8>(), 12..80), packet in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = answers(&question, &packet);
        }
    }
}
