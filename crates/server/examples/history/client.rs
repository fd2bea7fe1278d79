//! The least client that keeps a connection: what it costs is not the server's.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

pub struct Client {
    stream: TcpStream,
    token: String,
    answer: Vec<u8>,
}

impl Client {
    pub async fn new(addr: std::net::SocketAddr, token: &str) -> Self {
        let stream = TcpStream::connect(addr).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self {
            stream,
            token: token.to_owned(),
            answer: Vec::new(),
        }
    }

    /// The body of an answer, which must be a good one of known length.
    pub async fn get(&mut self, path: &str) -> &[u8] {
        let request = format!(
            "GET /api/v1{path} HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {}\r\n\r\n",
            self.token
        );
        self.stream.write_all(request.as_bytes()).await.unwrap();
        self.answer.clear();
        let begin = loop {
            assert!(
                self.stream.read_buf(&mut self.answer).await.unwrap() > 0,
                "{path}: closed"
            );
            if let Some(at) = self.answer.windows(4).position(|w| w == b"\r\n\r\n") {
                break at + 4;
            }
        };
        let head = String::from_utf8_lossy(&self.answer[..begin]).to_lowercase();
        assert!(head.starts_with("http/1.1 200"), "{path}: {head}");
        let length = head.lines().find_map(|l| l.strip_prefix("content-length: "));
        let length: usize = length.expect("a length").trim().parse().unwrap();
        while self.answer.len() < begin + length {
            assert!(
                self.stream.read_buf(&mut self.answer).await.unwrap() > 0,
                "{path}: closed"
            );
        }
        &self.answer[begin..]
    }
}
