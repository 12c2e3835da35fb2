//! An SMTP server that keeps what it receives.

use std::{
    net::SocketAddr,
    sync::{LazyLock, Mutex},
};

use mail_parser::MessageParser;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
};

/// A mail as its reader sees it.
#[derive(Clone, Debug)]
pub struct Mail {
    /// The envelope's.
    pub to: String,
    pub subject: String,
    pub text: String,
    pub html: String,
    /// All of it, as it was sent.
    pub raw: String,
}

impl Mail {
    /// The token in the link.
    pub fn token(&self) -> String {
        let rest = self.text.split("token=").nth(1).unwrap_or_else(|| panic!("no token: {}", self.text));
        rest.split_whitespace().next().unwrap().to_owned()
    }
}

static BOX: LazyLock<Mutex<Vec<Mail>>> = LazyLock::new(Default::default);

/// Everything that was sent to an address so far.
pub fn sent_to(address: &str) -> Vec<Mail> {
    BOX.lock().unwrap().iter().filter(|mail| mail.to == address).cloned().collect()
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

async fn session(stream: TcpStream) -> Option<()> {
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read).lines();
    write.write_all(b"220 test ESMTP\r\n").await.ok()?;
    let mut to = String::new();
    loop {
        let line = lines.next_line().await.ok()??;
        let verb = line.split([' ', ':']).next().unwrap_or_default().to_ascii_uppercase();
        let answer = match verb.as_str() {
            "EHLO" | "HELO" => "250 test\r\n",
            "RCPT" => {
                to = line.split('<').nth(1)?.split('>').next()?.to_owned();
                "250 ok\r\n"
            }
            "DATA" => {
                write.write_all(b"354 go on\r\n").await.ok()?;
                let mut raw = String::new();
                loop {
                    let line = lines.next_line().await.ok()??;
                    if line == "." {
                        break;
                    }
                    raw += line.strip_prefix('.').unwrap_or(&line);
                    raw += "\r\n";
                }
                let parsed = MessageParser::default().parse(raw.as_bytes())?;
                let mail = Mail {
                    to: to.clone(),
                    subject: parsed.subject().unwrap_or_default().into(),
                    text: parsed.body_text(0).unwrap_or_default().into_owned(),
                    html: parsed.body_html(0).unwrap_or_default().into_owned(),
                    raw: raw.clone(),
                };
                BOX.lock().unwrap().push(mail);
                "250 kept\r\n"
            }
            "QUIT" => {
                write.write_all(b"221 bye\r\n").await.ok()?;
                return Some(());
            }
            _ => "250 ok\r\n",
        };
        write.write_all(answer.as_bytes()).await.ok()?;
    }
}
