//! Reads. Each runs in one transaction that sees one moment, so that a revision and what is read with it belong together.

use sqlx::PgConnection;

use super::transact::Transact;
use super::trouble::{Trouble, failed};
use crate::store::sql::{self, RecordRow, to_sql};
use crate::store::{
    History, KEY_END, Key, MAX_CHANGES_BYTES, MAX_PAGE_BYTES, Page, Query, StoreError, StoreInfo, Stored,
};

/// Records fetched at a time: a driver takes in all that it asked for, wanted or not.
const FETCH: usize = 64;
/// Revisions looked at per read of history.
const MAX_REVISIONS: i64 = 1_000;

/// Tells identity and revisions.
pub(super) struct Info;

#[tonic::async_trait]
impl Transact for Info {
    type Output = StoreInfo;

    fn action(&self) -> &'static str {
        "read the store's identity"
    }

    async fn run(&self, _connection: &mut PgConnection, info: StoreInfo) -> Result<StoreInfo, Trouble> {
        Ok(info)
    }
}

/// Reads a live record.
pub(super) struct Get<'a> {
    pub(super) key: &'a Key,
}

#[tonic::async_trait]
impl Transact for Get<'_> {
    type Output = (Option<Stored>, u64);

    fn action(&self) -> &'static str {
        "read a record"
    }

    async fn run(&self, connection: &mut PgConnection, info: StoreInfo) -> Result<Self::Output, Trouble> {
        Ok((get(connection, self.key).await?, info.revision))
    }
}

/// Lists records.
pub(super) struct List<'a> {
    pub(super) query: &'a Query,
}

#[tonic::async_trait]
impl Transact for List<'_> {
    type Output = Page;

    fn action(&self) -> &'static str {
        "list records"
    }

    async fn run(&self, connection: &mut PgConnection, info: StoreInfo) -> Result<Page, Trouble> {
        list(connection, info, self.query).await
    }
}

/// Reads history.
pub(super) struct Changes {
    pub(super) after: u64,
}

#[tonic::async_trait]
impl Transact for Changes {
    type Output = History;

    fn action(&self) -> &'static str {
        "read history"
    }

    async fn run(&self, connection: &mut PgConnection, info: StoreInfo) -> Result<History, Trouble> {
        changes(connection, info, self.after).await
    }
}

async fn get(connection: &mut PgConnection, key: &Key) -> Result<Option<Stored>, Trouble> {
    let select = "SELECT kind, tenant, record_key, revision, created_revision, deleted, value FROM record \
                  WHERE kind = $1 AND tenant = $2 AND record_key = $3 AND deleted = FALSE";
    let row: Option<RecordRow> = sqlx::query_as(select)
        .bind(i64::from(key.kind))
        .bind(&key.tenant)
        .bind(&key.key)
        .fetch_optional(connection)
        .await
        .map_err(failed("read a record"))?;
    Ok(row.map(sql::stored).transpose()?)
}

async fn list(connection: &mut PgConnection, info: StoreInfo, query: &Query) -> Result<Page, Trouble> {
    let mut after = query.after.clone().unwrap_or_default();
    let mut records: Vec<Stored> = Vec::new();
    let mut size_bytes = 0;
    let page = |records, more| Page {
        records,
        more,
        revision: info.revision,
        incarnation: info.incarnation,
    };
    loop {
        // One more than wanted tells whether there is more.
        let fetch = (query.limit.saturating_add(1) - records.len()).min(FETCH);
        let rows = list_after(connection, query, &after, fetch).await?;
        let is_end = rows.len() < fetch;
        for row in rows {
            let record = sql::stored(row)?;
            size_bytes += record.size_bytes();
            if records.len() == query.limit || (size_bytes > MAX_PAGE_BYTES && !records.is_empty()) {
                return Ok(page(records, true));
            }
            after = (record.key.tenant.clone(), record.key.key.clone());
            records.push(record);
        }
        if is_end {
            return Ok(page(records, false));
        }
    }
}

