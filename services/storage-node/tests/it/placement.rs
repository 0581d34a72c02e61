//! What the control plane says, and whose directory it is.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ptah_proto::control::v1::ReplicaState;
use ptah_rpc::clients::ReplicaTombstone;
use ptah_types::ErrorKind;

use crate::harness::{ControlPlane, TestNode, group_id, leader, numbered, order, order_alone, soon, until};

#[tokio::test]
async fn a_first_start_takes_the_cluster_from_the_control_plane() {
    let control = ControlPlane::start().await;
    let node = TestNode::started(1, &control).await;
    let first = control.registrations()[0].clone();
    assert_eq!((first.node_id, first.cluster_id.as_str()), (1, ""));
    assert_eq!((first.address, first.disk_id.len()), (node.address(), 32));
}

#[tokio::test]
async fn reports_tell_replicas_and_the_placement_carried_out() {
    let (control, _node) = leader().await;
    let report = control.report("an open replica", |report| {
        report
            .replicas
            .iter()
            .any(|replica| replica.state() == ReplicaState::Open && replica.initialized)
    });
    let report = report.await;
    assert_eq!((report.placement_epoch, report.placement_revision), (1, 1));
    let replica = &report.replicas[0];
    assert_eq!(
        (
            replica.group_id,
            replica.replica_id,
            replica.voter_replica_ids.clone()
        ),
        (1, 1, vec![1])
    );
}

#[tokio::test]
async fn an_order_older_than_one_carried_out_is_refused_also_after_a_restart() {
    let (_control, mut node) = leader().await;
    let mut newer = order(7, &[&node], &node);
    newer.epoch = 3;
    node.place(&newer).await.unwrap();
    let mut older = order(9, &[&node], &node);
    older.epoch = 2;
    let refused = node.place(&older).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Conflict, "{refused}");
    node.stop().await;
    node.start().await.unwrap();
    assert_eq!(node.place(&older).await.unwrap_err().kind, ErrorKind::Conflict);
    node.place(&newer).await.unwrap();
}

