//! Several control planes: one decides, the others say so, and nobody decides what an older one thought of.

use std::time::Duration;

use ptah_control_plane::Config;
use ptah_rpc::records::{Commit, Counter, CounterRecord, RecordKey, RecordValue, Write};
use ptah_types::ErrorKind;

use crate::harness::{World, root, station, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_one_that_does_not_hold_the_lease_says_who_does() {
    let mut world = World::without_planes().await;
    let first = world
        .start_plane_of(Config {
            name: "plane-a".to_owned(),
            ..world.plane_config()
        })
        .await;
    until("the first decides", || world.planes[first].control.decides()).await;
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
    assert!(refused.message.contains("plane-a"), "{refused}");
    let refused = world
        .management(second)
        .describe_nodes(&root())
        .await
        .unwrap_err();
    assert_eq!(refused.kind, ErrorKind::NotLeader);
    assert!(!world.planes[second].control.decides());
    until("the second is ready to succeed", || {
        world.planes[second].health.not_ready().is_empty()
    })
    .await;
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_successor_need_not_wait_for_the_lease_of_one_that_was_stopped() {
    let mut world = World::without_planes().await;
    // Longer than anybody here waits.
    let config = Config {
        lease_ttl_ms: 60_000,
        ..world.plane_config()
    };
    for _ in 0..2 {
        world.start_plane_of(config.clone()).await;
    }
    until("one of them decides", || {
        world.planes.iter().any(|plane| plane.control.decides())
    })
    .await;
    let holder = world.planes.iter().position(|plane| plane.control.decides());
    world.stop_plane(holder.unwrap()).await;
    until("the other one decides", || world.planes[0].control.decides()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_that_died_and_is_started_again_takes_over_at_once_under_a_new_epoch() {
    let mut world = World::without_planes().await;
    let metadata = world.metadata();
    let before = metadata
        .acquire_lease("plane-a#0123456789abcdef", Duration::from_secs(60), false)
        .await
        .unwrap();
    let other = world.start_plane().await;
    let again = world
        .start_plane_of(Config {
            name: "plane-a".to_owned(),
            ..world.plane_config()
        })
        .await;
    until("it decides", || world.planes[again].control.decides()).await;
    assert!(!world.planes[other].control.decides());
    let now = metadata
        .acquire_lease("somebody", Duration::from_secs(1), false)
        .await
        .unwrap();
    assert!(!now.acquired && now.epoch > before.epoch, "{now:?}");
    assert!(now.holder.starts_with("plane-a#"), "{now:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_processes_of_one_name_do_not_take_the_lease_from_each_other_for_ever() {
    let mut world = World::without_planes().await;
    let config = Config {
        name: "plane-a".to_owned(),
        ..world.plane_config()
    };
    world.start_plane_of(config.clone()).await;
    until("the first decides", || world.planes[0].control.decides()).await;
    world.start_plane_of(config).await;
    until("the second decides", || world.planes[1].control.decides()).await;
    until("the first says what is wrong", || {
        let reasons = world.planes[0].health.not_ready();
        reasons.iter().any(|part| part.reason.contains("its own `name`"))
    })
    .await;
    assert!(world.planes[1].control.decides(), "it keeps the lease");
}
