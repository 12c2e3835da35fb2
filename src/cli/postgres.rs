//! A Postgres server of one's own, from the installed binaries: for `rowhouse dev` and the tests.
//!
//! The server runs under a small shell that waits for the end of its standard input. That pipe is
//! held by this process, so however the process ends, also by `kill -9`, the server is stopped.

use std::{
    fs,
    io::Write,
    os::unix::{
        fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use secrecy::SecretString;

use crate::auth::sealing::{hex, random, sha256};

const OLDEST: u32 = 15;

/// Where initdb and postgres are, and which major version.
pub struct Binaries {
    pub dir: PathBuf,
    pub major: u32,
}

/// Looks on PATH, where distributions put versions side by side, and where `pg_config` says.
pub fn find_binaries() -> anyhow::Result<Binaries> {
    let mut places: Vec<PathBuf> =
        std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).collect();
    for parent in ["/usr/lib/postgresql", "/usr/local", "/usr", "/opt/homebrew/opt", "/usr/local/opt"] {
        let Ok(entries) = fs::read_dir(parent) else { continue };
        let named = |name: &str| {
            parent.ends_with("postgresql") || name.starts_with("pgsql") || name.starts_with("postgresql")
        };
        let mut found: Vec<PathBuf> = entries
            .flatten()
            .filter(|entry| named(&entry.file_name().to_string_lossy()))
            .map(|entry| entry.path().join("bin"))
            .collect();
        found.sort();
        places.extend(found.into_iter().rev());
    }
    if let Ok(output) = Command::new("pg_config").arg("--bindir").output() {
        places.push(String::from_utf8_lossy(&output.stdout).trim().into());
    }
    let mut too_old = None;
    for place in places.iter().filter(|place| place.join("initdb").is_file()) {
        // What is on PATH may be a link to one version's folder; the server must be beside it.
        let dir =
            fs::canonicalize(place.join("initdb")).ok().and_then(|path| path.parent().map(Path::to_owned));
        for dir in dir.into_iter().chain([place.clone()]).filter(|dir| dir.join("postgres").is_file()) {
            let Some(major) = major(&dir) else { continue };
            if major >= OLDEST {
                return Ok(Binaries { dir, major });
            }
            too_old = Some(major);
        }
    }
    match too_old {
        Some(major) => bail!("Postgres {major} is too old; install {OLDEST} or newer"),
        None => bail!(
            "no Postgres server binaries found; `make dev` installs them, or install Postgres {OLDEST} or newer"
        ),
    }
}

fn major(dir: &Path) -> Option<u32> {
    let output = Command::new(dir.join("postgres")).arg("--version").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let digits: String = text.rsplit(") ").next()?.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

/// The account that the server runs under; Postgres refuses to run as root.
#[derive(Clone, Copy)]
struct Account {
    uid: u32,
    gid: u32,
}

impl Account {
    /// `None` where this process is an ordinary user and so is the server.
    fn needed() -> anyhow::Result<Option<Self>> {
        let output = Command::new("id").arg("-u").output().context("running `id -u`")?;
        if String::from_utf8_lossy(&output.stdout).trim() != "0" {
            return Ok(None);
        }
        let passwd = fs::read_to_string("/etc/passwd").context("reading /etc/passwd")?;
        for name in ["postgres", "nobody"] {
            let line = passwd.lines().find(|line| line.split(':').next() == Some(name));
            let mut parts = line.into_iter().flat_map(|line| line.split(':')).skip(2);
            if let (Some(Ok(uid)), Some(Ok(gid))) =
                (parts.next().map(str::parse), parts.next().map(str::parse))
            {
                return Ok(Some(Self { uid, gid }));
            }
        }
        bail!("Postgres does not run as root, and there is neither a user postgres nor nobody to run it as")
    }
}

fn command(program: impl AsRef<std::ffi::OsStr>, account: Option<Account>) -> Command {
    let mut command = Command::new(program);
    // A server must not speak the language, or hold the settings, of whoever started it.
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("PG")) {
        command.env_remove(name);
    }
    command.env("LC_ALL", "C").current_dir("/").stdin(Stdio::null());
    if let Some(account) = account {
        command.uid(account.uid).gid(account.gid);
    }
    command
}

/// How much a crash of the machine may cost.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Keeping {
    /// As Postgres does it.
    Data,
    /// Nothing is kept: as fast as possible, and removed at the end.
    Nothing,
}

/// A running server.
pub struct PrivatePostgres {
    port: u16,
    password: String,
    guardian: Child,
}

