//! What happens between the plan of a flush and its meta slot.

use super::Flushed;
use crate::testing::{batch, group_id, log_id, spec};
use crate::tests::harness::{Outcome, append, append_now, open_with, power_cycle, settle, tiny};
use crate::types::{LargeOutcome, RoundLimit, VoteRecord};
use crate::{Options, SimDisk};

#[test]
fn a_large_frame_that_becomes_durable_during_a_flush_is_left_out_of_its_meta_slot() {
    let disk = SimDisk::new(1);
    let options = Options {
        recent_bytes_per_group: 0,
        ..tiny()
    };
    let store = open_with(&disk, options).unwrap();
    let group = store.create_group(spec(1, 256 << 10)).unwrap();
    append_now(&store, &group, vec![batch(1, 0, 1, 1, 100)]);
    store.checkpoint_round(RoundLimit::default()).unwrap();
    let vote = VoteRecord {
        term: ptah_types::Term(3),
        voted_for: None,
        committed: true,
    };
    group.save_vote(vote, Outcome::default().done());
    settle(&store);
    let large = append(&group, vec![batch(1, 1, 2, 1, 14_000)]);
    while store.write_large_pending() == LargeOutcome::Progress {}
    let Ok(mut plan) = group.plan_flush() else {
        panic!("there is a vote to flush")
    };
    // Now the large frame is durable, and the next append may give up its memory.
    settle(&store);
    assert!(large.is_ok());
    append_now(&store, &group, vec![batch(1, 2, 3, 1, 100)]);
    assert!(matches!(group.run_flush(&mut plan), Ok(Flushed::Done { .. })));
    drop((group, store));
    power_cycle(&disk);
    let store = open_with(&disk, tiny()).unwrap();
    let group = store.group(group_id(1)).expect("the group must be whole");
    assert_eq!(group.last_log_id(), Some(log_id(1, 2)));
}
