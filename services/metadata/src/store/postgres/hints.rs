//! Hints between instances: a NOTIFY after commits, a LISTEN for those of others. They carry nothing and may be lost:
//! whoever hears one looks at the database, and everybody looks once a second anyway.
//!
//! The hint is sent behind the commit and not in it: a NOTIFY inside would make a commit fail when a listener of anybody
//! else on this server lets the server's queue fill up.

use std::time::Duration;

use ptah_service::Stopping;
use sqlx::PgPool;
use sqlx::postgres::{PgConnectOptions, PgListener};
use tokio::sync::Notify;
use tokio::time::timeout;
use tracing::{debug, info, warn};

use super::session;

const CHANNEL: &str = "ptah_metadata";
/// Waits for anything on the listening connection.
const DEADLINE: Duration = Duration::from_secs(3);
/// A listener that heard nothing for this long asks whether its connection lives.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// First and longest pause before a listener is made again.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// Listens until the owner stops; tells `wake` of every hint, and of every new connection, before which hints may have
/// been missed.
pub(super) async fn listen(connect: PgConnectOptions, wake: &Notify, stopping: Stopping) {
    let mut pause = PAUSES.0;
    loop {
        let ended = tokio::select! {
            biased;
            () = stopping.cancelled() => break,
            ended = listen_once(&connect, wake, &mut pause) => ended,
        };
        debug!(
            why = ended,
            "connection for hints of the metadata database ended; making another one"
        );
        tokio::select! {
            biased;
            () = stopping.cancelled() => break,
            () = tokio::time::sleep(pause) => {}
        }
        pause = (pause * 2).min(PAUSES.1);
    }
}

/// Listens on one connection; why it ended.
async fn listen_once(connect: &PgConnectOptions, wake: &Notify, pause: &mut Duration) -> String {
    // A pool for each: a listener whose connection hangs says farewell on it in the background and would hold its place.
    let pool = session::pool(connect.clone(), 1);
    let begun = timeout(DEADLINE, async {
        let mut listener = PgListener::connect_with(&pool).await?;
        listener.eager_reconnect(false);
        listener.listen(CHANNEL).await?;
        Ok::<_, sqlx::Error>(listener)
    });
    let mut listener = match begun.await {
        Ok(Ok(listener)) => listener,
        Ok(Err(error)) => return error.to_string(),
        Err(_) => return "no answer in time".to_owned(),
    };
    *pause = PAUSES.0;
    wake.notify_one();
    loop {
        match timeout(HEARTBEAT, listener.try_recv()).await {
            Ok(Ok(Some(_))) => {
                // One look serves all that came by now.
                while listener.next_buffered().is_some() {}
                wake.notify_one();
            }
            Ok(Ok(None)) => return "it was closed".to_owned(),
            Ok(Err(error)) => return error.to_string(),
            Err(_) => match timeout(DEADLINE, sqlx::query("SELECT 1").execute(&mut listener)).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return error.to_string(),
                Err(_) => return "no answer in time".to_owned(),
            },
        }
    }
}

/// Sends a hint after each commit of this process, one for all that happened since the last.
pub(super) async fn send(pool: PgPool, committed: &Notify, stopping: Stopping) {
    loop {
        tokio::select! {
            biased;
            () = stopping.cancelled() => break,
            () = committed.notified() => {}
        }
        let hint = sqlx::query("SELECT pg_notify($1, '')")
            .bind(CHANNEL)
            .execute(&pool);
        match timeout(DEADLINE, hint).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => {
                debug!(%error, "hint to other instances could not be sent; they look within a second")
            }
            Err(_) => debug!("hint to other instances took too long; they look within a second"),
        }
    }
}

/// Tells the log when the database stops to answer, and when it does again.
#[derive(Default)]
pub(super) struct Trouble {
    last: Option<String>,
}

impl Trouble {
    pub(super) fn note(&mut self, failure: Option<String>) {
        match (&failure, &self.last) {
            (Some(why), last) if last.as_ref() != Some(why) => {
                warn!(%why, "metadata database does not answer; everything but management calls goes on without it");
            }
            (None, Some(_)) => info!("metadata database answers again"),
            _ => {}
        }
        self.last = failure;
    }
}