impl PrivatePostgres {
    /// Where the files for `home` are: in it, unless the server's account cannot get there.
    pub fn place(home: &Path) -> anyhow::Result<PathBuf> {
        let inside = home.join("postgres");
        let Some(account) = Account::needed()? else { return Ok(inside) };
        let reachable = command("sh", Some(account))
            .args(["-c", "cd \"$1\"", "sh"])
            .arg(home)
            .stderr(Stdio::null())
            .status()?;
        if reachable.success() {
            return Ok(inside);
        }
        let hash = sha256(home.as_os_str().as_encoded_bytes());
        Ok(Path::new("/var/tmp").join(format!("rowhouse-{}", hex(&hash[..6]))))
    }

    /// Starts the server over the files in `place`, which are made where they are missing. A run
    /// that was killed earlier is cleaned up after.
    pub async fn start(place: &Path, keeping: Keeping) -> anyhow::Result<Self> {
        let binaries = find_binaries()?;
        let account = Account::needed()?;
        make_dir(place, account)?;
        let data = place.join("data");
        end_server_over(&binaries, &data, account).await?;
        if !data.join("PG_VERSION").is_file() {
            init(&binaries, place, &data, account)?;
        }
        let made_by = fs::read_to_string(data.join("PG_VERSION"))?;
        ensure!(
            made_by.trim() == binaries.major.to_string(),
            "the data in {} is of Postgres {}, the installed one is {}: install that, or start over with --reset",
            data.display(),
            made_by.trim(),
            binaries.major
        );
        let password = fs::read_to_string(place.join("password"))?.trim().to_owned();
        let sockets = socket_dir(place, account)?;
        let mut last = None;
        for _ in 0..5 {
            match Self::try_start(&binaries, place, &sockets, &password, account, keeping).await {
                Ok(server) => return Ok(server),
                // Somebody else may have taken the port in between.
                Err(error) if format!("{error:#}").contains("could not bind") => last = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(last.unwrap_or_else(|| anyhow::anyhow!("no free port")))
    }

    async fn try_start(
        binaries: &Binaries,
        place: &Path,
        sockets: &Path,
        password: &str,
        account: Option<Account>,
        keeping: Keeping,
    ) -> anyhow::Result<Self> {
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let log = place.join("postgres.log");
        // What an earlier run said there is not about this one.
        let _ = fs::remove_file(&log);
        // After the pipe's end: a fast shutdown, and for tests the removal of all files.
        const GUARD: &str = "place=$1 keep=$2 log=$3; shift 3; \"$@\" >\"$log\" 2>&1 & pid=$!; cat >/dev/null; \
             kill -INT $pid 2>/dev/null; wait $pid; if [ \"$keep\" = no ]; then rm -rf \"$place\"; fi";
        let mut guard = command("sh", account);
        guard.args(["-c", GUARD, "rowhouse-postgres"]).arg(place);
        guard.arg(if keeping == Keeping::Data { "yes" } else { "no" }).arg(&log);
        guard.arg(binaries.dir.join("postgres")).arg("-D").arg(place.join("data"));
        let sockets = sockets.display();
        let mut settings = vec![
            "listen_addresses=127.0.0.1".to_owned(),
            format!("port={port}"),
            format!("unix_socket_directories={sockets}"),
            "max_connections=300".to_owned(),
            "max_prepared_transactions=64".to_owned(),
            "timezone=UTC".to_owned(),
            "log_timezone=UTC".to_owned(),
            "logging_collector=off".to_owned(),
        ];
        if keeping == Keeping::Nothing {
            settings
                .extend(["fsync=off", "synchronous_commit=off", "full_page_writes=off"].map(str::to_owned));
        }
        for setting in &settings {
            guard.args(["-c", setting]);
        }
        // A group of its own: Ctrl-C is for this process, which stops the server when it is done.
        guard.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        let guardian = guard.spawn().context("starting sh")?;
        let server = Self { port, password: password.to_owned(), guardian };
        server.wait_until_ready(&log).await?;
        Ok(server)
    }

    async fn wait_until_ready(&self, log: &Path) -> anyhow::Result<()> {
        let config: tokio_postgres::Config = self.address("postgres").parse()?;
        let started = Instant::now();
        loop {
            if let Ok((client, connection)) = config.connect(tokio_postgres::NoTls).await {
                tokio::spawn(connection);
                client.simple_query("select 1").await?;
                return Ok(());
            }
            let said = fs::read_to_string(log).unwrap_or_default();
            // While it starts, Postgres refuses connections with a FATAL of its own.
            let fatal = said.lines().any(|line| line.contains("FATAL:") && !line.contains("starting up"));
            if fatal || started.elapsed() > Duration::from_secs(60) {
                bail!("the private Postgres does not start; its log {} says:\n{said}", log.display());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The address of a database on this server.
    pub fn url(&self, database: &str) -> SecretString {
        self.address(database).into()
    }

    fn address(&self, database: &str) -> String {
        format!("postgres://rowhouse:{}@127.0.0.1:{}/{database}?sslmode=disable", self.password, self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Stops the server and waits for its end.
    pub fn stop(mut self) {
        drop(self.guardian.stdin.take());
        let _ = self.guardian.wait();
    }
}

fn make_dir(place: &Path, account: Option<Account>) -> anyhow::Result<()> {
    if !place.is_dir() {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(place)
            .with_context(|| format!("making {}", place.display()))?;
        if let Some(account) = account {
            chown(place, Some(account.uid), Some(account.gid))?;
        }
    }
    // Somebody else's folder of this name could be a trap.
    if let Some(account) = account {
        let owner = fs::symlink_metadata(place)?.uid();
        ensure!(owner == account.uid || owner == 0, "{} belongs to another user; remove it", place.display());
    }
    Ok(())
}

/// A socket's path may have about 100 bytes; a deep folder gets its socket in a temporary one.
fn socket_dir(place: &Path, account: Option<Account>) -> anyhow::Result<PathBuf> {
    if place.as_os_str().len() < 80 {
        return Ok(place.to_owned());
    }
    let hash = sha256(place.as_os_str().as_encoded_bytes());
    let dir = PathBuf::from(format!("/tmp/rowhouse-{}", hex(&hash[..6])));
    make_dir(&dir, account)?;
    Ok(dir)
}

fn init(binaries: &Binaries, place: &Path, data: &Path, account: Option<Account>) -> anyhow::Result<()> {
    let password = URL_SAFE_NO_PAD.encode(random::<24>()?);
    let password_file = place.join("password");
    let _ = fs::remove_file(&password_file);
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&password_file)?;
    writeln!(file, "{password}")?;
    if let Some(account) = account {
        chown(&password_file, Some(account.uid), Some(account.gid))?;
    }
    // Made beside its place and moved there when it is whole.
    let unfinished = place.join("data.unfinished");
    let _ = fs::remove_dir_all(&unfinished);
    let mut said = String::new();
    for locale in ["C.UTF-8", "C"] {
        let output = command(binaries.dir.join("initdb"), account)
            .args([
                "--username=rowhouse",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--no-sync",
                "--no-instructions",
            ])
            .arg(format!("--locale={locale}"))
            .arg(format!("--pwfile={}", password_file.display()))
            .arg(format!("--pgdata={}", unfinished.display()))
            .output()
            .context("running initdb")?;
        if output.status.success() {
            fs::rename(&unfinished, data)?;
            return Ok(());
        }
        said = String::from_utf8_lossy(&output.stderr).into_owned();
        let _ = fs::remove_dir_all(&unfinished);
    }
    bail!("initdb failed: {said}")
}

/// Whatever an earlier run left: a server that is about to stop, one that lost its guardian, or the
/// note of one that is gone.
pub async fn end_earlier_run(place: &Path) -> anyhow::Result<()> {
    end_server_over(&find_binaries()?, &place.join("data"), Account::needed()?).await
}

async fn end_server_over(binaries: &Binaries, data: &Path, account: Option<Account>) -> anyhow::Result<()> {
    let note = data.join("postmaster.pid");
    let started = Instant::now();
    loop {
        let Ok(text) = fs::read_to_string(&note) else { return Ok(()) };
        let pid = text.lines().next().unwrap_or_default().trim().to_owned();
        if !is_server_over(&pid, data) {
            // The number may belong to another program by now, and Postgres would not start.
            let _ = fs::remove_file(&note);
            return Ok(());
        }
        if started.elapsed() > Duration::from_secs(5) {
            command(binaries.dir.join("pg_ctl"), account)
                .args(["stop", "-m", "fast", "-w", "-t", "30", "-D"])
                .arg(data)
                .output()
                .context("running pg_ctl")?;
            ensure!(
                !note.exists(),
                "an earlier Postgres (process {pid}) still runs over {}; stop it",
                data.display()
            );
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Whether a process is the server over these very files; its number may be anybody's by now, also
/// another Postgres'.
fn is_server_over(pid: &str, data: &Path) -> bool {
    let started_with = match fs::read(format!("/proc/{pid}/cmdline")) {
        Ok(words) => String::from_utf8_lossy(&words).replace('\0', " "),
        Err(_) => match Command::new("ps").args(["-o", "command=", "-p", pid]).output() {
            Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).into_owned(),
            _ => return false,
        },
    };
    started_with.contains(&format!("-D {}", data.display()))
}

/// Makes a file that only its owner can read.
pub fn write_private(path: &Path, text: &str) -> anyhow::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.set_permissions(fs::Permissions::from_mode(0o600))?;
    file.write_all(text.as_bytes())?;
    Ok(())
}
