//! An HTTP server in place of other people's: keeps what it is sent, and fails when it is told to.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{LazyLock, Mutex},
};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
};

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Received {
    pub path: String,
    /// By name in lower case.
    pub headers: HashMap<String, String>,
    pub body: Vec<u8>,
}

impl Received {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    /// A field of a form.
    pub fn field(&self, name: &str) -> String {
        let found = url::form_urlencoded::parse(&self.body).find(|(known, _)| known == name);
        found.map(|(_, value)| value.into_owned()).unwrap_or_default()
    }

    fn holds(&self, mark: &str) -> bool {
        self.path.contains(mark) || String::from_utf8_lossy(&self.body).contains(mark)
    }
}

static RECEIVED: LazyLock<Mutex<Vec<Received>>> = LazyLock::new(Default::default);
static ANSWERS: LazyLock<Mutex<Vec<(String, u16)>>> = LazyLock::new(Default::default);

/// Everything so far that has this mark in its path or its body.
pub fn received(mark: &str) -> Vec<Received> {
    RECEIVED.lock().unwrap().iter().filter(|request| request.holds(mark)).cloned().collect()
}

/// Answers the next request that has this mark with this status; otherwise it is 201.
pub fn answer_next(mark: &str, status: u16) {
    ANSWERS.lock().unwrap().push((mark.to_owned(), status));
}

/// Starts the server on a free port.
pub async fn serve() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(session(stream));
        }
    });
    address
}

/// One request for each connection.
async fn session(mut stream: TcpStream) -> Option<()> {
    let (read, mut write) = stream.split();
    let mut read = BufReader::new(read);
    let mut line = String::new();
    read.read_line(&mut line).await.ok()?;
    let path = line.split(' ').nth(1)?.to_owned();
    let mut headers = HashMap::new();
    loop {
        line.clear();
        read.read_line(&mut line).await.ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    read.read_exact(&mut body).await.ok()?;
    let request = Received { path, headers, body };
    let status = {
        let mut answers = ANSWERS.lock().unwrap();
        let place = answers.iter().position(|(mark, _)| request.holds(mark));
        place.map_or(201, |place| answers.remove(place).1)
    };
    RECEIVED.lock().unwrap().push(request);
    let answer = format!("HTTP/1.1 {status} x\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{{}}");
    write.write_all(answer.as_bytes()).await.ok()
}
