//! Random operations with power cuts, deaths of the process and failed syncs at random writes, against a simple model.
//!
//! The model keeps the state after every operation. After a power cut the recovered state must be one of them, at or
//! behind the last acknowledged operation: nothing acknowledged is lost, nothing else appears, order is kept. What was
//! recovered once counts as acknowledged.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use ptah_types::{LogId, LogIndex, ReplicaId, Sequence, Term};

use super::harness::{Outcome, open_with, power_cycle, tiny};
use crate::testing::{batch_of, command_of, group_id, log_id, spec};
use crate::types::{GroupCondition, RoundLimit, VoteRecord};
use crate::{Frame, GroupLog, RefusedReason, SimDisk, SimFault, SimOp, Store};

const GROUPS: u64 = 3;
const SEGMENT_BYTES: u64 = 24 << 10;

/// A small seeded generator.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 11) % end.max(1)
    }
}

/// What a group must look like.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct View {
    vote: Option<VoteRecord>,
    committed: Option<LogId>,
    purged: Option<LogId>,
    last: Option<LogId>,
    entries: BTreeMap<LogIndex, Frame>,
    messages: BTreeMap<u64, Frame>,
    first_sequence: u64,
    next_sequence: u64,
}

impl View {
    fn short(&self) -> String {
        let entries: Vec<_> = self
            .entries
            .values()
            .map(|f| (f.index.0, f.term.0, f.payload_crc % 1000))
            .collect();
        let messages: Vec<_> = self
            .messages
            .iter()
            .map(|(base, f)| (*base, f.index.0, f.count))
            .collect();
        let Self {
            vote,
            committed,
            purged,
            last,
            first_sequence,
            next_sequence,
            ..
        } = self;
        format!(
            "{vote:?} committed {committed:?} purged {purged:?} last {last:?} sequences {first_sequence}..{next_sequence} \
             entries {entries:?} messages {messages:?}"
        )
    }
}

#[derive(Default)]
struct Model {
    /// States after each operation; the first is the one after the last restart.
    states: Vec<View>,
    /// Operations that wait, with the number of the state they lead to.
    open: Vec<(usize, Outcome)>,
    acknowledged: usize,
    checkpoint: Option<(LogId, Bytes)>,
}

impl Model {
    fn new() -> Self {
        let first = View {
            first_sequence: 1,
            next_sequence: 1,
            ..View::default()
        };
        Self {
            states: vec![first],
            ..Self::default()
        }
    }

    fn now(&self) -> &View {
        self.states.last().unwrap()
    }

    fn step(&mut self, change: impl FnOnce(&mut View)) {
        let mut next = self.now().clone();
        change(&mut next);
        self.states.push(next);
    }

    fn wait(&mut self, outcome: Outcome) {
        self.open.push((self.states.len() - 1, outcome));
    }

    fn collect(&mut self) {
        for (state, outcome) in &self.open {
            if outcome.is_ok() {
                self.acknowledged = self.acknowledged.max(*state);
            }
        }
        self.open.retain(|(_, outcome)| outcome.is_open());
    }
}

fn view(group: &Arc<GroupLog>) -> Result<View, String> {
    let text = |error: crate::ReadError| error.to_string();
    let mut out = View {
        vote: group.vote(),
        committed: group.committed(),
        purged: group.last_purged(),
        last: group.last_log_id(),
        first_sequence: group.first_sequence().get(),
        next_sequence: group.next_sequence().get(),
        ..View::default()
    };
    let end = out.last.map_or(LogIndex(0), |last| last.index.next());
    let mut at = group.first_index();
    while at < end {
        let frames = group.read(at, end, 10_000).map_err(text)?;
        if frames.is_empty() {
            return Err(format!("nothing at {at}, the log ends at {end}"));
        }
        for frame in frames {
            if frame.index != at {
                return Err(format!("index {} instead of {at}", frame.index));
            }
            at = at.next();
            out.entries.insert(frame.index, frame);
        }
    }
    let mut at = group.first_sequence();
    while at < group.next_sequence() {
        for frame in group
            .read_messages(at, group.next_sequence(), 10_000)
            .map_err(text)?
        {
            at = frame.end_sequence().unwrap();
            out.messages.insert(frame.base_sequence.unwrap().get(), frame);
        }
    }
    Ok(out)
}

struct Run {
    disk: SimDisk,
    rng: Rng,
    models: Vec<Model>,
    /// Prints every step: for a seed that fails.
    trace: bool,
}

