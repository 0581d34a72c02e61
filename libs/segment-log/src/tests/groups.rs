//! Identity, locks, and the life of groups.

use ptah_types::{ClusterId, NodeId, ReplicaId};

use super::harness::*;
use crate::testing::{batch, group_id, identity, log_id, spec};
use crate::types::{GroupCondition, GroupSpec, Identity};
use crate::{GroupError, OpenError, SimDisk, Store};

fn all_bytes(disk: &SimDisk) -> Vec<(std::path::PathBuf, Option<Vec<u8>>)> {
    disk.files()
        .into_iter()
        .map(|path| (path.clone(), disk.contents(&path)))
        .collect()
}

fn filled() -> SimDisk {
    let disk = SimDisk::new(3);
    let store = open(&disk);
    let group = store.create_group(spec(1, 8 << 10)).unwrap();
    append_now(&store, &group, vec![batch(1, 0, 1, 1, 100)]);
    drop((group, store));
    disk
}

#[test]
fn another_cluster_or_node_or_a_newer_format_is_refused_and_nothing_is_touched() {
    let disk = filled();
    let before = all_bytes(&disk);
    let writes = disk.writes();
    let other_cluster = Identity {
        cluster: ClusterId::from_bytes([9; 16]).unwrap(),
        ..identity()
    };
    let other_node = Identity {
        node: NodeId::new(2).unwrap(),
        ..identity()
    };
    let open_as = |who| Store::open(disk.as_disk(), &dir(), who, tiny());
    assert!(matches!(
        open_as(other_cluster),
        Err(OpenError::OtherCluster { .. })
    ));
    assert!(matches!(open_as(other_node), Err(OpenError::OtherNode { .. })));
    assert_eq!((disk.writes(), all_bytes(&disk)), (writes, before));
    // A format from the future, with right checksums.
    let path = dir().join("node.meta");
    let mut bytes = disk.contents(&path).unwrap();
    for copy in [0, 1024, 2048] {
        bytes[copy + 12] = 9;
        let crc = crate::crc32c(&bytes[copy + 12..copy + 40]);
        bytes[copy + 8..copy + 12].copy_from_slice(&crc.to_le_bytes());
    }
    disk.overwrite(&path, bytes);
    let before = all_bytes(&disk);
    let error = open_as(identity()).unwrap_err();
    assert!(
        matches!(error, OpenError::NewerFormat { found: 9, .. }),
        "{error}"
    );
    assert!(error.to_string().contains("node.meta"));
    assert_eq!((disk.writes(), all_bytes(&disk)), (writes, before));
}

#[test]
fn a_directory_is_opened_once_at_a_time() {
    let disk = SimDisk::new(1);
    let store = open(&disk);
    let error = open_with(&disk, tiny()).unwrap_err();
    assert!(matches!(error, OpenError::Locked { .. }), "{error}");
    store.close().unwrap();
    open(&disk);
}

#[test]
fn the_identity_is_told_without_opening() {
    let disk = SimDisk::new(1);
    assert_eq!(Store::read_identity(&disk, &dir()).unwrap(), None);
    open(&disk);
    assert_eq!(Store::read_identity(&disk, &dir()).unwrap(), Some(identity()));
}

#[test]
fn data_without_an_identity_is_refused() {
    let disk = filled();
    disk.delete(&dir().join("node.meta"));
    assert!(matches!(
        open_with(&disk, tiny()),
        Err(OpenError::IdentityMissing { .. })
    ));
}

#[test]
fn a_closed_store_refuses_work() {
    let disk = SimDisk::new(1);
    let store = open(&disk);
    let group = store.create_group(spec(1, 8 << 10)).unwrap();
    store.close().unwrap();
    store.close().unwrap();
    assert!(
        group
            .append(vec![batch(1, 0, 1, 1, 10)], Outcome::default().done())
            .is_err()
    );
    let outcome = Outcome::default();
    group.truncate_after(None, outcome.done());
    assert!(outcome.is_err());
}

