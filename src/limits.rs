//! Rate limits: the generic cell rate algorithm, shared through Redis where there is one.
//!
//! A limit of 100 an hour lets 100 through at once and then one every 36 seconds. All that is kept
//! for each key is one time: when its bucket will be full again.
//!
//! With Redis the limits are exact over all instances, at one round trip. Without it, or while it is
//! away, each instance counts for itself: the only thing lost is exactness.

use std::{
    collections::HashMap,
    fmt,
    hash::{BuildHasher, RandomState},
    str::FromStr,
    sync::{LazyLock, Mutex},
    time::{Duration, Instant},
};

use anyhow::Context;
use futures_util::future::try_join_all;
use redis::{
    AsyncConnectionConfig, Client, RedisResult, Script, aio::MultiplexedConnection, cluster::ClusterClient,
    cluster_async::ClusterConnection,
};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

use crate::clock::Clock;

/// So many in so long a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Rate {
    /// 0: no limit.
    count: u32,
    per: Duration,
}

impl Rate {
    pub const OFF: Self = Self { count: 0, per: Duration::from_secs(1) };

    pub fn per_hour(count: u32) -> Self {
        Self { count, per: Duration::from_secs(3600) }
    }

    fn is_off(self) -> bool {
        self.count == 0
    }

    /// Microseconds between two, when they come evenly.
    fn interval(self) -> i64 {
        self.window() / i64::from(self.count)
    }

    fn window(self) -> i64 {
        self.per.as_micros() as i64
    }
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a limit; it takes one such as 100/h, 5/5m, 10/s, or off");
        if text == "off" {
            return Ok(Self::OFF);
        }
        let (count, time) = text.split_once('/').ok_or_else(wrong)?;
        let count: u32 = count.trim().parse().map_err(|_| wrong())?;
        let time = time.trim();
        let unit = match time.chars().last() {
            Some('s') => 1,
            Some('m') => 60,
            Some('h') => 3600,
            Some('d') => 86_400,
            _ => return Err(wrong()),
        };
        let many = &time[..time.len() - 1];
        let many: u64 = if many.is_empty() { 1 } else { many.parse().map_err(|_| wrong())? };
        // Evenly means at least a microsecond from one to the next.
        if count == 0 || many == 0 || many > 1000 || u64::from(count) > many * unit * 1_000_000 {
            return Err(wrong());
        }
        Ok(Self { count, per: Duration::from_secs(many * unit) })
    }
}

impl TryFrom<String> for Rate {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.is_off() {
            true => f.write_str("off"),
            false => write!(f, "{}/{}s", self.count, self.per.as_secs()),
        }
    }
}

/// One limit that a request comes under.
pub struct Ask {
    /// Its name in the headers.
    pub policy: &'static str,
    /// Whose it is.
    pub key: String,
    pub rate: Rate,
}

/// What a limit says to a request.
#[derive(Clone, Debug)]
pub struct Verdict {
    pub policy: &'static str,
    pub rate: Rate,
    /// Requests that would be let through now.
    pub remaining: i64,
    /// Seconds until all of them would be again.
    pub reset: i64,
    /// Refused: seconds until the next one is let through.
    pub retry_after: Option<u32>,
}

impl Verdict {
    /// From the time at which the bucket would be full, counted from now, with this request in it.
    fn new(ask: &Ask, full_in: i64, allowed: bool) -> Self {
        let (interval, window) = (ask.rate.interval(), ask.rate.window());
        let seconds = |micros: i64| (micros.max(0) + 999_999) / 1_000_000;
        Self {
            policy: ask.policy,
            rate: ask.rate,
            remaining: if allowed { ((window - full_in) / interval).max(0) } else { 0 },
            reset: seconds(full_in),
            retry_after: (!allowed).then(|| seconds(full_in + interval - window).max(1) as u32),
        }
    }

    /// An entry of the `RateLimit-Policy` header.
    pub fn policy_entry(&self) -> String {
        format!("\"{}\";q={};w={}", self.policy, self.rate.count, self.rate.per.as_secs())
    }

    /// An entry of the `RateLimit` header.
    pub fn limit_entry(&self) -> String {
        format!("\"{}\";r={};t={}", self.policy, self.remaining, self.reset)
    }
}

/// The limits of this instance.
pub struct Limits {
    clock: Clock,
    local: Local,
    redis: Option<Redis>,
}

impl Limits {
    pub fn new(redis: Option<&SecretString>, clock: Clock) -> anyhow::Result<Self> {
        let redis = redis.map(Redis::new).transpose()?;
        Ok(Self { clock, local: Local::default(), redis })
    }

    /// Whether limits are counted together with other instances now.
    pub async fn is_shared(&self) -> bool {
        match &self.redis {
            Some(redis) => redis.link().await.is_some(),
            None => false,
        }
    }

