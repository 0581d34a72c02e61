//! Connections and transactions.
//!
//! A connection goes back to the pool only after its transaction has ended in a way that was seen. In every other case,
//! an error, a deadline, a caller that went away, the connection is closed: the server rolls back what was open, and
//! nobody ever gets a connection that is in the middle of something.

use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{PgConnection, PgPool, Postgres};

use super::server;
use super::trouble::{Trouble, commit_failed, failed};
use crate::store::StoreError;

/// A caller waits this long for a connection.
pub(super) const ACQUIRE_DEADLINE: Duration = Duration::from_secs(1);
/// A COMMIT that takes longer is not known to have happened. With the wait before it below the deadline of the RPC
/// clients, 5 s, so that they hear the reason.
const COMMIT_DEADLINE: Duration = Duration::from_secs(1);
/// A ROLLBACK that takes longer is left to the server.
const ROLLBACK_DEADLINE: Duration = Duration::from_millis(250);
/// A connection nobody needed for this long is closed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// Limits that the server keeps for us, also when this process is stopped in the middle of something: a holder of the
/// lock that says nothing more is thrown out, and the others go on.
const SETTINGS: [(&str, &str); 7] = [
    ("statement_timeout", "3000"),
    ("lock_timeout", "2000"),
    ("idle_in_transaction_session_timeout", "5000"),
    ("tcp_keepalives_idle", "10"),
    ("tcp_keepalives_interval", "5"),
    ("tcp_keepalives_count", "3"),
    ("tcp_user_timeout", "20000"),
];

/// A pool whose connections are checked and set up before anybody gets one.
pub(super) fn pool(options: PgConnectOptions, connections: u32) -> PgPool {
    PgPoolOptions::new()
        .max_connections(connections)
        .min_connections(0)
        .acquire_timeout(ACQUIRE_DEADLINE)
        .idle_timeout(IDLE_TIMEOUT)
        .after_connect(|connection, _| Box::pin(async move { prepare(connection).await }))
        .connect_lazy_with(options)
}

/// Refuses a server that is not fit, for example one that became a standby, and sets the limits.
async fn prepare(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    let facts = server::facts(connection).await?;
    if let Some(refusal) = facts.refusal() {
        return Err(sqlx::Error::Configuration(refusal.into()));
    }
    set_up(connection, &facts).await
}

/// Sets the limits, and makes every commit wait for the disk.
pub(super) async fn set_up(connection: &mut PgConnection, facts: &server::Facts) -> Result<(), sqlx::Error> {
    for (name, value) in SETTINGS {
        set(connection, name, value).await?;
    }
    if facts.synchronous_commit == "off" {
        set(connection, "synchronous_commit", "on").await?;
    }
    if facts.has_connection_check() {
        set(connection, "client_connection_check_interval", "1000").await?;
    }
    Ok(())
}

/// Sets one setting of a session.
pub(super) async fn set(connection: &mut PgConnection, name: &str, value: &str) -> Result<(), sqlx::Error> {
    sqlx::query("SELECT set_config($1, $2, FALSE)")
        .bind(name)
        .bind(value)
        .execute(connection)
        .await
        .map(drop)
}

/// A connection with a transaction on it.
pub(super) struct Session {
    // Empty only while it ends.
    connection: Option<PoolConnection<Postgres>>,
}

impl Session {
    /// Begins a transaction whose statements see everything that was committed before each of them. Whoever waited for a
    /// lock sees in the next statement what the holder did.
    pub(super) async fn begin_write(pool: &PgPool) -> Result<Self, Trouble> {
        Self::begin(pool, "BEGIN ISOLATION LEVEL READ COMMITTED").await
    }

    /// Begins a transaction whose statements all see the same moment.
    pub(super) async fn begin_read(pool: &PgPool) -> Result<Self, Trouble> {
        Self::begin(pool, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await
    }

    async fn begin(pool: &PgPool, begin: &'static str) -> Result<Self, Trouble> {
        let action = failed("reach the database");
        let mut session = Self {
            connection: Some(pool.acquire().await.map_err(&action)?),
        };
        execute(session.connection(), begin).await.map_err(&action)?;
        Ok(session)
    }

    pub(super) fn connection(&mut self) -> &mut PgConnection {
        self.connection
            .as_mut()
            .expect("a session has its connection until it ends")
    }

    /// Ends a transaction that is not to be committed. After a fault the connection is not used again.
    pub(super) async fn end_unchanged<T>(mut self, outcome: Result<T, Trouble>) -> Result<T, Trouble> {
        if outcome.as_ref().is_err_and(|trouble| trouble.error.is_fault()) {
            return outcome;
        }
        let ended = tokio::time::timeout(ROLLBACK_DEADLINE, execute(self.connection(), "ROLLBACK")).await;
        if matches!(ended, Ok(Ok(()))) {
            self.give_back();
        }
        outcome
    }

    /// Makes the transaction durable. An error says whether it is known that nothing happened.
    pub(super) async fn commit(mut self, action: &'static str) -> Result<(), Trouble> {
        match tokio::time::timeout(COMMIT_DEADLINE, execute(self.connection(), "COMMIT")).await {
            Ok(Ok(())) => {
                self.give_back();
                Ok(())
            }
            Ok(Err(error)) => Err(commit_failed(action, &error)),
            Err(_) => Err(StoreError::OutcomeUnknown {
                action,
                why: "the database did not answer in time".to_owned(),
            }
            .into()),
        }
    }

    fn give_back(mut self) {
        drop(self.connection.take());
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            // Out of the pool and closed, without a farewell that could take time.
            drop(connection.detach());
        }
    }
}

async fn execute(connection: &mut PgConnection, sql: &'static str) -> Result<(), sqlx::Error> {
    sqlx::raw_sql(sql).execute(connection).await.map(drop)
}
