//! Identity and lease as rows, and what an error of SQLite means.

use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};

use super::super::sql::{from_sql, to_sql};
use super::super::{LeaseRow, StoreError, StoreInfo};

/// Turns a database error that left nothing behind into the store's.
pub(super) fn failed(action: &'static str) -> impl Fn(sqlx::Error) -> StoreError {
    move |error| {
        if is_damage(&error) {
            return StoreError::Damaged(error.to_string());
        }
        StoreError::Unavailable {
            action,
            why: error.to_string(),
        }
    }
}

/// SQLITE_CORRUPT and SQLITE_NOTADB, in any of their extended forms, and values of types that are never written.
fn is_damage(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Database(error) => {
            let code = error.code().and_then(|code| code.parse::<u32>().ok());
            code.is_some_and(|code| matches!(code & 0xff, 11 | 26))
        }
        sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) | sqlx::Error::ColumnNotFound(_) => true,
        _ => false,
    }
}

/// One column as an unsigned number.
fn number(row: &SqliteRow, column: &str) -> Result<u64, StoreError> {
    let value: i64 = row.try_get(column).map_err(failed("read a column"))?;
    from_sql(column, value)
}

/// The one row of `store`; none in a new database.
pub(super) async fn find_info(connection: &mut SqliteConnection) -> Result<Option<StoreInfo>, StoreError> {
    let select = "SELECT cluster_id, incarnation, revision, compaction_floor FROM store WHERE id = 1";
    let action = failed("read the store's identity");
    let Some(row) = sqlx::query(select)
        .fetch_optional(connection)
        .await
        .map_err(&action)?
    else {
        return Ok(None);
    };
    let cluster: String = row.try_get("cluster_id").map_err(&action)?;
    Ok(Some(StoreInfo {
        cluster: cluster
            .parse()
            .map_err(|_| StoreError::Damaged(format!("cluster id `{cluster}`")))?,
        incarnation: number(&row, "incarnation")?,
        revision: number(&row, "revision")?,
        compaction_floor: number(&row, "compaction_floor")?,
    }))
}

/// The one row of `store`.
pub(super) async fn info(connection: &mut SqliteConnection) -> Result<StoreInfo, StoreError> {
    find_info(connection)
        .await?
        .ok_or_else(|| StoreError::Damaged("table store is empty".to_owned()))
}

/// The one row of `lease`.
pub(super) async fn lease(connection: &mut SqliteConnection) -> Result<LeaseRow, StoreError> {
    let action = failed("read the lease");
    let row = sqlx::query("SELECT holder, epoch, expires_at_ms FROM lease WHERE id = 1")
        .fetch_one(connection)
        .await
        .map_err(&action)?;
    Ok(LeaseRow {
        holder: row.try_get("holder").map_err(&action)?,
        epoch: number(&row, "epoch")?,
        expires_at_ms: number(&row, "expires_at_ms")?,
    })
}

/// Writes the lease.
pub(super) async fn put_lease(connection: &mut SqliteConnection, lease: &LeaseRow) -> Result<(), StoreError> {
    sqlx::query("UPDATE lease SET holder = $1, epoch = $2, expires_at_ms = $3 WHERE id = 1")
        .bind(&lease.holder)
        .bind(to_sql(lease.epoch)?)
        .bind(to_sql(lease.expires_at_ms)?)
        .execute(connection)
        .await
        .map_err(failed("write the lease"))?;
    Ok(())
}
