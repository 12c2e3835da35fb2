//! Stripe counts in the smallest unit of a currency, we in the currency: this is the edge between.
//!
//! <https://docs.stripe.com/currencies#minor-units>

use rust_decimal::Decimal;

use crate::{
    error::{Error, Result},
    types::{Amount, Currency, Money},
};

/// Currencies without a smaller unit. The króna and the Ugandan shilling have none either, but Stripe
/// goes on counting them in hundredths.
const WHOLE: &str = "BIF CLP DJF GNF JPY KMF KRW MGA PYG RWF VND VUV XAF XOF XPF";
/// Currencies with thousandths.
const THOUSANDTHS: &str = "BHD JOD KWD OMR TND";

fn places(currency: &Currency) -> u32 {
    let among = |list: &str| list.split(' ').any(|code| code == currency.as_ref());
    match () {
        () if among(WHOLE) => 0,
        () if among(THOUSANDTHS) => 3,
        () => 2,
    }
}

/// What Stripe's number and its currency, in small letters, mean.
pub fn from_minor(units: i64, currency: &str) -> Result<Money> {
    let currency: Currency = currency.to_ascii_uppercase().parse().map_err(Error::internal)?;
    let amount = Decimal::try_new(units, places(&currency)).map_err(Error::internal)?;
    Ok(Money { amount: Amount::from(amount), currency })
}

/// Stripe's number for a sum; `None` for what cannot be paid: fractions of the smallest unit.
pub fn to_minor(money: &Money) -> Option<i64> {
    let units = money.amount.decimal().checked_mul(Decimal::from(10_i64.pow(places(&money.currency))))?;
    if units.fract().is_zero() { units.trunc().to_string().parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn minor_units_depend_on_the_currency() {
        for (units, currency, text) in [
            (4900, "sgd", "49.00"),
            (19_999, "usd", "199.99"),
            (500, "jpy", "500.00"),
            (1_500, "kwd", "1.500"),
            (500, "ugx", "5.00"),
            (-250, "eur", "-2.50"),
            (i64::MAX, "sgd", "92233720368547758.07"),
        ] {
            let money = from_minor(units, currency).unwrap();
            assert_eq!(money.amount.decimal().to_string().parse::<Decimal>(), text.parse(), "{currency}");
            assert_eq!(to_minor(&money), Some(units), "{currency}");
        }
    }

    #[test]
    fn what_cannot_be_paid_has_no_minor_units() {
        let money = |amount: &str, currency: &str| Money {
            amount: amount.parse().unwrap(),
            currency: currency.parse().unwrap(),
        };
        assert_eq!(to_minor(&money("1.005", "SGD")), None);
        assert_eq!(to_minor(&money("1.5", "JPY")), None);
        assert_eq!(to_minor(&money("1.005", "KWD")), Some(1005));
        assert!(from_minor(1, "???").is_err());
    }
}
