//! What must hold of a server before it is trusted.

use sqlx::PgConnection;

/// Oldest version with 64-bit transaction numbers, which tell a restored database.
const OLDEST: i64 = 13;
/// First version that notices the end of a client while a statement runs.
const CONNECTION_CHECK: i64 = 14;

/// Properties of a server, as a session sees them.
#[derive(Clone, PartialEq, Eq, Debug, sqlx::FromRow)]
pub(super) struct Facts {
    version: i64,
    encoding: String,
    fsync: String,
    standby: bool,
    read_only: String,
    pub(super) synchronous_commit: String,
    pub(super) encrypted: bool,
}

/// Asks the server.
pub(super) async fn facts(connection: &mut PgConnection) -> Result<Facts, sqlx::Error> {
    let select = "SELECT current_setting('server_version_num')::bigint AS version, \
                  current_setting('server_encoding') AS encoding, \
                  current_setting('fsync') AS fsync, \
                  pg_is_in_recovery() AS standby, \
                  current_setting('default_transaction_read_only') AS read_only, \
                  current_setting('synchronous_commit') AS synchronous_commit, \
                  COALESCE((SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()), FALSE) AS encrypted";
    sqlx::query_as(select).fetch_one(connection).await
}

impl Facts {
    /// Why the server is not fit, if it is not.
    pub(super) fn refusal(&self) -> Option<String> {
        let major = self.version / 10_000;
        if major < OLDEST {
            return Some(format!(
                "the server is postgresql {major}; version {OLDEST} or newer is needed"
            ));
        }
        if self.standby {
            return Some("the server is a standby and takes no writes; name the primary".to_owned());
        }
        if self.read_only == "on" {
            return Some(
                "the database or the user is read-only (default_transaction_read_only = on); switch that off"
                    .to_owned(),
            );
        }
        if self.encoding != "UTF8" {
            return Some(format!(
                "the database has encoding {}; make one with CREATE DATABASE ... ENCODING 'UTF8' TEMPLATE template0",
                self.encoding
            ));
        }
        if self.fsync == "off" {
            return Some(
                "the server runs with fsync = off, so that answered changes may be lost; switch fsync on"
                    .to_owned(),
            );
        }
        None
    }

    pub(super) fn has_connection_check(&self) -> bool {
        self.version / 10_000 >= CONNECTION_CHECK
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Facts {
        Facts {
            version: 150_018,
            encoding: "UTF8".to_owned(),
            fsync: "on".to_owned(),
            standby: false,
            read_only: "off".to_owned(),
            synchronous_commit: "on".to_owned(),
            encrypted: false,
        }
    }

    #[test]
    fn every_property_that_is_needed_is_asked_for() {
        assert_eq!(good().refusal(), None);
        let unfit = [
            (
                Facts {
                    version: 120_022,
                    ..good()
                },
                "version 13 or newer",
            ),
            (
                Facts {
                    standby: true,
                    ..good()
                },
                "standby",
            ),
            (
                Facts {
                    read_only: "on".to_owned(),
                    ..good()
                },
                "read-only",
            ),
            (
                Facts {
                    encoding: "SQL_ASCII".to_owned(),
                    ..good()
                },
                "UTF8",
            ),
            (
                Facts {
                    fsync: "off".to_owned(),
                    ..good()
                },
                "fsync",
            ),
        ];
        for (facts, part) in unfit {
            let refusal = facts.refusal().unwrap();
            assert!(refusal.contains(part), "{refusal}");
        }
    }
}
