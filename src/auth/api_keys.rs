//! The text of an API key: `rh_live_`, 30 random characters, and a checksum of everything before it.
//!
//! The checksum lets a scanner tell a leaked key from noise, and the service refuse a mistyped one
//! without asking the database.

use std::net::IpAddr;

use ipnet::IpNet;

use super::sealing::{random, sha256};
use crate::{error::Result, types::text_enum};

text_enum! {
    /// What a key is for. Both act on the same data; the prefix tells them apart at sight.
    Environment { Live = "live", Test = "test" }
}

const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const RANDOM: usize = 30;
const CHECKSUM: usize = 6;

/// A new key, and the hash under which it is stored.
pub fn generate(environment: Environment) -> Result<(String, Vec<u8>)> {
    let mut text = format!("rh_{environment}_");
    let wanted = text.len() + RANDOM;
    while text.len() < wanted {
        let bytes: [u8; 32] = random()?;
        // 248 is the largest multiple of 62 in a byte: what is above would favour some letters.
        let fair =
            bytes.iter().filter(|byte| **byte < 248).map(|byte| ALPHABET[usize::from(byte % 62)] as char);
        text.extend(fair.take(wanted - text.len()));
    }
    text.push_str(&checksum(&text));
    let hash = sha256(text.as_bytes());
    Ok((text, hash))
}

/// The hash of a key that is well formed; `None` for anything else.
pub fn hash(text: &str) -> Option<Vec<u8>> {
    let body = text.strip_prefix("rh_live_").or_else(|| text.strip_prefix("rh_test_"))?;
    let well_formed = body.len() == RANDOM + CHECKSUM && body.bytes().all(|b| b.is_ascii_alphanumeric());
    if !well_formed {
        return None;
    }
    let (signed, given) = text.split_at(text.len() - CHECKSUM);
    (checksum(signed) == given).then(|| sha256(text.as_bytes()))
}

/// What is shown of a key afterwards, to recognise it by.
pub fn hint(text: &str) -> String {
    text.chars().take("rh_live_".len() + 4).collect()
}

/// CRC-32 in base 62, six digits.
fn checksum(text: &str) -> String {
    let mut left = crc32fast::hash(text.as_bytes()) as usize;
    let mut digits = [b'0'; CHECKSUM];
    for digit in digits.iter_mut().rev() {
        *digit = ALPHABET[left % 62];
        left /= 62;
    }
    digits.iter().map(|digit| *digit as char).collect()
}

/// Whether a key that is good from these networks may be used from an address; from anywhere where
/// there are none.
pub fn may_come_from(networks: &[String], address: Option<IpAddr>) -> bool {
    let within = |net: &String| {
        net.parse::<IpNet>().ok().zip(address).is_some_and(|(net, address)| net.contains(&address))
    };
    networks.is_empty() || networks.iter().any(within)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_told_from_noise() {
        let (key, stored) = generate(Environment::Test).unwrap();
        assert_eq!(key.len(), 8 + 30 + 6);
        assert_eq!(hash(&key), Some(stored));
        assert_ne!(generate(Environment::Test).unwrap().0, key);
        let mut mistyped = key.clone().into_bytes();
        mistyped[12] = if mistyped[12] == b'a' { b'b' } else { b'a' };
        assert_eq!(hash(&String::from_utf8(mistyped).unwrap()), None);
        for wrong in
            ["", "rh_live_", &key[..43], &format!("{key}0"), &key.replace("test", "live"), "rh_test_ééééééé"]
        {
            assert_eq!(hash(wrong), None, "{wrong}");
        }
    }

    /// Scanners in other places compute the same.
    #[test]
    fn the_checksum_is_crc_32_in_base_62() {
        assert_eq!(checksum("rh_live_000000000000000000000000000000").len(), 6);
        // zlib.crc32(b"123456789") == 0xCBF43926 == 3421780262
        assert_eq!(checksum("123456789"), "3jZRME");
    }
}
