//! Sizes, times and counts as people write and read them.

use std::time::Duration;

/// Reads a size: `1024`, `64KiB`, `8MiB`, `1GiB`, `500kB`. Without a unit the number is bytes.
pub fn parse_size_bytes(text: &str) -> Result<u64, String> {
    let (number, unit) = split_unit(text);
    let factor: u64 = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        _ => return Err(format!("unknown unit `{unit}`; use B, KiB, MiB or GiB")),
    };
    let number: u64 = number
        .parse()
        .map_err(|_| format!("`{text}` is not a size; write it like 8MiB"))?;
    number
        .checked_mul(factor)
        .ok_or_else(|| format!("`{text}` is too large"))
}

/// Reads a time span: `30s`, `250ms`, `5m`, `1h`. Without a unit the number is seconds.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split_unit(text);
    let factor_ms: u64 = match unit {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(format!("unknown unit `{unit}`; use ms, s, m or h")),
    };
    let number: u64 = number
        .parse()
        .map_err(|_| format!("`{text}` is not a time span; write it like 30s"))?;
    let ms = number
        .checked_mul(factor_ms)
        .ok_or_else(|| format!("`{text}` is too long"))?;
    Ok(Duration::from_millis(ms))
}

/// Reads a count: `1000000`, `1_000_000`, `100k`, `2M`.
pub fn parse_count(text: &str) -> Result<u64, String> {
    let plain = text.replace('_', "");
    let (number, unit) = split_unit(&plain);
    let factor: u64 = match unit {
        "" => 1,
        "k" | "K" => 1_000,
        "m" | "M" => 1_000_000,
        _ => return Err(format!("unknown unit `{unit}`; use k or M")),
    };
    let number: u64 = number
        .parse()
        .map_err(|_| format!("`{text}` is not a count; write it like 100k"))?;
    number
        .checked_mul(factor)
        .ok_or_else(|| format!("`{text}` is too large"))
}

fn split_unit(text: &str) -> (&str, &str) {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    (&text[..end], text[end..].trim())
}

/// A size for people: `512 B`, `8.0 MiB`.
pub fn size_text(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// A count with its thousands apart: `1,234,567`.
pub fn count_text(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Nanoseconds for people: `850 ns`, `12.3 us`, `4.56 ms`, `1.20 s`.
pub fn nanos_text(nanos: u64) -> String {
    let value = nanos as f64;
    match nanos {
        0..1_000 => format!("{nanos} ns"),
        1_000..1_000_000 => format!("{:.1} us", value / 1e3),
        1_000_000..1_000_000_000 => format!("{:.2} ms", value / 1e6),
        _ => format!("{:.2} s", value / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_and_without_units() {
        assert_eq!(parse_size_bytes("1024"), Ok(1024));
        assert_eq!(parse_size_bytes("8MiB"), Ok(8 << 20));
        assert_eq!(parse_size_bytes("8 mib"), Ok(8 << 20));
        assert_eq!(parse_size_bytes("2k"), Ok(2048));
        assert_eq!(parse_size_bytes("5MB"), Ok(5_000_000));
    }

    #[test]
    fn what_is_no_size_is_refused_with_an_example() {
        for bad in ["", "MiB", "-1", "1.5MiB", "9x", "18446744073709551615k"] {
            assert!(parse_size_bytes(bad).is_err(), "{bad:?} must be refused");
        }
        assert!(parse_size_bytes("much").unwrap_err().contains("use B, KiB"));
    }

    #[test]
    fn time_spans_are_seconds_unless_they_say_otherwise() {
        assert_eq!(parse_duration("30"), Ok(Duration::from_secs(30)));
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_duration("2m"), Ok(Duration::from_secs(120)));
        assert!(parse_duration("soon").is_err());
    }

    #[test]
    fn counts_have_thousands_and_millions() {
        assert_eq!(parse_count("100k"), Ok(100_000));
        assert_eq!(parse_count("2M"), Ok(2_000_000));
        assert_eq!(parse_count("1_000"), Ok(1_000));
        assert!(parse_count("1g").is_err());
    }

    #[test]
    fn numbers_are_written_for_people() {
        assert_eq!(size_text(512), "512 B");
        assert_eq!(size_text(8 << 20), "8.0 MiB");
        assert_eq!(count_text(1_234_567), "1,234,567");
        assert_eq!(count_text(12), "12");
        assert_eq!(nanos_text(123_456), "123.5 us");
    }
}
