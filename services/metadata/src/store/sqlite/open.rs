//! Opening: look before touching, one process per database, schema up to date, and the question whether this is the
//! database that was here before.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use ptah_service::{Ports, Random};
use ptah_types::ClusterId;
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, SqliteConnection, SqlitePool};
use tracing::{info, warn};

use super::super::sql::{UNKNOWN_JUMP, new_incarnation, to_sql};
use super::super::{LeaseRow, StoreError, StoreInfo};
use super::SqliteOptions;
use super::mark::{self, Found, Mark, MarkFile, Numbers};
use super::rows::{self, failed};

static MIGRATIONS: Migrator = sqlx::migrate!("migrations/sqlite");

/// Readers beside the writer.
const READERS: u32 = 4;
/// How long SQLite waits for its own locks; only a backup tool ever holds them.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// The database cannot be used. No record in it was changed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Not a URL of a database that this build knows.
    #[error("database url `{url}` is not usable: {why}; use `sqlite://path/to/file.db?mode=rwc`")]
    Url {
        /// As configured.
        url: String,
        /// What is wrong.
        why: String,
    },
    /// Another process has it.
    #[error("metadata database `{0}` is in use by another process; stop that one first")]
    InUse(PathBuf),
    /// Written by a newer version of Ptah.
    #[error(
        "metadata database `{path}` has schema version {found}, this build knows {known}; start the newer version of ptah, nothing was changed"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Version in the file.
        found: i64,
        /// Newest version of this build.
        known: i64,
    },
    /// A database of something else.
    #[error("file `{0}` is not a metadata database of ptah; choose another file, nothing was changed")]
    Foreign(PathBuf),
    /// The schema cannot be brought up to date.
    #[error("bring metadata database `{path}` up to date: {source}")]
    Migrate {
        /// The file.
        path: PathBuf,
        /// Why.
        source: MigrateError,
    },
    /// The database is gone, its mark is not.
    #[error(
        "metadata database `{path}` is empty, but its mark says that cluster {cluster} was here up to revision {revision}; put the database back, or delete `{mark}` to begin a new cluster"
    )]
    Lost {
        /// The database.
        path: PathBuf,
        /// Its mark.
        mark: PathBuf,
        /// Cluster that was here.
        cluster: ClusterId,
        /// How far it was.
        revision: u64,
    },
    /// Database and mark are of different clusters.
    #[error(
        "metadata database `{path}` is of cluster {found}, but the one that was here was of cluster {expected}; put the right database back, or delete `{mark}` to go on with this one"
    )]
    OtherCluster {
        /// The database.
        path: PathBuf,
        /// Its mark.
        mark: PathBuf,
        /// Cluster of the database.
        found: ClusterId,
        /// Cluster of the mark.
        expected: ClusterId,
    },
    /// The file system refuses.
    #[error("open `{path}`: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The database refuses.
    #[error("open metadata database `{path}`: {source}")]
    Database {
        /// The file.
        path: PathBuf,
        /// Why.
        source: StoreError,
    },
}

pub(super) struct Opened {
    pub(super) writer: SqlitePool,
    pub(super) readers: SqlitePool,
    pub(super) mark_file: MarkFile,
    pub(super) mark: Mark,
    pub(super) info: StoreInfo,
    pub(super) lock: File,
}

pub(super) async fn open(options: &SqliteOptions, ports: &Ports) -> Result<Opened, OpenError> {
    let base = parse_url(&options.database_url)?;
    let path = base.get_filename().to_owned();
    let lock = lock(&path)?;
    let creates = options.database_url.contains("mode=rwc");
    if is_there(&path)? {
        check_schema(&path).await?;
    } else if creates {
        let mut file = OpenOptions::new();
        let made = file
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path);
        drop(made.map_err(|source| io_error(&path, source))?);
    }
    let at = |error| database_error(&path, error);
    let connect = base
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(BUSY_TIMEOUT);
    let writer = pool(connect.clone(), 1).await.map_err(at)?;
    let migrated = MIGRATIONS.run(&writer).await;
    migrated.map_err(|source| OpenError::Migrate {
        path: path.clone(),
        source,
    })?;
    let (mark_file, mark, info) = identify(&writer, &path, ports).await?;
    let readers = pool(connect.pragma("query_only", "ON"), READERS)
        .await
        .map_err(at)?;
    info!(path = %path.display(), cluster = %info.cluster, revision = info.revision, "metadata database open");
    Ok(Opened {
        writer,
        readers,
        mark_file,
        mark,
        info,
        lock,
    })
}