#[test]
fn a_dropped_group_is_gone_and_its_replica_id_is_never_used_again() {
    let disk = SimDisk::new(1);
    let store = open(&disk);
    let group = store.create_group(spec(1, 8 << 10)).unwrap();
    assert!(matches!(
        store.create_group(spec(1, 8 << 10)),
        Err(GroupError::Exists(_))
    ));
    let queued = append(&group, vec![batch(1, 0, 1, 1, 100)]);
    store.drop_group(group_id(1)).unwrap();
    assert!(queued.is_ok(), "what was queued is answered");
    assert!(
        group
            .append(vec![batch(1, 1, 2, 1, 10)], Outcome::default().done())
            .is_err()
    );
    assert!(files(&disk, "0000000000000001/").is_empty());
    for _ in 0..2 {
        let store = if disk.is_off() { open(&disk) } else { store.clone() };
        assert!(matches!(
            store.create_group(spec(1, 8 << 10)),
            Err(GroupError::ReplicaUsed { .. })
        ));
    }
    drop((group, store));
    power_cycle(&disk);
    let store = open(&disk);
    assert!(store.groups().is_empty());
    assert!(matches!(
        store.create_group(spec(1, 8 << 10)),
        Err(GroupError::ReplicaUsed { .. })
    ));
    let next = GroupSpec {
        replica: ReplicaId::new(11).unwrap(),
        ..spec(1, 8 << 10)
    };
    let group = store.create_group(next).unwrap();
    assert_eq!(group.last_log_id(), None, "old records must not come back");
    append_now(&store, &group, vec![batch(5, 0, 1, 1, 100)]);
    drop((group, store));
    power_cycle(&disk);
    let store = open(&disk);
    assert_eq!(
        store.group(group_id(1)).unwrap().last_log_id(),
        Some(log_id(5, 0))
    );
}

#[test]
fn a_group_set_aside_keeps_its_files() {
    let disk = filled();
    let store = open(&disk);
    let path = store.set_aside(group_id(1)).unwrap();
    drop(store);
    power_cycle(&disk);
    let store = open(&disk);
    assert!(store.groups().is_empty());
    assert!(!files(&disk, &path.to_string_lossy()).is_empty());
}

#[test]
fn a_group_whose_directory_is_lost_is_reported_and_not_made_anew() {
    let disk = filled();
    disk.delete(&dir().join("g/0000000000000001"));
    let store = open(&disk);
    let groups = store.groups();
    assert!(
        matches!(&groups[0].condition, GroupCondition::Damaged(damage) if damage[0].what.contains("missing"))
    );
    assert!(store.group(group_id(1)).is_none());
    assert!(matches!(
        store.create_group(spec(1, 8 << 10)),
        Err(GroupError::Exists(_))
    ));
    store.drop_group(group_id(1)).unwrap();
    assert!(matches!(
        store.create_group(spec(1, 8 << 10)),
        Err(GroupError::ReplicaUsed { .. })
    ));
}

#[test]
fn making_and_dropping_groups_is_all_or_nothing_at_a_power_cut() {
    for n in 1..40 {
        let disk = SimDisk::new(n);
        let store = open(&disk);
        disk.crash_after_writes(n);
        let made = store.create_group(spec(1, 8 << 10)).is_ok();
        let dropped = made && store.drop_group(group_id(1)).is_ok();
        drop(store);
        power_cycle(&disk);
        let store = open(&disk);
        let there = store.group(group_id(1)).is_some();
        assert!(!dropped || !there);
        assert!(
            store
                .groups()
                .iter()
                .all(|info| info.condition == GroupCondition::Healthy),
            "cut at {n}"
        );
        if !there && !made {
            let next = GroupSpec {
                replica: ReplicaId::new(11).unwrap(),
                ..spec(1, 8 << 10)
            };
            store.create_group(next).unwrap();
        }
    }
}
