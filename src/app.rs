//! What one running service consists of, made once and shared by every request.

use std::sync::Arc;

use crate::{
    auth::{keys::KeyRing, passwords::Passwords, sealing::Sealer},
    clock::Clock,
    config::Config,
    db::Db,
    tenancy::Directory,
};

/// The parts that requests, jobs and commands share.
pub struct App {
    pub config: Config,
    pub clock: Clock,
    pub db: Db,
    pub directory: Directory,
    pub sealer: Sealer,
    pub keys: KeyRing,
    pub passwords: Passwords,
}

impl App {
    /// Prepares everything; connects to nothing yet.
    pub fn new(config: Config, clock: Clock) -> anyhow::Result<Arc<Self>> {
        let (db, door) = Db::new(&config.database)?;
        let sealer = Sealer::new(&config.auth.secret_key_bytes()?);
        Ok(Arc::new(Self {
            directory: Directory::new(db.clone(), door),
            keys: KeyRing::new(db.clone(), sealer.clone(), &config.auth),
            passwords: Passwords::new(config.auth.password_hashes),
            sealer,
            db,
            clock,
            config,
        }))
    }
}
