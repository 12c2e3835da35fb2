//! Access tokens: Ed25519 signatures, keys kept sealed in the database, public halves published.

use std::{
    collections::HashMap,
    num::NonZeroUsize,
    sync::{Arc, Mutex, MutexGuard, RwLock},
    time::{Duration, Instant},
};

use anyhow::Context;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use chrono::{DateTime, TimeDelta, Utc};
use jsonwebtoken::{
    Algorithm, DecodingKey, EncodingKey, Header, Validation,
    crypto::{CryptoProvider, JwtSigner, JwtVerifier, KeyUtils},
    errors::ErrorKind,
    signature::{Error as SignatureError, Signer, Verifier},
};
use lru::LruCache;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use super::sealing::{Sealer, random, sha256};
use crate::{
    config::AuthConfig,
    db::Db,
    error::{Code, Error, Result},
};

const AUDIENCE: &str = "rowhouse";
/// Tokens that need not be verified again at their next use.
const TOKENS_KEPT: NonZeroUsize = NonZeroUsize::new(20_000).expect("not zero");
/// An unknown `kid` makes an instance look for new keys, at most this often.
const RELOAD_EVERY: Duration = Duration::from_secs(1);

/// What an access token says.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Claims {
    /// The user.
    pub sub: Uuid,
    /// The session that the token belongs to; it can be revoked.
    pub sid: Uuid,
    pub iss: String,
    pub aud: String,
    pub iat: i64,
    pub exp: i64,
}

/// The keys that sign and verify.
pub struct KeyRing {
    db: Db,
    sealer: Sealer,
    issuer: String,
    lifetime: TimeDelta,
    ring: RwLock<Ring>,
    /// Tokens whose signature was found good, by digest: comparing that takes a hundredth of the time.
    verified: Mutex<LruCache<[u8; 32], Claims>>,
    /// When an unknown `kid` last made this instance look for new keys; held while it looks.
    looked: tokio::sync::Mutex<Option<Instant>>,
}

#[derive(Default, Clone)]
struct Ring {
    newest: Option<(String, Arc<EncodingKey>)>,
    verify: HashMap<String, Arc<DecodingKey>>,
    public: Vec<Value>,
}

impl KeyRing {
    pub fn new(db: Db, sealer: Sealer, config: &AuthConfig) -> Self {
        // Fails only when one is installed already, which is this one.
        let _ = CryptoProvider::install_default(&RING);
        Self {
            db,
            sealer,
            issuer: config.issuer.clone(),
            lifetime: TimeDelta::minutes(config.access_token_minutes.into()),
            ring: RwLock::default(),
            verified: Mutex::new(LruCache::new(TOKENS_KEPT)),
            looked: Default::default(),
        }
    }

    /// Reads the keys, and makes the first one where there is none.
    pub async fn load(&self, now: DateTime<Utc>) -> anyhow::Result<()> {
        if self.read().await? == 0 {
            let tx = self.db.begin().await?;
            // Of two instances that start at once, the second finds what the first has made.
            tx.command("select pg_advisory_xact_lock(726569)").await?;
            if tx.query_opt("select 1 from platform.signing_keys limit 1", &[]).await?.is_some() {
                drop(tx);
                self.read().await?;
                return Ok(());
            }
            let kid = URL_SAFE_NO_PAD.encode(random::<9>()?);
            let pkcs8 = Ed25519KeyPair::generate_pkcs8(&ring::rand::SystemRandom::new())
                .map_err(|_| anyhow::anyhow!("making a signing key failed"))?;
            let sealed = self.sealer.seal(&purpose(&kid), pkcs8.as_ref())?;
            tx.execute(
                "insert into platform.signing_keys (kid, sealed_private_key, created_at) values ($1, $2, $3)",
                &[&kid, &sealed, &now],
            )
            .await?;
            tx.commit().await?;
            self.read().await?;
        }
        Ok(())
    }

    /// Reads the keys, and says how many there are.
    pub async fn read(&self) -> anyhow::Result<usize> {
        let tx = self.db.begin().await?;
        let rows = tx
            .query("select kid, sealed_private_key from platform.signing_keys order by created_at, kid", &[])
            .await?;
        let mut ring = Ring::default();
        for row in &rows {
            let kid: String = row.try_get("kid")?;
            let pkcs8 = self.sealer.open(&purpose(&kid), row.try_get("sealed_private_key")?).with_context(|| {
                format!("signing key {kid} cannot be opened; start with the ROWHOUSE_SECRET_KEY it was made under")
            })?;
            let pair =
                Ed25519KeyPair::from_pkcs8(&pkcs8).map_err(|e| anyhow::anyhow!("signing key {kid}: {e}"))?;
            let x = URL_SAFE_NO_PAD.encode(pair.public_key());
            ring.verify.insert(kid.clone(), Arc::new(DecodingKey::from_ed_components(&x)?));
            ring.public.push(
                json!({"kty": "OKP", "crv": "Ed25519", "x": x, "kid": kid, "alg": "EdDSA", "use": "sig"}),
            );
            ring.newest = Some((kid, Arc::new(EncodingKey::from_ed_der(&pkcs8))));
        }
        *self.ring.write().expect("nothing panics with the lock held") = ring;
        self.verified().clear();
        Ok(rows.len())
    }