fn parse_url(url: &str) -> Result<SqliteConnectOptions, OpenError> {
    let unusable = |why: &str| OpenError::Url {
        url: url.to_owned(),
        why: why.to_owned(),
    };
    if !url.starts_with("sqlite:") {
        return Err(unusable("not a database that this build knows"));
    }
    if url.contains(":memory:") || url.contains("mode=memory") {
        return Err(unusable("metadata must survive a restart, memory does not"));
    }
    let options = SqliteConnectOptions::from_str(url).map_err(|error| unusable(&error.to_string()))?;
    Ok(options.disable_statement_logging())
}

fn is_there(path: &Path) -> Result<bool, OpenError> {
    match std::fs::metadata(path) {
        Ok(metadata) => Ok(metadata.len() > 0),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(io_error(path, source)),
    }
}

fn lock(path: &Path) -> Result<File, OpenError> {
    let mut lock_path = path.as_os_str().to_owned();
    lock_path.push(".lock");
    let lock_path = PathBuf::from(lock_path);
    let opened = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&lock_path);
    let file = opened.map_err(|source| io_error(&lock_path, source))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse(path.to_owned())),
        Err(TryLockError::Error(source)) => Err(io_error(&lock_path, source)),
    }
}

/// Reads the schema version without changing anything.
async fn check_schema(path: &Path) -> Result<(), OpenError> {
    let at = |error: sqlx::Error| database_error(path, failed("read the schema version")(error));
    let options = SqliteConnectOptions::new()
        .filename(path)
        .read_only(true)
        .busy_timeout(BUSY_TIMEOUT);
    let mut connection = SqliteConnection::connect_with(&options).await.map_err(at)?;
    let tables: Vec<String> = sqlx::query_scalar("SELECT name FROM sqlite_master WHERE type = 'table'")
        .fetch_all(&mut connection)
        .await
        .map_err(at)?;
    if tables.is_empty() {
        return connection.close().await.map_err(at);
    }
    if !tables.iter().any(|table| table == "_sqlx_migrations") {
        return Err(OpenError::Foreign(path.to_owned()));
    }
    let found: Option<i64> = sqlx::query_scalar("SELECT MAX(version) FROM _sqlx_migrations")
        .fetch_one(&mut connection)
        .await
        .map_err(at)?;
    connection.close().await.map_err(at)?;
    let known = MIGRATIONS
        .iter()
        .map(|migration| migration.version)
        .max()
        .unwrap_or(0);
    match found {
        Some(found) if found > known => Err(OpenError::Newer {
            path: path.to_owned(),
            found,
            known,
        }),
        _ => Ok(()),
    }
}

async fn pool(options: SqliteConnectOptions, connections: u32) -> Result<SqlitePool, StoreError> {
    SqlitePoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(Duration::from_secs(5))
        .connect_with(options)
        .await
        .map_err(failed("connect"))
}

/// Finds out who this database is: new, the one that was here, or an older copy of it.
async fn identify(
    writer: &SqlitePool,
    path: &Path,
    ports: &Ports,
) -> Result<(MarkFile, Mark, StoreInfo), OpenError> {
    let random = ports.random.as_ref();
    let now_us = ports.clock.now().as_millis().saturating_mul(1_000);
    let at = |error| database_error(path, error);
    let mark_path = mark::path_of(path);
    let found = mark::read(&mark_path).map_err(|source| io_error(&mark_path, source))?;
    let begun = writer.begin_with("BEGIN IMMEDIATE").await;
    let mut transaction = begun.map_err(|error| at(failed("begin")(error)))?;
    let mut info = match rows::find_info(&mut transaction).await.map_err(at)? {
        Some(info) => info,
        None => {
            check_not_lost(path, &mark_path, found)?;
            create(&mut transaction, random).await.map_err(at)?
        }
    };
    let mut lease = rows::lease(&mut transaction).await.map_err(at)?;
    if let Found::Mark(mark) = found
        && mark.cluster != info.cluster
    {
        return Err(OpenError::OtherCluster {
            path: path.to_owned(),
            mark: mark_path,
            found: info.cluster,
            expected: mark.cluster,
        });
    }
    // A store that was made just now has no past that could be missing.
    let is_new = info.revision == 0 && found == Found::Nothing;
    if !is_new && let Some(past) = missing_past(&info, &lease, found, now_us) {
        restore(&mut transaction, &mut info, &mut lease, past, random)
            .await
            .map_err(at)?;
    }
    let committed = transaction.commit().await;
    committed.map_err(|error| at(failed("write the store's identity")(error)))?;
    let now = Numbers {
        revision: info.revision,
        epoch: lease.epoch,
    };
    let mark = Mark {
        cluster: info.cluster,
        incarnation: info.incarnation,
        highest: now,
        settled: now,
    };
    let mark_file = MarkFile::create(&mark_path, &mark).map_err(|source| io_error(&mark_path, source))?;
    Ok((mark_file, mark, info))
}

