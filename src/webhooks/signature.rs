//! Signatures as <https://www.standardwebhooks.com> describes them: HMAC-SHA256 over id, time and body,
//! under each secret that is good now.

use base64::{Engine, engine::general_purpose::STANDARD};
use ring::hmac;

use crate::auth::sealing::random;

const PREFIX: &str = "whsec_";

/// A secret that both sides know: `whsec_` and 24 to 64 bytes in base64.
#[derive(Clone)]
pub struct Secret(Vec<u8>);

impl Secret {
    pub fn generate() -> anyhow::Result<Self> {
        Ok(Self(random::<32>()?.to_vec()))
    }

    pub fn from_bytes(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// As its owner sees it.
    pub fn text(&self) -> String {
        format!("{PREFIX}{}", STANDARD.encode(&self.0))
    }
}

impl std::str::FromStr for Secret {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.strip_prefix(PREFIX)
            .and_then(|encoded| STANDARD.decode(encoded).ok())
            .filter(|bytes| (24..=64).contains(&bytes.len()))
            .map(Self)
            .ok_or_else(|| "must be whsec_ and 24 to 64 bytes in base64".into())
    }
}

/// The header `webhook-signature`.
pub fn sign(secrets: &[Secret], id: &str, timestamp: i64, body: &[u8]) -> String {
    let signatures = secrets.iter().map(|secret| {
        let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, &secret.0));
        context.update(format!("{id}.{timestamp}.").as_bytes());
        context.update(body);
        format!("v1,{}", STANDARD.encode(context.sign()))
    });
    signatures.collect::<Vec<_>>().join(" ")
}
