//! Reads: each in one transaction, so that what it returns is of one moment.

use futures_util::TryStreamExt;
use sqlx::SqlitePool;

use super::super::sql::{self, to_sql};
use super::super::{
    History, KEY_END, Key, MAX_CHANGES_BYTES, MAX_PAGE_BYTES, Page, Query, StoreError, StoreInfo, Stored,
    Transaction,
};
use super::rows::{self, failed};

pub(super) async fn info(pool: &SqlitePool) -> Result<StoreInfo, StoreError> {
    let mut connection = pool.acquire().await.map_err(failed("reach the database"))?;
    rows::info(&mut connection).await
}

pub(super) async fn get(pool: &SqlitePool, key: &Key) -> Result<(Option<Stored>, u64), StoreError> {
    let select = "SELECT kind, tenant, record_key, revision, created_revision, deleted, value FROM record \
                  WHERE kind = $1 AND tenant = $2 AND record_key = $3 AND deleted = FALSE";
    let mut read = pool.begin().await.map_err(failed("reach the database"))?;
    let info = rows::info(&mut read).await?;
    let row = sqlx::query_as(select)
        .bind(i64::from(key.kind))
        .bind(&key.tenant)
        .bind(&key.key)
        .fetch_optional(&mut *read)
        .await
        .map_err(failed("read a record"))?;
    Ok((row.map(sql::stored).transpose()?, info.revision))
}

pub(super) async fn list(pool: &SqlitePool, query: &Query) -> Result<Page, StoreError> {
    let select = "SELECT kind, tenant, record_key, revision, created_revision, deleted, value FROM record \
                  WHERE kind = $1 AND deleted = $2 AND (tenant, record_key) > ($3, $4) \
                  AND ($5 = '' OR tenant = $5) AND record_key >= $6 AND record_key < $7 \
                  ORDER BY tenant, record_key LIMIT $8";
    let (after_tenant, after_key) = query.after.clone().unwrap_or_default();
    let limit = to_sql(u64::try_from(query.limit).unwrap_or(u64::MAX))?;
    let action = failed("list records");
    let mut read = pool.begin().await.map_err(failed("reach the database"))?;
    let info = rows::info(&mut read).await?;
    let mut records = Vec::new();
    let mut more = false;
    {
        let mut found = sqlx::query_as(select)
            .bind(i64::from(query.kind))
            .bind(query.tombstones)
            .bind(after_tenant)
            .bind(after_key)
            .bind(query.tenant.clone().unwrap_or_default())
            .bind(&query.key_prefix)
            .bind(format!("{}{KEY_END}", query.key_prefix))
            .bind(limit.saturating_add(1))
            .fetch(&mut *read);
        let mut size_bytes = 0;
        while let Some(row) = found.try_next().await.map_err(&action)? {
            let record = sql::stored(row)?;
            size_bytes += record.size_bytes();
            if records.len() == query.limit || (size_bytes > MAX_PAGE_BYTES && !records.is_empty()) {
                more = true;
                break;
            }
            records.push(record);
        }
    }
    Ok(Page {
        records,
        more,
        revision: info.revision,
        incarnation: info.incarnation,
    })
}

pub(super) async fn changes(pool: &SqlitePool, after: u64) -> Result<History, StoreError> {
    let select = "SELECT kind, tenant, record_key, revision, created_revision, deleted, value FROM change \
                  WHERE revision > $1 ORDER BY revision, kind, tenant, record_key";
    let action = failed("read history");
    let mut read = pool.begin().await.map_err(failed("reach the database"))?;
    let info = rows::info(&mut read).await?;
    sql::check_reach(after, &info)?;
    let mut transactions: Vec<Transaction> = Vec::new();
    let mut size_bytes = 0;
    let mut rows = sqlx::query_as(select).bind(to_sql(after)?).fetch(&mut *read);
    while let Some(row) = rows.try_next().await.map_err(&action)? {
        let record = sql::stored(row)?;
        // Stop between revisions only: a transaction is told whole.
        if size_bytes > MAX_CHANGES_BYTES
            && let Some(last) = transactions.last()
            && last.revision != record.revision
        {
            return Ok(History {
                complete_to: last.revision,
                incarnation: info.incarnation,
                transactions,
            });
        }
        size_bytes += record.size_bytes();
        sql::add_change(&mut transactions, record);
    }
    Ok(sql::history(&info, transactions))
}