    /// Takes one from each of the limits, or from none if one is used up: whoever has nothing left
    /// must not use up what they share with others. Limits that are off say nothing.
    pub async fn take(&self, asks: &[Ask]) -> Vec<Verdict> {
        let asks: Vec<&Ask> = asks.iter().filter(|ask| !ask.rate.is_off()).collect();
        if asks.is_empty() {
            return Vec::new();
        }
        if let Some(redis) = &self.redis
            && let Some(verdicts) = redis.take(&asks, 1).await
        {
            let back = taken_in_vain(&asks, &verdicts);
            if !back.is_empty() {
                redis.take(&back, -1).await;
            }
            return verdicts;
        }
        let now = self.clock.now().timestamp_micros();
        let verdicts: Vec<Verdict> = asks.iter().map(|ask| self.local.take(ask, 1, now)).collect();
        for ask in taken_in_vain(&asks, &verdicts) {
            self.local.take(ask, -1, now);
        }
        verdicts
    }
}

/// What was taken beside something that was refused.
fn taken_in_vain<'a>(asks: &[&'a Ask], verdicts: &[Verdict]) -> Vec<&'a Ask> {
    if verdicts.iter().all(|verdict| verdict.retry_after.is_none()) {
        return Vec::new();
    }
    asks.iter()
        .zip(verdicts)
        .filter(|(_, verdict)| verdict.retry_after.is_none())
        .map(|(ask, _)| *ask)
        .collect()
}

const SHARDS: usize = 16;
/// Keys in one shard before those whose bucket is full again are dropped.
const CROWDED: usize = 4096;

/// The buckets of one process.
#[derive(Default)]
struct Local {
    hasher: RandomState,
    shards: [Mutex<Shard>; SHARDS],
}

#[derive(Default)]
struct Shard {
    full_at: HashMap<String, i64>,
    sweep_at: usize,
}

impl Local {
    /// `count` is 1, or -1 to give one back.
    fn take(&self, ask: &Ask, count: i64, now: i64) -> Verdict {
        let key = format!("{}:{}", ask.policy, ask.key);
        let shard = &self.shards[self.hasher.hash_one(&key) as usize % SHARDS];
        let mut shard = shard.lock().expect("nothing panics with the lock held");
        if shard.full_at.len() >= shard.sweep_at.max(CROWDED) {
            shard.full_at.retain(|_, full_at| *full_at > now);
            shard.sweep_at = 2 * shard.full_at.len();
        }
        let before = shard.full_at.get(&key).copied().unwrap_or(now).max(now);
        let after = before + count * ask.rate.interval();
        if after - now > ask.rate.window() {
            return Verdict::new(ask, before - now, false);
        }
        shard.full_at.insert(key, after);
        Verdict::new(ask, after - now, true)
    }
}

/// The same on the server, by its clock. Answers whether it is allowed, and in how many
/// microseconds the bucket is full.
static SCRIPT: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local t = redis.call('TIME') \
         local now = t[1] * 1000000 + t[2] \
         local interval, window = tonumber(ARGV[1]), tonumber(ARGV[2]) \
         local before = math.max(tonumber(redis.call('GET', KEYS[1]) or now), now) \
         local after = before + interval \
         if after - now > window then return {0, before - now} end \
         redis.call('SET', KEYS[1], string.format('%.0f', after), 'PX', math.max(math.ceil((after - now) / 1000), 0) + 1) \
         return {1, after - now}",
    )
});

/// A request waits for Redis no longer than this.
const PATIENCE: Duration = Duration::from_millis(500);
/// After a failure, Redis is left alone for so long.
const PAUSE: Duration = Duration::from_secs(1);

/// The connection to Redis, made when it is first needed and again after each break.
struct Redis {
    server: Server,
    /// Where it is, without credentials.
    address: String,
    state: tokio::sync::Mutex<State>,
}

enum Server {
    One(Box<Client>),
    Cluster(Box<ClusterClient>),
}

#[derive(Clone)]
enum Link {
    One(MultiplexedConnection),
    Cluster(ClusterConnection),
}

#[derive(Default)]
struct State {
    link: Option<Link>,
    /// Away since then, with the last attempt.
    failed: Option<Instant>,
}

impl Redis {
    fn new(url: &SecretString) -> anyhow::Result<Self> {
        let addresses: Vec<&str> = url.expose_secret().split(',').map(str::trim).collect();
        let wrong = "redis.url (REDIS_URL) is not an address such as redis://host:6379";
        let server = match addresses[..] {
            [one] => Server::One(Box::new(Client::open(one).context(wrong)?)),
            _ => Server::Cluster(Box::new(
                ClusterClient::builder(addresses)
                    .connection_timeout(PATIENCE)
                    .response_timeout(PATIENCE)
                    .retries(1)
                    .build()
                    .context(wrong)?,
            )),
        };
        let address = url.expose_secret().split(',').next().unwrap_or_default();
        let address =
            address.rsplit(['@', '/']).find(|part| part.contains(':')).unwrap_or(address).to_owned();
        Ok(Self { server, address, state: Default::default() })
    }

