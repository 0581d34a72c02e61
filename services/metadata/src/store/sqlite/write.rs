//! The writer: the one task that changes the database.
//!
//! A connection on which the database failed is not used again. After a full disk SQLite has rolled the transaction back
//! by itself, and a connection that still counts itself inside of it would refuse every later one: the writer goes on with
//! a new connection, so that it is well again as soon as the database is.

use std::sync::Arc;

use ptah_service::{Clock, Ports, Stopping};
use sqlx::pool::PoolConnection;
use sqlx::{Connection as _, Sqlite, SqliteConnection, SqlitePool, Transaction};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{error, info, warn};

use super::super::sql::{from_sql, to_sql};
use super::super::{Commit, Key, Lease, LeaseRequest, Precondition, StoreError, Write};
use super::SqliteOptions;
use super::keeper::MarkKeeper;
use super::mark::{Mark, MarkFile, Numbers};
use super::rows::{self, failed};

type Answer<T> = oneshot::Sender<Result<T, StoreError>>;

/// A write, and where its outcome goes.
pub(super) enum Job {
    Commit(Commit, Answer<u64>),
    Lease(LeaseRequest, Answer<Lease>),
    Compact {
        revision: u64,
        lease_epoch: u64,
        answer: Answer<u64>,
    },
}

pub(super) struct Writer {
    pool: SqlitePool,
    mark: MarkKeeper,
    newest: watch::Sender<u64>,
    clock: Arc<dyn Clock>,
    history_changes: u32,
    changes_since_trim: u64,
    /// What the database said when it failed last, until it works again.
    trouble: Option<String>,
}

impl Writer {
    pub(super) fn new(
        pool: SqlitePool,
        mark_file: MarkFile,
        mark: Mark,
        newest: watch::Sender<u64>,
        ports: &Ports,
        options: &SqliteOptions,
    ) -> Self {
        Self {
            pool,
            mark: MarkKeeper::new(mark_file, mark),
            newest,
            clock: ports.clock.clone(),
            history_changes: options.history_changes,
            changes_since_trim: 0,
            trouble: None,
        }
    }

    /// Works until the owner stops and everything that was queued by then is answered.
    pub(super) async fn run(mut self, mut jobs: mpsc::Receiver<Job>, stopping: Stopping) {
        loop {
            let job = tokio::select! {
                biased;
                job = jobs.recv() => job,
                () = stopping.cancelled() => break,
            };
            match job {
                Some(job) => self.work(job).await,
                None => break,
            }
        }
        jobs.close();
        while let Some(job) = jobs.recv().await {
            self.work(job).await;
        }
        self.pool.close().await;
    }

    async fn work(&mut self, job: Job) {
        // A caller that went away does not want its answer.
        match job {
            Job::Commit(commit, answer) => {
                let outcome = self.commit(&commit).await;
                drop(answer.send(outcome));
                self.trim_sometimes(commit.writes.len()).await;
            }
            Job::Lease(request, answer) => drop(answer.send(self.lease(&request).await)),
            Job::Compact {
                revision,
                lease_epoch,
                answer,
            } => drop(answer.send(self.compact(revision, lease_epoch).await)),
        }
    }

