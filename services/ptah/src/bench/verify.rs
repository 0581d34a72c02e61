//! Reading everything back: every acknowledged message is there exactly once, where the server said, and in order.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use parking_lot::Mutex;
use ptah_types::ErrorKind;
use serde::Serialize;
use tokio::time::Instant;

use super::ledger::{Bits, Ledger, StoredRange};
use super::payload::{Found, inspect};
use crate::client::{Client, ClientError, Message, ReadPage};

/// Partitions that are read at the same time.
const PARALLEL_PARTITIONS: usize = 4;
/// Messages asked for at a time, and payload bytes, whichever is less.
const PAGE_MESSAGES: u64 = 10_000;
const PAGE_BYTES: u64 = 16 << 20;
/// Pause before a page is asked for again.
const READ_PAUSE: Duration = Duration::from_millis(50);
/// Violations that are told in words.
const MAX_TOLD: usize = 20;

/// What reading back found. The field names are the JSON output.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Verdict {
    /// Messages that were read.
    pub(super) read: u64,
    /// Acknowledged messages that are where the server said.
    pub(super) acknowledged_found: u64,
    /// Acknowledged messages that are not there: lost.
    pub(super) lost: u64,
    /// Messages that are there more than once.
    pub(super) duplicates: u64,
    /// Messages that stand before an earlier one of the same producer.
    pub(super) out_of_order: u64,
    /// Messages whose bytes are not what was sent.
    pub(super) damaged: u64,
    /// Messages that were refused and are there nevertheless.
    pub(super) refused_but_stored: u64,
    /// Sequences that are left out.
    pub(super) gaps: u64,
    /// Messages of unknown outcome that are there. Allowed.
    pub(super) unknown_but_stored: u64,
    /// Messages of others. Allowed.
    pub(super) foreign: u64,
    /// The first violations in words.
    pub(super) violations: Vec<String>,
}

impl Verdict {
    /// Whether the server kept its word.
    pub(super) fn is_good(&self) -> bool {
        self.lost + self.duplicates + self.out_of_order + self.damaged + self.refused_but_stored + self.gaps
            == 0
    }
}

/// Reads the partitions from the given sequences on and compares them with what the producers were told.
pub(super) async fn verify(
    client: &Client,
    station: &str,
    begins: &BTreeMap<u32, u64>,
    run: u64,
    size_bytes: usize,
    ledgers: &[Ledger],
) -> Result<Verdict, ClientError> {
    let verifier = Mutex::new(Verifier::new(run, size_bytes, ledgers));
    let page = (PAGE_BYTES / size_bytes as u64).clamp(1, PAGE_MESSAGES) as u32;
    stream::iter(begins)
        .map(|(partition, begin)| read_partition(client, station, *partition, *begin, page, &verifier))
        .buffer_unordered(PARALLEL_PARTITIONS)
        .try_collect::<Vec<()>>()
        .await?;
    Ok(verifier.into_inner().finish())
}

async fn read_partition(
    client: &Client,
    station: &str,
    partition: u32,
    begin: u64,
    page: u32,
    verifier: &Mutex<Verifier<'_>>,
) -> Result<(), ClientError> {
    let mut next = begin;
    loop {
        let read = read_page(client, station, partition, next, page).await?;
        let Some(last) = read.messages.last().map(|message| message.sequence) else {
            return Ok(());
        };
        verifier.lock().take(partition, next, &read.messages);
        next = next.max(last.saturating_add(1));
        if next >= read.next_sequence {
            return Ok(());
        }
    }
}

/// Reads a page. Repeats what may be repeated: a leader that moves is no reason to lose a long run.
async fn read_page(
    client: &Client,
    station: &str,
    partition: u32,
    next: u64,
    page: u32,
) -> Result<ReadPage, ClientError> {
    let until = Instant::now() + client.timeout();
    loop {
        let problem = match client.read(station, partition, next, page).await {
            Ok(read) if read.messages.is_empty() && next < read.next_sequence => ClientError::new(
                ErrorKind::DataDamaged,
                format!(
                    "partition {partition} has messages up to {} but tells none from {next} on",
                    read.next_sequence
                ),
            ),
            Ok(read) => return Ok(read),
            Err(error) if error.kind.is_retryable() => error,
            Err(error) => return Err(error),
        };
        if Instant::now() > until {
            return Err(problem);
        }
        tokio::time::sleep(READ_PAUSE).await;
    }
}

/// Compares messages in the order of their sequences with the ledgers.
pub(super) struct Verifier<'a> {
    run: u64,
    size_bytes: usize,
    ledgers: &'a [Ledger],
    /// Acknowledged ranges with their producers, per partition in order of sequences.
    expected: BTreeMap<u32, Vec<(StoredRange, u32)>>,
    /// How many of `expected` are behind the messages read so far.
    passed: BTreeMap<u32, usize>,
    seen: Vec<Bits>,
    last_counter: BTreeMap<(u32, u32), u64>,
    verdict: Verdict,
}

