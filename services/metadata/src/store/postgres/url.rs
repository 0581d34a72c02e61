//! The URL of a PostgreSQL database: what is taken, and what is refused before anything is dialled.
//!
//! Neither the URL nor any value out of its query is ever shown, because it may hold a password; [`Target`] is what logs
//! and errors show instead.

use std::fmt;
use std::str::FromStr;

use sqlx::ConnectOptions;
use sqlx::postgres::{PgConnectOptions, PgSslMode};

/// What may stand behind the question mark. Everything else would be ignored, which is worse than being refused.
const PARAMETERS: [&str; 12] = [
    "application_name",
    "dbname",
    "host",
    "hostaddr",
    "options",
    "password",
    "port",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslrootcert",
    "user",
];

/// A database, as far as it may be shown.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Target {
    database: String,
    user: String,
    place: String,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            database,
            user,
            place,
        } = self;
        write!(f, "postgresql database `{database}` at {place} as user `{user}`")
    }
}

impl Target {
    fn of(options: &PgConnectOptions) -> Self {
        let place = match options.get_socket() {
            Some(socket) => socket.display().to_string(),
            None => format!("{}:{}", options.get_host(), options.get_port()),
        };
        Self {
            database: options.get_database().unwrap_or_default().to_owned(),
            user: options.get_username().to_owned(),
            place,
        }
    }
}

/// Whether a URL is one of PostgreSQL.
pub(crate) fn is_postgres(url: &str) -> bool {
    ["postgres://", "postgresql://"]
        .iter()
        .any(|scheme| url.starts_with(scheme))
}

/// Reads a URL, or tells what is wrong with it without showing it.
pub(crate) fn parse(url: &str) -> Result<(PgConnectOptions, Target), String> {
    if !is_postgres(url) {
        return Err("does not begin with postgres://".to_owned());
    }
    let (_, query) = url.split_once('?').unwrap_or((url, ""));
    for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
        check_parameter(parameter)?;
    }
    // What the parser says names a rule and never the text.
    let options = PgConnectOptions::from_str(url).map_err(|error| match error {
        sqlx::Error::Configuration(why) => format!("cannot be read: {why}"),
        _ => "cannot be read".to_owned(),
    })?;
    if matches!(options.get_ssl_mode(), PgSslMode::Allow) {
        return Err("asks for sslmode=allow, which would never encrypt; use disable, prefer, require, verify-ca or verify-full".to_owned());
    }
    if options.get_database().is_none_or(str::is_empty) {
        return Err("names no database; write postgres://user:password@host/database".to_owned());
    }
    let target = Target::of(&options);
    let options = match options.get_application_name() {
        Some(_) => options,
        None => options.application_name("ptah-metadata"),
    };
    Ok((options.disable_statement_logging(), target))
}

fn check_parameter(parameter: &str) -> Result<(), String> {
    let (name, _) = parameter.split_once('=').unwrap_or((parameter, ""));
    let is_option = name.starts_with("options[") && name.ends_with(']');
    if PARAMETERS.contains(&name) || is_option {
        return Ok(());
    }
    // A name that nobody knows may be a part of a password with a question mark in it.
    Err(format!(
        "has a parameter behind its question mark that is not known; known are {}, and a question mark in a password is written %3F",
        PARAMETERS.join(", ")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_shown_without_its_password() {
        let url = "postgres://ptah:s3cr3t@db.example:5433/meta?sslmode=verify-full";
        let (options, target) = parse(url).unwrap();
        assert_eq!(
            target.to_string(),
            "postgresql database `meta` at db.example:5433 as user `ptah`"
        );
        assert!(matches!(options.get_ssl_mode(), PgSslMode::VerifyFull));
    }

    #[test]
    fn what_would_be_ignored_is_refused_and_not_shown() {
        for (url, part) in [
            ("postgres://u:s3cr3t@h/db?sslmod=require", "not known"),
            ("postgres://u:p?s3cr3t@h/db", "not known"),
            ("postgres://u:s3cr3t@h/db?sslmode=allow", "sslmode=allow"),
            ("postgres://u:s3cr3t@h/db?sslmode=on", "cannot be read"),
            ("postgres://u:s3cr3t@h", "names no database"),
            ("postgres://u:s3cr3t@h/", "names no database"),
            ("postgres://u:s3cr3t@h:port/db", "cannot be read"),
            ("mysql://u:s3cr3t@h/db", "does not begin"),
        ] {
            let refused = parse(url).unwrap_err();
            assert!(refused.contains(part), "{url}: {refused}");
            assert!(!refused.contains("s3cr3t"), "{refused}");
        }
    }
}
