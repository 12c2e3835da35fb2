//! `rowhouse user …`.

use std::io::{IsTerminal, Read, Write};

use anyhow::Context;

use super::{app, plain};
use crate::{
    accounts,
    app::App,
    audit::{self, Actor, Changes},
    auth::passwords::{Password, check_policy},
    db::Tx,
    types::Email,
};

#[derive(clap::Subcommand)]
pub enum Command {
    /// Make an account of the platform's staff, or make an existing account one.
    ///
    /// The password of a new account is read from standard input (the first line).
    CreateSuperuser {
        /// Its address.
        #[arg(long)]
        email: Email,
        /// Raise the account that has this address already. Make sure that it is that person's.
        #[arg(long)]
        existing: bool,
    },
}

pub async fn run(command: Command) -> anyhow::Result<()> {
    let Command::CreateSuperuser { email, existing } = command;
    let app = app().await?;
    let tx = app.db.begin().await.map_err(plain)?;
    let there = tx
        .query_opt("select created_at from platform.users where email = $1", &[&email])
        .await
        .map_err(plain)?;
    if let Some(row) = &there {
        let since: chrono::DateTime<chrono::Utc> = row.try_get("created_at")?;
        // Anybody can register any address: to raise an account is to trust whoever made it.
        anyhow::ensure!(
            existing,
            "there is an account {email} since {since}; if it is the right person's, repeat with --existing"
        );
    }
    let raised = tx
        .execute(
            "update platform.users set is_superuser = true, version = version + 1, updated_at = $2 where email = $1",
            &[&email, &app.clock.now()],
        )
        .await
        .map_err(plain)?;
    if raised == 1 {
        record(&tx, &app, &email).await.map_err(plain)?;
        tx.commit().await.map_err(plain)?;
        println!("{email} is a superuser now; the password stays as it is");
        return Ok(());
    }
    drop(tx);
    let password = read_password()?;
    check_policy(&password, &[email.as_ref()]).map_err(plain)?;
    let hash = app.passwords.hash(&password).await.map_err(plain)?;
    let tx = app.db.begin().await.map_err(plain)?;
    let new = accounts::NewUser { email: &email, username: None, hash, first_name: None, last_name: None };
    let id = accounts::insert(&tx, &app, new).await.map_err(plain)?;
    tx.execute("update platform.users set is_superuser = true where id = $1", &[&id]).await.map_err(plain)?;
    record(&tx, &app, &email).await.map_err(plain)?;
    tx.commit().await.map_err(plain)?;
    println!("made superuser {email} ({id}); staff need a second factor: POST /api/v1/auth/mfa/totp");
    Ok(())
}

async fn record(tx: &Tx, app: &App, email: &Email) -> crate::error::Result<()> {
    let changes = Changes::created(&serde_json::json!({"email": email, "is_superuser": true}));
    audit::record_platform(tx, app, Actor::system(), "user.promoted", None, None, &changes).await
}

fn read_password() -> anyhow::Result<Password> {
    if std::io::stdin().is_terminal() {
        eprint!("Password (it will be shown as you type; pipe it in to avoid that): ");
        std::io::stderr().flush()?;
    }
    let mut text = String::new();
    if std::io::stdin().is_terminal() {
        std::io::stdin().read_line(&mut text)?;
    } else {
        std::io::stdin().read_to_string(&mut text)?;
    }
    let line = text.lines().next().filter(|line| !line.is_empty());
    line.context("no password on standard input")?.parse().map_err(anyhow::Error::msg)
}
