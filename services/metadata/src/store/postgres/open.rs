//! Opening: look before touching, schema up to date, and the connections for everything that comes afterwards.

use std::sync::Arc;
use std::time::Duration;

use ptah_service::Ports;
use sqlx::migrate::Migrator;
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection, PgConnection};
use tokio::time::{Instant, timeout};
use tracing::warn;

use super::identity::{self, Known};
use super::trouble::{Trouble, advice, failed, is_not_up};
use super::url::{self, Target};
use super::{PostgresOptions, server, session};

static MIGRATIONS: Migrator = sqlx::migrate!("migrations/postgres");

/// A server that is not up yet gets this long.
const PATIENCE: Duration = Duration::from_secs(10);
/// One attempt to connect, and any question while opening.
const ATTEMPT: Duration = Duration::from_secs(5);
/// Pause between attempts.
const PAUSE: Duration = Duration::from_millis(250);
/// Bringing the schema up to date, and waiting for another instance that does.
const MIGRATION: Duration = Duration::from_secs(60);

/// The database cannot be used. No record in it was changed.
#[derive(Debug, thiserror::Error)]
pub enum PostgresError {
    /// Not a URL of a database.
    #[error("database_url {0}")]
    Url(String),
    /// Nobody answers, or not in time.
    #[error("database_url: {target} does not answer: {why}")]
    Unreachable {
        /// The database.
        target: Target,
        /// Why.
        why: String,
    },
    /// The server, the user or the database is not fit.
    #[error("database_url: {target} cannot be used: {why}")]
    Refused {
        /// The database.
        target: Target,
        /// Why.
        why: String,
    },
    /// A database of something else.
    #[error(
        "database_url: {0} holds tables of something else; name another database or schema, nothing was changed"
    )]
    Foreign(Target),
    /// Written by a newer version of Ptah.
    #[error(
        "database_url: {target} has schema version {found}, this build knows {known}; start the newer version of ptah, nothing was changed"
    )]
    Newer {
        /// The database.
        target: Target,
        /// Version in the database.
        found: i64,
        /// Newest version of this build.
        known: i64,
    },
    /// The schema cannot be brought up to date, or the store cannot be read.
    #[error("database_url: {target}: {why}")]
    Database {
        /// The database.
        target: Target,
        /// Why.
        why: String,
    },
}

pub(super) struct Opened {
    pub(super) connect: PgConnectOptions,
    pub(super) target: Target,
    pub(super) known: Arc<Known>,
    pub(super) encrypted: bool,
}

pub(super) async fn open(options: &PostgresOptions, ports: &Ports) -> Result<Opened, PostgresError> {
    let (connect, target) = url::parse(&options.database_url).map_err(PostgresError::Url)?;
    let mut connection = connect_patiently(&connect, &target).await?;
    let prepared = timeout(MIGRATION, prepare(&mut connection, &target, ports)).await;
    let (known, encrypted) = prepared.map_err(|_| PostgresError::Unreachable {
        target: target.clone(),
        why: "no answer in time".to_owned(),
    })??;
    // Whatever the server thinks of it: it is not needed any more.
    drop(timeout(ATTEMPT, connection.close()).await);
    Ok(Opened {
        connect,
        target,
        known: Arc::new(known),
        encrypted,
    })
}

