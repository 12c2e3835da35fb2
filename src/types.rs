//! Values that cannot be wrong: what arrives is parsed once, here, and trusted after.
//!
//! Each is a string on the wire and in the database. [`text!`] gives a type that can be parsed from
//! text and shown as text everything else it needs: JSON, parameters, the API document, SQL.

use std::str::FromStr;

use chrono::{DateTime, Datelike, NaiveDate, Utc};
use poem_openapi::{Object, types::MaybeUndefined};
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};
use uuid::{Timestamp, Uuid};

use crate::error::Error;

/// Makes a type with `FromStr<Err = String>` and `AsRef<str>` usable in bodies, parameters,
/// documents and statements. The second argument is its OpenAPI schema.
macro_rules! text {
    ([$($generics:tt)*] $type:ty, $schema:expr) => {
        impl<$($generics)*> poem_openapi::types::Type for $type {
            const IS_REQUIRED: bool = true;
            type RawValueType = Self;
            type RawElementValueType = Self;

            fn name() -> std::borrow::Cow<'static, str> {
                "string".into()
            }
            fn schema_ref() -> poem_openapi::registry::MetaSchemaRef {
                poem_openapi::registry::MetaSchemaRef::Inline(Box::new($schema))
            }
            fn as_raw_value(&self) -> Option<&Self> {
                Some(self)
            }
            fn raw_element_iter<'a>(&'a self) -> Box<dyn Iterator<Item = &'a Self> + 'a> {
                Box::new(self.as_raw_value().into_iter())
            }
        }

        impl<$($generics)*> poem_openapi::types::ParseFromParameter for $type {
            fn parse_from_parameter(value: &str) -> poem_openapi::types::ParseResult<Self> {
                value.parse::<Self>().map_err(poem_openapi::types::ParseError::custom)
            }
        }

        impl<$($generics)*> poem_openapi::types::ParseFromJSON for $type {
            fn parse_from_json(value: Option<serde_json::Value>) -> poem_openapi::types::ParseResult<Self> {
                match value {
                    Some(serde_json::Value::String(text)) => {
                        text.parse::<Self>().map_err(poem_openapi::types::ParseError::custom)
                    }
                    other => Err(poem_openapi::types::ParseError::expected_type(other.unwrap_or_default())),
                }
            }
        }

        impl<$($generics)*> poem_openapi::types::ToJSON for $type {
            fn to_json(&self) -> Option<serde_json::Value> {
                Some(serde_json::Value::String(self.as_ref().to_owned()))
            }
        }

        impl<'de, $($generics)*> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str> as serde::Deserialize>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }

        impl<$($generics)*> tokio_postgres::types::ToSql for $type {
            fn to_sql(
                &self,
                ty: &tokio_postgres::types::Type,
                out: &mut bytes::BytesMut,
            ) -> Result<tokio_postgres::types::IsNull, Box<dyn std::error::Error + Sync + Send>> {
                self.as_ref().to_sql(ty, out)
            }
            fn accepts(ty: &tokio_postgres::types::Type) -> bool {
                <&str as tokio_postgres::types::ToSql>::accepts(ty)
            }
            tokio_postgres::types::to_sql_checked!();
        }

        impl<'a, $($generics)*> tokio_postgres::types::FromSql<'a> for $type {
            fn from_sql(
                ty: &tokio_postgres::types::Type,
                raw: &'a [u8],
            ) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
                Ok(<&str as tokio_postgres::types::FromSql>::from_sql(ty, raw)?.parse()?)
            }
            fn accepts(ty: &tokio_postgres::types::Type) -> bool {
                <&str as tokio_postgres::types::FromSql>::accepts(ty)
            }
        }
    };
}
pub(crate) use text;

/// Serializes as the text that `AsRef` shows; not for secrets.
macro_rules! text_serialize {
    ([$($generics:tt)*] $type:ty) => {
        impl<$($generics)*> serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_ref())
            }
        }
        impl<$($generics)*> std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_ref())
            }
        }
    };
}
pub(crate) use text_serialize;

/// An enum that is one of a few words on the wire and a checked `text` column in the database.
macro_rules! text_enum {
    ($(#[$meta:meta])* $name:ident { $($(#[$about:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name { $($(#[$about])* $variant),+ }

        impl $name {
            #[allow(dead_code)]
            pub const ALL: &[$name] = &[$($name::$variant),+];

            /// The word on the wire.
            pub const fn name(self) -> &'static str {
                match self { $($name::$variant => $text),+ }
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                self.name()
            }
        }

        impl std::str::FromStr for $name {
            type Err = String;
            fn from_str(text: &str) -> Result<Self, String> {
                match text {
                    $($text => Ok($name::$variant),)+
                    _ => Err(format!("must be one of: {}", [$($text),+].join(", "))),
                }
            }
        }

        $crate::types::text!([] $name, poem_openapi::registry::MetaSchema {
            enum_items: vec![$(serde_json::Value::from($text)),+],
            ..poem_openapi::registry::MetaSchema::new("string")
        });
        $crate::types::text_serialize!([] $name);
    };
}
pub(crate) use text_enum;

