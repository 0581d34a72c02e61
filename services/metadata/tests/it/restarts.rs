//! What a restart keeps, and what callers see while the service is away.

use std::time::Duration;

use ptah_rpc::records::{Counter, RecordKey};
use ptah_types::ErrorKind;

use crate::harness::{Service, increment, lead, set_counter};

#[tokio::test]
async fn everything_that_was_answered_is_there_after_a_restart() {
    let mut service = Service::start().await;
    let client = service.client();
    let epoch = lead(&client, "test").await;
    let revision = increment(&client, epoch).await;
    let before = client.info().await.unwrap();
    service.stop().await;
    service.start_again().await;
    let client = service.client();
    assert_eq!(client.info().await.unwrap(), before);
    let (record, _) = client.get(&RecordKey::counter(Counter::Station)).await.unwrap();
    assert_eq!(record.unwrap().revision, revision);
    let lease = client
        .acquire_lease("other", Duration::from_secs(5), false)
        .await
        .unwrap();
    assert_eq!(
        (lease.acquired, lease.epoch),
        (false, epoch),
        "the lease outlives the process"
    );
    assert_eq!(increment(&client, epoch).await, revision + 1);
}

#[tokio::test]
async fn callers_are_told_that_the_service_is_away_and_find_it_again() {
    let mut service = Service::start().await;
    let client = service.client();
    let epoch = lead(&client, "test").await;
    service.stop().await;
    let refused = client.info().await.unwrap_err();
    assert!(refused.kind.is_retryable(), "{refused:?}");
    let refused = set_counter(&client, epoch, 0, 1).await.unwrap_err();
    assert!(
        matches!(refused.kind, ErrorKind::Unavailable | ErrorKind::OutcomeUnknown),
        "{refused:?}"
    );
    service.start_again().await;
    // The same client: its channel reconnects by itself.
    let found = async {
        while client.info().await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), found)
        .await
        .unwrap();
    set_counter(&client, epoch, 0, 1).await.unwrap();
}

#[tokio::test]
async fn an_older_database_is_a_new_incarnation_to_clients() {
    let mut service = Service::start().await;
    let epoch = lead(&service.client(), "test").await;
    increment(&service.client(), epoch).await;
    service.stop().await;
    let backup = std::fs::read(service.database()).unwrap();
    service.start_again().await;
    let newer = increment(&service.client(), epoch).await;
    let before = service.client().info().await.unwrap();
    service.stop().await;
    std::fs::write(service.database(), backup).unwrap();
    service.start_again().await;
    let client = service.client();
    let after = client.info().await.unwrap();
    assert_eq!(after.cluster, before.cluster);
    assert_ne!(after.incarnation, before.incarnation);
    assert!(after.revision > newer);
    let refused = client.watch(newer, before.incarnation, &[]).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Conflict);
    let stale = set_counter(&client, epoch, 1, 7).await.unwrap_err();
    assert_eq!(
        stale.kind,
        ErrorKind::Conflict,
        "nobody holds the lease of an older database: {stale}"
    );
    assert!(lead(&client, "test").await > epoch);
}
