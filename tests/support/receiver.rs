//! An HTTP server that keeps what it is sent, and answers as a test wishes.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    task::AbortHandle,
};

use super::within;

/// A request that came to its end.
#[derive(Clone, Debug)]
pub struct Received {
    pub path: String,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
    pub at: Instant,
}

impl Received {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// Whether this is somewhere in the body.
    pub fn mentions(&self, text: &str) -> bool {
        String::from_utf8_lossy(&self.body).contains(text)
    }
}

/// What is answered.
#[derive(Clone, Debug)]
pub struct Reply {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Body,
    wait: Duration,
}

#[derive(Clone, Debug)]
enum Body {
    Text(String),
    /// So many pieces of 64 KiB.
    Pieces(usize),
    /// A byte a second, without end.
    Drops,
    /// Not even a status.
    Never,
}

impl Reply {
    pub fn status(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Body::Text(String::new()), wait: Duration::ZERO }
    }

    pub fn with(mut self, header: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((header, value.into()));
        self
    }

    pub fn saying(self, text: &str) -> Self {
        Self { body: Body::Text(text.into()), ..self }
    }

    /// Later.
    pub fn after(self, wait: Duration) -> Self {
        Self { wait, ..self }
    }

    /// A body of 100 MiB.
    pub fn huge() -> Self {
        Self { body: Body::Pieces(1600), ..Self::status(200) }
    }

    pub fn drip() -> Self {
        Self { body: Body::Drops, ..Self::status(200) }
    }

    pub fn hang() -> Self {
        Self { body: Body::Never, ..Self::status(200) }
    }

    async fn send(self, to: &mut OwnedWriteHalf) -> std::io::Result<()> {
        static PIECE: [u8; 64 * 1024] = [b'x'; 64 * 1024];
        tokio::time::sleep(self.wait).await;
        let length = match &self.body {
            Body::Text(text) => text.len(),
            Body::Pieces(count) => count * PIECE.len(),
            Body::Drops => 1_000_000,
            Body::Never => std::future::pending().await,
        };
        let mut head = format!("HTTP/1.1 {} Test\r\ncontent-length: {length}\r\n", self.status);
        for (name, value) in &self.headers {
            head += &format!("{name}: {value}\r\n");
        }
        to.write_all((head + "\r\n").as_bytes()).await?;
        match self.body {
            Body::Text(text) => to.write_all(text.as_bytes()).await?,
            Body::Pieces(count) => {
                for _ in 0..count {
                    to.write_all(&PIECE).await?;
                }
            }
            Body::Drops | Body::Never => loop {
                to.write_all(b".").await?;
                tokio::time::sleep(Duration::from_secs(1)).await;
            },
        }
        Ok(())
    }
}

type Manner = Arc<dyn Fn(&Received) -> Reply + Send + Sync>;

/// Fails so many times, and does as it should from then on.
pub fn failing(times: usize) -> impl Fn(&Received) -> Reply {
    let met = AtomicUsize::new(0);
    move |_| Reply::status(if met.fetch_add(1, Ordering::Relaxed) < times { 500 } else { 200 })
}

/// A server that runs until it is dropped.
pub struct Receiver {
    address: SocketAddr,
    desk: Arc<Desk>,
    server: AbortHandle,
}

struct Desk {
    log: Mutex<Vec<Received>>,
    manner: Mutex<Manner>,
}

impl Receiver {
    /// One that answers 200.
    pub async fn start() -> Self {
        Self::answering(|_| Reply::status(200)).await
    }

    /// One that answers each request as this says.
    pub async fn answering(manner: impl Fn(&Received) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let desk = Arc::new(Desk { log: Mutex::default(), manner: Mutex::new(Arc::new(manner)) });
        let at = desk.clone();
        let server = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(session(stream, at.clone()));
            }
        });
        Self { address, desk, server: server.abort_handle() }
    }

    /// From now on it answers like this.
    pub fn answer(&self, manner: impl Fn(&Received) -> Reply + Send + Sync + 'static) {
        *self.desk.manner.lock().unwrap() = Arc::new(manner);
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    pub fn url(&self) -> String {
        self.at("/")
    }

    /// The address of a path, which begins with a slash.
    pub fn at(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Everything so far, in the order of arrival.
    pub fn received(&self) -> Vec<Received> {
        self.look(<[Received]>::to_vec)
    }

    pub fn count(&self) -> usize {
        self.look(<[Received]>::len)
    }

    /// Looks at everything so far without copying it.
    pub fn look<T>(&self, with: impl FnOnce(&[Received]) -> T) -> T {
        with(&self.desk.log.lock().unwrap())
    }

    /// Waits until so many have come, and answers all that have.
    pub async fn wait_for(&self, count: usize) -> Vec<Received> {
        within(10, &format!("{count} requests"), || async { self.count() >= count }).await;
        self.received()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn session(stream: TcpStream, desk: Arc<Desk>) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    loop {
        let received = request(&mut read).await?;
        let manner = desk.manner.lock().unwrap().clone();
        let reply = manner(&received);
        desk.log.lock().unwrap().push(received);
        reply.send(&mut write).await.ok()?;
    }
}

/// The next request of a connection, if it comes to its end.
async fn request(from: &mut BufReader<OwnedReadHalf>) -> Option<Received> {
    let mut line = String::new();
    from.read_line(&mut line).await.ok()?;
    let path = line.split(' ').nth(1)?.to_owned();
    let mut headers = HeaderMap::new();
    loop {
        let mut line = String::new();
        from.read_line(&mut line).await.ok()?;
        if line.trim_end().is_empty() {
            break;
        }
        let (name, value) = line.split_once(':')?;
        let (name, value): (HeaderName, HeaderValue) = (name.parse().ok()?, value.trim().parse().ok()?);
        headers.append(name, value);
    }
    let length = headers.get("content-length")?.to_str().ok()?.parse().ok()?;
    let mut body = vec![0; length];
    from.read_exact(&mut body).await.ok()?;
    Some(Received { path, headers, body, at: Instant::now() })
}
