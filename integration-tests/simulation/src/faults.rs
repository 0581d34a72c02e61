//! Faults of a run, drawn from its seed: power loss of one node and of all, network partitions, clock steps.

use ptah_service::{Random, SeededRandom};

use crate::trace::Trace;
use crate::workload::Progress;
use crate::world::NodeState;

/// Faults in a run.
const FAULTS: usize = 8;
/// Simulated milliseconds (one step each) between two faults, at least; up to twice that.
const GAP_STEPS: u64 = 4_000;

/// A fault that lasts until a step.
enum Lasting {
    /// Nodes without power, by index.
    PowerLoss(Vec<usize>),
    /// A node that no other storage node reaches.
    CutOff(usize),
    /// A clock that is off.
    ClockStep(usize),
}

/// Does faults and heals them.
pub(crate) struct Faults {
    random: SeededRandom,
    nodes: Vec<NodeState>,
    trace: Trace,
    done: usize,
    step: u64,
    next: u64,
    lasting: Option<(u64, Lasting)>,
}

impl Faults {
    pub(crate) fn new(random: SeededRandom, nodes: Vec<NodeState>, trace: Trace) -> Self {
        Self {
            random,
            nodes,
            trace,
            done: 0,
            step: 0,
            next: 0,
            lasting: None,
        }
    }

    /// Faults done so far.
    pub(crate) fn done(&self) -> usize {
        self.done
    }

    /// Called once per simulated millisecond.
    pub(crate) fn step(&mut self, sim: &mut turmoil::Sim<'_>, progress: &Progress) {
        if !progress.is_producing() {
            return;
        }
        self.step += 1;
        if self.next == 0 {
            self.next = self.step + GAP_STEPS;
        }
        if let Some((_, lasting)) = self.lasting.take_if(|(until, _)| *until <= self.step) {
            self.heal(sim, lasting);
            self.next = self.step + GAP_STEPS + self.random.below(GAP_STEPS);
            if self.done == FAULTS {
                progress.faults_are_over();
            }
        }
        if self.lasting.is_none() && self.done < FAULTS && self.step >= self.next {
            self.done += 1;
            let lasting = self.begin(sim);
            self.lasting = Some((self.step + 200 + self.random.below(3_000), lasting));
        }
    }

    fn begin(&mut self, sim: &mut turmoil::Sim<'_>) -> Lasting {
        let victim = self.random.below(self.nodes.len() as u64) as usize;
        match self.random.below(5) {
            0 => self.power_off(sim, (0..self.nodes.len()).collect()),
            1 | 2 => self.power_off(sim, vec![victim]),
            3 => {
                self.trace
                    .note(format!("fault: storage-{} is cut off", victim + 1));
                self.for_each_peer(victim, |a, b| sim.partition(a, b));
                Lasting::CutOff(victim)
            }
            _ => {
                let offset = self.random.below(1_600) as i64 - 800;
                self.trace.note(format!(
                    "fault: the clock of storage-{} is off by {offset} ms",
                    victim + 1
                ));
                self.nodes[victim].clock.step_to(offset);
                Lasting::ClockStep(victim)
            }
        }
    }

    fn power_off(&mut self, sim: &mut turmoil::Sim<'_>, victims: Vec<usize>) -> Lasting {
        for victim in &victims {
            self.trace
                .note(format!("fault: storage-{} loses power", victim + 1));
            self.nodes[*victim].disk.crash();
            sim.crash(host(*victim));
        }
        Lasting::PowerLoss(victims)
    }

    fn heal(&mut self, sim: &mut turmoil::Sim<'_>, lasting: Lasting) {
        match lasting {
            Lasting::PowerLoss(victims) => {
                for victim in victims {
                    self.trace.note(format!("heal: storage-{} starts", victim + 1));
                    self.nodes[victim].disk.reboot();
                    sim.bounce(host(victim));
                }
            }
            Lasting::CutOff(victim) => {
                self.trace
                    .note(format!("heal: storage-{} is reachable", victim + 1));
                self.for_each_peer(victim, |a, b| sim.repair(a, b));
            }
            Lasting::ClockStep(victim) => {
                self.trace
                    .note(format!("heal: the clock of storage-{} is right", victim + 1));
                self.nodes[victim].clock.step_to(0);
            }
        }
    }

    fn for_each_peer(&self, victim: usize, act: impl Fn(String, String)) {
        for peer in (0..self.nodes.len()).filter(|peer| *peer != victim) {
            act(host(victim), host(peer));
        }
        act(host(victim), "gateway".to_owned());
    }
}

fn host(index: usize) -> String {
    format!("storage-{}", index + 1)
}