/// An empty database beside a mark is an accident, not a new cluster.
fn check_not_lost(path: &Path, mark_path: &Path, found: Found) -> Result<(), OpenError> {
    let Found::Mark(mark) = found else { return Ok(()) };
    Err(OpenError::Lost {
        path: path.to_owned(),
        mark: mark_path.to_owned(),
        cluster: mark.cluster,
        revision: mark.highest.revision,
    })
}

/// Highest revision and epoch that may be in use although the database does not know them.
struct Past {
    revision: u64,
    epoch: u64,
    why: &'static str,
}

fn missing_past(info: &StoreInfo, lease: &LeaseRow, found: Found, now_us: u64) -> Option<Past> {
    // The same copy may be put back twice, and must not give the same numbers twice: time is always another, and grows
    // faster than anybody writes.
    let unknown = |why| {
        Some(Past {
            revision: info.revision.saturating_add(UNKNOWN_JUMP).max(now_us),
            epoch: lease.epoch.saturating_add(UNKNOWN_JUMP).max(now_us),
            why,
        })
    };
    let at_least = |numbers: Numbers, why| {
        Some(Past {
            revision: numbers.revision.max(info.revision),
            epoch: numbers.epoch.max(lease.epoch),
            why,
        })
    };
    let mark = match found {
        Found::Nothing => return unknown("the mark is missing"),
        Found::Damaged => return unknown("the mark is damaged"),
        Found::Mark(mark) => mark,
    };
    let now = Numbers {
        revision: info.revision,
        epoch: lease.epoch,
    };
    if mark.incarnation != info.incarnation {
        return at_least(mark.highest, "the mark is of another incarnation");
    }
    if now.revision >= mark.highest.revision && now.epoch >= mark.highest.epoch {
        return None;
    }
    if now == mark.settled {
        info!(
            revision = now.revision,
            "the last commit to the metadata database was under way when the process ended, and did not happen"
        );
        return None;
    }
    at_least(mark.highest, "the database is older than its mark")
}

/// Begins a new incarnation that uses no number of the one before.
async fn restore(
    connection: &mut SqliteConnection,
    info: &mut StoreInfo,
    lease: &mut LeaseRow,
    past: Past,
    random: &dyn Random,
) -> Result<(), StoreError> {
    warn!(
        reason = past.why,
        database_revision = info.revision,
        used_revision = past.revision,
        "metadata database is an older copy: beginning a new incarnation, watchers will list again"
    );
    info.incarnation = new_incarnation(random);
    info.revision = past.revision.saturating_add(1);
    info.compaction_floor = info.revision;
    *lease = LeaseRow {
        epoch: past.epoch.saturating_add(1),
        ..LeaseRow::default()
    };
    sqlx::query("DELETE FROM change")
        .execute(&mut *connection)
        .await
        .map_err(failed("drop history"))?;
    sqlx::query("UPDATE store SET incarnation = $1, revision = $2, compaction_floor = $2 WHERE id = 1")
        .bind(to_sql(info.incarnation)?)
        .bind(to_sql(info.revision)?)
        .execute(&mut *connection)
        .await
        .map_err(failed("write the store's identity"))?;
    rows::put_lease(connection, lease).await
}

async fn create(connection: &mut SqliteConnection, random: &dyn Random) -> Result<StoreInfo, StoreError> {
    let mut bytes = [0; 16];
    random.fill(&mut bytes);
    let info = StoreInfo {
        cluster: ClusterId::from_random_bytes(bytes),
        incarnation: new_incarnation(random),
        revision: 0,
        compaction_floor: 0,
    };
    sqlx::query("INSERT INTO store (id, cluster_id, incarnation, revision, compaction_floor) VALUES (1, $1, $2, 0, 0)")
        .bind(info.cluster.to_string())
        .bind(to_sql(info.incarnation)?)
        .execute(&mut *connection)
        .await
        .map_err(failed("write the store's identity"))?;
    sqlx::query("INSERT INTO lease (id, holder, epoch, expires_at_ms) VALUES (1, '', 0, 0)")
        .execute(connection)
        .await
        .map_err(failed("write the lease"))?;
    Ok(info)
}

fn io_error(path: &Path, source: io::Error) -> OpenError {
    OpenError::Io {
        path: path.to_owned(),
        source,
    }
}

fn database_error(path: &Path, source: StoreError) -> OpenError {
    OpenError::Database {
        path: path.to_owned(),
        source,
    }
}
