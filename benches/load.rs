//! Requests one after the other over so many connections, and how long each was waited for.
//!
//! The generator shares the machine with what it measures, so it does little: requests are made
//! beforehand, one thread drives all connections, and of an answer only status and length are read.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use futures_util::future::try_join_all;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::sleep,
};

/// In a request this becomes a number that no other request has.
pub const NUMBER: &str = "########";
static NEXT_NUMBER: AtomicUsize = AtomicUsize::new(1);

/// A request as it goes over the wire.
#[derive(Clone)]
pub struct Request {
    bytes: Vec<u8>,
    /// Where the number goes.
    numbers: Vec<usize>,
}

impl Request {
    /// `head` are lines such as `authorization: Bearer …`.
    pub fn get(host: &str, path: &str, head: &str) -> Self {
        Self::new(format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n{head}\r\n"))
    }

    pub fn post(host: &str, path: &str, head: &str, body: &Value) -> Self {
        let body = body.to_string();
        let length = body.len();
        Self::new(format!(
            "POST {path} HTTP/1.1\r\nhost: {host}\r\n{head}content-type: application/json\r\n\
             content-length: {length}\r\n\r\n{body}"
        ))
    }

    fn new(text: String) -> Self {
        let numbers = text.match_indices(NUMBER).map(|(at, _)| at).collect();
        Self { bytes: text.into_bytes(), numbers }
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.clear();
        out.extend_from_slice(&self.bytes);
        if !self.numbers.is_empty() {
            let number = format!("{:08}", NEXT_NUMBER.fetch_add(1, Ordering::Relaxed));
            for at in &self.numbers {
                out[*at..at + NUMBER.len()].copy_from_slice(number.as_bytes());
            }
        }
    }
}

/// When a load ends.
#[derive(Clone, Copy)]
pub enum Until {
    Elapsed(Duration),
    Answers(usize),
}

/// What is sent where, and how much of it.
#[derive(Clone)]
pub struct Load {
    address: SocketAddr,
    requests: Arc<[Request]>,
    connections: usize,
    until: Until,
    /// Between an answer and the next request.
    pause: Duration,
    in_turn: bool,
    may_be_refused: bool,
}

impl Load {
    /// Requests in random order over so many connections.
    pub fn new(address: SocketAddr, requests: Vec<Request>, connections: usize, until: Until) -> Self {
        let (pause, in_turn, may_be_refused) = (Duration::ZERO, false, false);
        Self { address, requests: requests.into(), connections, until, pause, in_turn, may_be_refused }
    }

    /// The requests in their order.
    pub fn in_turn(self) -> Self {
        Self { in_turn: true, ..self }
    }

    pub fn with_pause(self, pause: Duration) -> Self {
        Self { pause, ..self }
    }

    pub fn until(&self, until: Until) -> Self {
        Self { until, ..self.clone() }
    }

    pub fn over(&self, connections: usize) -> Self {
        Self { connections, ..self.clone() }
    }

    /// To be told to come back later (429, 503) is no failure.
    pub fn may_be_refused(self) -> Self {
        Self { may_be_refused: true, ..self }
    }

    /// Does it, on a thread of its own. The first answer that is no success is an error.
    pub async fn run(&self) -> anyhow::Result<Outcome> {
        let load = self.clone();
        let done = tokio::task::spawn_blocking(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(load.drive())
        });
        done.await?
    }

    async fn drive(&self) -> anyhow::Result<Outcome> {
        let (started, sent) = (Instant::now(), AtomicUsize::new(0));
        let seed = NEXT_NUMBER.fetch_add(1, Ordering::Relaxed) as u64;
        let driving =
            (0..self.connections as u64).map(|n| self.connection(mix((seed << 32) | n), started, &sent));
        let parts = try_join_all(driving).await?;
        Ok(Outcome::of(parts, started.elapsed()))
    }

