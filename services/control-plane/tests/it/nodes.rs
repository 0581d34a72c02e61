//! Nodes that join, die, come back, and come back as somebody else.

use std::collections::BTreeSet;

use ptah_rpc::clients::{NodeRegistration, ReplicaState};
use ptah_types::{ClusterId, ErrorKind};

use crate::fake_node::FakeNode;
use crate::harness::{World, root, station, until, until_async};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_are_described_with_their_reports_and_die_when_they_are_silent() {
    let world = World::with_nodes(2).await;
    world
        .management(0)
        .create_station(&station("orders", 1, 1))
        .await
        .unwrap();
    world.until_placed(1).await;
    let management = world.management(0);
    until_async("reports tell the replica", async || {
        let nodes = management.describe_nodes(&root()).await.unwrap().nodes;
        nodes
            .iter()
            .filter_map(|node| node.report.as_ref())
            .any(|report| report.replicas.len() == 1)
    })
    .await;
    let nodes = management.describe_nodes(&root()).await.unwrap().nodes;
    let names: Vec<&str> = nodes.iter().map(|node| node.name.as_str()).collect();
    assert_eq!(names, ["node-1", "node-2"]);
    world.nodes[0].stop().await;
    world.until_alive(1).await;
    let nodes = management.describe_nodes(&root()).await.unwrap().nodes;
    assert_eq!((nodes[0].alive, nodes[1].alive), (false, true));
    assert!(nodes[0].last_seen_ago >= std::time::Duration::from_secs(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_and_doubles_may_not_join() {
    let world = World::with_nodes(1).await;
    let client = world.node_client(0);
    let known = world.nodes[0].registration();
    let foreign = NodeRegistration {
        node: ptah_types::NodeId::new(9).unwrap(),
        address: "127.0.0.1:9".to_owned(),
        cluster: Some(ClusterId::from_random_bytes([9; 16])),
        ..known.clone()
    };
    let refused = client.register(&foreign).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Incompatible);
    assert!(refused.message.contains("belongs to cluster"), "{refused}");
    let double = NodeRegistration {
        disk_id: "another disk".to_owned(),
        address: "127.0.0.1:9".to_owned(),
        ..known.clone()
    };
    let refused = client.register(&double).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::AlreadyExists);
    let registered = client.register(&known).await.unwrap();
    assert_eq!(registered.cluster, world.metadata().info().await.unwrap().cluster);
    let own = NodeRegistration {
        cluster: Some(registered.cluster),
        ..known
    };
    client.register(&own).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_comes_back_with_an_empty_disk_does_not_get_its_replicas_made_anew() {
    let mut world = World::with_nodes(3).await;
    world
        .management(0)
        .create_station(&station("orders", 2, 3))
        .await
        .unwrap();
    world.until_placed(2).await;
    world.nodes[2].stop().await;
    world.until_alive(2).await;
    let mut replaced = FakeNode::start(3, &[]).await;
    replaced.disk_id = "a new disk".to_owned();
    replaced.start_reports(&world.plane_addresses());
    world.nodes[2] = replaced;
    until("the node was told of its replicas", || {
        world.nodes[2].groups().len() == 2
    })
    .await;
    assert_eq!(world.nodes[2].states(), [ReplicaState::Lost, ReplicaState::Lost]);
    for group in world.nodes[2].groups() {
        assert_eq!(world.nodes[2].history(group).opened_times, 0);
    }
    world
        .management(0)
        .create_station(&station("new", 1, 3))
        .await
        .unwrap();
    until_async("new stations use the new disk", async || {
        let opened = world.nodes[2].states();
        opened.contains(&ReplicaState::Open)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_node_is_made_known_to_the_others() {
    let mut world = World::with_nodes(1).await;
    until("the node knows itself", || world.nodes[0].peers().len() == 1).await;
    world.start_node(2).await;
    until("both know both", || {
        world.nodes.iter().all(|node| node.peers().len() == 2)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_stations_avoid_nodes_that_are_not_alive() {
    let world = World::with_nodes(4).await;
    world.nodes[0].stop().await;
    world.until_alive(3).await;
    world
        .management(0)
        .create_station(&station("orders", 8, 3))
        .await
        .unwrap();
    world.until_placed(8).await;
    assert!(world.nodes[0].groups().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_station_begins_although_one_of_its_nodes_died_before_it_opened_anything() {
    let mut world = World::with_nodes(3).await;
    world.nodes[0].refuse(true);
    world
        .management(0)
        .create_station(&station("orders", 2, 3))
        .await
        .unwrap();
    world.nodes[0].stop().await;
    until_async("both partitions begin", async || {
        let placements = world.placements().await;
        placements
            .iter()
            .filter(|placement| placement.initialized)
            .count()
            == 2
    })
    .await;
    for placement in world.placements().await {
        let (opened, members): (Vec<_>, _) = placement
            .replicas
            .iter()
            .map(|replica| (replica.opened, replica.node.get()))
            .unzip();
        let members: BTreeSet<u64> = members;
        assert_eq!(opened.iter().filter(|opened| **opened).count(), 2);
        assert_eq!(members, BTreeSet::from([1, 2, 3]), "the dead node stays a member");
    }
    // It comes back with its disk, and opens what waits for it.
    let back = FakeNode::start(1, &[]).await;
    back.start_reports(&world.plane_addresses());
    world.nodes[0] = back;
    world.until_placed(2).await;
}
