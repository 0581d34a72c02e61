//! One answer with what a consumer group has now, or gets within a time.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::{Amount, ConsumeEvent, Consumer, DeliveredRun, ReadyGroup, Session};
use crate::error::GatewayError;

/// After the first messages, more are taken for this long.
const LINGER: Duration = Duration::from_millis(5);
/// A pull that does not wait still has to ask the partitions.
const ASKING: Duration = Duration::from_millis(500);

/// What a pull wants.
#[derive(Debug, Clone, Copy)]
pub struct PullLimits {
    /// Most messages.
    pub max_messages: u32,
    /// Longest wait for the first.
    pub wait: Duration,
}

/// Closes the stream of a pull also when its caller goes away.
struct Closing(Arc<Session>);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl Consumer {
    /// Takes up to a number of messages. What comes too late or does not fit goes back to its partition.
    pub async fn pull(
        &self,
        group: &ReadyGroup,
        limits: PullLimits,
    ) -> Result<Vec<DeliveredRun>, GatewayError> {
        let session = Closing(self.open(group));
        session.0.add_credit(Amount {
            messages: u64::from(limits.max_messages),
            bytes: self.shared.settings.answer_bytes,
        });
        let begin = Instant::now();
        let mut until = begin + limits.wait.max(ASKING);
        let mut wanted = limits.max_messages as usize;
        let mut taken: Vec<DeliveredRun> = Vec::new();
        let mut bytes = 0;
        while wanted > 0 && bytes < self.shared.settings.answer_bytes {
            let Ok(event) = timeout_at(until, session.0.next_event()).await else {
                break;
            };
            match event {
                None => break,
                Some(Err(error)) if taken.is_empty() => return Err(error),
                Some(Err(_told_by_the_next_pull)) => break,
                Some(Ok(ConsumeEvent::Batch(runs))) => {
                    until = until.min(Instant::now() + LINGER);
                    for run in runs {
                        wanted -= run.range.len().min(wanted);
                        bytes += run.payload_bytes();
                        taken.push(run);
                    }
                }
                Some(Ok(ConsumeEvent::Idle { .. })) if !taken.is_empty() || limits.wait.is_zero() => break,
                Some(Ok(ConsumeEvent::Idle { .. } | ConsumeEvent::Acked { .. })) => {}
            }
        }
        Ok(taken)
    }
}
