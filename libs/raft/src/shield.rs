//! Calls of openraft that run to their end, even when whoever waits for them goes away.
//!
//! openraft panics in later calls when an earlier one was dropped while it waited for the end of a core. So every call
//! that may be dropped goes through here: [`to_the_end`] with a deadline of its own, [`unbroken`] and [`Unbroken`] where
//! somebody else cancels, at the price of a task only when that happens.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::{Stream, StreamExt};
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

/// Answers of openraft that are waited for to the end, by a task of their own when this is dropped before.
pub(crate) struct Unbroken<S: Stream<Item: Send> + Send + 'static> {
    /// `None` at the end.
    answers: Option<Pin<Box<S>>>,
    tasks: Tasks,
    runtime: Handle,
    name: &'static str,
}

impl<S: Stream<Item: Send> + Send + 'static> Unbroken<S> {
    pub(crate) fn new(tasks: &Tasks, runtime: &Handle, name: &'static str, answers: S) -> Self {
        Self {
            answers: Some(Box::pin(answers)),
            tasks: tasks.clone(),
            runtime: runtime.clone(),
            name,
        }
    }
}

impl<S: Stream<Item: Send> + Send + 'static> Stream for Unbroken<S> {
    type Item = S::Item;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<S::Item>> {
        let Some(answers) = &mut self.answers else {
            return Poll::Ready(None);
        };
        let answer = std::task::ready!(answers.poll_next_unpin(context));
        if answer.is_none() {
            self.answers = None;
        }
        Poll::Ready(answer)
    }
}

impl<S: Stream<Item: Send> + Send + 'static> Drop for Unbroken<S> {
    fn drop(&mut self) {
        if let Some(mut answers) = self.answers.take() {
            let _runtime = self.runtime.enter();
            self.tasks
                .spawn(self.name, async move { while answers.next().await.is_some() {} });
        }
    }
}

/// Waits for `call`; when this is dropped before, a task does.
pub(crate) async fn unbroken<T: Send + 'static>(
    tasks: &Tasks,
    runtime: &Handle,
    name: &'static str,
    call: impl Future<Output = T> + Send + 'static,
) -> Result<T, NoAnswer> {
    let mut answers = Unbroken::new(tasks, runtime, name, futures_util::stream::once(call));
    let answer = answers.next().await.ok_or(NoAnswer::Gone);
    // There is no second answer to wait for.
    answers.answers = None;
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_call_that_is_dropped_goes_on_to_its_end() {
        let (tasks, runtime) = (Tasks::root(), Handle::current());
        let (go, told) = oneshot::channel::<()>();
        let (tell, ended) = oneshot::channel::<()>();
        let call = async move {
            told.await.unwrap();
            tell.send(()).unwrap();
        };
        let waiting = unbroken(&tasks, &runtime, "call", call);
        let late = tokio::time::timeout(Duration::from_millis(1), waiting).await;
        assert!(late.is_err());
        assert_eq!(tasks.unfinished(), ["call"]);
        go.send(()).unwrap();
        ended.await.unwrap();
    }

    #[tokio::test]
    async fn a_call_that_ends_in_time_costs_no_task() {
        let (tasks, runtime) = (Tasks::root(), Handle::current());
        let answer = unbroken(&tasks, &runtime, "call", std::future::ready(7)).await;
        assert_eq!(answer, Ok(7));
        assert!(tasks.unfinished().is_empty());
    }

    #[tokio::test]
    async fn answers_that_nobody_reads_any_more_are_waited_for() {
        let (tasks, runtime) = (Tasks::root(), Handle::current());
        let (tell, answers) = tokio::sync::mpsc::channel(1);
        let answers = tokio_stream::wrappers::ReceiverStream::new(answers);
        let mut answers = Unbroken::new(&tasks, &runtime, "answers", answers);
        tell.send(1).await.unwrap();
        assert_eq!(answers.next().await, Some(1));
        drop(answers);
        tell.send(2).await.unwrap();
        tell.send(3).await.unwrap();
        drop(tell);
        tasks.stop(Duration::from_secs(10)).await.unwrap();
    }
}