impl Run {
    fn frames(&mut self, number: u64) -> Vec<Frame> {
        let view = self.models[number as usize].now().clone();
        let mut index = view.last.map_or(0, |last| last.index.0 + 1);
        let mut term = view.last.map_or(1, |last| last.term.0);
        term += u64::from(self.rng.below(10) == 0);
        let mut sequence = view.next_sequence;
        let mut frames = Vec::new();
        let count = 1 + self.rng.below(5);
        while (frames.len() as u64) < count {
            let len = match self.rng.below(12) {
                0 => 12_000 + self.rng.below(9_000),
                1 | 2 => self.rng.below(9_000),
                _ => self.rng.below(600),
            } as usize;
            if self.rng.below(3) == 0 {
                frames.push(command_of(number + 1, term, index, len.min(4_000)));
            } else {
                let count = 1 + self.rng.below(5) as u32;
                frames.push(batch_of(number + 1, term, index, sequence, count, len));
                sequence += u64::from(count);
            }
            index += 1;
        }
        frames
    }

    fn append(&mut self, number: u64, group: &Arc<GroupLog>) {
        let frames = self.frames(number);
        let outcome = Outcome::default();
        match group.append(frames.clone(), outcome.done()) {
            Ok(()) => {
                let model = &mut self.models[number as usize];
                for frame in frames {
                    model.step(|view| {
                        view.last = Some(frame.log_id());
                        if let Some(end) = frame.end_sequence() {
                            view.messages
                                .insert(frame.base_sequence.unwrap().get(), frame.clone());
                            view.next_sequence = end.get();
                        }
                        view.entries.insert(frame.index, frame);
                    });
                }
                model.wait(outcome);
            }
            Err(refused) => {
                let fine = matches!(
                    refused.reason,
                    RefusedReason::WouldExceed { .. } | RefusedReason::Failed(_)
                );
                assert!(fine, "{refused:?}");
            }
        }
    }

    fn truncate(&mut self, number: u64, group: &Arc<GroupLog>) {
        let model = &mut self.models[number as usize];
        let view = model.now().clone();
        let floor = [
            view.purged,
            view.committed,
            model.checkpoint.as_ref().map(|c| c.0),
        ]
        .into_iter()
        .flatten()
        .max();
        let candidates: Vec<LogId> = view
            .entries
            .values()
            .map(Frame::log_id)
            .filter(|id| Some(*id) >= floor)
            .collect();
        let after = if candidates.is_empty() || (floor.is_none() && self.rng.below(8) == 0) {
            floor
        } else {
            // Mostly near the end.
            let back = self.rng.below(6).min(candidates.len() as u64 - 1);
            Some(candidates[candidates.len() - 1 - back as usize])
        };
        let outcome = Outcome::default();
        group.truncate_after(after, outcome.done());
        // Nothing to do is answered at once: that says nothing about earlier operations.
        if outcome.is_err() || after == view.last {
            return;
        }
        model.step(|view| {
            view.last = after;
            view.entries
                .retain(|index, _| after.is_some_and(|after| *index <= after.index));
            let purged = view
                .purged
                .map(|purged| purged.index)
                .max(after.map(|after| after.index));
            view.messages
                .retain(|_, frame| purged.is_some_and(|purged| frame.index <= purged));
            let end = view.messages.values().next_back().and_then(Frame::end_sequence);
            view.next_sequence = end.map_or(view.first_sequence, Sequence::get);
        });
        model.wait(outcome);
    }

    fn purge(&mut self, number: u64, group: &Arc<GroupLog>) {
        let model = &mut self.models[number as usize];
        let view = model.now();
        let Some((at, _)) = model.checkpoint.clone() else {
            return;
        };
        let upto = at.index.0 - self.rng.below(3).min(at.index.0);
        let Some(upto) = group
            .log_id_at(LogIndex(upto))
            .filter(|upto| Some(*upto) > view.purged)
        else {
            return;
        };
        let outcome = Outcome::default();
        group.purge(upto, outcome.done());
        model.step(|view| {
            view.purged = Some(upto);
            view.entries.retain(|index, _| *index > upto.index);
        });
        model.wait(outcome);
    }

    fn drop_messages(&mut self, number: u64, group: &Arc<GroupLog>) {
        let next = self.models[number as usize].now().next_sequence;
        let before = Sequence::new(1 + self.rng.below(next)).unwrap();
        let kept = group.drop_messages_before(before).get();
        let model = &mut self.models[number as usize];
        if kept != model.now().first_sequence {
            model.step(|view| {
                view.first_sequence = kept;
                view.messages.retain(|base, _| *base >= kept);
            });
        }
    }