    /// A token for a session, and its life in seconds.
    pub fn issue(&self, user: Uuid, session: Uuid, now: DateTime<Utc>) -> Result<(String, i64)> {
        let newest = self.ring.read().expect("nothing panics with the lock held").newest.clone();
        let (kid, key) = newest.ok_or_else(|| Error::internal("no signing key is loaded"))?;
        let claims = Claims {
            sub: user,
            sid: session,
            iss: self.issuer.clone(),
            aud: AUDIENCE.into(),
            iat: now.timestamp(),
            exp: (now + self.lifetime).timestamp(),
        };
        let header = Header { kid: Some(kid), ..Header::new(Algorithm::EdDSA) };
        let token = jsonwebtoken::encode(&header, &claims, &key).map_err(Error::internal)?;
        Ok((token, self.lifetime.num_seconds()))
    }

    /// The claims of a token that we signed and that is in its time.
    pub async fn verify(&self, token: &str, now: DateTime<Utc>) -> Result<Claims> {
        let digest = ring::digest::digest(&ring::digest::SHA256, token.as_bytes());
        let digest: [u8; 32] = digest.as_ref().try_into().map_err(Error::internal)?;
        let known = self.verified().get(&digest).cloned();
        let claims = match known {
            Some(claims) => claims,
            None => {
                let claims = self.verify_signature(token).await?;
                self.verified().put(digest, claims.clone());
                claims
            }
        };
        if claims.exp <= now.timestamp() {
            return Err(Error::new(Code::TokenExpired, "The access token has expired. Refresh it."));
        }
        Ok(claims)
    }

    fn verified(&self) -> MutexGuard<'_, LruCache<[u8; 32], Claims>> {
        self.verified.lock().expect("nothing panics with the lock held")
    }

    /// The claims of a token that we signed, whatever its time.
    async fn verify_signature(&self, token: &str) -> Result<Claims> {
        let forged = || Error::new(Code::AuthFailed, "The access token is not valid. Log in again.");
        let header = jsonwebtoken::decode_header(token).map_err(|_| forged())?;
        let kid = header.kid.ok_or_else(forged)?;
        let key = match self.key(&kid) {
            Some(key) => key,
            None => {
                let mut looked = self.looked.lock().await;
                if self.key(&kid).is_none() && looked.is_none_or(|at| at.elapsed() > RELOAD_EVERY) {
                    *looked = Some(Instant::now());
                    self.read().await?;
                }
                self.key(&kid).ok_or_else(forged)?
            }
        };
        // The algorithm is the key's, never the header's. Time is judged by our clock, at each use.
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.set_issuer(&[&self.issuer]);
        validation.set_audience(&[AUDIENCE]);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        validation.validate_exp = false;
        Ok(jsonwebtoken::decode::<Claims>(token, &key, &validation).map_err(|_| forged())?.claims)
    }

    /// The JSON Web Key Set.
    pub fn jwks(&self) -> Value {
        json!({"keys": self.ring.read().expect("nothing panics with the lock held").public})
    }

    fn key(&self, kid: &str) -> Option<Arc<DecodingKey>> {
        self.ring.read().expect("nothing panics with the lock held").verify.get(kid).cloned()
    }
}

fn purpose(kid: &str) -> String {
    format!("signing key {kid}")
}

/// A token that means nothing by itself, and the hash under which it is stored.
pub fn opaque_token(prefix: &str) -> Result<(String, Vec<u8>)> {
    let bytes: [u8; 32] = random()?;
    let token = format!("{prefix}_{}", URL_SAFE_NO_PAD.encode(bytes));
    let hash = sha256(token.as_bytes());
    Ok((token, hash))
}

/// jsonwebtoken on ring, so that TLS and tokens share one cryptography; Ed25519 is all we use.
static RING: CryptoProvider = CryptoProvider {
    signer_factory: |algorithm, key| match algorithm {
        Algorithm::EdDSA => Ok(Box::new(EdSigner(ed25519(key.as_bytes())?))),
        _ => Err(ErrorKind::InvalidAlgorithm.into()),
    },
    verifier_factory: |algorithm, key| match algorithm {
        Algorithm::EdDSA => Ok(Box::new(EdVerifier(key.try_get_as_bytes()?.to_vec()))),
        _ => Err(ErrorKind::InvalidAlgorithm.into()),
    },
    key_utils: KeyUtils {
        rsa_pub_components_from_private_key: |_| Err(ErrorKind::InvalidAlgorithm.into()),
        rsa_pub_components_from_public_key: |_| Err(ErrorKind::InvalidAlgorithm.into()),
        ec_pub_components_from_private_key: |_, _| Err(ErrorKind::InvalidAlgorithm.into()),
        ed_pub_components_from_private_key: |der, _| Ok(ed25519(der)?.public_key().as_ref().to_vec()),
        compute_digest: |_, _| Err(ErrorKind::InvalidAlgorithm.into()),
    },
};

fn ed25519(pkcs8: &[u8]) -> jsonwebtoken::errors::Result<Ed25519KeyPair> {
    Ed25519KeyPair::from_pkcs8(pkcs8).map_err(|_| ErrorKind::InvalidEddsaKey.into())
}

struct EdSigner(Ed25519KeyPair);

impl Signer<Vec<u8>> for EdSigner {
    fn try_sign(&self, message: &[u8]) -> std::result::Result<Vec<u8>, SignatureError> {
        Ok(self.0.sign(message).as_ref().to_vec())
    }
}

impl JwtSigner for EdSigner {
    fn algorithm(&self) -> Algorithm {
        Algorithm::EdDSA
    }
}

struct EdVerifier(Vec<u8>);

impl Verifier<Vec<u8>> for EdVerifier {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> std::result::Result<(), SignatureError> {
        UnparsedPublicKey::new(&ED25519, &self.0)
            .verify(message, signature)
            .map_err(|_| SignatureError::new())
    }
}

impl JwtVerifier for EdVerifier {
    fn algorithm(&self) -> Algorithm {
        Algorithm::EdDSA
    }
}
