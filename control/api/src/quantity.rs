//! Quantities as Kubernetes writes them: `100m`, `1.5`, `64Mi`, `1e3`.

pub(crate) const SHAPE: &str = "quantities must match the regular expression \
    '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";

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

#[cfg(test)]
mod tests {
    use super::is_valid;

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
