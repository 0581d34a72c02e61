//! Duties of nodes, other numbers of replicas, and replicas that have left.

use ptah_rpc::clients::{ReplicaReport, SetNodeDuty, UpdateStation};
use ptah_rpc::records::{NodeDuty, PlacementRecord};
use ptah_types::ReplicaId;

use super::*;
use crate::view::tests::station as station_at;

fn duty(node: u64, duty: NodeDuty, accept_loss: bool) -> SetNodeDuty {
    SetNodeDuty {
        principal: "root".parse().unwrap(),
        node: id(node),
        duty,
        accept_loss,
    }
}

fn set(view: &View, nodes: &Nodes, request: &SetNodeDuty) -> Result<Step<Option<u64>>, ControlError> {
    duty::set_duty(view, nodes, request)
}

fn apply<T>(change: Change<T>, revision: u64, view: &mut View) {
    for write in change.writes {
        view.apply(record(revision, write.key, write.value.unwrap()));
    }
    view.advance(revision);
}

fn silent() -> Nodes {
    Nodes::new(std::time::Duration::from_secs(5))
}

fn placed(view: &View) -> PlacementRecord {
    view.placements().next().unwrap().value.clone()
}

#[test]
fn a_node_is_drained_and_taken_back() {
    let mut view = cluster();
    apply(
        change(set(&view, &silent(), &duty(2, NodeDuty::Draining, false))),
        3,
        &mut view,
    );
    assert_eq!(view.node(id(2)).unwrap().value.duty, NodeDuty::Draining);
    let again = set(&view, &silent(), &duty(2, NodeDuty::Draining, false));
    assert!(
        matches!(again, Ok(Step::Done(Some(3)))),
        "twice is the same as once"
    );
    apply(
        change(set(&view, &silent(), &duty(2, NodeDuty::Serving, false))),
        4,
        &mut view,
    );
    assert_eq!(view.node(id(2)).unwrap().value.duty, NodeDuty::Serving);
    let unknown = refused(set(&view, &silent(), &duty(9, NodeDuty::Draining, false)));
    assert_eq!(unknown, ControlError::NodeNotFound(id(9)));
    let mut stranger = duty(2, NodeDuty::Draining, false);
    stranger.principal = "app".parse().unwrap();
    assert_eq!(
        refused(set(&view, &silent(), &stranger)).kind(),
        ErrorKind::PermissionDenied
    );
}

#[test]
fn a_node_is_forgotten_only_when_it_is_gone_and_its_loss_is_accepted() {
    let mut view = cluster();
    view.apply(station_at(3, 1, "orders"));
    view.apply(placement_with(3, 1, 10, &[1, 2, 3], &[1, 2, 3], true));
    let alive_nodes = silent();
    alive_nodes.reported(report(2, 3, Vec::new()));
    let forget = |accept_loss| duty(2, NodeDuty::Forgotten, accept_loss);
    let refusal = refused(set(&view, &alive_nodes, &forget(true)));
    assert!(refusal.to_string().contains("it is alive"), "{refusal}");
    let refusal = refused(set(&view, &silent(), &forget(false)));
    assert!(refusal.to_string().contains("--accept-loss"), "{refusal}");
    apply(change(set(&view, &silent(), &forget(true))), 4, &mut view);
    assert_eq!(view.node(id(2)).unwrap().value.duty, NodeDuty::Forgotten);
    let lost: Vec<bool> = placed(&view)
        .replicas
        .iter()
        .map(|replica| replica.lost)
        .collect();
    assert_eq!(lost, [false, true, false]);
    let back = refused(set(&view, &silent(), &duty(2, NodeDuty::Serving, false)));
    assert!(back.to_string().contains("empty data directory"), "{back}");
}

#[test]
fn a_forgotten_node_comes_back_with_an_empty_disk_only() {
    let mut view = cluster();
    apply(
        change(set(&view, &silent(), &duty(2, NodeDuty::Forgotten, false))),
        3,
        &mut view,
    );
    let mut comes = registration(2, "disk-2");
    let refusal = refused(node::register(&view, &silent(), &comes));
    assert!(refusal.to_string().contains("it was forgotten"), "{refusal}");
    comes.disk_id = "another".to_owned();
    apply(change(node::register(&view, &silent(), &comes)), 4, &mut view);
    assert_eq!(view.node(id(2)).unwrap().value.duty, NodeDuty::Serving);
}

#[test]
fn a_node_that_registers_again_stays_drained() {
    let mut view = cluster();
    apply(
        change(set(&view, &silent(), &duty(2, NodeDuty::Draining, false))),
        3,
        &mut view,
    );
    let mut comes = registration(2, "disk-2");
    comes.address = "127.0.0.1:7999".to_owned();
    apply(change(node::register(&view, &silent(), &comes)), 4, &mut view);
    assert_eq!(view.node(id(2)).unwrap().value.duty, NodeDuty::Draining);
}