    fn checkpoint(&mut self, number: u64, group: &Arc<GroupLog>) {
        let Some(flushed) = group.flushed_log_id() else {
            return;
        };
        let back = self.rng.below(4).min(flushed.index.0);
        let Some(at) = group.log_id_at(LogIndex(flushed.index.0 - back)) else {
            return;
        };
        let state = Bytes::from(format!("state of {number} at {at}"));
        if group.write_checkpoint(at, state.clone()).is_ok() {
            self.models[number as usize].checkpoint = Some((at, state));
        }
    }

    fn small_op(&mut self, number: u64, group: &Arc<GroupLog>, choice: u64) {
        let outcome = Outcome::default();
        let term = self.rng.below(50);
        let model = &mut self.models[number as usize];
        if choice == 0 {
            let voted_for = ReplicaId::new(term).ok();
            let vote = VoteRecord {
                term: Term(term),
                voted_for,
                committed: term.is_multiple_of(2),
            };
            group.save_vote(vote, outcome.done());
            model.step(|view| view.vote = Some(vote));
            model.wait(outcome);
        } else if let Some(flushed) = group
            .flushed_log_id()
            .filter(|flushed| Some(*flushed) > model.now().committed)
        {
            group.save_committed(flushed);
            model.step(|view| view.committed = Some(flushed));
        }
    }

    /// Sometimes one sync of a file fails.
    fn fail_a_sync(&mut self) {
        if self.rng.below(3) > 0 {
            return;
        }
        let parts = [
            "",
            ".wal",
            "position",
            "meta.",
            "/m-",
            "/c-",
            "groups.meta",
            "ckpt",
        ];
        let part = parts[self.rng.below(parts.len() as u64) as usize];
        self.disk.inject(SimFault {
            op: SimOp::Sync,
            path_contains: part.to_owned(),
            after: self.rng.below(12),
            times: 1,
            error: std::io::ErrorKind::Other,
        });
    }

    /// The power goes off, or only the process dies. After a clean end neither need happen.
    fn end_life(&mut self, clean: bool) {
        match self.rng.below(5) {
            0 if clean => self.disk.cancel_crash(),
            0..=1 => self.disk.restart(),
            _ => power_cycle(&self.disk),
        }
    }

    fn step(&mut self, store: &Store, check: bool) -> Result<(), String> {
        let number = self.rng.below(GROUPS);
        let Some(group) = store.group(group_id(number + 1)) else {
            return Err(format!("group {} is gone", number + 1));
        };
        let choice = self.rng.below(30);
        if self.trace {
            let state = group.state();
            let open = state
                .messages
                .segments
                .iter()
                .map(|s| (s.first_index.0, s.written, s.length, s.exists))
                .collect::<Vec<_>>();
            #[expect(clippy::print_stderr, reason = "asked for")]
            {
                eprintln!(
                    "{choice} group {} last {:?} durable {} next {} barrier {} messages {open:?} cuts {:?} deletes {:?}",
                    number + 1,
                    state.last.map(|l| l.index.0),
                    state.durable_record,
                    state.next_record,
                    state.barrier,
                    state.cuts,
                    state.deletes
                );
            }
        }
        match choice {
            0..=9 => self.append(number, &group),
            10 => self.small_op(number, &group, 0),
            11 => self.small_op(number, &group, 1),
            12 => self.truncate(number, &group),
            13 => self.purge(number, &group),
            14 => self.drop_messages(number, &group),
            15 => self.checkpoint(number, &group),
            16 => drop(store.seal()),
            17 => {
                let limit = RoundLimit {
                    groups: 1 + self.rng.below(3) as usize,
                    bytes: u64::MAX,
                };
                drop(store.checkpoint_round(limit));
            }
            18..=22 => drop(store.write_large_pending()),
            _ => drop(store.commit_pending()),
        }
        self.models.iter_mut().for_each(Model::collect);
        if check && self.rng.below(12) == 0 && !self.disk.is_off() {
            let found = view(&group).map_err(|error| format!("live: {error}"))?;
            let wanted = self.models[number as usize].now();
            if found != *wanted {
                return Err(format!(
                    "live: found {}\nwanted {}",
                    found.short(),
                    wanted.short()
                ));
            }
        }
        Ok(())
    }