async fn list_after(
    connection: &mut PgConnection,
    query: &Query,
    (tenant, key): &(String, String),
    fetch: usize,
) -> Result<Vec<RecordRow>, Trouble> {
    let select = "SELECT kind, tenant, record_key, revision, created_revision, deleted, value FROM record \
                  WHERE kind = $1 AND deleted = $2 AND (tenant, record_key) > ($3, $4) \
                  AND ($5 = '' OR tenant = $5) AND record_key >= $6 AND record_key < $7 \
                  ORDER BY tenant, record_key LIMIT $8";
    let fetch = to_sql(u64::try_from(fetch).unwrap_or(u64::MAX))?;
    sqlx::query_as(select)
        .bind(i64::from(query.kind))
        .bind(query.tombstones)
        .bind(tenant)
        .bind(key)
        .bind(query.tenant.as_deref().unwrap_or_default())
        .bind(&query.key_prefix)
        .bind(format!("{}{KEY_END}", query.key_prefix))
        .bind(fetch)
        .fetch_all(connection)
        .await
        .map_err(failed("list records"))
}

async fn changes(connection: &mut PgConnection, info: StoreInfo, after: u64) -> Result<History, Trouble> {
    sql::check_reach(after, &info)?;
    if after == info.revision {
        return Ok(sql::history(&info, Vec::new()));
    }
    let (end, is_all) = end_of_piece(connection, after).await?;
    let select = "SELECT kind, tenant, record_key, revision, created_revision, deleted, value FROM change \
                  WHERE revision > $1 AND revision <= $2 ORDER BY revision, kind, tenant, record_key";
    let rows: Vec<RecordRow> = sqlx::query_as(select)
        .bind(to_sql(after)?)
        .bind(to_sql(end)?)
        .fetch_all(connection)
        .await
        .map_err(failed("read history"))?;
    let mut transactions = Vec::new();
    for row in rows {
        sql::add_change(&mut transactions, sql::stored(row)?);
    }
    let mut history = sql::history(&info, transactions);
    if !is_all {
        history.complete_to = end;
    }
    Ok(history)
}

/// The revision at which a piece of history of a bearable size ends, and whether that is all there is. Always whole
/// revisions: a transaction is told in one piece.
async fn end_of_piece(connection: &mut PgConnection, after: u64) -> Result<(u64, bool), Trouble> {
    let select = "SELECT revision, \
                  SUM(octet_length(tenant) + octet_length(record_key) + octet_length(value))::bigint \
                  FROM change WHERE revision > $1 GROUP BY revision ORDER BY revision LIMIT $2";
    let sizes: Vec<(i64, i64)> = sqlx::query_as(select)
        .bind(to_sql(after)?)
        .bind(MAX_REVISIONS)
        .fetch_all(connection)
        .await
        .map_err(failed("measure history"))?;
    let (mut end, mut size_bytes) = (after, 0_usize);
    for (index, (revision, bytes)) in sizes.iter().enumerate() {
        let revision = sql::from_sql("revision", *revision)?;
        check_next(end, revision)?;
        end = revision;
        size_bytes = size_bytes.saturating_add(usize::try_from(*bytes).unwrap_or(usize::MAX));
        if size_bytes > MAX_CHANGES_BYTES && index + 1 < sizes.len() {
            return Ok((end, false));
        }
    }
    let is_all = i64::try_from(sizes.len()).is_ok_and(|count| count < MAX_REVISIONS);
    Ok((end, is_all))
}

/// Refuses a gap: every revision above the floor changed something.
fn check_next(last: u64, found: u64) -> Result<(), StoreError> {
    if found == last.saturating_add(1) {
        return Ok(());
    }
    let what = format!("history goes from revision {last} to {found}");
    Err(StoreError::Damaged(what))
}
