//! Stations and consumer groups, from the call to the replicas.

use std::time::{Duration, Instant};

use ptah_rpc::clients::DeleteStation;
use ptah_types::{ErrorKind, RaftGroupId};

use crate::harness::{World, group, root, station, tenant, until, until_async};

fn deletion(name: &str) -> DeleteStation {
    DeleteStation {
        principal: root(),
        tenant: tenant(),
        name: name.parse().unwrap(),
        id: None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_station_is_opened_on_all_nodes_and_initialised_exactly_once() {
    let world = World::with_nodes(3).await;
    let management = world.management(0);
    let made = management.create_station(&station("Orders", 4, 3)).await.unwrap();
    assert!(made.created);
    world.until_placed(4).await;
    for placement in world.placements().await {
        assert_eq!(placement.replicas.len(), 3);
        let initialized: u32 = world
            .nodes
            .iter()
            .map(|node| node.history(placement.group).initialized_times)
            .sum();
        assert_eq!(initialized, 1, "{placement:?}");
        let opened: Vec<u32> = world
            .nodes
            .iter()
            .map(|node| node.history(placement.group).opened_times)
            .collect();
        assert_eq!(opened, [1, 1, 1]);
        let first = placement
            .replicas
            .iter()
            .find(|replica| replica.replica.get() == 1)
            .unwrap();
        let initializer = world
            .nodes
            .iter()
            .find(|node| node.history(placement.group).initialized_times == 1);
        assert_eq!(initializer.unwrap().id, first.node, "the first replica");
    }
    let spec = &world.nodes[0].specs()[0];
    assert_eq!(
        (spec.max_message_bytes, spec.members.len(), spec.generation),
        (8 << 20, 3, 1)
    );
    assert_eq!(world.nodes[0].peers().len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_station_of_three_replicas_is_ready_within_300_ms() {
    let world = World::with_nodes(3).await;
    let management = world.management(0);
    // The first one warms connections up.
    management.create_station(&station("warm", 1, 3)).await.unwrap();
    world.until_placed(1).await;
    let mut fastest = Duration::MAX;
    for number in 0..5 {
        let began = Instant::now();
        let name = format!("orders-{number}");
        management.create_station(&station(&name, 1, 3)).await.unwrap();
        let initialized = || {
            let groups = world.nodes[0].groups();
            let last = groups.last().copied();
            let times = |group| {
                world
                    .nodes
                    .iter()
                    .map(|node| node.history(group).initialized_times)
                    .sum::<u32>()
            };
            last.is_some_and(|last: RaftGroupId| last.get() == number + 2 && times(last) == 1)
        };
        until("the group is initialised", initialized).await;
        fastest = fastest.min(began.elapsed());
    }
    assert!(fastest < Duration::from_millis(300), "{fastest:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_the_same_station_made_many_times_at_once_exactly_one_wins() {
    let world = World::with_nodes(3).await;
    let calls = (0..20).map(|_| {
        let management = world.management(0);
        async move { management.create_station(&station("orders", 2, 3)).await.unwrap() }
    });
    let made = futures_util::future::join_all(calls).await;
    assert_eq!(made.iter().filter(|made| made.created).count(), 1);
    assert!(
        made.iter()
            .all(|one| one.id == made[0].id && one.revision == made[0].revision)
    );
    assert_eq!(world.placements().await.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_stations_made_at_once_all_get_their_own_ids() {
    let world = World::with_nodes(3).await;
    let calls = (0..40).map(|number| {
        let management = world.management(0);
        async move {
            management
                .create_station(&station(&format!("s-{number}"), 2, 3))
                .await
                .unwrap()
        }
    });
    let made = futures_util::future::join_all(calls).await;
    let mut ids: Vec<u64> = made.iter().map(|made| made.id.get()).collect();
    ids.sort_unstable();
    assert_eq!(ids, (1..=40).collect::<Vec<_>>());
    let mut groups: Vec<u64> = world
        .placements()
        .await
        .iter()
        .map(|placement| placement.group.get())
        .collect();
    groups.sort_unstable();
    assert_eq!(groups, (1..=80).collect::<Vec<_>>());
    world.until_placed(80).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_station_with_other_settings_is_refused_by_its_difference() {
    let world = World::with_nodes(3).await;
    let management = world.management(0);
    management.create_station(&station("orders", 2, 3)).await.unwrap();
    let again = management.create_station(&station("ORDERS", 2, 3)).await.unwrap();
    assert!(!again.created);
    let refused = management
        .create_station(&station("orders", 3, 3))
        .await
        .unwrap_err();
    assert_eq!(refused.kind, ErrorKind::AlreadyExists);
    assert!(
        refused.message.contains("exists with 2 partitions, not 3"),
        "{refused}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_station_disappears_from_every_node_and_its_name_is_free() {
    let mut world = World::with_nodes(3).await;
    let management = world.management(0);
    let first = management.create_station(&station("orders", 2, 3)).await.unwrap();
    let audit = management
        .ensure_consumer_group(&group("orders", "audit"))
        .await
        .unwrap();
    world.until_placed(2).await;
    // One node is away while the station is deleted.
    world.nodes[2].refuse(true);
    management.delete_station(&deletion("Orders")).await.unwrap();
    for node in &world.nodes[..2] {
        until("the replicas are gone", || node.groups().is_empty()).await;
    }
    assert_eq!(world.nodes[2].groups().len(), 2);
    world.nodes[2].refuse(false);
    until("the replicas are gone from the node that was away", || {
        world.nodes[2].groups().is_empty()
    })
    .await;

    let refused = management.delete_station(&deletion("orders")).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::NotFound);
    let second = management.create_station(&station("orders", 1, 3)).await.unwrap();
    assert!(second.created && second.id != first.id);
    let again = management
        .ensure_consumer_group(&group("orders", "audit"))
        .await
        .unwrap();
    assert!(
        again.created && again.id != audit.id,
        "nothing of the old group is met again"
    );
    world.until_placed(1).await;
    world.stop_plane(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn groups_that_nobody_knows_are_kept() {
    let world = World::with_nodes(1).await;
    let management = world.management(0);
    management.create_station(&station("orders", 1, 1)).await.unwrap();
    world.until_placed(1).await;
    let spec = world.nodes[0].specs()[0].clone();
    world.nodes[0].find_on_disk(spec, 4_711);
    // An order that comes after the report must not name the group.
    management.create_station(&station("other", 1, 1)).await.unwrap();
    world.until_placed(2).await;
    management.delete_station(&deletion("other")).await.unwrap();
    until("the deleted one is gone", || world.nodes[0].groups().len() == 2).await;
    assert!(
        world.nodes[0]
            .groups()
            .contains(&RaftGroupId::new(4_711).unwrap())
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_few_nodes_are_told_with_numbers() {
    let world = World::with_nodes(2).await;
    let management = world.management(0);
    let refused = management
        .create_station(&station("orders", 1, 3))
        .await
        .unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Conflict);
    assert!(
        refused
            .message
            .contains("need 3 storage nodes, the cluster has 2"),
        "{refused}"
    );
    management.create_station(&station("orders", 1, 1)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_station_waits_for_a_node_that_is_slow_to_come() {
    let world = World::with_nodes(3).await;
    let management = world.management(0);
    world.nodes[1].refuse(true);
    management.create_station(&station("orders", 1, 3)).await.unwrap();
    until_async("two nodes have opened theirs", async || {
        let placements = world.placements().await;
        placements[0]
            .replicas
            .iter()
            .filter(|replica| replica.opened)
            .count()
            == 2
    })
    .await;
    assert!(
        !world.placements().await[0].initialized,
        "not before all are there"
    );
    world.nodes[1].refuse(false);
    world.until_placed(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_station_is_placed_in_full() {
    let world = World::with_nodes(3).await;
    world
        .management(0)
        .create_station(&station("large", 1_024, 3))
        .await
        .unwrap();
    world.until_placed(1_024).await;
    for node in &world.nodes {
        assert_eq!(node.groups().len(), 1_024);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_group_made_many_times_at_once_is_made_once() {
    let world = World::with_nodes(1).await;
    world
        .management(0)
        .create_station(&station("orders", 1, 1))
        .await
        .unwrap();
    let calls = (0..20).map(|_| {
        let management = world.management(0);
        async move {
            management
                .ensure_consumer_group(&group("orders", "audit"))
                .await
                .unwrap()
        }
    });
    let made = futures_util::future::join_all(calls).await;
    assert_eq!(made.iter().filter(|made| made.created).count(), 1);
    assert!(made.iter().all(|one| one.id == made[0].id));
    assert_eq!(
        (made[0].config.ack_deadline_ms, made[0].config.max_in_flight),
        (30_000, 1_000)
    );
    let refused = world
        .management(0)
        .ensure_consumer_group(&group("nothing", "audit"))
        .await
        .unwrap_err();
    assert_eq!(
        (refused.kind, refused.message.as_str()),
        (ErrorKind::NotFound, "station `nothing` not found")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_that_are_not_known_are_refused() {
    let world = World::with_nodes(1).await;
    let stranger = ptah_rpc::clients::CreateStation {
        principal: "nobody".parse().unwrap(),
        ..station("orders", 1, 1)
    };
    let refused = world.management(0).create_station(&stranger).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Unauthenticated);
    let refused = world
        .management(0)
        .describe_nodes(&"nobody".parse().unwrap())
        .await
        .unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Unauthenticated);
}
