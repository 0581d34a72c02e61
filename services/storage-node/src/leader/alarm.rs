//! One timer for everything that a led partition waits for.

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Rings at the earliest time that was asked for, then is empty again.
#[derive(Debug, Default)]
pub(crate) struct Alarm {
    at: Mutex<Option<Instant>>,
    earlier: Notify,
}

impl Alarm {
    /// Rings at `at` at the latest.
    pub(crate) fn set(&self, at: Instant) {
        let mut current = self.at.lock();
        if current.is_none_or(|current| at < current) {
            *current = Some(at);
            drop(current);
            self.earlier.notify_one();
        }
    }

    /// Waits for the next ring.
    pub(crate) async fn rang(&self) {
        loop {
            let at = *self.at.lock();
            match at {
                None => self.earlier.notified().await,
                Some(at) => {
                    tokio::select! {
                        () = self.earlier.notified() => {}
                        () = tokio::time::sleep_until(at) => {
                            *self.at.lock() = None;
                            return;
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_earliest_time_wins_and_an_empty_alarm_is_silent() {
        let alarm = Alarm::default();
        let start = Instant::now();
        alarm.set(start + Duration::from_secs(9));
        alarm.set(start + Duration::from_secs(2));
        alarm.rang().await;
        assert_eq!(start.elapsed().as_secs(), 2);
        let silent = tokio::time::timeout(Duration::from_secs(60), alarm.rang()).await;
        assert!(silent.is_err());
    }
}
