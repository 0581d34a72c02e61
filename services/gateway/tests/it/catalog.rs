//! The catalog follows the metadata store through outages, and management works on top of it.

use ptah_proto::api::v1 as api;
use ptah_rpc::clients::CreateStation;
use ptah_types::{ReplicaCount, StationKind, Storage, TenantName};
use tonic::Code;

use crate::support::{APP, Cluster, ROOT, cluster, message, signed, stored, until};

fn wanted(name: &str) -> CreateStation {
    CreateStation {
        principal: "root".parse().unwrap(),
        tenant: TenantName::default_tenant(),
        name: name.parse().unwrap(),
        kind: StationKind::Station,
        partitions: 1,
        replicas: ReplicaCount::ONE,
        storage: Storage::File,
        max_message_bytes: 8 << 20,
    }
}

async fn names(cluster: &Cluster, page_size: u32, page_token: &str) -> (Vec<String>, String) {
    let request = api::ListStationsRequest {
        page_size,
        page_token: page_token.to_owned(),
        ..Default::default()
    };
    let page = cluster
        .stations()
        .list_stations(signed(ROOT, request))
        .await
        .unwrap()
        .into_inner();
    (
        page.stations.into_iter().map(|station| station.name).collect(),
        page.next_page_token,
    )
}

async fn until_listed(cluster: &Cluster, wanted: &[&str]) {
    let listed = async {
        while names(cluster, 0, "").await.0 != wanted {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(crate::support::LIMIT, listed)
        .await
        .unwrap_or_else(|_| panic!("{wanted:?} are not listed"));
}

#[tokio::test]
async fn a_watch_resumes_where_it_broke_and_misses_nothing() {
    let cluster = cluster().start().await;
    let lists = cluster.metadata.lists();
    cluster.metadata.down.send_replace(true);
    until("the watch is broken", || {
        cluster.counter("ptah_gateway_catalog_connected") == 0
    })
    .await;
    cluster.control.make(&wanted("while-down"));
    cluster.metadata.down.send_replace(false);
    until_listed(&cluster, &["while-down"]).await;
    assert_eq!(cluster.metadata.lists(), lists, "nothing was listed again");
}

#[tokio::test]
async fn a_watch_that_was_compacted_away_lists_again_and_drops_what_is_gone() {
    let cluster = cluster().start().await;
    cluster.control.make(&wanted("old"));
    until_listed(&cluster, &["old"]).await;
    cluster.metadata.down.send_replace(true);
    until("the watch is broken", || {
        cluster.counter("ptah_gateway_catalog_connected") == 0
    })
    .await;
    cluster.metadata.delete(ptah_rpc::records::RecordKey::station(
        &TenantName::default_tenant(),
        &"old".parse().unwrap(),
        ptah_types::StationKind::Station,
    ));
    cluster.control.make(&wanted("new"));
    cluster.metadata.compact();
    cluster.metadata.down.send_replace(false);
    until_listed(&cluster, &["new"]).await;
}

#[tokio::test]
async fn messages_flow_while_metadata_and_control_plane_are_down() {
    let cluster = cluster().start().await;
    cluster.station("orders", 2).await;
    cluster.metadata.down.send_replace(true);
    cluster.control.down.send_replace(true);
    let results = cluster.produce("orders", vec![message("a")]).await;
    assert_eq!(stored(&results[0]).1, 1);
    // Programs make their stations at every start.
    let request = api::CreateStationRequest {
        name: "Orders".to_owned(),
        config: Some(api::StationConfig {
            partitions: 2,
            replicas: 3,
            ..Default::default()
        }),
        ..Default::default()
    };
    let found = cluster
        .stations()
        .create_station(signed(ROOT, request.clone()))
        .await
        .unwrap()
        .into_inner();
    assert!(!found.created);
    let other = api::CreateStationRequest {
        config: None,
        ..request
    };
    let refused = cluster
        .stations()
        .create_station(signed(ROOT, other))
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::AlreadyExists);
}

#[tokio::test]
async fn stations_are_listed_by_pages_in_order_of_their_names() {
    let cluster = cluster().start().await;
    for name in ["delta", "Alpha", "charlie", "bravo", "echo"] {
        cluster.control.make(&wanted(name));
    }
    until_listed(&cluster, &["Alpha", "bravo", "charlie", "delta", "echo"]).await;
    let (first, token) = names(&cluster, 2, "").await;
    let (second, token) = names(&cluster, 2, &token).await;
    let (third, end) = names(&cluster, 2, &token).await;
    assert_eq!(
        (first, second, third),
        (
            vec!["Alpha".to_owned(), "bravo".to_owned()],
            vec!["charlie".to_owned(), "delta".to_owned()],
            vec!["echo".to_owned()]
        )
    );
    assert_eq!(end, "");
}

#[tokio::test]
async fn a_station_is_shown_with_leaders_and_sequences() {
    let cluster = cluster().start().await;
    cluster.station("orders", 3).await;
    cluster
        .produce(
            "orders",
            vec![api::NewMessage {
                partition: 2,
                ..message("x")
            }],
        )
        .await;
    let request = api::GetStationRequest {
        name: "ORDERS".to_owned(),
        ..Default::default()
    };
    let shown = cluster
        .stations()
        .get_station(signed(ROOT, request))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(shown.station.unwrap().name, "orders");
    let partitions: Vec<_> = shown
        .partitions
        .iter()
        .map(|p| (p.partition, p.leader_node_id, p.next_sequence))
        .collect();
    assert_eq!(partitions, [(1, 1, 1), (2, 2, 2), (3, 3, 1)]);
    assert!(shown.partitions.iter().all(|p| p.trouble.is_empty()));
    let replicas = |p: &api::PartitionStatus| (p.healthy_replicas, p.wanted_replicas);
    assert!(shown.partitions.iter().all(|p| replicas(p) == (Some(3), 3)));
}

#[tokio::test]
async fn a_deletion_whose_answer_was_lost_is_asked_for_again_by_the_same_id() {
    let cluster = cluster().start().await;
    cluster.station("orders", 1).await;
    let shown = show(&cluster, ROOT).await;
    let request = api::DeleteStationRequest {
        name: "Orders".to_owned(),
        ..Default::default()
    };
    cluster
        .stations()
        .delete_station(signed(ROOT, request))
        .await
        .unwrap();
    let asked: Vec<u64> = cluster
        .control
        .deletions
        .lock()
        .iter()
        .map(|(request, _)| request.station_id)
        .collect();
    let id = shown.station.unwrap().id;
    assert_eq!(asked, [id, id]);
}

#[tokio::test]
async fn a_deletion_of_a_station_that_is_not_known_here_is_asked_for_once() {
    let cluster = cluster().start().await;
    cluster.metadata.down.send_replace(true);
    until("the watch is broken", || {
        cluster.counter("ptah_gateway_catalog_connected") == 0
    })
    .await;
    cluster.control.make(&wanted("orders"));
    let request = api::DeleteStationRequest {
        name: "orders".to_owned(),
        ..Default::default()
    };
    let refused = cluster
        .stations()
        .delete_station(signed(ROOT, request))
        .await
        .unwrap_err();
    assert!(
        refused.message().contains("station `orders` is not deleted"),
        "{refused:?}"
    );
    assert!(refused.message().contains("may have happened"), "{refused:?}");
    assert_eq!(cluster.control.deletions.lock().len(), 1);
}

async fn show(cluster: &Cluster, credentials: &'static str) -> api::GetStationResponse {
    let request = api::GetStationRequest {
        name: "orders".to_owned(),
        ..Default::default()
    };
    let shown = cluster.stations().get_station(signed(credentials, request)).await;
    shown.unwrap().into_inner()
}

#[tokio::test]
async fn a_partition_with_a_dead_a_lost_or_a_damaged_replica_is_not_shown_as_well() {
    let cluster = cluster().start().await;
    cluster.station("orders", 1).await;
    cluster.control.told.send_replace(|nodes| {
        nodes[1].alive = false;
        if let Some(report) = &mut nodes[2].report {
            report.replicas[0].state = ptah_proto::control::v1::ReplicaState::Lost.into();
            report.replicas[0].trouble = "its directory is gone".to_owned();
        }
    });
    let shown = show(&cluster, ROOT).await;
    let partition = &shown.partitions[0];
    assert_eq!(partition.healthy_replicas, Some(1));
    assert_eq!(
        partition.trouble,
        "1 of 3 replicas are healthy: node 2 (node-2) is not alive, \
         lost on node 3 (node-3): its directory is gone"
    );
    // A program may not ask for nodes: it is told nothing that is not known.
    let shown = show(&cluster, APP).await;
    assert_eq!(shown.partitions[0].healthy_replicas, None);
    assert_eq!(shown.partitions[0].trouble, "");
}

#[tokio::test]
async fn a_station_that_cannot_be_made_says_who_does_not_answer_and_what_to_do() {
    let cluster = cluster().start().await;
    cluster.control.down.send_replace(true);
    let create = || async {
        let request = api::CreateStationRequest {
            name: "orders".to_owned(),
            ..Default::default()
        };
        let made = cluster.stations().create_station(signed(ROOT, request)).await;
        made.unwrap_err()
    };
    let refused = create().await;
    assert_eq!(refused.code(), Code::Unavailable);
    for part in [
        "station `orders` is not made",
        "no control plane at",
        "nothing happened, existing stations go on; try again",
    ] {
        assert!(refused.message().contains(part), "{part:?} in {refused:?}");
    }
    cluster.metadata.down.send_replace(true);
    let metadata = format!(
        "the metadata service at `{}` does not answer",
        cluster.config.metadata_addresses[0]
    );
    let named = async { while !create().await.message().contains(&metadata) {} };
    tokio::time::timeout(crate::support::LIMIT, named)
        .await
        .expect("metadata is named");
}

#[tokio::test]
async fn a_deleted_station_refuses_messages_by_name_also_on_open_streams() {
    let cluster = cluster().start().await;
    cluster.station("orders", 1).await;
    let stream = cluster.produce_stream("orders").await;
    let request = api::DeleteStationRequest {
        name: "orders".to_owned(),
        ..Default::default()
    };
    cluster
        .stations()
        .delete_station(signed(ROOT, request))
        .await
        .unwrap();
    stream.send(vec![message("late")]).await;
    let results = stream.finish().await;
    let Some(api::produce_result::Outcome::Error(error)) = &results[&0].outcome else {
        panic!("{results:?}")
    };
    assert_eq!(error.kind(), ptah_proto::common::v1::ErrorKind::NotFound);
}

#[tokio::test]
async fn a_station_that_is_deleted_while_it_is_made_is_a_conflict_at_once() {
    let cluster = cluster().start().await;
    cluster.control.leaderless.send_replace(true);
    let request = api::CreateStationRequest {
        name: "orders".to_owned(),
        ..Default::default()
    };
    let mut stations = cluster.stations();
    let create = stations.create_station(signed(ROOT, request));
    let delete = async {
        until_listed(&cluster, &["orders"]).await;
        cluster.metadata.delete(ptah_rpc::records::RecordKey::station(
            &TenantName::default_tenant(),
            &"orders".parse().unwrap(),
            StationKind::Station,
        ));
    };
    let both = async { tokio::join!(create, delete).0 };
    let refused = tokio::time::timeout(crate::support::LIMIT, both)
        .await
        .expect("it does not wait for leaders of a station that is gone")
        .unwrap_err();
    assert_eq!(refused.code(), Code::Aborted);
    assert!(
        refused
            .message()
            .contains("station `orders` was deleted meanwhile"),
        "{}",
        refused.message()
    );
}

#[tokio::test]
async fn a_gateway_starts_from_its_file_while_metadata_is_down() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("catalog");
    let mut cluster = cluster()
        .config(|config| config.catalog_file = file.clone())
        .start()
        .await;
    cluster.station("orders", 2).await;
    let first = std::fs::metadata(&file).map(|meta| meta.len()).unwrap_or(0);
    until("the station is in the file", || {
        std::fs::metadata(&file).is_ok_and(|meta| meta.len() > first)
    })
    .await;
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&file).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600, "it holds password hashes");
    cluster.metadata.down.send_replace(true);
    cluster.control.down.send_replace(true);
    cluster.stop_gateway(crate::support::LIMIT).await;
    cluster.start_gateway().await;
    let results = cluster.produce("orders", vec![message("a")]).await;
    assert_eq!(stored(&results[0]).1, 1);
    // What changed in the meantime comes with the watch, from where the file ends.
    let lists = cluster.metadata.lists();
    cluster.control.make(&wanted("while-down"));
    cluster.metadata.down.send_replace(false);
    until_listed(&cluster, &["orders", "while-down"]).await;
    assert_eq!(cluster.metadata.lists(), lists, "nothing was listed again");
}
