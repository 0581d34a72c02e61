//! Harness for tests of the whole platform: real processes, a real client, and checkers that decide what was survived.
//!
//! Nothing here waits for time: [`until`] asks for a condition until it holds or a deadline is over, and says what it
//! last saw.

pub mod check;
pub mod client;
pub mod cluster;
pub mod links;
pub mod load;
pub mod postgres;
pub mod process;
pub mod records;
pub mod traffic;

use std::fmt::Debug;
use std::future::Future;
use std::time::Duration;

/// Longest wait for anything that should happen soon. Generous, because machines are shared.
pub const SOON: Duration = Duration::from_secs(60);

/// Asks `probe` until it gives a value, or fails with what it last said when `limit` is over.
///
/// The pause between two questions is short and only there to leave the processor to those who are asked.
pub async fn until<T, E, F>(what: &str, limit: Duration, mut probe: impl FnMut() -> F) -> anyhow::Result<T>
where
    F: Future<Output = Result<T, E>>,
    E: Debug,
{
    let deadline = tokio::time::Instant::now() + limit;
    loop {
        let said = match probe().await {
            Ok(value) => return Ok(value),
            Err(said) => said,
        };
        if tokio::time::Instant::now() >= deadline {
            anyhow::bail!("waited {limit:?} for {what}; last seen: {said:?}");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
