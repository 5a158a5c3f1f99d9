//! Durations and sizes as people write them.

use std::time::Duration;

/// Parses a duration such as `10m`, `3h` or `30d`.
///
/// # Errors
/// A sentence that shows what a duration looks like.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let parsed = humantime::parse_duration(text)
        .map_err(|_| "a duration looks like 10m, 3h or 30d".to_owned())?;
    if parsed.is_zero() {
        return Err("a duration is longer than nothing".to_owned());
    }
    Ok(parsed)
}

/// Parses a size such as `64K` or `20G`, in powers of 1024; a bare number is bytes.
///
/// # Errors
/// A sentence that shows what a size looks like.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(['K', 'M', 'G', 'T']);
    let unit = match &text[digits.len()..] {
        "" => Some(1),
        "K" => Some(1 << 10),
        "M" => Some(1 << 20),
        "G" => Some(1 << 30),
        "T" => Some(1_u64 << 40),
        _ => None,
    };
    let count = Some(digits)
        .filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))
        .and_then(|digits| digits.parse::<u64>().ok());
    count
        .zip(unit)
        .and_then(|(count, unit)| count.checked_mul(unit))
        .ok_or_else(|| "a size looks like 64K, 512M or 20G".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        assert_eq!(parse_duration("10m"), Ok(Duration::from_secs(600)));
        assert_eq!(parse_duration("30d"), Ok(Duration::from_secs(30 * 86_400)));
        for bad in ["", "soon", "0s", "-3h", "3"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0", 0),
            ("64K", 65_536),
            ("20G", 20 << 30),
            ("2T", 2 << 40),
        ] {
            assert_eq!(parse_size(text), Ok(bytes));
        }
        for bad in [
            "",
            "G",
            "-1G",
            "+1",
            "1GK",
            "20 G",
            "20g",
            "1.5G",
            "99999999T",
            "9€",
        ] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }
}