    /// `None` while Redis is away.
    async fn take(&self, asks: &[&Ask], count: i64) -> Option<Vec<Verdict>> {
        let link = self.link().await?;
        // All leave in one flush; in a cluster their keys may live on different nodes.
        let calls = asks.iter().map(|ask| {
            let link = link.clone();
            async move {
                let mut call = SCRIPT.prepare_invoke();
                call.key(format!("rowhouse:limit:{}:{}", ask.policy, ask.key));
                call.arg(count * ask.rate.interval()).arg(ask.rate.window());
                let (allowed, full_in): (i64, i64) = match link {
                    Link::One(mut one) => call.invoke_async(&mut one).await?,
                    Link::Cluster(mut cluster) => call.invoke_async(&mut cluster).await?,
                };
                RedisResult::Ok(Verdict::new(ask, full_in, allowed == 1))
            }
        });
        match tokio::time::timeout(PATIENCE, try_join_all(calls)).await {
            Ok(Ok(verdicts)) => Some(verdicts),
            Ok(Err(error)) => self.failed(&error.to_string()).await,
            Err(_) => self.failed("no answer in time").await,
        }
    }

    async fn link(&self) -> Option<Link> {
        let mut state = self.state.lock().await;
        if let Some(link) = &state.link {
            return Some(link.clone());
        }
        if state.failed.is_some_and(|at| at.elapsed() < PAUSE) {
            return None;
        }
        // Whoever waits for the lock meanwhile finds the outcome.
        let connecting = async {
            RedisResult::Ok(match &self.server {
                Server::One(client) => {
                    let config = AsyncConnectionConfig::new().set_response_timeout(Some(PATIENCE));
                    Link::One(client.get_multiplexed_async_connection_with_config(&config).await?)
                }
                Server::Cluster(client) => Link::Cluster(client.get_async_connection().await?),
            })
        };
        match tokio::time::timeout(PATIENCE, connecting).await {
            Ok(Ok(link)) => {
                if state.failed.take().is_some() {
                    tracing::info!("Redis is back; rate limits are exact again");
                }
                self.report(true);
                state.link = Some(link.clone());
                Some(link)
            }
            Ok(Err(error)) => self.note_failure(&mut state, &error.to_string()),
            Err(_) => self.note_failure(&mut state, "no connection in time"),
        }
    }

    async fn failed<T>(&self, why: &str) -> Option<T> {
        self.note_failure(&mut *self.state.lock().await, why)
    }

    fn note_failure<T>(&self, state: &mut State, why: &str) -> Option<T> {
        if state.failed.is_none() {
            tracing::warn!(why, "Redis is away; each instance limits rates by itself");
        }
        self.report(false);
        *state = State { link: None, failed: Some(Instant::now()) };
        None
    }

    fn report(&self, up: bool) {
        metrics::gauge!("rowhouse_redis_up", "server" => self.address.clone()).set(f64::from(u8::from(up)));
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;

    fn rate(text: &str) -> Rate {
        text.parse().unwrap()
    }

    #[test]
    fn rates_are_read() {
        assert_eq!(rate("5/5m"), Rate { count: 5, per: Duration::from_secs(300) });
        assert_eq!(rate("100/h"), Rate::per_hour(100));
        assert_eq!(rate("off"), Rate::OFF);
        for wrong in ["", "5", "0/h", "5/0m", "-1/h", "5/w", "x/h", "5/xm", "5/é"] {
            assert!(wrong.parse::<Rate>().is_err(), "{wrong}");
        }
    }

    #[tokio::test]
    async fn a_bucket_empties_at_once_and_fills_evenly() {
        let clock = Clock::default();
        let limits = Limits::new(None, clock.clone()).unwrap();
        let ask = |key: &str| [Ask { policy: "test", key: key.into(), rate: rate("4/m") }];
        for remaining in [3, 2, 1, 0] {
            let verdict = limits.take(&ask("a")).await.remove(0);
            assert_eq!((verdict.remaining, verdict.retry_after), (remaining, None));
        }
        let refused = limits.take(&ask("a")).await.remove(0);
        assert!(refused.retry_after.is_some_and(|seconds| (14..=15).contains(&seconds)), "{refused:?}");
        assert_eq!(limits.take(&ask("b")).await[0].remaining, 3);
        clock.advance(TimeDelta::seconds(16));
        assert_eq!(limits.take(&ask("a")).await[0].retry_after, None);
        assert!(limits.take(&ask("a")).await[0].retry_after.is_some());
        clock.advance(TimeDelta::hours(1));
        assert_eq!(limits.take(&ask("a")).await[0].remaining, 3);
        assert!(limits.take(&[Ask { policy: "test", key: "c".into(), rate: Rate::OFF }]).await.is_empty());
    }
}