#[tokio::test]
async fn a_tombstone_removes_the_replica_and_its_data() {
    let (control, node) = leader().await;
    node.store(1, &[numbered(1, 3)]).await;
    let mut remove = order(2, &[&node], &node);
    remove.ensure.clear();
    remove.remove.push(ReplicaTombstone {
        group: group_id(1),
        revision: 2,
        replica: None,
    });
    node.place(&remove).await.unwrap();
    control
        .report("no replica", |report| {
            report.placement_revision == 2 && report.replicas.is_empty()
        })
        .await;
    let hex = group_id(1).to_hex();
    let of_group = |path: &std::path::PathBuf| path.iter().any(|part| *part == *hex);
    let left: Vec<_> = node.disk.files().into_iter().filter(of_group).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn another_nodes_directory_is_refused_untouched() {
    let control = ControlPlane::start().await;
    let mut owner = TestNode::started(1, &control).await;
    owner.stop().await;
    let before = contents(&owner);
    let mut thief = TestNode::new(2, &control);
    thief.disk = owner.disk.clone();
    let error = format!("{:#}", thief.start().await.unwrap_err());
    assert!(
        error.contains("belongs to node 1") && error.contains("configured as node 2"),
        "{error}"
    );
    assert_eq!(contents(&owner), before);
}

#[tokio::test]
async fn another_clusters_directory_is_refused_untouched() {
    let control = ControlPlane::start().await;
    let mut node = TestNode::started(1, &control).await;
    node.stop().await;
    let before = contents(&node);
    let foreign = ControlPlane::of_cluster(2).await;
    node.config.control_plane_addresses = ptah_service::List(vec![foreign.address()]);
    let error = format!("{:#}", node.start().await.unwrap_err());
    assert!(error.contains("belongs to cluster"), "{error}");
    assert_eq!(contents(&node), before);
}

#[tokio::test]
async fn a_directory_that_the_control_plane_refuses_is_left_empty() {
    let control = ControlPlane::start().await;
    control.refuse("node 1 had another disk; give the node a new id");
    let mut node = TestNode::new(1, &control);
    let error = format!("{:#}", node.start().await.unwrap_err());
    assert!(error.contains("had another disk"), "{error}");
    assert!(node.disk.files().is_empty(), "{:?}", node.disk.files());
}

#[tokio::test]
async fn a_directory_that_lost_its_data_or_its_placement_is_refused() {
    let (_control, mut node) = leader().await;
    node.stop().await;
    let (disk, placement) = (node.disk.clone(), std::path::Path::new("/data/placement"));
    let saved = disk.contents(placement).unwrap();
    assert!(disk.delete(placement));
    let error = format!("{:#}", node.start().await.unwrap_err());
    assert!(error.contains("no file `placement`"), "{error}");
    disk.as_disk()
        .remove_dir_all(std::path::Path::new("/data"))
        .unwrap();
    disk.as_disk()
        .create_dir_all(std::path::Path::new("/data"))
        .unwrap();
    disk.as_disk().create(placement).unwrap();
    disk.overwrite(placement, saved);
    let error = format!("{:#}", node.start().await.unwrap_err());
    assert!(error.contains("has lost its data"), "{error}");
}

#[tokio::test]
async fn a_damaged_placement_is_told_and_not_written_over() {
    let (_control, mut node) = leader().await;
    node.stop().await;
    let placement = std::path::Path::new("/data/placement");
    assert!(node.disk.flip_bit(placement, 1_000));
    let before = contents(&node);
    let error = format!("{:#}", node.start().await.unwrap_err());
    assert!(error.contains("/data/placement is damaged"), "{error}");
    assert_eq!(contents(&node), before);
}

#[tokio::test]
async fn a_refusal_at_a_restart_keeps_the_node_from_starting() {
    let (control, mut node) = leader().await;
    node.stop().await;
    let refusing = ControlPlane::start().await;
    refusing.refuse("node 1 runs elsewhere with another disk");
    node.config.control_plane_addresses =
        ptah_service::List(vec!["127.0.0.1:1".to_owned(), refusing.address()]);
    let error = format!("{:#}", node.start().await.unwrap_err());
    assert!(error.contains("runs elsewhere"), "{error}");
    drop(control);
}

#[tokio::test]
async fn a_node_that_is_refused_while_it_runs_serves_on_says_so_and_asks_again() {
    let (control, node) = leader().await;
    node.store(1, &[numbered(1, 2)]).await;
    soon("readiness", node.health.until_ready()).await;
    control.refuse("address of node 1 is the one of live node 2");
    until("two refusals", || async {
        (control.refused() >= 2).then_some(())
    })
    .await;
    assert!(!node.has_failed(), "the node goes on");
    node.store(2, &[numbered(3, 2)]).await;
    assert_eq!(node.everything().await, numbered(1, 4));
    let reasons = node.health.not_ready();
    assert_eq!(reasons.len(), 1, "{reasons:?}");
    assert!(
        reasons[0].reason.contains("is the one of live node 2"),
        "{reasons:?}"
    );
    assert!(node.health.status().to_string().contains("refuses this node"));
    control.accept();
    soon("readiness again", node.health.until_ready()).await;
}

#[tokio::test]
async fn the_first_report_tells_the_room_on_the_disk() {
    let control = ControlPlane::start().await;
    let _node = TestNode::started(1, &control).await;
    let report = control.first_report().await;
    assert!(
        report.disk_total_bytes > 0 && report.disk_free_bytes > 0,
        "{report:?}"
    );
}

/// Files of a raft group on which every call hangs, until this is dropped.
struct Hanging(Arc<AtomicBool>);

impl Hanging {
    fn files_of(node: &TestNode, group: u64) -> Self {
        let hangs = Arc::new(AtomicBool::new(true));
        let (gate, hex) = (Arc::clone(&hangs), group_id(group).to_hex());
        node.disk.set_hook(Some(Arc::new(move |_, path| {
            while path.to_string_lossy().contains(&hex) && gate.load(Ordering::Acquire) {
                std::thread::yield_now();
            }
        })));
        Self(hangs)
    }
}

impl Drop for Hanging {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

#[tokio::test]
async fn a_replica_that_is_being_opened_does_not_make_a_ready_node_unready() {
    let (_control, node) = leader().await;
    soon("readiness", node.health.until_ready()).await;
    let hanging = Hanging::files_of(&node, 2);
    node.place(&order_alone(2, 2, &node)).await.unwrap();
    until("the new replica is being opened", || async {
        let status = node.health.status().to_string();
        status.contains("\"state\":\"opening\"").then_some(())
    })
    .await;
    // Taken after the task has looked at the replicas again.
    node.place(&order_alone(3, 2, &node)).await.unwrap();
    node.place(&order_alone(4, 2, &node)).await.unwrap();
    assert!(node.health.is_ready(), "{:?}", node.health.not_ready());
    drop(hanging);
    node.until_led(group_id(2)).await;
}

#[tokio::test]
async fn a_removal_that_hangs_does_not_keep_others_from_being_placed() {
    let (control, node) = leader().await;
    node.place(&order_alone(2, 2, &node)).await.unwrap();
    node.until_led(group_id(2)).await;
    let hanging = Hanging::files_of(&node, 2);
    let mut remove = order(3, &[&node], &node);
    remove.ensure.clear();
    remove.remove.push(ReplicaTombstone {
        group: group_id(2),
        revision: 3,
        replica: None,
    });
    node.place(&remove).await.unwrap();
    node.place(&order_alone(4, 3, &node)).await.unwrap();
    node.until_led(group_id(3)).await;
    drop(hanging);
    control
        .report("the removal", |report| {
            report.replicas.iter().all(|replica| replica.group_id != 2)
        })
        .await;
}

#[tokio::test]
async fn a_panic_in_the_placement_loop_ends_the_node_with_the_reason() {
    let control = ControlPlane::start().await;
    let mut node = TestNode::new(1, &control);
    // Work on the disk is done by the loop itself, so that it panics with it.
    node.ports.blocking = ptah_service::Blocking::Inline;
    node.start().await.unwrap();
    node.disk.set_hook(Some(Arc::new(|_, path| {
        assert!(!path.to_string_lossy().contains("placement"), "on purpose");
    })));
    // The answer never comes.
    drop(node.place(&order(1, &[&node], &node)).await);
    let failure = node.failed().await;
    assert!(
        failure.contains("placement") && failure.contains("on purpose"),
        "{failure}"
    );
}

/// Everything on the disk.
fn contents(node: &TestNode) -> Vec<(std::path::PathBuf, Option<Vec<u8>>)> {
    let files = node.disk.files();
    files
        .into_iter()
        .map(|path| (path.clone(), node.disk.contents(&path)))
        .collect()
}
