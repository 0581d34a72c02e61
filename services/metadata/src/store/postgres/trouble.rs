//! What an error of the database means: whether something happened, and whether it helps to try again.

use super::super::StoreError;

/// An error inside the store, with what to do about it.
#[derive(Debug)]
pub(super) struct Trouble {
    pub(super) error: StoreError,
    pub(super) next: Next,
}

/// What to do about an error.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Next {
    /// Tell the caller.
    Tell,
    /// Nothing happened, and it may work the next time: a lost connection, a deadlock.
    Again,
    /// The database is not the one that was here: begin a new incarnation, then try again.
    Adopt,
}

impl From<StoreError> for Trouble {
    fn from(error: StoreError) -> Self {
        Self {
            error,
            next: Next::Tell,
        }
    }
}

/// Turns an error from before a COMMIT was sent into trouble: nothing happened.
pub(super) fn failed(action: &'static str) -> impl Fn(sqlx::Error) -> Trouble {
    move |error| {
        let next = if is_transient(&error) {
            Next::Again
        } else {
            Next::Tell
        };
        Trouble {
            error: store_error(action, &error),
            next,
        }
    }
}

fn store_error(action: &'static str, error: &sqlx::Error) -> StoreError {
    if is_damage(error) {
        return StoreError::Damaged(error.to_string());
    }
    // Text that PostgreSQL cannot keep: a zero byte.
    if code(error).is_some_and(|code| code == "22021") {
        return StoreError::invalid("a text has a character that the database cannot keep".to_owned());
    }
    let why = match error {
        sqlx::Error::PoolTimedOut => {
            "no connection to the database was to be had in time; it does not answer, or `database_max_connections` \
             are all in use"
                .to_owned()
        }
        sqlx::Error::PoolClosed => "the metadata service is stopping".to_owned(),
        _ => error.to_string(),
    };
    StoreError::Unavailable { action, why }
}

/// Turns the error of a COMMIT into trouble. Only a server that says that it rolled back is believed.
pub(super) fn commit_failed(action: &'static str, error: &sqlx::Error) -> Trouble {
    if code(error).is_some_and(|code| is_rolled_back(&code)) {
        return Trouble {
            error: store_error(action, error),
            next: Next::Again,
        };
    }
    StoreError::OutcomeUnknown {
        action,
        why: error.to_string(),
    }
    .into()
}

fn code(error: &sqlx::Error) -> Option<String> {
    match error {
        sqlx::Error::Database(error) => error.code().map(|code| code.into_owned()),
        _ => None,
    }
}

/// Class 40 is a rollback, except for 40003, whose very meaning is that the outcome is not known.
fn is_rolled_back(code: &str) -> bool {
    code.starts_with("40") && code != "40003"
}

/// Connections that end, servers that start or stop, deadlocks.
fn is_transient(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) => true,
        sqlx::Error::Database(_) => code(error).is_some_and(|code| {
            code.starts_with("08")
                || code.starts_with("40")
                || matches!(code.as_str(), "57P01" | "57P02" | "57P03" | "25P03")
        }),
        _ => false,
    }
}

/// Pages or indexes that are broken, and values of types that are never written.
fn is_damage(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Database(_) => {
            code(error).is_some_and(|code| matches!(code.as_str(), "XX001" | "XX002"))
        }
        sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) | sqlx::Error::ColumnNotFound(_) => true,
        _ => false,
    }
}

/// Whether the server cannot be reached yet, in contrast to one that refuses us.
pub(super) fn is_not_up(error: &sqlx::Error) -> bool {
    (is_transient(error) && !is_tls(error)) || code(error).is_some_and(|code| code == "53300")
}

/// Whether the two sides do not agree how to encrypt. What is wrong with a certificate comes as data that make no sense.
fn is_tls(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Tls(_) => true,
        sqlx::Error::Io(error) => error.kind() == std::io::ErrorKind::InvalidData,
        _ => false,
    }
}

/// What to do about an error of connecting, as far as it is known.
pub(super) fn advice(error: &sqlx::Error) -> &'static str {
    if is_tls(error) {
        return "; see `sslmode` and `sslrootcert` in the URL";
    }
    match code(error).as_deref() {
        Some("28P01" | "28000") => "; check user and password",
        Some("3D000") => "; make it with CREATE DATABASE ... ENCODING 'UTF8' TEMPLATE template0",
        Some("42501") => "; grant the user what it needs on this database",
        Some("53300") => "; raise max_connections of the server or lower `database_max_connections`",
        _ => "",
    }
}
