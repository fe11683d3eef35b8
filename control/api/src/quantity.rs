//! Quantities as Kubernetes writes them: `100m`, `1.5`, `64Mi`, `1e3`.

pub(crate) const SHAPE: &str = "quantities must match the regular expression \
    '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";

/// What may follow the number.
const SUFFIXES: [&str; 16] =
    ["", "n", "u", "m", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];

pub(crate) fn is_valid(text: &str) -> bool {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let end = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
    let (number, suffix) = unsigned.split_at(end);
    let digits = number.chars().filter(char::is_ascii_digit).count();
    let dots = number.len() - digits;
    digits > 0 && dots <= 1 && (SUFFIXES.contains(&suffix) || is_exponent(suffix))
}

fn is_exponent(suffix: &str) -> bool {
    suffix.strip_prefix(['e', 'E']).is_some_and(|digits| digits.parse::<i32>().is_ok())
}

/// The same quantity as upstream writes it back: `0.5` is `500m`, `1024Mi` is `1Gi`. What is none,
/// or is beyond what 128 bits hold, stays as it is.
pub(crate) fn canonical(text: &str) -> String {
    let written = Quantity::parse(text).and_then(Quantity::print);
    written.unwrap_or_else(|| text.to_owned())
}

/// `mantissa · 10^ten`, to be written in powers of 1000, of 1024, or with an exponent.
#[derive(Clone, Copy)]
struct Quantity {
    mantissa: i128,
    ten: i32,
    form: Form,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Decimal,
    Binary,
    Exponent,
}

/// Powers of 1000 below and above one, and of 1024.
const SMALL: [&str; 4] = ["", "m", "u", "n"];
const LARGE: [&str; 7] = ["", "k", "M", "G", "T", "P", "E"];
const BINARY: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];

impl Quantity {
    fn parse(text: &str) -> Option<Self> {
        if !is_valid(text) {
            return None;
        }
        let end = text.find(|c: char| !c.is_ascii_digit() && !"+-.".contains(c));
        let (number, suffix) = text.split_at_checked(end.unwrap_or(text.len()))?;
        let (whole, part) = number.split_once('.').unwrap_or((number, ""));
        let mantissa: i128 = format!("{whole}{part}").parse().ok()?;
        let ten = -i32::try_from(part.len()).ok()?;
        let place = |of: &[&str]| of.iter().position(|one| *one == suffix);
        let power = |n: usize| i32::try_from(n * 3).ok();
        Some(if let Some(n) = place(&LARGE) {
            Self { mantissa, ten: ten + power(n)?, form: Form::Decimal }
        } else if let Some(n) = place(&SMALL) {
            Self { mantissa, ten: ten - power(n)?, form: Form::Decimal }
        } else if let Some(n) = place(&BINARY) {
            let factor = 1024_i128.checked_pow(u32::try_from(n).ok()?)?;
            Self { mantissa: mantissa.checked_mul(factor)?, ten, form: Form::Binary }
        } else {
            let exponent: i32 = suffix.get(1..)?.parse().ok()?;
            Self { mantissa, ten: ten.checked_add(exponent)?, form: Form::Exponent }
        })
    }

    fn print(self) -> Option<String> {
        match self.form {
            Form::Binary => {
                let whole = self.scaled_to(0)?;
                if whole.abs() < 1024 { self.decimal() } else { Some(Self::binary(whole)) }
            }
            _ => self.decimal(),
        }
    }

    /// The number in units of `10^ten`; what is left over is rounded away from zero.
    fn scaled_to(self, ten: i32) -> Option<i128> {
        let by = self.ten - ten;
        let factor = 10_i128.checked_pow(by.unsigned_abs())?;
        if by >= 0 {
            return self.mantissa.checked_mul(factor);
        }
        let rest = self.mantissa % factor;
        Some(self.mantissa / factor + rest.signum())
    }

    fn binary(mut whole: i128) -> String {
        let mut power = 0;
        while whole % 1024 == 0 && power + 1 < BINARY.len() {
            whole /= 1024;
            power += 1;
        }
        format!("{whole}{}", BINARY.get(power).unwrap_or(&""))
    }

    fn decimal(self) -> Option<String> {
        const FINEST: i32 = -9;
        let (mut mantissa, mut ten) = (self.mantissa, self.ten);
        if ten < FINEST {
            (mantissa, ten) = (self.scaled_to(FINEST)?, FINEST);
        }
        if mantissa == 0 {
            return Some("0".into());
        }
        while mantissa % 10 == 0 {
            mantissa /= 10;
            ten += 1;
        }
        while ten.rem_euclid(3) != 0 {
            mantissa = mantissa.checked_mul(10)?;
            ten -= 1;
        }
        let power = usize::try_from(ten.unsigned_abs() / 3).ok()?;
        let suffix = if ten < 0 { SMALL.get(power) } else { LARGE.get(power) };
        Some(match suffix {
            Some(suffix) if self.form != Form::Exponent => format!("{mantissa}{suffix}"),
            _ if ten == 0 => mantissa.to_string(),
            _ => format!("{mantissa}e{ten}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{canonical, is_valid};

    #[test]
    fn quantities_are_written_as_upstream_writes_them() {
        let cases = [
            ("0", "0"),
            ("0.5", "500m"),
            ("1000m", "1"),
            ("1500m", "1500m"),
            ("1.5", "1500m"),
            ("100000", "100k"),
            ("1024Mi", "1Gi"),
            ("1536Mi", "1536Mi"),
            ("0.5Gi", "512Mi"),
            ("0.1Gi", "107374183"),
            ("512Ki", "512Ki"),
            ("0.5Ki", "512"),
            ("1e3", "1e3"),
            ("1000e0", "1e3"),
            ("-2000m", "-2"),
            ("+1", "1"),
            ("0.0000000001", "1n"),
            ("64Mi", "64Mi"),
            ("none", "none"),
        ];
        for (given, expected) in cases {
            assert_eq!(canonical(given), expected, "{given}");
            assert_eq!(canonical(expected), expected, "{given}, twice");
        }
    }

    #[test]
    fn quantities_are_told_from_other_text() {
        for good in ["0", "100m", "1.5", ".5", "64Mi", "1e3", "1E-2", "-1", "+2k", "5Ei", "2E"] {
            assert!(is_valid(good), "{good}");
        }
        for bad in ["", "m", "1.2.3", "1 Gi", "1gi", "abc", "1e", "--1", "1MiB"] {
            assert!(!is_valid(bad), "{bad}");
        }
    }
}
