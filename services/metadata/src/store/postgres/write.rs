//! What writes do between the lock and the COMMIT. Lists travel as arrays, so that a commit of thousands of changes takes
//! as many questions as one of a single change.

use sqlx::PgConnection;

use super::identity;
use super::transact::Transact;
use super::trouble::{Trouble, failed};
use crate::store::sql::{from_sql, to_sql};
use crate::store::{Commit, Key, Lease, LeaseRequest, LeaseRow, Precondition, StoreError, StoreInfo, Write};

/// Writes records.
pub(super) struct CommitAll<'a> {
    pub(super) commit: &'a Commit,
}

#[tonic::async_trait]
impl Transact for CommitAll<'_> {
    type Output = u64;

    fn action(&self) -> &'static str {
        "commit"
    }

    async fn run(&self, connection: &mut PgConnection, info: StoreInfo) -> Result<u64, Trouble> {
        commit(connection, info, self.commit).await
    }

    fn revision(&self, _before: StoreInfo, revision: &u64) -> u64 {
        *revision
    }
}

/// Takes, renews, looks at or releases the lease.
pub(super) struct ChangeLease<'a> {
    pub(super) request: &'a LeaseRequest,
}

#[tonic::async_trait]
impl Transact for ChangeLease<'_> {
    type Output = Lease;

    fn action(&self) -> &'static str {
        "change the lease"
    }

    async fn run(&self, connection: &mut PgConnection, _info: StoreInfo) -> Result<Lease, Trouble> {
        lease(connection, self.request).await
    }
}

/// Raises the floor and drops tombstones.
pub(super) struct Compact {
    pub(super) revision: u64,
    pub(super) lease_epoch: u64,
}

#[tonic::async_trait]
impl Transact for Compact {
    type Output = u64;

    fn action(&self) -> &'static str {
        "compact"
    }

    async fn run(&self, connection: &mut PgConnection, info: StoreInfo) -> Result<u64, Trouble> {
        compact(connection, info, self.revision, self.lease_epoch).await
    }
}

/// Writes records, their history and the revision, and answers the revision.
async fn commit(connection: &mut PgConnection, info: StoreInfo, commit: &Commit) -> Result<u64, Trouble> {
    lease_row(connection).await?.0.fence(commit.lease_epoch)?;
    check(connection, &commit.preconditions).await?;
    let revision = info.revision + 1;
    let (puts, deletions): (Vec<&Write>, Vec<&Write>) =
        commit.writes.iter().partition(|write| write.value.is_some());
    put(connection, revision, &puts).await?;
    delete(connection, revision, &deletions).await?;
    keep_history(connection, revision).await?;
    identity::put_revision(connection, revision).await?;
    Ok(revision)
}

/// Takes, renews, looks at or releases the lease by the database's clock.
async fn lease(connection: &mut PgConnection, request: &LeaseRequest) -> Result<Lease, Trouble> {
    let (mut row, now_ms) = lease_row(connection).await?;
    let before = row.clone();
    let lease = row.apply(request, now_ms);
    if row != before {
        sqlx::query("UPDATE lease SET holder = $1, epoch = $2, expires_at_ms = $3 WHERE id = 1")
            .bind(&row.holder)
            .bind(to_sql(row.epoch)?)
            .bind(to_sql(row.expires_at_ms)?)
            .execute(connection)
            .await
            .map_err(failed("write the lease"))?;
    }
    Ok(lease)
}

/// The lease, and what time it is where all instances ask.
async fn lease_row(connection: &mut PgConnection) -> Result<(LeaseRow, u64), Trouble> {
    let select = "SELECT holder, epoch, expires_at_ms, \
                  floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint FROM lease WHERE id = 1";
    let (holder, epoch, expires_at_ms, now_ms): (String, i64, i64, i64) = sqlx::query_as(select)
        .fetch_one(connection)
        .await
        .map_err(failed("read the lease"))?;
    let row = LeaseRow {
        holder,
        epoch: from_sql("epoch", epoch)?,
        expires_at_ms: from_sql("expires_at_ms", expires_at_ms)?,
    };
    Ok((row, from_sql("now", now_ms)?))
}

/// Raises the floor, drops tombstones below it, and answers it.
async fn compact(
    connection: &mut PgConnection,
    info: StoreInfo,
    revision: u64,
    lease_epoch: u64,
) -> Result<u64, Trouble> {
    lease_row(connection).await?.0.fence(lease_epoch)?;
    let floor = revision.min(info.revision).max(info.compaction_floor);
    identity::raise_floor(connection, floor).await?;
    sqlx::query("DELETE FROM record WHERE deleted = TRUE AND revision <= $1")
        .bind(to_sql(floor)?)
        .execute(connection)
        .await
        .map_err(failed("drop tombstones"))?;
    Ok(floor)
}

/// Kinds, tenants and keys of many records, as columns.
#[derive(Default)]
struct Keys<'a> {
    kinds: Vec<i64>,
    tenants: Vec<&'a str>,
    keys: Vec<&'a str>,
}

impl<'a> Keys<'a> {
    fn of(keys: impl Iterator<Item = &'a Key>) -> Self {
        let mut columns = Self::default();
        for key in keys {
            columns.kinds.push(i64::from(key.kind));
            columns.tenants.push(&key.tenant);
            columns.keys.push(&key.key);
        }
        columns
    }
}