/// Waits for a server that is not up yet; one that says no is believed at once.
async fn connect_patiently(
    options: &PgConnectOptions,
    target: &Target,
) -> Result<PgConnection, PostgresError> {
    let deadline = Instant::now() + PATIENCE;
    let mut told = false;
    loop {
        let why = match timeout(ATTEMPT, options.connect()).await {
            Ok(Ok(connection)) => return Ok(connection),
            Ok(Err(error)) if is_not_up(&error) => error.to_string(),
            Ok(Err(error)) => return Err(refused(target, &error)),
            Err(_) => "no answer in time".to_owned(),
        };
        if Instant::now() >= deadline {
            return Err(PostgresError::Unreachable {
                target: target.clone(),
                why,
            });
        }
        if !told {
            warn!(%target, %why, "metadata database does not answer yet; waiting for it");
            told = true;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn prepare(
    connection: &mut PgConnection,
    target: &Target,
    ports: &Ports,
) -> Result<(Known, bool), PostgresError> {
    let sql = |error: sqlx::Error| refused(target, &error);
    let at = |trouble: Trouble| database(target, trouble.error.to_string());
    let facts = server::facts(connection).await.map_err(sql)?;
    if let Some(why) = facts.refusal() {
        return Err(PostgresError::Refused {
            target: target.clone(),
            why,
        });
    }
    session::set_up(connection, &facts).await.map_err(sql)?;
    if check_schema(connection, target).await? {
        migrate(connection, target).await?;
    }
    let mut transaction = connection.begin().await.map_err(sql)?;
    let cluster = identity::create(&mut transaction, ports.random.as_ref())
        .await
        .map_err(at)?;
    let committed = transaction.commit().await;
    committed.map_err(|error| at(failed("write the store's identity")(error)))?;
    Ok((Known::new(cluster), facts.encrypted))
}

/// Reads the schema version without changing anything; whether there is something to bring up to date.
async fn check_schema(connection: &mut PgConnection, target: &Target) -> Result<bool, PostgresError> {
    let sql = |error: sqlx::Error| refused(target, &error);
    let tables: Vec<String> =
        sqlx::query_scalar("SELECT tablename::text FROM pg_tables WHERE schemaname = current_schema()")
            .fetch_all(&mut *connection)
            .await
            .map_err(sql)?;
    let known = MIGRATIONS
        .iter()
        .map(|migration| migration.version)
        .max()
        .unwrap_or(0);
    if tables.is_empty() {
        return check_rights(connection, target).await.map(|()| true);
    }
    let has = |name: &str| tables.iter().any(|table| table == name);
    // The first migration makes all of them at once; the list of migrations alone is one that was cut off before.
    let is_ours = has("store") && has("lease") && has("record") && has("change");
    if !has("_sqlx_migrations") || !(is_ours || tables.len() == 1) {
        return Err(PostgresError::Foreign(target.clone()));
    }
    let found: Option<i64> = sqlx::query_scalar("SELECT MAX(version) FROM _sqlx_migrations")
        .fetch_one(connection)
        .await
        .map_err(sql)?;
    match found {
        Some(found) if found > known => Err(PostgresError::Newer {
            target: target.clone(),
            found,
            known,
        }),
        found => Ok(found != Some(known)),
    }
}

/// Refuses a user that cannot make the tables.
async fn check_rights(connection: &mut PgConnection, target: &Target) -> Result<(), PostgresError> {
    let select = "SELECT COALESCE(has_schema_privilege(current_schema(), 'CREATE'), FALSE)";
    let may_create: bool = sqlx::query_scalar(select)
        .fetch_one(connection)
        .await
        .map_err(|error| refused(target, &error))?;
    if may_create {
        return Ok(());
    }
    Err(PostgresError::Refused {
        target: target.clone(),
        why: "the user may not make tables in any schema of its search path; grant it USAGE and CREATE on one, or make it the owner of the database"
            .to_owned(),
    })
}

/// Brings the schema up to date. An advisory lock lets one instance do it while the others wait.
async fn migrate(connection: &mut PgConnection, target: &Target) -> Result<(), PostgresError> {
    let sql = |error: sqlx::Error| refused(target, &error);
    for limit in ["statement_timeout", "lock_timeout"] {
        let limit_ms = MIGRATION.as_millis().to_string();
        session::set(connection, limit, &limit_ms).await.map_err(sql)?;
    }
    MIGRATIONS.run(connection).await.map_err(|error| {
        database(
            target,
            format!("the schema cannot be brought up to date: {error}"),
        )
    })
}

/// What a server that says no means.
fn refused(target: &Target, error: &sqlx::Error) -> PostgresError {
    PostgresError::Refused {
        target: target.clone(),
        why: format!("{error}{}", advice(error)),
    }
}

pub(super) fn database(target: &Target, why: String) -> PostgresError {
    PostgresError::Database {
        target: target.clone(),
        why,
    }
}