/// A string schema with the given limits.
pub(crate) fn string_schema(
    format: Option<&'static str>,
    pattern: Option<&str>,
    min: usize,
    max: usize,
) -> poem_openapi::registry::MetaSchema {
    poem_openapi::registry::MetaSchema {
        format,
        pattern: pattern.map(str::to_owned),
        min_length: Some(min),
        max_length: Some(max),
        ..poem_openapi::registry::MetaSchema::new("string")
    }
}

/// Text of `MIN` to `MAX` characters, without surrounding white space and without U+0000.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text<const MIN: usize, const MAX: usize>(String);

/// A name or title as `Text`, the most used limit.
pub type Name = Text<1, 255>;
/// A long description.
pub type Prose = Text<0, 20_000>;

impl<const MIN: usize, const MAX: usize> FromStr for Text<MIN, MAX> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let length = text.chars().count();
        if length < MIN {
            return Err(if MIN == 1 {
                "must not be empty".into()
            } else {
                format!("must have at least {MIN} characters")
            });
        }
        if length > MAX {
            return Err(format!("must have at most {MAX} characters, has {length}"));
        }
        if text.contains('\0') {
            return Err("must not contain the character U+0000".into());
        }
        Ok(Self(text.to_owned()))
    }
}

impl<const MAX: usize> Default for Text<0, MAX> {
    fn default() -> Self {
        Self(String::new())
    }
}

