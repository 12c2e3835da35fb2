//! Sealing: what must not be readable in a backup is encrypted under the configured key.

use anyhow::{Context, anyhow};
use ring::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    digest::{SHA256, digest},
    hmac,
    rand::{SecureRandom, SystemRandom},
};

/// AES-256-GCM with a random nonce in front of the text, bound to what it is for.
#[derive(Clone)]
pub struct Sealer {
    key: LessSafeKey,
    mac_key: hmac::Key,
}

impl Sealer {
    pub fn new(key: &[u8; 32]) -> Self {
        // The key itself encrypts; what authenticates is derived from it.
        let derived = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), b"rowhouse authentication key");
        let mac_key = hmac::Key::new(hmac::HMAC_SHA256, derived.as_ref());
        let key = UnboundKey::new(&AES_256_GCM, key).expect("the key has the algorithm's length");
        Self { key: LessSafeKey::new(key), mac_key }
    }

    /// A code that nobody without the key can make: over what it is for, and the text.
    pub fn mac(&self, purpose: &str, text: &[u8]) -> Vec<u8> {
        let mut context = hmac::Context::with_key(&self.mac_key);
        context.update(purpose.as_bytes());
        context.update(b"\0");
        context.update(text);
        context.sign().as_ref().to_vec()
    }

    /// Encrypts. The same `purpose` must be given to open it, so that one sealed value cannot be
    /// passed off as another.
    pub fn seal(&self, purpose: &str, plain: &[u8]) -> anyhow::Result<Vec<u8>> {
        let nonce: [u8; NONCE_LEN] = random()?;
        let mut sealed = plain.to_vec();
        self.key
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(purpose), &mut sealed)
            .map_err(|_| anyhow!("sealing failed"))?;
        Ok([&nonce[..], &sealed].concat())
    }

    /// Decrypts what `seal` made.
    pub fn open(&self, purpose: &str, sealed: &[u8]) -> anyhow::Result<Vec<u8>> {
        let (nonce, text) = sealed.split_at_checked(NONCE_LEN).context("the sealed value is too short")?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| anyhow!("the nonce is malformed"))?;
        let mut text = text.to_vec();
        let plain = self.key.open_in_place(nonce, Aad::from(purpose), &mut text).map_err(|_| {
            anyhow!("sealed under another key than auth.secret_key (ROWHOUSE_SECRET_KEY), or damaged")
        })?;
        Ok(plain.to_vec())
    }
}

/// Random bytes from the operating system.
pub fn random<const N: usize>() -> anyhow::Result<[u8; N]> {
    let mut bytes = [0; N];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| anyhow!("the operating system gives no random bytes"))?;
    Ok(bytes)
}

/// Bytes in hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// SHA-256, for looking up what is only stored as a hash.
pub fn sha256(data: &[u8]) -> Vec<u8> {
    digest(&SHA256, data).as_ref().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_opens_under_its_key_and_purpose_only() {
        let sealer = Sealer::new(&[7; 32]);
        let sealed = sealer.seal("a", b"secret").unwrap();
        assert_eq!(sealer.open("a", &sealed).unwrap(), b"secret");
        assert!(sealer.open("b", &sealed).is_err());
        assert!(Sealer::new(&[8; 32]).open("a", &sealed).is_err());
        assert!(sealer.open("a", &sealed[..5]).is_err());
    }
}
