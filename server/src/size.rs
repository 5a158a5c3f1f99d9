//! Sizes as people read them, in powers of 1024.

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
    fn sizes_are_said() {
        assert_eq!(show_size(500 << 30), "500.0 GiB");
        assert_eq!(show_size(1023), "1023 bytes");
    }
}