impl<const MIN: usize, const MAX: usize> AsRef<str> for Text<MIN, MAX> {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

text!([const MIN: usize, const MAX: usize] Text<MIN, MAX>, string_schema(None, None, MIN, MAX));
text_serialize!([const MIN: usize, const MAX: usize] Text<MIN, MAX>);

/// An address for mail, in lower case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Email(String);

impl FromStr for Email {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // ASCII only: some letters elsewhere become ASCII ones in lower case.
        let text = text.trim().to_ascii_lowercase();
        let wrong = || Err("must be an email address such as ana@example.com".to_owned());
        let Some((local, domain)) = text.rsplit_once('@') else { return wrong() };
        let local_ok = !local.is_empty()
            && local.len() <= 64
            && !local.starts_with('.')
            && !local.ends_with('.')
            && !local.contains("..")
            && local.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+/=?^_`{|}~.-".contains(&b));
        let label_ok = |label: &str| {
            (1..=63).contains(&label.len())
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        };
        let domain_ok = domain.contains('.')
            && domain.split('.').all(label_ok)
            && domain
                .rsplit('.')
                .next()
                .is_some_and(|tld| tld.len() >= 2 && !tld.bytes().all(|b| b.is_ascii_digit()));
        if local_ok && domain_ok && text.len() <= 254 { Ok(Self(text)) } else { wrong() }
    }
}

impl AsRef<str> for Email {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

text!([] Email, string_schema(Some("email"), None, 6, 254));
text_serialize!([] Email);

/// A name by which a person may log in instead of the address; kept as written, unique without case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Username(String);

impl FromStr for Username {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let ok =
            (3..=150).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if ok {
            Ok(Self(text.to_owned()))
        } else {
            Err("must be 3 to 150 letters, digits or underscores".into())
        }
    }
}

impl AsRef<str> for Username {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

text!([] Username, string_schema(None, Some("^[A-Za-z0-9_]+$"), 3, 150));
text_serialize!([] Username);

/// A name in a URL: `^[a-z0-9]([a-z0-9-]{1,61}[a-z0-9])$`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Slug(String);

impl Slug {
    /// Turns a name into a slug of at most 56 characters, so that a suffix still fits.
    pub fn from_name(name: &str) -> Option<Self> {
        let mut slug = String::new();
        for c in name.chars() {
            if c.is_ascii_alphanumeric() {
                slug.push(c.to_ascii_lowercase());
            } else if !slug.ends_with('-') && !slug.is_empty() {
                slug.push('-');
            }
            if slug.len() == 56 {
                break;
            }
        }
        slug.trim_end_matches('-').parse().ok()
    }

    /// The same slug with `-suffix` behind it.
    pub fn with_suffix(&self, suffix: &str) -> Self {
        Self(format!("{}-{suffix}", self.0.chars().take(62 - suffix.len()).collect::<String>()))
    }
}

impl FromStr for Slug {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let ok = (3..=63).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !text.starts_with('-')
            && !text.ends_with('-');
        if ok {
            Ok(Self(text.to_owned()))
        } else {
            Err("must be 3 to 63 lower-case letters, digits or inner hyphens".into())
        }
    }
}

impl AsRef<str> for Slug {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

text!([] Slug, string_schema(None, Some("^[a-z0-9]([a-z0-9-]{1,61}[a-z0-9])$"), 3, 63));
text_serialize!([] Slug);

/// An ISO 4217 currency code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Currency(String);

/// The codes in use; funds, metals and test codes are left out.
const CURRENCIES: &str = "AED AFN ALL AMD ANG AOA ARS AUD AWG AZN BAM BBD BDT BGN BHD BIF BMD BND BOB BRL BSD BTN \
    BWP BYN BZD CAD CDF CHF CLP CNY COP CRC CUP CVE CZK DJF DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP \
    GMD GNF GTQ GYD HKD HNL HTG HUF IDR ILS INR IQD IRR ISK JMD JOD JPY KES KGS KHR KMF KPW KRW KWD KYD KZT LAK \
    LBP LKR LRD LSL LYD MAD MDL MGA MKD MMK MNT MOP MRU MUR MVR MWK MXN MYR MZN NAD NGN NIO NOK NPR NZD OMR PAB \
    PEN PGK PHP PKR PLN PYG QAR RON RSD RUB RWF SAR SBD SCR SDG SEK SGD SHP SLE SOS SRD SSP STN SVC SYP SZL THB \
    TJS TMT TND TOP TRY TTD TWD TZS UAH UGX USD UYU UZS VED VES VND VUV WST XAF XCD XOF XPF YER ZAR ZMW ZWG";

impl FromStr for Currency {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.len() == 3 && CURRENCIES.split_ascii_whitespace().any(|code| code == text) {
            Ok(Self(text.to_owned()))
        } else {
            Err("must be an ISO 4217 code in capitals such as SGD".into())
        }
    }
}

impl AsRef<str> for Currency {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

text!([] Currency, string_schema(None, Some("^[A-Z]{3}$"), 3, 3));
text_serialize!([] Currency);

/// A sum of money as decimal text, at most 15 digits before the point and 4 after: `"1250.00"`.
/// A JSON number would pass through a float on its way, so it is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Amount(String, Decimal);

impl Amount {
    pub fn decimal(&self) -> Decimal {
        self.1
    }
}

impl From<Decimal> for Amount {
    fn from(value: Decimal) -> Self {
        let mut value = value.normalize();
        if value.scale() < 2 {
            value.rescale(2);
        }
        Self(value.to_string(), value)
    }
}

impl FromStr for Amount {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit() || b == b'.' || b == b'-');
        match Decimal::from_str_exact(text) {
            Ok(value)
                if plain && value.scale() <= 4 && value.abs() < Decimal::from(1_000_000_000_000_000_i64) =>
            {
                Ok(value.into())
            }
            _ => Err("must be a decimal as text with at most 4 places such as \"1250.00\"".into()),
        }
    }
}

impl AsRef<str> for Amount {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

// Stored as `numeric` through `decimal()`; the text form is for the wire.
text!([] Amount, string_schema(None, Some(r"^-?\d{1,15}(\.\d{1,4})?$"), 1, 21));
text_serialize!([] Amount);

/// An id for what is made at this time: ids sort as their times do, to the microsecond, and those of one time by
/// `n`, which is below 2^18.
pub fn id_at(at: DateTime<Utc>, n: usize) -> Uuid {
    let (seconds, nanos) = (at.timestamp().max(0) as u64, at.timestamp_subsec_nanos());
    let fraction = u128::from(nanos % 1_000_000) * 4096 / 1_000_000;
    let counter = fraction << 18 | (n as u128 & 0x3_ffff);
    Uuid::new_v7(Timestamp::from_unix_time(seconds, nanos, counter, 30))
}

/// Refuses dates that cannot be written as RFC 3339 does, in four digits of a year.
pub fn check_year(field: &str, date: Option<NaiveDate>) -> Result<(), Error> {
    match date {
        Some(date) if !(1..=9999).contains(&date.year()) => {
            Err(Error::invalid(field, "must be a date from year 1 to 9999"))
        }
        _ => Ok(()),
    }
}

/// An amount in a currency.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Object)]
#[serde(deny_unknown_fields)]
#[oai(deny_unknown_fields)]
pub struct Money {
    pub amount: Amount,
    pub currency: Currency,
}

/// An address of a page or picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebUrl(String);

impl FromStr for WebUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let uri: Option<poem::http::Uri> = text.parse().ok();
        let ok =
            uri.is_some_and(|uri| matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some());
        if ok && text.len() <= 2048 {
            Ok(Self(text.to_owned()))
        } else {
            Err("must be an http or https address".into())
        }
    }
}

impl AsRef<str> for WebUrl {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

text!([] WebUrl, string_schema(Some("uri"), None, 8, 2048));
text_serialize!([] WebUrl);

/// A name from the time zone database such as `Asia/Singapore`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timezone(String);

impl FromStr for Timezone {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse::<chrono_tz::Tz>() {
            Ok(_) => Ok(Self(text.to_owned())),
            Err(_) => Err("must be a name from the time zone database such as Asia/Singapore".into()),
        }
    }
}

impl AsRef<str> for Timezone {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

text!([] Timezone, string_schema(None, None, 1, 50));
text_serialize!([] Timezone);

/// An ISO 3166 country code of two capitals.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Country(String);

impl FromStr for Country {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let ok = text.len() == 2 && text.bytes().all(|b| b.is_ascii_uppercase());
        if ok {
            Ok(Self(text.to_owned()))
        } else {
            Err("must be a country code of two capitals such as SG".into())
        }
    }
}

impl AsRef<str> for Country {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

text!([] Country, string_schema(None, Some("^[A-Z]{2}$"), 2, 2));
text_serialize!([] Country);

text_enum! {
    /// A language that the service speaks.
    Locale { En = "en", ZhHans = "zh-Hans", Ms = "ms", Ta = "ta" }
}

/// Carries out a change of a field that must have a value: absent leaves it, null is refused.
pub fn change<T>(field: &mut T, name: &str, to: MaybeUndefined<T>) -> Result<(), Error> {
    match to {
        MaybeUndefined::Undefined => {}
        MaybeUndefined::Null => return Err(Error::invalid(name, "cannot be null")),
        MaybeUndefined::Value(value) => *field = value,
    }
    Ok(())
}

/// Carries out a change of a field that may be empty: absent leaves it, null empties it.
pub fn change_optional<T>(field: &mut Option<T>, to: MaybeUndefined<T>) {
    match to {
        MaybeUndefined::Undefined => {}
        MaybeUndefined::Null => *field = None,
        MaybeUndefined::Value(value) => *field = Some(value),
    }
}

/// A value for an example in the document.
pub(crate) fn example<T: FromStr<Err = String>>(text: &str) -> T {
    text.parse().unwrap_or_else(|told| panic!("the example {text:?} {told}"))
}

/// A fixed id for examples.
pub(crate) const EXAMPLE_ID: Uuid = Uuid::from_u128(0x0190_b6a1_7c1e_7000_8000_0000_0000_0001);

/// A fixed time for examples.
pub(crate) fn example_time() -> chrono::DateTime<chrono::Utc> {
    chrono::DateTime::from_timestamp(1_767_225_600, 0).expect("a valid time")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slugs_are_made_from_names() {
        assert_eq!(Slug::from_name("Acme Pte. Ltd.").unwrap().as_ref(), "acme-pte-ltd");
        assert!(Slug::from_name("公司").is_none());
        assert_eq!(Slug::from_name(&"x".repeat(90)).unwrap().with_suffix("7f3a9c").as_ref().len(), 63);
    }

    #[test]
    fn a_slug_is_what_a_host_name_label_can_be() {
        for bad in ["ab", "-ab", "ab-", "Abc", "a_b", "a.b", "", &"a".repeat(64)] {
            assert!(bad.parse::<Slug>().is_err(), "{bad}");
        }
        assert!("a-b".parse::<Slug>().is_ok());
    }

    #[test]
    fn addresses_are_checked_and_lowered() {
        assert_eq!("Ana@Example.COM".parse::<Email>().unwrap().as_ref(), "ana@example.com");
        for bad in ["ana", "ana@", "@b.co", "a b@c.de", "a@b", "a@b..co", "a..b@c.de", "a@-b.co", "a@1.2.3.4"]
        {
            assert!(bad.parse::<Email>().is_err(), "{bad}");
        }
    }

    #[test]
    fn ids_sort_as_their_times_do() {
        let at = |micros: i64| DateTime::from_timestamp_micros(1_767_225_600_000_000 + micros).unwrap();
        let ids: Vec<Uuid> =
            [(0, 0), (0, 1), (0, 9_999), (1, 0), (2, 0), (999, 5), (1000, 0), (1_000_000, 0)]
                .map(|(micros, n)| id_at(at(micros), n))
                .into();
        assert!(ids.is_sorted(), "{ids:?}");
        assert_ne!(id_at(at(0), 0), id_at(at(0), 0));
    }

    #[test]
    fn amounts_keep_their_places() {
        assert_eq!("12.5".parse::<Amount>().unwrap().as_ref(), "12.50");
        assert_eq!("12.5000".parse::<Amount>().unwrap().as_ref(), "12.50");
        assert_eq!("0.1234".parse::<Amount>().unwrap().as_ref(), "0.1234");
        for bad in ["", "1e5", "1,000", "0.12345", "9999999999999999", "NaN", "+1"] {
            assert!(bad.parse::<Amount>().is_err(), "{bad}");
        }
    }
}
