//! Quantities as Kubernetes writes them, as numbers. `[pure]`

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// A quantity in thousandths, rounded up.
pub(crate) fn milli(quantity: &Quantity) -> Option<u64> {
    let text = quantity.0.as_str();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits: u128 = format!("0{whole}{fraction}").parse().ok()?;
    let scale = 10_u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    // In thousandths, as a fraction.
    let (up, down): (u128, u128) = match suffix {
        "n" => (1, 1_000_000),
        "u" => (1, 1000),
        "m" => (1, 1),
        "" => (1000, 1),
        "k" => (1_000_000, 1),
        "M" => (1_000_000_000, 1),
        "G" => (1_000_000_000_000, 1),
        "T" => (1_000_000_000_000_000, 1),
        "P" => (1_000_000_000_000_000_000, 1),
        "Ki" => (1000 << 10, 1),
        "Mi" => (1000 << 20, 1),
        "Gi" => (1000 << 30, 1),
        "Ti" => (1000 << 40, 1),
        "Pi" => (1000 << 50, 1),
        exponent => {
            let exponent: u32 = exponent.strip_prefix(['e', 'E'])?.parse().ok()?;
            (10_u128.checked_pow(exponent.checked_add(3)?)?, 1)
        }
    };
    let thousandths = digits.checked_mul(up)?.div_ceil(down.checked_mul(scale)?);
    u64::try_from(thousandths).ok()
}

/// A quantity in whole units, rounded up.
pub(crate) fn whole(quantity: &Quantity) -> Option<u64> {
    milli(quantity).map(|thousandths| thousandths.div_ceil(1000))
}

/// One resource of a list of them.
pub(crate) fn find<'a>(
    list: Option<&'a BTreeMap<String, Quantity>>,
    resource: &str,
) -> Option<&'a Quantity> {
    list?.get(resource)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_numbers() {
        let q = |text: &str| Quantity(text.to_owned());
        for (text, expected) in [
            ("100m", 100),
            ("1", 1000),
            ("1.5", 1500),
            (".5", 500),
            ("1u", 1),
            ("2k", 2_000_000),
            ("1e3", 1_000_000),
            ("64Mi", (64 * 1000) << 20),
        ] {
            assert_eq!(milli(&q(text)), Some(expected), "{text}");
        }
        assert_eq!(whole(&q("1.2")), Some(2));
        assert_eq!(milli(&q("1x")), None);
    }
}
