//! A small blocking HTTP/1.1 client: one request per connection, plain or over mutual TLS, every length bounded.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use rustls_pki_types::ServerName;

/// Longest head and longest body that are read.
const HEAD_MAX: u64 = 64 << 10;
const BODY_MAX: u64 = 256 << 20;

/// Where requests go.
#[derive(Clone)]
pub struct Client {
    address: SocketAddr,
    tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    patience: Duration,
}

/// What came back.
#[derive(Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Answer {
    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        let named = |(key, _): &&(String, String)| key.eq_ignore_ascii_case(name);
        self.headers
            .iter()
            .find(named)
            .map(|(_, value)| value.as_str())
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The answer if its status is one of 2xx.
    pub fn good(self) -> Result<Answer> {
        match self.status {
            200..300 => Ok(self),
            status => bail!("status {status}: {}", self.text().trim()),
        }
    }
}

impl Client {
    /// Plain HTTP; each read and write may take as long as `patience`.
    pub fn plain(address: SocketAddr, patience: Duration) -> Client {
        Client {
            address,
            tls: None,
            patience,
        }
    }

    /// HTTPS with a client certificate.
    pub fn tls(
        address: SocketAddr,
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
        patience: Duration,
    ) -> Client {
        Client {
            address,
            tls: Some((config, name)),
            patience,
        }
    }

    /// The same client with another patience.
    #[must_use]
    pub fn patient(self, patience: Duration) -> Client {
        Client { patience, ..self }
    }

    /// `GET path`.
    pub fn get(&self, path: &str) -> Result<Answer> {
        self.request("GET", path, &[], &[])
    }

    /// One request with its whole body.
    pub fn request(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Answer> {
        let stream = self.connect()?;
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\n", self.address);
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str(&format!(
            "Content-Length: {}\r\nConnection: close\r\n\r\n",
            body.len()
        ));
        let head = head.into_bytes();
        match &self.tls {
            None => exchange(stream, method, &head, body),
            Some((config, name)) => {
                let tls = ClientConnection::new(Arc::clone(config), name.clone())?;
                exchange(StreamOwned::new(tls, stream), method, &head, body)
            }
        }
        .with_context(|| format!("{method} {path} at {}", self.address))
    }

    /// Sends bytes as they are, inside TLS where this client has it, looks at what comes back first and goes away.
    ///
    /// # Errors
    /// When nobody listens. That the other side closes in the middle is an answer, too.
    pub fn throw(&self, bytes: &[u8]) -> Result<()> {
        let mut stream = self.connect()?;
        let mut answer = [0; 64];
        let _ = match &self.tls {
            None => stream
                .write_all(bytes)
                .and_then(|()| stream.read(&mut answer)),
            Some((config, name)) => {
                let tls = ClientConnection::new(Arc::clone(config), name.clone())?;
                let mut stream = StreamOwned::new(tls, stream);
                let sent = stream.write_all(bytes).and_then(|()| stream.flush());
                sent.and_then(|()| stream.read(&mut answer))
            }
        };
        Ok(())
    }

    fn connect(&self) -> Result<TcpStream> {
        let stream = TcpStream::connect_timeout(&self.address, self.patience)
            .with_context(|| format!("nobody answers at {}", self.address))?;
        stream.set_read_timeout(Some(self.patience))?;
        stream.set_write_timeout(Some(self.patience))?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

fn exchange(
    mut stream: impl Read + Write,
    method: &str,
    head: &[u8],
    body: &[u8],
) -> Result<Answer> {
    stream.write_all(head)?;
    stream.write_all(body)?;
    stream.flush()?;
    let mut reader = BufReader::new(stream);
    let (mut status, mut headers) = read_head(&mut reader)?;
    while status == 100 {
        (status, headers) = read_head(&mut reader)?;
    }
    let mut answer = Answer {
        status,
        headers,
        body: Vec::new(),
    };
    if method == "HEAD" || matches!(status, 204 | 304) {
        return Ok(answer);
    }
    let chunked = answer
        .header("transfer-encoding")
        .is_some_and(|value| value.eq_ignore_ascii_case("chunked"));
    if chunked {
        read_chunks(&mut reader, &mut answer.body)?;
    } else if let Some(length) = answer.header("content-length") {
        let length: u64 = length
            .trim()
            .parse()
            .context("a Content-Length that is no number")?;
        read_exactly(&mut reader, length, &mut answer.body)?;
    } else {
        reader.take(BODY_MAX).read_to_end(&mut answer.body)?;
    }
    Ok(answer)
}

type Head = (u16, Vec<(String, String)>);

fn read_head(reader: &mut impl BufRead) -> Result<Head> {
    let mut reader = reader.take(HEAD_MAX);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let status = line
        .strip_prefix("HTTP/1.")
        .and_then(|rest| rest.split_whitespace().nth(1)?.parse().ok())
        .with_context(|| format!("no HTTP answer: {:?}", line.trim()))?;
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            bail!("the answer ends in its head");
        }
        match line.trim_end().split_once(':') {
            Some((name, value)) => headers.push((name.to_owned(), value.trim().to_owned())),
            None => return Ok((status, headers)),
        }
    }
}

fn read_chunks(reader: &mut impl BufRead, body: &mut Vec<u8>) -> Result<()> {
    loop {
        let mut line = String::new();
        (&mut *reader).take(1024).read_line(&mut line)?;
        let length = line.split(';').next().unwrap_or_default().trim();
        let length = u64::from_str_radix(length, 16).context("a chunk without a length")?;
        if length == 0 {
            return Ok(());
        }
        read_exactly(reader, length, body)?;
        reader.read_line(&mut line)?;
    }
}

fn read_exactly(reader: &mut impl BufRead, length: u64, body: &mut Vec<u8>) -> Result<()> {
    let room = BODY_MAX.saturating_sub(u64::try_from(body.len())?);
    if length > room {
        bail!("the answer is longer than {BODY_MAX} bytes");
    }
    let read = reader.take(length).read_to_end(body)?;
    if u64::try_from(read)? < length {
        bail!("the answer ends too early");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// Answers one request with these bytes.
    fn serve_once(answer: &'static [u8]) -> Client {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let (mut client, _) = listener.accept().unwrap();
            let mut head = [0; 4096];
            let _ = client.read(&mut head).unwrap();
            client.write_all(answer).unwrap();
        });
        Client::plain(address, Duration::from_secs(5))
    }

    #[test]
    fn chunked_bodies_are_put_together() {
        let client = serve_once(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n",
        );
        assert_eq!(client.get("/").unwrap().good().unwrap().text(), "abcde");
    }

    #[test]
    fn a_body_that_is_cut_short_is_an_error() {
        let client = serve_once(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc");
        assert!(client.get("/").is_err());
    }

    #[test]
    fn a_bad_status_carries_what_the_server_says() {
        let client = serve_once(b"HTTP/1.1 409 Conflict\r\nContent-Length: 5\r\n\r\ntaken");
        let error = client.get("/").unwrap().good().unwrap_err();
        assert_eq!(error.to_string(), "status 409: taken");
    }
}
