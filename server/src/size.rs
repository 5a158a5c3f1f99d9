//! Sizes as people write and read them, in powers of 1024.

/// Parses a size such as `512M` or `20G`; a bare number is bytes.
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

/// Says bytes in the largest unit that leaves at least one.
pub fn show_size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut size = (bytes as f64, "bytes");
    for unit in UNITS {
        if size.0 < 1024.0 {
            break;
        }
        size = (size.0 / 1024.0, unit);
    }
    match size {
        (bytes, "bytes") => format!("{bytes} bytes"),
        (count, unit) => format!("{count:.1} {unit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_said() {
        assert_eq!(
            parse_size("500G").map(show_size),
            Ok("500.0 GiB".to_owned())
        );
        assert_eq!(
            parse_size("1023").map(show_size),
            Ok("1023 bytes".to_owned())
        );
        for bad in ["", "G", "5g", "-1", "1.5G", "5GG", "99999999999999T"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }
}
