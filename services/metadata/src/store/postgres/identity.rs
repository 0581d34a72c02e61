//! Who the database is: whether its history is the one that was seen before, and what happens when it may not be.
//!
//! Every transaction reads the row of `store` first, and compares:
//!
//! - `writer` with `xmin`. We write the number of our transaction into the row, the server writes it beside the row. A
//!   row that came from a dump carries the number of the restore there. This holds for every way of putting rows back.
//! - `lineage` with the server. It names the server's identity, its timeline, database, table, and when it was started.
//!   A disk that was put back under the same server needs a start, a standby that takes over begins another timeline.
//! - the revision with the highest that this process saw under the same incarnation.
//!
//! When one of them differs, history may have been cut: a new incarnation begins, under the lock that all writers take,
//! above every number that may have been in use. A start of the server that lost nothing costs the watchers one list.

use parking_lot::Mutex;
use ptah_service::Random;
use ptah_types::ClusterId;
use sqlx::{PgConnection, PgPool};
use tokio::sync::watch;
use tracing::warn;

use super::session::Session;
use super::trouble::{Next, Trouble, failed};
use crate::store::sql::{UNKNOWN_JUMP, from_sql, new_incarnation, to_sql};
use crate::store::{StoreError, StoreInfo};

/// The number of this transaction.
macro_rules! writer {
    () => {
        "pg_current_xact_id()::text::bigint"
    };
}

/// What a restored database, another server, or the same one after a start does not have in common with the row.
macro_rules! lineage {
    () => {
        "(SELECT system_identifier FROM pg_control_system())::text || '/' \
         || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) || '/' \
         || (SELECT oid FROM pg_database WHERE datname = current_database())::text || '/' \
         || 'store'::regclass::oid::text || '/' \
         || (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint::text"
    };
}

/// The time at which this transaction began, in microseconds.
macro_rules! now_us {
    () => {
        "(extract(epoch FROM transaction_timestamp()) * 1000000)::bigint"
    };
}

/// What this process knows of the store, whichever connection told it.
pub(super) struct Known {
    cluster: ClusterId,
    seen: Mutex<Seen>,
    newest: watch::Sender<u64>,
}

/// How far a history was seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Seen {
    incarnation: u64,
    revision: u64,
}

impl Known {
    pub(super) fn new(cluster: ClusterId) -> Self {
        Self {
            cluster,
            seen: Mutex::default(),
            newest: watch::channel(0).0,
        }
    }

    /// What was seen by now. Taken before a transaction begins: whatever it sees is not older.
    pub(super) fn seen(&self) -> Seen {
        *self.seen.lock()
    }

    /// Remembers what was read or committed, and tells those who wait for it.
    pub(super) fn saw(&self, incarnation: u64, revision: u64) {
        let mut seen = self.seen.lock();
        let is_other = seen.incarnation != incarnation;
        if is_other || revision > seen.revision {
            *seen = Seen {
                incarnation,
                revision,
            };
            // Under the lock, so that the last one told is the newest one seen.
            self.newest.send_replace(revision);
        }
    }

    pub(super) fn newest(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }
}

/// The row of `store`.
struct Row {
    info: StoreInfo,
    /// Whether the transaction that wrote the row is the one that it names.
    written_here: bool,
    /// Whether the server is the one that it was written on.
    same_server: bool,
}

impl Row {
    /// Why this may be another history than the one that was seen, if it may.
    fn doubt(&self, seen: Seen) -> Option<&'static str> {
        if !self.written_here {
            return Some("its rows were put there by a restore");
        }
        if !self.same_server {
            return Some("its server was started again, replaced or restored");
        }
        let is_seen = self.info.incarnation == seen.incarnation;
        if is_seen && self.info.revision < seen.revision {
            return Some("its revision went back");
        }
        None
    }
}

async fn read_row(connection: &mut PgConnection) -> Result<Option<Row>, Trouble> {
    let select = concat!(
        "SELECT cluster_id, incarnation, revision, compaction_floor, \
         writer % 4294967296 = xmin::text::bigint, lineage = ",
        lineage!(),
        " FROM store WHERE id = 1"
    );
    let row: Option<(String, i64, i64, i64, bool, bool)> = sqlx::query_as(select)
        .fetch_optional(connection)
        .await
        .map_err(failed("read the store's identity"))?;
    let Some((cluster, incarnation, revision, floor, written_here, same_server)) = row else {
        return Ok(None);
    };
    let info = StoreInfo {
        cluster: cluster
            .parse()
            .map_err(|_| StoreError::Damaged(format!("cluster id `{cluster}`")))?,
        incarnation: from_sql("incarnation", incarnation)?,
        revision: from_sql("revision", revision)?,
        compaction_floor: from_sql("compaction_floor", floor)?,
    };
    Ok(Some(Row {
        info,
        written_here,
        same_server,
    }))
}

/// Identity and revision, if this is the history that was seen before.
pub(super) async fn check(
    connection: &mut PgConnection,
    known: &Known,
    seen: Seen,
) -> Result<StoreInfo, Trouble> {
    let row = read_checked(connection, known).await?;
    match row.doubt(seen) {
        None => Ok(row.info),
        Some(why) => Err(Trouble {
            error: StoreError::Unavailable {
                action: "read the store's identity",
                why: format!("the database may not be the one that was here: {why}"),
            },
            next: Next::Adopt,
        }),
    }
}