/// Refuses the commit by the first precondition that does not hold.
async fn check(connection: &mut PgConnection, preconditions: &[Precondition]) -> Result<(), Trouble> {
    if preconditions.is_empty() {
        return Ok(());
    }
    let select = "SELECT wanted.place, COALESCE(record.revision, 0) \
                  FROM UNNEST($1::bigint[], $2::text[], $3::text[], $4::bigint[]) \
                  WITH ORDINALITY AS wanted (kind, tenant, record_key, revision, place) \
                  LEFT JOIN record ON record.kind = wanted.kind AND record.tenant = wanted.tenant \
                  AND record.record_key = wanted.record_key AND record.deleted = FALSE \
                  WHERE COALESCE(record.revision, 0) <> wanted.revision ORDER BY wanted.place LIMIT 1";
    let keys = Keys::of(preconditions.iter().map(|precondition| &precondition.key));
    let mut revisions = Vec::with_capacity(preconditions.len());
    for precondition in preconditions {
        revisions.push(to_sql(precondition.revision)?);
    }
    let broken: Option<(i64, i64)> = sqlx::query_as(select)
        .bind(keys.kinds)
        .bind(keys.tenants)
        .bind(keys.keys)
        .bind(revisions)
        .fetch_optional(connection)
        .await
        .map_err(failed("check the preconditions"))?;
    let Some((place, found)) = broken else {
        return Ok(());
    };
    let precondition = at(preconditions, place)?;
    Err(StoreError::Changed {
        key: precondition.key.clone(),
        expected: precondition.revision,
        found: from_sql("revision", found)?,
    }
    .into())
}

/// The element that SQL calls by its place, counted from 1.
fn at<T>(list: &[T], place: i64) -> Result<&T, StoreError> {
    let index = usize::try_from(place - 1).ok();
    let found = index.and_then(|index| list.get(index));
    found.ok_or_else(|| StoreError::Damaged(format!("the database speaks of element {place}")))
}

async fn put(connection: &mut PgConnection, revision: u64, puts: &[&Write]) -> Result<(), Trouble> {
    if puts.is_empty() {
        return Ok(());
    }
    let upsert = "INSERT INTO record (kind, tenant, record_key, revision, created_revision, deleted, value) \
                  SELECT kind, tenant, record_key, $5, $5, FALSE, value \
                  FROM UNNEST($1::bigint[], $2::text[], $3::text[], $4::bytea[]) \
                  AS put (kind, tenant, record_key, value) \
                  ON CONFLICT (kind, tenant, record_key) DO UPDATE SET \
                  created_revision = CASE WHEN record.deleted THEN excluded.revision ELSE record.created_revision END, \
                  revision = excluded.revision, deleted = FALSE, value = excluded.value";
    let keys = Keys::of(puts.iter().map(|write| &write.key));
    let values: Vec<&[u8]> = puts.iter().filter_map(|write| write.value.as_deref()).collect();
    sqlx::query(upsert)
        .bind(keys.kinds)
        .bind(keys.tenants)
        .bind(keys.keys)
        .bind(values)
        .bind(to_sql(revision)?)
        .execute(connection)
        .await
        .map_err(failed("write records"))?;
    Ok(())
}

/// Makes tombstones, or refuses the commit by the first record that is not there.
async fn delete(connection: &mut PgConnection, revision: u64, deletions: &[&Write]) -> Result<(), Trouble> {
    if deletions.is_empty() {
        return Ok(());
    }
    let update = "UPDATE record SET deleted = TRUE, revision = $4 \
                  FROM UNNEST($1::bigint[], $2::text[], $3::text[]) \
                  WITH ORDINALITY AS gone (kind, tenant, record_key, place) \
                  WHERE record.kind = gone.kind AND record.tenant = gone.tenant \
                  AND record.record_key = gone.record_key AND record.deleted = FALSE \
                  RETURNING gone.place";
    let keys = Keys::of(deletions.iter().map(|write| &write.key));
    let mut done: Vec<i64> = sqlx::query_scalar(update)
        .bind(keys.kinds)
        .bind(keys.tenants)
        .bind(keys.keys)
        .bind(to_sql(revision)?)
        .fetch_all(connection)
        .await
        .map_err(failed("delete records"))?;
    done.sort_unstable();
    let missing = (1..)
        .zip(deletions)
        .find(|(place, _)| done.binary_search(place).is_err());
    match missing {
        None => Ok(()),
        Some((_, write)) => Err(StoreError::NothingToDelete {
            key: write.key.clone(),
        }
        .into()),
    }
}

async fn keep_history(connection: &mut PgConnection, revision: u64) -> Result<(), Trouble> {
    let insert = "INSERT INTO change (revision, kind, tenant, record_key, created_revision, deleted, value) \
                  SELECT revision, kind, tenant, record_key, created_revision, deleted, value \
                  FROM record WHERE revision = $1";
    sqlx::query(insert)
        .bind(to_sql(revision)?)
        .execute(connection)
        .await
        .map_err(failed("write history"))?;
    Ok(())
}
