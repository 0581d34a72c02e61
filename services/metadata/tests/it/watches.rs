//! Watches never skip and never double, whatever happens between.

use std::time::Duration;

use ptah_rpc::MetadataClient;
use ptah_rpc::clients::WatchStream;
use ptah_rpc::records::{RecordKind, RecordValue};
use ptah_types::ErrorKind;

use crate::harness::{Service, increment, lead};

const PATIENCE: Duration = Duration::from_secs(20);

async fn watch(client: &MetadataClient, after: u64) -> WatchStream {
    let incarnation = client.info().await.unwrap().incarnation;
    client
        .watch(after, incarnation, &[RecordKind::Counter])
        .await
        .unwrap()
}

/// The next revision with changes, and the counter's value in it.
async fn next_change(stream: &mut WatchStream) -> Option<(u64, u64)> {
    loop {
        let changes = tokio::time::timeout(PATIENCE, stream.next())
            .await
            .unwrap()?
            .ok()?;
        match changes.records.as_slice() {
            [] => {}
            [record] => match &record.value {
                RecordValue::Counter(counter) => return Some((changes.revision, counter.next)),
                other => panic!("{other:?}"),
            },
            more => panic!("one change per revision, not {more:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_that_resumes_under_concurrent_writers_sees_every_change_once() {
    let service = Service::start().await;
    let epoch = lead(&service.client(), "test").await;
    let writers = futures_util::future::join_all((0..4).map(|_| {
        let client = service.client();
        async move {
            for _ in 0..50 {
                increment(&client, epoch).await;
            }
        }
    }));
    let client = service.client();
    let watcher = async {
        let mut seen = Vec::new();
        while seen.len() < 200 {
            let after = seen.last().map_or(0, |(revision, _)| *revision);
            let mut stream = watch(&client, after).await;
            // A new stream after every seventh change.
            for _ in 0..7 {
                if seen.len() < 200 {
                    seen.push(next_change(&mut stream).await.unwrap());
                }
            }
        }
        seen
    };
    let (_, seen) = tokio::join!(writers, watcher);
    let expected: Vec<(u64, u64)> = (1..=200).map(|number| (number, number)).collect();
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn who_waits_for_a_revision_is_told_at_once() {
    let service = Service::start().await;
    let client = service.client();
    let epoch = lead(&client, "test").await;
    let incarnation = client.info().await.unwrap().incarnation;
    let mut stream = client
        .watch(0, incarnation, &[RecordKind::Station])
        .await
        .unwrap();
    let revision = increment(&client, epoch).await;
    loop {
        let changes = tokio::time::timeout(PATIENCE, stream.next())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        assert!(changes.records.is_empty(), "counters are not wanted");
        if changes.revision >= revision {
            break;
        }
    }
}

#[tokio::test]
async fn a_watch_behind_the_floor_is_told_to_list_again() {
    let service = Service::start().await;
    let client = service.client();
    let epoch = lead(&client, "test").await;
    for _ in 0..5 {
        increment(&client, epoch).await;
    }
    client.compact(3, epoch).await.unwrap();
    let incarnation = client.info().await.unwrap().incarnation;
    let refused = client.watch(2, incarnation, &[]).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Conflict);
    assert!(refused.message.contains("list again"), "{refused}");
    let refused = client.watch(9, incarnation, &[]).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Conflict);
    let refused = client.watch(4, incarnation + 1, &[]).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Conflict);
    let mut stream = client.watch(3, incarnation, &[]).await.unwrap();
    assert_eq!(next_change(&mut stream).await, Some((4, 4)));
}

#[tokio::test]
async fn a_watch_goes_on_after_a_restart_of_the_service() {
    let mut service = Service::start().await;
    let client = service.client();
    let epoch = lead(&client, "test").await;
    increment(&client, epoch).await;
    let mut stream = watch(&client, 0).await;
    assert_eq!(next_change(&mut stream).await, Some((1, 1)));
    service.stop().await;
    let ended = loop {
        match tokio::time::timeout(PATIENCE, stream.next()).await.unwrap() {
            Some(Ok(_)) => {}
            Some(Err(error)) => break error,
            None => panic!("an end without a reason"),
        }
    };
    assert!(ended.kind.is_retryable(), "{ended:?}");
    service.start_again().await;
    let client = service.client();
    increment(&client, epoch).await;
    let mut stream = watch(&client, 1).await;
    assert_eq!(next_change(&mut stream).await, Some((2, 2)));
}