impl<'a> Verifier<'a> {
    pub(super) fn new(run: u64, size_bytes: usize, ledgers: &'a [Ledger]) -> Self {
        let mut expected: BTreeMap<u32, Vec<(StoredRange, u32)>> = BTreeMap::new();
        for (producer, ledger) in (0..).zip(ledgers) {
            for range in ledger.stored_ranges() {
                expected
                    .entry(range.partition)
                    .or_default()
                    .push((*range, producer));
            }
        }
        for ranges in expected.values_mut() {
            ranges.sort_unstable();
        }
        Self {
            run,
            size_bytes,
            ledgers,
            expected,
            passed: BTreeMap::new(),
            seen: ledgers.iter().map(|ledger| Bits::new(ledger.total())).collect(),
            last_counter: BTreeMap::new(),
            verdict: Verdict::default(),
        }
    }

    /// Takes the messages of a partition from sequence `next` on.
    pub(super) fn take(&mut self, partition: u32, mut next: u64, messages: &[Message]) {
        for message in messages {
            if message.sequence != next {
                let (found, wanted) = (message.sequence, next);
                self.violate(
                    |verdict| &mut verdict.gaps,
                    || format!("partition {partition}: sequence {found} follows where {wanted} should be"),
                );
            }
            next = message.sequence.saturating_add(1);
            self.verdict.read += 1;
            self.take_message(partition, message);
        }
    }

    fn take_message(&mut self, partition: u32, message: &Message) {
        let sequence = message.sequence;
        let acked = self.acknowledged_at(partition, sequence);
        let label = match inspect(&message.payload, self.run, self.size_bytes) {
            // An acknowledged message in whose place something else stands is counted as lost at the end.
            Found::Foreign => {
                self.verdict.foreign += 1;
                return;
            }
            Found::Damaged => {
                self.violate(
                    |verdict| &mut verdict.damaged,
                    || format!("partition {partition} sequence {sequence}: the bytes are not what was sent"),
                );
                return;
            }
            Found::Ours(label) => label,
        };
        let Some(ledger) = self
            .ledgers
            .get(label.producer as usize)
            .filter(|l| label.counter < l.total())
        else {
            self.violate(
                |verdict| &mut verdict.damaged,
                || format!("partition {partition} sequence {sequence}: message {label:?} was never sent"),
            );
            return;
        };
        if !self.seen[label.producer as usize].insert(label.counter) {
            self.violate(
                |verdict| &mut verdict.duplicates,
                || format!("partition {partition} sequence {sequence}: message {label:?} is there already"),
            );
            return;
        }
        let last = self
            .last_counter
            .insert((partition, label.producer), label.counter);
        if last.is_some_and(|last| last > label.counter) {
            self.violate(|verdict| &mut verdict.out_of_order, || {
                format!("partition {partition} sequence {sequence}: message {label:?} stands behind a later one")
            });
        }
        if acked == Some((label.producer, label.counter)) {
            self.verdict.acknowledged_found += 1;
        } else if ledger.is_refused(label.counter) {
            self.violate(
                |verdict| &mut verdict.refused_but_stored,
                || format!("partition {partition} sequence {sequence}: message {label:?} was refused"),
            );
        } else {
            self.verdict.unknown_but_stored += 1;
        }
    }

    /// Which message was acknowledged with this sequence.
    fn acknowledged_at(&mut self, partition: u32, sequence: u64) -> Option<(u32, u64)> {
        let ranges = self.expected.get(&partition)?;
        let passed = self.passed.entry(partition).or_default();
        while let Some((range, _)) = ranges.get(*passed)
            && range.first_sequence + range.count <= sequence
        {
            *passed += 1;
        }
        let (range, producer) = ranges.get(*passed)?;
        let place = sequence.checked_sub(range.first_sequence)?;
        Some((*producer, range.first_counter + place))
    }

    fn violate(&mut self, count: impl FnOnce(&mut Verdict) -> &mut u64, what: impl FnOnce() -> String) {
        *count(&mut self.verdict) += 1;
        if self.verdict.violations.len() < MAX_TOLD {
            self.verdict.violations.push(what());
        }
    }

    pub(super) fn finish(mut self) -> Verdict {
        let acknowledged: u64 = self.ledgers.iter().map(Ledger::stored_count).sum();
        self.verdict.lost = acknowledged - self.verdict.acknowledged_found.min(acknowledged);
        if self.verdict.lost > 0 {
            let text = format!(
                "{} acknowledged messages are not where the server said",
                self.verdict.lost
            );
            self.verdict.violations.insert(0, text);
        }
        self.verdict
    }
}