#[test]
fn a_station_gets_another_number_of_replicas_if_there_are_nodes_for_them() {
    let mut view = cluster();
    view.apply(station_at(3, 1, "orders"));
    let wanted = |replicas: u32| UpdateStation {
        principal: "root".parse().unwrap(),
        tenant: tenant(),
        name: "orders".parse().unwrap(),
        replicas: ReplicaCount::new(replicas).ok(),
    };
    let update = |view: &View, replicas, nodes| station::update(view, &wanted(replicas), &alive(nodes));
    assert!(matches!(update(&view, 3, 3), Ok(Step::Done(updated)) if updated.revision == 3));
    let few = refused(update(&view, 5, 3));
    assert!(few.to_string().contains("5 replicas"), "{few}");
    apply(change(update(&view, 1, 0)), 4, &mut view);
    let name = "orders".parse().unwrap();
    assert_eq!(view.station(&tenant(), &name).unwrap().value.replicas.get(), 1);
    let mut missing = wanted(1);
    missing.name = "none".parse().unwrap();
    assert_eq!(
        refused(station::update(&view, &missing, &alive(3))).kind(),
        ErrorKind::NotFound
    );
}

/// Replica 2 leaves for replica 4; what the leader on node 1 reports, and what comes of it.
fn after(voters: &[u64], settled: bool, learners: &[u64], fence: u64) -> Option<PlacementRecord> {
    let mut view = cluster();
    view.apply(node(2, 4));
    view.apply(station_at(3, 1, "orders"));
    let mut leaving = placement_with(5, 1, 10, &[1, 2, 3, 4], &[1, 2, 3, 4], true);
    if let RecordValue::Placement(placement) = &mut leaving.value {
        placement.replicas[1].leaving = true;
    }
    view.apply(leaving);
    let nodes = silent();
    let ids = |ids: &[u64]| ids.iter().map(|id| ReplicaId::new(*id).unwrap()).collect();
    let led = ReplicaReport {
        leader: Some(id(1)),
        voters: ids(voters),
        learners: ids(learners),
        members_settled: settled,
        ..replica(10, 1, ReplicaState::Open, true)
    };
    nodes.reported(report(1, fence, vec![led]));
    match progress::progress(&view, &nodes) {
        Step::Done(_) => None,
        Step::Commit(change) => {
            let mut view = view;
            apply(change, 6, &mut view);
            Some(placed(&view))
        }
    }
}

#[test]
fn a_replica_has_left_when_the_leader_says_that_this_is_committed() {
    let left = after(&[1, 3, 4], true, &[], 5).unwrap();
    let stay: Vec<u64> = left
        .replicas
        .iter()
        .map(|replica| replica.replica.get())
        .collect();
    assert_eq!((stay.as_slice(), left.is_changing()), (&[1, 3, 4][..], false));
    assert_eq!((left.retired[0].replica.get(), left.retired[0].node), (2, id(2)));
    assert_eq!(after(&[1, 2, 3, 4], true, &[], 5), None, "it is still a voter");
    assert_eq!(after(&[1, 3, 4], false, &[], 5), None, "it is not committed");
    assert_eq!(after(&[1, 3, 4], true, &[2], 5), None, "it still learns");
    assert_eq!(
        after(&[1, 3, 4], true, &[], 4),
        None,
        "the leader may still go by an older wish"
    );
}

#[test]
fn what_has_left_is_forgotten_when_its_node_has_removed_it_or_is_forgotten_itself() {
    let mut view = cluster();
    view.apply(station_at(3, 1, "orders"));
    let mut retired = placement_with(5, 1, 10, &[1, 3], &[1, 3], true);
    if let RecordValue::Placement(placement) = &mut retired.value {
        placement.retired.push(ptah_rpc::records::RetiredReplica {
            replica: ReplicaId::new(7).unwrap(),
            node: id(2),
        });
    }
    view.apply(retired);
    let done = |view: &View, nodes: &Nodes| matches!(progress::progress(view, nodes), Step::Commit(_));
    let nodes = silent();
    assert!(!done(&view, &nodes), "it has not said anything");
    nodes.reported(report(2, 5, vec![replica(10, 7, ReplicaState::Open, true)]));
    assert!(!done(&view, &nodes), "it has it");
    nodes.reported(report(2, 4, Vec::new()));
    assert!(!done(&view, &nodes), "an older order may bring it back");
    nodes.reported(report(2, 5, Vec::new()));
    assert!(done(&view, &nodes));
    let change = change(set(&view, &silent(), &duty(2, NodeDuty::Forgotten, false)));
    apply(change, 6, &mut view);
    assert!(done(&view, &silent()), "nothing is expected of it any more");
}
