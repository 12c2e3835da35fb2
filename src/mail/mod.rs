//! Mail: what is written, and how it is sent.
//!
//! A [`Letter`] names one of `letters.toml` and what to put into it. It is sent by a job, after the
//! commit of what it tells of: by SMTP, or into a folder where no server is configured.

use std::{collections::HashMap, sync::LazyLock, time::Duration};

use anyhow::Context;
use lettre::{
    AsyncFileTransport, AsyncSmtpTransport, AsyncTransport, Message, Tokio1Executor,
    message::{Mailbox, MultiPart},
};
use minijinja::{AutoEscape, Environment, UndefinedBehavior, context};
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};

use crate::{
    app::App,
    config::MailConfig,
    db::Tx,
    error::Result,
    jobs::{self, Running, Work},
    types::Email,
};

/// One mail to one person.
#[derive(Debug, Serialize, Deserialize)]
pub struct Letter {
    pub to: String,
    /// Its name in `letters.toml`.
    pub kind: String,
    pub fields: HashMap<String, String>,
    /// A list after the paragraphs. Its lines are no templates.
    #[serde(default)]
    pub lines: Vec<String>,
}

impl Letter {
    pub fn new(to: &Email, kind: &str, fields: &[(&str, &str)]) -> Self {
        let fields = fields.iter().map(|(name, value)| (name.to_string(), one_line(value))).collect();
        Self { to: to.to_string(), kind: kind.into(), fields, lines: Vec::new() }
    }

    /// Adds a list.
    pub fn with_lines(mut self, lines: &[String]) -> Self {
        self.lines = lines.iter().map(|line| one_line(line)).collect();
        self
    }
}

/// Sends a letter once the transaction is committed.
pub async fn post(tx: &Tx, app: &App, letter: Letter) -> Result<()> {
    jobs::enqueue(tx, app, &SendMail(letter)).await
}

/// The job that sends a letter.
#[derive(Serialize, Deserialize)]
pub struct SendMail(Letter);

impl Work for SendMail {
    const KIND: &'static str = "send_mail";

    async fn run(self, job: &Running) -> anyhow::Result<()> {
        job.app.mailer.send(self.0).await
    }
}

/// Names end up in subjects: a line break in one must not begin another header.
pub fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// A letter as it is written, its texts being templates.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Draft {
    subject: String,
    paragraphs: Vec<String>,
    /// What the reader is to do: the text of a link, and its path in the web application.
    action: Option<Action>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Action {
    label: String,
    path: String,
}

static DRAFTS: LazyLock<HashMap<String, Draft>> =
    LazyLock::new(|| toml::from_str(include_str!("letters.toml")).expect("the tests read every letter"));

/// The frames around a letter, for readers of HTML and of text.
static FRAMES: LazyLock<Environment<'static>> = LazyLock::new(|| {
    let mut frames = Environment::new();
    frames.set_undefined_behavior(UndefinedBehavior::Strict);
    for (name, source) in
        [("frame.html", include_str!("frame.html")), ("frame.txt", include_str!("frame.txt"))]
    {
        frames.add_template(name, source).expect("the tests render every frame");
    }
    frames
});

/// What is sent.
struct Written {
    subject: String,
    html: String,
    text: String,
}

fn write(letter: &Letter, app_url: &str) -> anyhow::Result<Written> {
    let draft = DRAFTS.get(&letter.kind).with_context(|| format!("there is no letter {:?}", letter.kind))?;
    let mut filler = Environment::new();
    filler.set_undefined_behavior(UndefinedBehavior::Strict);
    filler.set_auto_escape_callback(|_| AutoEscape::None);
    let fill = |template: &str| filler.render_str(template, &letter.fields);
    let subject = fill(&draft.subject)?;
    let mut paragraphs = draft.paragraphs.iter().map(|text| fill(text)).collect::<Result<Vec<_>, _>>()?;
    paragraphs.extend(letter.lines.iter().cloned());
    let action = match &draft.action {
        Some(Action { label, path }) => Some(context! {
            label => fill(label)?,
            url => format!("{}{}", app_url.trim_end_matches('/'), fill(path)?),
        }),
        None => None,
    };
    let parts = context! { subject => &subject, paragraphs, action };
    Ok(Written {
        html: FRAMES.get_template("frame.html")?.render(&parts)?,
        text: FRAMES.get_template("frame.txt")?.render(&parts)?,
        subject,
    })
}

