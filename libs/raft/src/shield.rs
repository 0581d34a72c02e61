//! Calls of openraft that run to their end, even when whoever waits for them goes away.
//!
//! openraft panics in later calls when an earlier one was dropped while it waited for the end of a core.

use std::future::Future;
use std::time::Duration;

use ptah_service::Tasks;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

/// Why there is no answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum NoAnswer {
    #[error("the replica does not answer")]
    Late,
    #[error("the replica stopped")]
    Gone,
}

/// Runs `call` as a task of its own and waits for it, at most `deadline`.
pub(crate) async fn to_the_end<T: Send + 'static>(
    tasks: &Tasks,
    runtime: &Handle,
    name: &'static str,
    deadline: Duration,
    call: impl Future<Output = T> + Send + 'static,
) -> Result<T, NoAnswer> {
    let (tell, told) = oneshot::channel();
    {
        let _runtime = runtime.enter();
        tasks.spawn(name, async move {
            // The caller may be gone.
            let _ = tell.send(call.await);
        });
    }
    match tokio::time::timeout(deadline, told).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(_)) => Err(NoAnswer::Gone),
        Err(_) => Err(NoAnswer::Late),
    }
}