    async fn connection(&self, seed: u64, started: Instant, sent: &AtomicUsize) -> anyhow::Result<Part> {
        let mut stream = TcpStream::connect(self.address).await.context("connecting")?;
        stream.set_nodelay(true)?;
        let (mut part, mut random) = (Part::default(), seed);
        let (mut out, mut answer) = (Vec::new(), Vec::with_capacity(32 * 1024));
        loop {
            let turn = sent.fetch_add(1, Ordering::Relaxed);
            let over = match self.until {
                Until::Elapsed(time) => started.elapsed() >= time,
                Until::Answers(count) => turn >= count,
            };
            if over {
                return Ok(part);
            }
            random = mix(random);
            let chosen = if self.in_turn { turn } else { random as usize };
            self.requests[chosen % self.requests.len()].write(&mut out);
            let asked = Instant::now();
            stream.write_all(&out).await?;
            match read_answer(&mut stream, &mut answer).await? {
                200..300 => part.waits.push(asked.elapsed().as_micros() as u32),
                429 | 503 if self.may_be_refused => part.refused += 1,
                _ => bail!("a request failed: {}", String::from_utf8_lossy(&answer)),
            }
            if !self.pause.is_zero() {
                sleep(self.pause).await;
            }
        }
    }
}

/// The status of the answer to one request.
pub async fn status(address: SocketAddr, request: &Request) -> anyhow::Result<u16> {
    let (mut stream, mut out) = (TcpStream::connect(address).await?, Vec::new());
    request.write(&mut out);
    stream.write_all(&out).await?;
    read_answer(&mut stream, &mut out).await
}

/// Reads one answer, and tells its status.
async fn read_answer(stream: &mut TcpStream, answer: &mut Vec<u8>) -> anyhow::Result<u16> {
    answer.clear();
    let body = loop {
        ensure!(stream.read_buf(answer).await? > 0, "the connection was closed without an answer");
        if let Some(end) = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            break end + 4;
        }
    };
    let head = std::str::from_utf8(&answer[..body])?;
    let status: u16 = head.get(9..12).context("an answer without a status")?.parse()?;
    let length = head
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .with_context(|| format!("an answer without a length: {head}"))?;
    let whole = body + length.1.trim().parse::<usize>()?;
    while answer.len() < whole {
        ensure!(stream.read_buf(answer).await? > 0, "the connection was closed in the middle of an answer");
    }
    Ok(status)
}

/// The next of a row of numbers that look like random ones (splitmix64).
fn mix(x: u64) -> u64 {
    let mut x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// What became of one connection's requests.
#[derive(Default)]
struct Part {
    /// Microseconds that each answer took.
    waits: Vec<u32>,
    refused: usize,
}

/// What came of a load; times in milliseconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outcome {
    pub answers: usize,
    pub refused: usize,
    pub per_second: f64,
    pub p50: f64,
    pub p99: f64,
    pub max: f64,
}

impl Outcome {
    fn of(parts: Vec<Part>, took: Duration) -> Self {
        let refused = parts.iter().map(|part| part.refused).sum();
        let mut waits: Vec<u32> = parts.into_iter().flat_map(|part| part.waits).collect();
        waits.sort_unstable();
        let at = |share: f64| {
            let place = (waits.len() as f64 * share) as usize;
            waits.get(place.min(waits.len().saturating_sub(1))).map_or(0.0, |wait| f64::from(*wait) / 1000.0)
        };
        let answers = waits.len();
        let per_second = answers as f64 / took.as_secs_f64();
        Self { answers, refused, per_second, p50: at(0.5), p99: at(0.99), max: at(1.0) }
    }

    /// The medians of several rounds, each figure for itself; answers are added up.
    pub fn median(rounds: &[Self]) -> Self {
        let of = |figure: fn(&Self) -> f64| median(rounds.iter().map(figure).collect());
        Self {
            answers: rounds.iter().map(|round| round.answers).sum(),
            refused: rounds.iter().map(|round| round.refused).sum(),
            per_second: of(|round| round.per_second),
            p50: of(|round| round.p50),
            p99: of(|round| round.p99),
            max: of(|round| round.max),
        }
    }
}

/// The middle one; 0 of none.
pub fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or_default()
}
