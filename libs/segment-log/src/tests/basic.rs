//! One behaviour per test, without faults.

use super::harness::*;
use crate::SimDisk;
use crate::testing::{batch, command_of, log_id, spec};
use crate::types::RoundLimit;
use ptah_types::LogIndex;

#[test]
fn appended_frames_are_readable_at_once_and_acknowledged_after_the_sync() {
    let disk = SimDisk::new(1);
    let store = open(&disk);
    let group = store.create_group(spec(1, 64 << 10)).unwrap();
    let outcome = append(&group, vec![batch(1, 0, 1, 3, 100), command_of(1, 1, 1, 50)]);
    assert_eq!(group.read(LogIndex(0), LogIndex(9), 1 << 20).unwrap().len(), 2);
    assert_eq!(group.flushed_log_id(), None);
    assert!(outcome.is_open());
    settle(&store);
    assert!(outcome.is_ok());
    assert_eq!(group.flushed_log_id(), Some(log_id(1, 1)));
    store.checkpoint_round(RoundLimit::default()).unwrap();
}
