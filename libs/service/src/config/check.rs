//! Checks that several services need.

use std::fmt::Display;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::path::Path;

use super::ConfigError;

/// Longest name of a host.
const MAX_HOST_BYTES: usize = 253;

/// Refuses what cannot be listened on. Port 0 takes a free one.
pub fn check_listen(key: &str, value: &str) -> Result<(), ConfigError> {
    check_address(key, value, 0)
}

/// Refuses what cannot be dialled.
pub fn check_dial(key: &str, value: &str) -> Result<(), ConfigError> {
    check_address(key, value, 1)
}

/// Refuses an empty list, and what cannot be dialled in it.
pub fn check_dial_list(key: &str, list: &[String]) -> Result<(), ConfigError> {
    if list.is_empty() {
        return Err(ConfigError::invalid(key, "is empty; name at least one host:port"));
    }
    list.iter().try_for_each(|address| check_dial(key, address))
}

fn check_address(key: &str, value: &str, least_port: u16) -> Result<(), ConfigError> {
    if value.is_empty() {
        return Err(ConfigError::invalid(key, "is empty; write host:port"));
    }
    let well = value.rsplit_once(':').is_some_and(|(host, port)| {
        let digits = port.bytes().all(|byte| byte.is_ascii_digit());
        is_host(host) && digits && port.parse::<u16>().is_ok_and(|port| port >= least_port)
    });
    if well {
        return Ok(());
    }
    let why = format!("has {value:?}, which is not an address; write host:port");
    Err(ConfigError::invalid(key, why))
}

fn is_host(host: &str) -> bool {
    if let Some(inner) = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        // A scope (`%eth0`) belongs to the address.
        let address = inner.split('%').next().unwrap_or_default();
        return address.parse::<Ipv6Addr>().is_ok();
    }
    let is_numeric = host.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    if is_numeric {
        return host.parse::<Ipv4Addr>().is_ok();
    }
    let of_a_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    host.len() <= MAX_HOST_BYTES && host.bytes().all(of_a_name)
}

/// Refuses a value outside of `range`, naming the range.
pub fn check_range<N: PartialOrd + Display>(
    key: &str,
    value: N,
    range: RangeInclusive<N>,
) -> Result<(), ConfigError> {
    if range.contains(&value) {
        return Ok(());
    }
    let why = format!("is {value}; use {} to {}", range.start(), range.end());
    Err(ConfigError::invalid(key, why))
}

/// Refuses a file that could not be written later, when the process is up already.
pub(super) fn check_ports_file(path: Option<&Path>) -> Result<(), ConfigError> {
    let Some(path) = path.filter(|path| !path.as_os_str().is_empty()) else {
        return Ok(());
    };
    let wrong = |what: &str| {
        let why = format!("names `{}`, {what}", path.display());
        Err(ConfigError::invalid("ports_file", why))
    };
    if path.is_dir() || path.file_name().is_none() {
        return wrong("which is a directory");
    }
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() && !folder.is_dir() => {
            wrong("whose directory does not exist")
        }
        _ => Ok(()),
    }
}
