//! The service on PostgreSQL: two instances, and a database that dies.

use std::time::Duration;

use ptah_rpc::records::{Counter, RecordKey, RecordKind};
use ptah_test_postgres::Server;
use ptah_types::ErrorKind;

use crate::harness::{Service, increment, lead};

const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::test]
async fn two_instances_are_one_store_and_tell_their_watchers_when_the_database_was_away() {
    let mut server = Server::start().await.unwrap();
    let url = server.create_database("ptah").await.unwrap();
    let one = Service::start_on(Some(url.clone())).await;
    let two = Service::start_on(Some(url)).await;
    let epoch = lead(&one.client(), "test").await;
    let before = two.client().info().await.unwrap();
    let mut watch = two
        .client()
        .watch(0, before.incarnation, &[RecordKind::Counter])
        .await
        .unwrap();
    let revision = increment(&one.client(), epoch).await;
    let seen = async {
        loop {
            let changes = watch.next().await.unwrap().unwrap();
            if !changes.records.is_empty() {
                return changes.revision;
            }
        }
    };
    assert_eq!(tokio::time::timeout(PATIENCE, seen).await.unwrap(), revision);

    server.kill().await.unwrap();
    let away = one.client().info().await.unwrap_err();
    assert_eq!(away.kind, ErrorKind::Unavailable, "{away}");
    server.start_again().await.unwrap();
    // The watch ends with a reason: whether it was away or is another one now, the watcher lists and watches again.
    let ended = async {
        loop {
            if let Err(error) = watch.next().await.unwrap() {
                return error;
            }
        }
    };
    let ended = tokio::time::timeout(PATIENCE, ended).await.unwrap();
    assert!(
        matches!(ended.kind, ErrorKind::Unavailable | ErrorKind::Conflict),
        "{ended:?}"
    );
    let back = async {
        while one.client().info().await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, back).await.unwrap();
    let after = one.client().info().await.unwrap();
    assert_eq!(after, two.client().info().await.unwrap());
    assert_eq!(after.cluster, before.cluster);
    assert_ne!(after.incarnation, before.incarnation);
    let refused = two
        .client()
        .watch(revision, before.incarnation, &[])
        .await
        .unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Conflict, "{refused}");
    let (record, _) = two
        .client()
        .get(&RecordKey::counter(Counter::Station))
        .await
        .unwrap();
    assert_eq!(record.unwrap().revision, revision, "nothing answered is lost");
    let epoch = lead(&two.client(), "test").await;
    assert!(increment(&one.client(), epoch).await > after.revision);
}
