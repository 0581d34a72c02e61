//! Several control planes: one decides, the others say so, and nobody decides what an older one thought of.

use std::time::Duration;

use ptah_rpc::records::{Commit, Counter, CounterRecord, RecordKey, RecordValue, Write};
use ptah_types::ErrorKind;

use crate::harness::{World, root, station, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_one_that_does_not_hold_the_lease_says_who_does() {
    let mut world = World::new().await;
    let second = world.start_plane().await;
    let refused = loop {
        // Until it has asked for the lease once, it cannot say more than that it does not know.
        let refused = world
            .management(second)
            .create_station(&station("a", 1, 1))
            .await
            .unwrap_err();
        if refused.kind != ErrorKind::Unavailable {
            break refused;
        }
    };
    assert_eq!(refused.kind, ErrorKind::NotLeader);
    let holder = world.planes[0].control.address().to_string();
    assert!(refused.message.contains(&holder), "{refused}");
    let refused = world
        .management(second)
        .describe_nodes(&root())
        .await
        .unwrap_err();
    assert_eq!(refused.kind, ErrorKind::NotLeader);
    assert!(!world.planes[second].control.decides());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_one_takes_over_with_everything_that_was_decided() {
    let mut world = World::new().await;
    world.start_plane().await;
    for id in 1..=3 {
        world.start_node(id).await;
    }
    world.until_alive(3).await;
    let first = world
        .management(0)
        .create_station(&station("orders", 2, 3))
        .await
        .unwrap();
    world.until_placed(2).await;
    let epoch = world.nodes[0].newest().0;
    world.stop_plane(0).await;
    until("the other decides", || world.planes[0].control.decides()).await;
    world.until_alive(3).await;
    let management = world.management(0);
    let again = management.create_station(&station("orders", 2, 3)).await.unwrap();
    assert_eq!((again.id, again.created), (first.id, false));
    let second = management.create_station(&station("more", 1, 3)).await.unwrap();
    assert!(second.id > first.id);
    world.until_placed(3).await;
    assert!(world.nodes[0].newest().0 > epoch, "orders carry the new epoch");
    for placement in world.placements().await {
        let initialized: u32 = world
            .nodes
            .iter()
            .map(|node| node.history(placement.group).initialized_times)
            .sum();
        assert_eq!(initialized, 1, "never again by a successor");
    }
    assert!(world.nodes.iter().all(|node| node.stale_orders() == 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_decided_under_an_older_epoch_is_not_written() {
    let world = World::new().await;
    let metadata = world.metadata();
    // The lease goes to somebody else as if the holder had been paused for too long.
    let usurper = loop {
        let lease = metadata
            .acquire_lease("usurper", Duration::from_secs(60), false)
            .await
            .unwrap();
        if lease.acquired {
            break lease;
        }
        let holder = metadata
            .acquire_lease(&lease.holder, Duration::from_secs(1), true)
            .await
            .unwrap();
        assert!(!holder.acquired);
    };
    let stale = Commit {
        writes: vec![Write {
            key: RecordKey::counter(Counter::Station),
            value: Some(RecordValue::Counter(CounterRecord { next: 99 })),
        }],
        lease_epoch: usurper.epoch - 1,
        ..Commit::default()
    };
    assert_eq!(
        metadata.commit(&stale).await.unwrap_err().kind,
        ErrorKind::Conflict
    );
    let refused = world
        .management(0)
        .create_station(&station("orders", 1, 1))
        .await
        .unwrap_err();
    assert!(
        matches!(
            refused.kind,
            ErrorKind::NotLeader | ErrorKind::Unavailable | ErrorKind::Conflict
        ),
        "{refused:?}"
    );
    until("the old holder notices", || !world.planes[0].control.decides()).await;
    let refused = world
        .management(0)
        .create_station(&station("orders", 1, 1))
        .await
        .unwrap_err();
    assert_eq!(refused.kind, ErrorKind::NotLeader, "{refused}");
    assert!(refused.message.contains("usurper"), "{refused}");
    metadata
        .acquire_lease("usurper", Duration::from_secs(1), true)
        .await
        .unwrap();
    until("it decides again", || world.planes[0].control.decides()).await;
}