    /// Compares what was recovered, and continues from it.
    fn compare(&mut self, store: &Store) -> Result<(), String> {
        for info in store.groups() {
            if let GroupCondition::Damaged(damage) = info.condition {
                return Err(format!("group {} is damaged: {damage:?}", info.group));
            }
        }
        for number in 0..GROUPS {
            let model = &mut self.models[number as usize];
            model.collect();
            let group = store.group(group_id(number + 1)).ok_or("a group is gone")?;
            let found = view(&group).map_err(|error| format!("recovered group {}: {error}", number + 1))?;
            let possible = &model.states[model.acknowledged..];
            if !possible.contains(&found) {
                let wanted = &model.states[model.acknowledged];
                return Err(format!(
                    "group {}: found {}\nacknowledged was {}\nlast was {}",
                    number + 1,
                    found.short(),
                    wanted.short(),
                    model.now().short()
                ));
            }
            if let Some((at, state)) = &model.checkpoint {
                let newest = group.latest_checkpoint().map_err(|error| error.to_string())?;
                let newest = newest.ok_or("the checkpoint is gone")?;
                if newest.at < *at || (newest.at == *at && newest.state != *state) {
                    return Err(format!("checkpoint {at} became {}", newest.at));
                }
                let state = Bytes::from(format!("state of {number} at {}", newest.at));
                if newest.state != state {
                    return Err("a checkpoint has another state".to_owned());
                }
                model.checkpoint = Some((newest.at, newest.state));
            }
            model.states = vec![found];
            model.open.clear();
            model.acknowledged = 0;
        }
        Ok(())
    }
}

/// What a bad disk, or a store that syncs at the wrong time, does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Lie {
    NoSync,
    LateSync,
}

/// One seed: several lives of a store with power cuts between them.
fn run(seed: u64, lie: Option<Lie>) -> Result<(), String> {
    let disk = SimDisk::new(seed);
    let models = (0..GROUPS).map(|_| Model::new()).collect();
    let mut run = Run {
        disk: disk.clone(),
        rng: Rng(seed.wrapping_mul(0x9e37_79b9) | 1),
        models,
        trace: std::env::var_os("PTAH_TRACE").is_some(),
    };
    let mut store = open_with(&disk, tiny()).map_err(|error| error.to_string())?;
    for number in 0..GROUPS {
        store
            .create_group(spec(number + 1, SEGMENT_BYTES))
            .map_err(|error| error.to_string())?;
    }
    disk.set_ignore_syncs(lie == Some(Lie::NoSync));
    disk.set_late_syncs(lie == Some(Lie::LateSync));
    for _ in 0..4 {
        disk.crash_after_writes(1 + run.rng.below(60));
        run.fail_a_sync();
        let steps = 20 + run.rng.below(100);
        for _ in 0..steps {
            run.step(&store, true)?;
            if disk.is_off() || store.failure().is_some() {
                break;
            }
        }
        disk.clear_faults();
        let clean = run.rng.below(5) == 0 && !disk.is_off() && store.failure().is_none();
        if clean {
            disk.cancel_crash();
            store.close().map_err(|error| format!("close: {error}"))?;
        }
        drop(store);
        run.end_life(clean);
        // Recovery may end early too.
        if run.rng.below(2) == 0 {
            disk.crash_after_writes(1 + run.rng.below(25));
            run.fail_a_sync();
            let half = open_with(&disk, tiny());
            drop(half);
            disk.clear_faults();
            run.end_life(false);
        }
        store = open_with(&disk, tiny()).map_err(|error| format!("open: {error}"))?;
        run.compare(&store)?;
    }
    Ok(())
}

#[test]
fn what_was_acknowledged_survives_power_cuts_at_any_write() {
    let seeds = std::env::var_os("PTAH_SEEDS")
        .and_then(|text| text.to_str()?.parse().ok())
        .unwrap_or(300);
    let first = std::env::var_os("PTAH_SEED")
        .and_then(|text| text.to_str()?.parse().ok())
        .unwrap_or(1);
    for seed in first..first + seeds {
        if let Err(what) = run(seed, None) {
            panic!("seed {seed}: {what}");
        }
    }
}

#[test]
fn the_harness_notices_syncs_that_are_missing_or_behind_the_completion() {
    for lie in [Lie::NoSync, Lie::LateSync] {
        let caught = (1..40).filter(|seed| run(*seed, Some(lie)).is_err()).count();
        assert!(caught >= 10, "only {caught} of 39 runs noticed {lie:?}");
    }
}

#[test]
fn the_same_seed_gives_the_same_disk() {
    let contents = |seed| {
        let disk = SimDisk::new(seed);
        let store = open_with(&disk, tiny()).unwrap();
        let group = store.create_group(spec(1, SEGMENT_BYTES)).unwrap();
        for index in 0..20 {
            super::harness::append_now(&store, &group, vec![batch_of(1, 1, index, index + 1, 1, 3_000)]);
        }
        disk.crash_after_writes(5);
        drop(store.checkpoint_round(RoundLimit::default()));
        power_cycle(&disk);
        disk.files()
            .into_iter()
            .map(|path| (disk.contents(&path), path))
            .collect::<Vec<_>>()
    };
    assert_eq!(contents(7), contents(7));
    assert_eq!(log_id(1, 2), log_id(1, 2));
}