    /// Does a write on the writer's connection, and gives the connection up when the database failed on it.
    async fn on_connection<T>(
        &mut self,
        write: impl AsyncFnOnce(&mut Self, &mut SqliteConnection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let outcome = match self.pool.acquire().await.map_err(failed("reach the database")) {
            Ok(mut connection) => {
                let outcome = write(self, &mut connection).await;
                if outcome.as_ref().is_err_and(StoreError::is_fault) {
                    give_up(connection).await;
                }
                outcome
            }
            Err(error) => Err(error),
        };
        self.note(outcome.as_ref().err());
        outcome
    }

    /// Tells the log when the database stops to take writes, and when it does again.
    fn note(&mut self, error: Option<&StoreError>) {
        match error.filter(|error| error.is_fault()) {
            Some(error) => {
                let why = error.reason().to_owned();
                if self.trouble.as_ref() != Some(&why) {
                    error!(%error, "metadata database does not take writes; check the disk that it is on");
                }
                self.trouble = Some(why);
            }
            None => {
                if self.trouble.take().is_some() {
                    info!("metadata database takes writes again");
                }
            }
        }
    }

    async fn commit(&mut self, commit: &Commit) -> Result<u64, StoreError> {
        self.on_connection(async |writer, connection| writer.commit_on(connection, commit).await)
            .await
    }

    async fn commit_on(
        &mut self,
        connection: &mut SqliteConnection,
        commit: &Commit,
    ) -> Result<u64, StoreError> {
        let mut transaction = begin(connection).await?;
        // First of all: this locks the row, so that revisions become visible in their order.
        let next: i64 =
            sqlx::query_scalar("UPDATE store SET revision = revision + 1 WHERE id = 1 RETURNING revision")
                .fetch_one(&mut *transaction)
                .await
                .map_err(failed("take a revision"))?;
        let revision = from_sql("revision", next)?;
        let lease = rows::lease(&mut transaction).await?;
        lease.fence(commit.lease_epoch)?;
        for precondition in &commit.preconditions {
            check(&mut transaction, precondition).await?;
        }
        for write in &commit.writes {
            put(&mut transaction, revision, write).await?;
        }
        keep_history(&mut transaction, revision).await?;
        let after = Numbers {
            revision,
            epoch: lease.epoch,
        };
        let before = Numbers {
            revision: revision.saturating_sub(1),
            ..after
        };
        self.mark.raise(before, after).await?;
        transaction.commit().await.map_err(commit_lost("commit"))?;
        self.mark.settle(after).await;
        self.newest.send_replace(revision);
        Ok(revision)
    }

    async fn lease(&mut self, request: &LeaseRequest) -> Result<Lease, StoreError> {
        self.on_connection(async |writer, connection| writer.lease_on(connection, request).await)
            .await
    }

    async fn lease_on(
        &mut self,
        connection: &mut SqliteConnection,
        request: &LeaseRequest,
    ) -> Result<Lease, StoreError> {
        let mut transaction = begin(connection).await?;
        let before = rows::lease(&mut transaction).await?;
        let mut row = before.clone();
        let lease = row.apply(request, self.clock.now().as_millis());
        if row == before {
            return Ok(lease);
        }
        rows::put_lease(&mut transaction, &row).await?;
        let info = rows::info(&mut transaction).await?;
        let numbers = |epoch| Numbers {
            revision: info.revision,
            epoch,
        };
        let moves = row.epoch != before.epoch;
        if moves {
            self.mark.raise(numbers(before.epoch), numbers(row.epoch)).await?;
        }
        transaction
            .commit()
            .await
            .map_err(commit_lost("change the lease"))?;
        if moves {
            self.mark.settle(numbers(row.epoch)).await;
        }
        Ok(lease)
    }

    async fn compact(&mut self, revision: u64, lease_epoch: u64) -> Result<u64, StoreError> {
        self.on_connection(async |_, connection| compact(connection, revision, lease_epoch).await)
            .await
    }

    /// Drops old history after every tenth part of what is kept was added.
    async fn trim_sometimes(&mut self, changes: usize) {
        self.changes_since_trim += u64::try_from(changes).unwrap_or(u64::MAX);
        if self.changes_since_trim <= u64::from(self.history_changes / 10) {
            return;
        }
        self.changes_since_trim = 0;
        if let Err(error) = self.trim().await {
            warn!(%error, "old metadata history could not be dropped; trying again later");
        }
    }

    async fn trim(&mut self) -> Result<(), StoreError> {
        let keep = self.history_changes;
        self.on_connection(async |_, connection| trim(connection, keep).await)
            .await
    }
}

async fn begin(connection: &mut SqliteConnection) -> Result<Transaction<'_, Sqlite>, StoreError> {
    connection
        .begin_with("BEGIN IMMEDIATE")
        .await
        .map_err(failed("reach the database"))
}

/// Closes a connection that is not to be used again; the pool makes a new one for the next write.
async fn give_up(connection: PoolConnection<Sqlite>) {
    if let Err(error) = connection.close().await {
        warn!(%error, "connection to the metadata database did not close cleanly");
    }
}