async fn read_checked(connection: &mut PgConnection, known: &Known) -> Result<Row, Trouble> {
    let row = read_row(connection).await?;
    let row = row.ok_or_else(|| StoreError::Damaged("table store is empty".to_owned()))?;
    if row.info.cluster != known.cluster {
        let error = StoreError::Unavailable {
            action: "read the store's identity",
            why: format!(
                "the database is of cluster {} now and was of cluster {}; put the right one back, or start this service again",
                row.info.cluster, known.cluster
            ),
        };
        return Err(error.into());
    }
    Ok(row)
}

/// Locks the row. Everybody who writes does this first and holds it to the end of his transaction: revisions become
/// visible in their order, and the lease cannot change hands between its check and the commit.
pub(super) async fn lock(connection: &mut PgConnection) -> Result<(), Trouble> {
    // Reads nothing: a statement that waited for a lock has an old picture of all other rows.
    sqlx::query("SELECT id FROM store WHERE id = 1 FOR UPDATE")
        .execute(connection)
        .await
        .map_err(failed("lock the store"))?;
    Ok(())
}

/// Writes the newest revision.
pub(super) async fn put_revision(connection: &mut PgConnection, revision: u64) -> Result<(), Trouble> {
    let update = concat!(
        "UPDATE store SET revision = $1, writer = ",
        writer!(),
        " WHERE id = 1"
    );
    sqlx::query(update)
        .bind(to_sql(revision)?)
        .execute(connection)
        .await
        .map_err(failed("write the revision"))?;
    Ok(())
}

/// Raises the compaction floor.
pub(super) async fn raise_floor(connection: &mut PgConnection, floor: u64) -> Result<(), Trouble> {
    let update = concat!(
        "UPDATE store SET compaction_floor = $1, writer = ",
        writer!(),
        " WHERE id = 1 AND compaction_floor < $1"
    );
    sqlx::query(update)
        .bind(to_sql(floor)?)
        .execute(connection)
        .await
        .map_err(failed("raise the compaction floor"))?;
    Ok(())
}

/// Makes the rows of a new store, unless another instance was faster; answers whose store it is.
pub(super) async fn create(connection: &mut PgConnection, random: &dyn Random) -> Result<ClusterId, Trouble> {
    let action = failed("write the store's identity");
    let mut bytes = [0; 16];
    random.fill(&mut bytes);
    // The lease first: whoever finds an identity finds a lease.
    sqlx::query(
        "INSERT INTO lease (id, holder, epoch, expires_at_ms) VALUES (1, '', 0, 0) ON CONFLICT DO NOTHING",
    )
    .execute(&mut *connection)
    .await
    .map_err(&action)?;
    let insert = concat!(
        "INSERT INTO store (id, cluster_id, incarnation, revision, compaction_floor, writer, lineage) \
         VALUES (1, $1, $2, 0, 0, ",
        writer!(),
        ", ",
        lineage!(),
        ") ON CONFLICT DO NOTHING"
    );
    sqlx::query(insert)
        .bind(ClusterId::from_random_bytes(bytes).to_string())
        .bind(to_sql(new_incarnation(random))?)
        .execute(&mut *connection)
        .await
        .map_err(&action)?;
    let row = read_row(connection).await?;
    let row = row.ok_or_else(|| StoreError::Damaged("table store is empty".to_owned()))?;
    Ok(row.info.cluster)
}

/// Begins a new incarnation, unless another instance did so meanwhile.
pub(super) async fn adopt(pool: &PgPool, known: &Known, random: &dyn Random) -> Result<(), Trouble> {
    let seen = known.seen();
    let mut session = Session::begin_write(pool).await?;
    lock(session.connection()).await?;
    let row = read_checked(session.connection(), known).await?;
    let Some(why) = row.doubt(seen) else {
        return session.end_unchanged(Ok(())).await;
    };
    let used = row.info.revision.max(seen.revision);
    let revision = begin_incarnation(session.connection(), new_incarnation(random), used).await?;
    session.commit("begin a new incarnation").await?;
    warn!(
        reason = why,
        database_revision = row.info.revision,
        revision,
        "history of the metadata database may have been cut: a new incarnation began, watchers list again"
    );
    Ok(())
}

/// Begins an incarnation and answers its first revision.
///
/// Nobody knows how many numbers the lost history used, and how often it jumped over some. So the new ones come from the
/// time, in microseconds: they grow faster than anybody writes, and are above those of every incarnation before.
async fn begin_incarnation(
    connection: &mut PgConnection,
    incarnation: u64,
    used: u64,
) -> Result<u64, Trouble> {
    // Old history lies below the floor and goes with the next trim.
    let update = concat!(
        "UPDATE store SET incarnation = $1, revision = GREATEST($2, ",
        now_us!(),
        "), compaction_floor = GREATEST($2, ",
        now_us!(),
        "), writer = ",
        writer!(),
        ", lineage = ",
        lineage!(),
        " WHERE id = 1 RETURNING revision"
    );
    let revision: i64 = sqlx::query_scalar(update)
        .bind(to_sql(incarnation)?)
        .bind(to_sql(used.saturating_add(UNKNOWN_JUMP))?)
        .fetch_one(&mut *connection)
        .await
        .map_err(failed("begin a new incarnation"))?;
    // Nobody holds the lease of a history that may have been cut.
    let update = concat!(
        "UPDATE lease SET holder = '', epoch = GREATEST(epoch + $1, ",
        now_us!(),
        "), expires_at_ms = 0 WHERE id = 1"
    );
    sqlx::query(update)
        .bind(to_sql(UNKNOWN_JUMP)?)
        .execute(connection)
        .await
        .map_err(failed("end the lease"))?;
    Ok(from_sql("revision", revision)?)
}
