//! Transactions from beginning to end: bounded in time, tried again when nothing happened, and only on the database that
//! was here before.

use std::sync::Arc;
use std::time::Duration;

use ptah_service::Random;
use sqlx::{PgConnection, PgPool};
use tokio::time::{Instant, timeout_at};

use super::identity::{self, Known};
use super::session::Session;
use super::trouble::{Next, Trouble};
use crate::store::{StoreError, StoreInfo};

/// A read that takes longer is given up, before its RPC client does after 5 s.
const READ_DEADLINE: Duration = Duration::from_secs(4);
/// A write that is not at its COMMIT by then is given up, and nothing happened.
const WRITE_DEADLINE: Duration = Duration::from_millis(3_500);
/// How often something that failed without a trace is tried.
const ATTEMPTS: u32 = 4;
/// Longest pause before the second attempt; doubled with each further one.
const PAUSE: Duration = Duration::from_millis(20);

/// What is done inside a transaction. It may be done more than once, but takes effect at most once.
#[tonic::async_trait]
pub(super) trait Transact: Sync {
    /// What comes of it.
    type Output: Send;

    /// What is tried, for errors.
    fn action(&self) -> &'static str;

    /// Does it, in a transaction that has looked at the store's identity, and locked it when it is a write.
    async fn run(&self, connection: &mut PgConnection, info: StoreInfo) -> Result<Self::Output, Trouble>;

    /// The newest revision when it has happened.
    fn revision(&self, before: StoreInfo, _output: &Self::Output) -> u64 {
        before.revision
    }
}

/// The database, and what is known of it.
pub(super) struct Database {
    pub(super) pool: PgPool,
    pub(super) known: Arc<Known>,
    pub(super) random: Arc<dyn Random>,
}

impl Database {
    /// Runs a read.
    pub(super) async fn read<T: Transact>(&self, work: &T) -> Result<T::Output, StoreError> {
        let deadline = Instant::now() + READ_DEADLINE;
        let mut attempt = 0;
        loop {
            let trouble = match timeout_at(deadline, self.read_once(work)).await {
                Ok(Ok(output)) => return Ok(output),
                Ok(Err(trouble)) => trouble,
                Err(_) => return Err(too_late(work.action())),
            };
            attempt += 1;
            self.recover(trouble, attempt, deadline).await?;
        }
    }

    async fn read_once<T: Transact>(&self, work: &T) -> Result<T::Output, Trouble> {
        let seen = self.known.seen();
        let mut session = Session::begin_read(&self.pool).await?;
        let connection = session.connection();
        let outcome = match identity::check(connection, &self.known, seen).await {
            Ok(info) => work.run(connection, info).await.map(|output| (info, output)),
            Err(trouble) => Err(trouble),
        };
        let (info, output) = session.end_unchanged(outcome).await?;
        self.known.saw(info.incarnation, info.revision);
        Ok(output)
    }

    /// Runs a write under the lock of all writes.
    pub(super) async fn write<T: Transact>(&self, work: &T) -> Result<T::Output, StoreError> {
        let deadline = Instant::now() + WRITE_DEADLINE;
        let mut attempt = 0;
        loop {
            let trouble = match self.write_once(work, deadline).await {
                Ok(output) => return Ok(output),
                Err(trouble) => trouble,
            };
            attempt += 1;
            self.recover(trouble, attempt, deadline).await?;
        }
    }

    async fn write_once<T: Transact>(&self, work: &T, deadline: Instant) -> Result<T::Output, Trouble> {
        let prepared = timeout_at(deadline, self.prepare(work)).await;
        let (session, info, output) = prepared.map_err(|_| too_late(work.action()))??;
        // Has a deadline of its own: from here on, being late means not knowing.
        session.commit(work.action()).await?;
        self.known.saw(info.incarnation, work.revision(info, &output));
        Ok(output)
    }

    /// Everything of a write but its COMMIT.
    async fn prepare<T: Transact>(&self, work: &T) -> Result<(Session, StoreInfo, T::Output), Trouble> {
        let seen = self.known.seen();
        let mut session = Session::begin_write(&self.pool).await?;
        match prepare_on(session.connection(), &self.known, seen, work).await {
            Ok((info, output)) => Ok((session, info, output)),
            Err(trouble) => session.end_unchanged(Err(trouble)).await,
        }
    }

    /// Makes the next attempt possible, or tells that there is none.
    async fn recover(&self, trouble: Trouble, attempt: u32, deadline: Instant) -> Result<(), StoreError> {
        if attempt >= ATTEMPTS || Instant::now() >= deadline {
            return Err(trouble.error);
        }
        match trouble.next {
            Next::Tell => Err(trouble.error),
            Next::Again => {
                tokio::time::sleep(self.pause(attempt)).await;
                Ok(())
            }
            Next::Adopt => {
                let adopt = identity::adopt(&self.pool, &self.known, self.random.as_ref());
                match timeout_at(deadline, adopt).await {
                    Ok(Ok(())) => Ok(()),
                    Ok(Err(trouble)) => Err(trouble.error),
                    Err(_) => Err(too_late("begin a new incarnation")),
                }
            }
        }
    }

    /// A random part of a pause that doubles, so that instances that met once do not meet again.
    fn pause(&self, attempt: u32) -> Duration {
        let longest = PAUSE * 2_u32.saturating_pow(attempt.saturating_sub(1));
        let longest_us = u64::try_from(longest.as_micros()).unwrap_or(u64::MAX).max(1);
        Duration::from_micros(self.random.next_u64() % longest_us)
    }
}

async fn prepare_on<T: Transact>(
    connection: &mut PgConnection,
    known: &Known,
    seen: identity::Seen,
    work: &T,
) -> Result<(StoreInfo, T::Output), Trouble> {
    identity::lock(connection).await?;
    let info = identity::check(connection, known, seen).await?;
    let output = work.run(connection, info).await?;
    Ok((info, output))
}

fn too_late(action: &'static str) -> StoreError {
    StoreError::Unavailable {
        action,
        why: "the database did not answer in time".to_owned(),
    }
}