/// How mail leaves.
pub struct Mailer {
    from: Mailbox,
    app_url: String,
    transport: Transport,
}

enum Transport {
    Smtp(AsyncSmtpTransport<Tokio1Executor>),
    Folder(std::path::PathBuf, AsyncFileTransport<Tokio1Executor>),
}

impl Mailer {
    pub fn new(config: &MailConfig) -> anyhow::Result<Self> {
        let transport = match &config.smtp_url {
            Some(url) => Transport::Smtp(
                AsyncSmtpTransport::<Tokio1Executor>::from_url(url.expose_secret())
                    .context("mail.smtp_url (SMTP_URL) is not an address such as smtps://user:password@host")?
                    .timeout(Some(Duration::from_secs(20)))
                    .build(),
            ),
            None => Transport::Folder(config.folder.clone(), AsyncFileTransport::new(&config.folder)),
        };
        Ok(Self { from: config.from.parse()?, app_url: config.app_url.clone(), transport })
    }

    /// Whether the mail server takes the credentials.
    pub async fn reaches_a_server(&self) -> anyhow::Result<()> {
        match &self.transport {
            Transport::Smtp(smtp) => {
                anyhow::ensure!(smtp.test_connection().await?, "the server does not answer as it should");
                Ok(())
            }
            Transport::Folder(..) => Ok(()),
        }
    }

    pub async fn send(&self, letter: Letter) -> anyhow::Result<()> {
        let written = write(&letter, &self.app_url)?;
        let message = Message::builder()
            .from(self.from.clone())
            .to(letter.to.parse()?)
            .subject(written.subject)
            .multipart(MultiPart::alternative_plain_html(written.text, written.html))?;
        match &self.transport {
            Transport::Smtp(smtp) => {
                smtp.send(message).await?;
            }
            Transport::Folder(folder, files) => {
                tokio::fs::create_dir_all(folder)
                    .await
                    .with_context(|| format!("making {}", folder.display()))?;
                let name = files.send(message).await?;
                let file = folder.join(format!("{name}.eml"));
                tracing::info!(kind = letter.kind, file = %file.display(), "mail was written to a file");
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_letter_can_be_written() {
        for (kind, draft) in DRAFTS.iter() {
            // Whatever a letter may ask for.
            let names = [
                "name",
                "token",
                "organization",
                "inviter",
                "role",
                "address",
                "new_email",
                "key",
                "time",
                "what",
                "title",
                "body",
                "path",
                "count",
            ];
            let fields: Vec<(&str, &str)> = names.iter().map(|name| (*name, "<Tom & Co>")).collect();
            let letter = Letter::new(&"ana@example.com".parse().unwrap(), kind, &fields);
            let written = write(&letter, "https://app.example.com/").unwrap();
            assert!(
                !written.subject.is_empty() && !written.html.contains("<Tom"),
                "{kind}: {}",
                written.html
            );
            if draft.action.is_some() {
                assert!(written.text.contains("https://app.example.com/"), "{kind}: {}", written.text);
            }
        }
    }

    #[test]
    fn a_name_cannot_begin_a_header() {
        let letter = Letter::new(
            &"ana@example.com".parse().unwrap(),
            "invitation",
            &[
                ("organization", "Acme\r\nBcc: all@example.com"),
                ("inviter", "x"),
                ("role", "member"),
                ("token", "t"),
            ],
        );
        let subject = write(&letter, "http://localhost").unwrap().subject;
        assert!(!subject.contains(['\r', '\n']) && subject.contains("Acme  Bcc:"));
    }
}