async fn compact(
    connection: &mut SqliteConnection,
    revision: u64,
    lease_epoch: u64,
) -> Result<u64, StoreError> {
    let mut transaction = begin(connection).await?;
    rows::lease(&mut transaction).await?.fence(lease_epoch)?;
    let info = rows::info(&mut transaction).await?;
    let floor = revision.min(info.revision).max(info.compaction_floor);
    raise_floor(&mut transaction, floor).await?;
    sqlx::query("DELETE FROM record WHERE deleted = TRUE AND revision <= $1")
        .bind(to_sql(floor)?)
        .execute(&mut *transaction)
        .await
        .map_err(failed("drop tombstones"))?;
    transaction.commit().await.map_err(commit_lost("compact"))?;
    Ok(floor)
}

async fn trim(connection: &mut SqliteConnection, keep: u32) -> Result<(), StoreError> {
    let mut transaction = begin(connection).await?;
    let oldest: Option<i64> =
        sqlx::query_scalar("SELECT revision FROM change ORDER BY revision DESC LIMIT 1 OFFSET $1")
            .bind(i64::from(keep))
            .fetch_optional(&mut *transaction)
            .await
            .map_err(failed("measure history"))?;
    let Some(oldest) = oldest else { return Ok(()) };
    raise_floor(&mut transaction, from_sql("revision", oldest)?).await?;
    transaction
        .commit()
        .await
        .map_err(commit_lost("drop old history"))
}

/// An error of the last step: the database may have kept the transaction.
fn commit_lost(action: &'static str) -> impl Fn(sqlx::Error) -> StoreError {
    move |error| StoreError::OutcomeUnknown {
        action,
        why: error.to_string(),
    }
}

async fn check(connection: &mut SqliteConnection, precondition: &Precondition) -> Result<(), StoreError> {
    let select = "SELECT revision FROM record \
                  WHERE kind = $1 AND tenant = $2 AND record_key = $3 AND deleted = FALSE";
    let Key { kind, tenant, key } = &precondition.key;
    let found: Option<i64> = sqlx::query_scalar(select)
        .bind(i64::from(*kind))
        .bind(tenant)
        .bind(key)
        .fetch_optional(connection)
        .await
        .map_err(failed("check a precondition"))?;
    let found = from_sql("revision", found.unwrap_or(0))?;
    if found != precondition.revision {
        return Err(StoreError::Changed {
            key: precondition.key.clone(),
            expected: precondition.revision,
            found,
        });
    }
    Ok(())
}

async fn put(connection: &mut SqliteConnection, revision: u64, write: &Write) -> Result<(), StoreError> {
    let upsert = "INSERT INTO record (kind, tenant, record_key, revision, created_revision, deleted, value) \
                  VALUES ($1, $2, $3, $4, $4, FALSE, $5) \
                  ON CONFLICT (kind, tenant, record_key) DO UPDATE SET \
                  created_revision = CASE WHEN record.deleted THEN excluded.revision ELSE record.created_revision END, \
                  revision = excluded.revision, deleted = FALSE, value = excluded.value";
    let delete = "UPDATE record SET deleted = TRUE, revision = $4 \
                  WHERE kind = $1 AND tenant = $2 AND record_key = $3 AND deleted = FALSE";
    let Key { kind, tenant, key } = &write.key;
    let query = sqlx::query(if write.value.is_some() { upsert } else { delete })
        .bind(i64::from(*kind))
        .bind(tenant)
        .bind(key)
        .bind(to_sql(revision)?);
    let query = match &write.value {
        Some(value) => query.bind(value.as_ref()),
        None => query,
    };
    let done = query
        .execute(connection)
        .await
        .map_err(failed("write a record"))?;
    if done.rows_affected() == 0 {
        return Err(StoreError::NothingToDelete {
            key: write.key.clone(),
        });
    }
    Ok(())
}

async fn keep_history(connection: &mut SqliteConnection, revision: u64) -> Result<(), StoreError> {
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

async fn raise_floor(connection: &mut SqliteConnection, floor: u64) -> Result<(), StoreError> {
    let floor = to_sql(floor)?;
    sqlx::query("UPDATE store SET compaction_floor = $1 WHERE id = 1 AND compaction_floor < $1")
        .bind(floor)
        .execute(&mut *connection)
        .await
        .map_err(failed("raise the compaction floor"))?;
    sqlx::query("DELETE FROM change WHERE revision <= $1")
        .bind(floor)
        .execute(connection)
        .await
        .map_err(failed("drop old history"))?;
    Ok(())
}
