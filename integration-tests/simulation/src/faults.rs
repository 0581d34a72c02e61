//! Faults of a run, drawn from its seed: power loss of one node and of all, death of a process of every service, cuts
//! between nodes and between services, clock steps.

use ptah_service::{Random, SeededRandom};

use crate::network::Wires;
use crate::trace::Trace;
use crate::workload::Progress;
use crate::world::Hosts;

/// Faults in a run.
const FAULTS: usize = 8;
/// Simulated milliseconds (one step each) between two faults, at least; up to twice that.
const GAP_STEPS: u64 = 1_500;
/// Shortest and longest duration of a fault.
const DURATION_STEPS: (u64, u64) = (200, 3_200);
/// Largest difference of a clock from the right time.
const CLOCK_STEP_MS: u64 = 800;

/// A fault that lasts until a step.
enum Lasting {
    /// Nodes without power, by index.
    PowerLoss(Vec<usize>),
    /// A process that ended by itself; machine and disk are well.
    Death(String),
    /// A node that neither the other storage nodes nor the gateway reach.
    CutOff(usize),
    /// Two hosts that do not reach each other.
    Cut(&'static str, &'static str),
    /// A clock that is off.
    ClockStep(usize),
}

/// Does faults and heals them.
pub(crate) struct Faults {
    random: SeededRandom,
    hosts: Hosts,
    trace: Trace,
    done: usize,
    step: u64,
    next: u64,
    dying: Option<String>,
    lasting: Option<(u64, Lasting)>,
}

impl Faults {
    pub(crate) fn new(random: SeededRandom, hosts: Hosts, trace: Trace) -> Self {
        Self {
            random,
            hosts,
            trace,
            done: 0,
            step: 0,
            next: 0,
            dying: None,
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
        if let Some(host) = self.dying.take() {
            // It has ended its connections in the step before.
            self.trace.without_events(|| sim.crash(host.as_str()));
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
            let (shortest, longest) = DURATION_STEPS;
            let duration = shortest + self.random.below(longest - shortest);
            self.lasting = Some((self.step + duration, lasting));
        }
    }

    fn begin(&mut self, sim: &mut turmoil::Sim<'_>) -> Lasting {
        let victim = self.random.below(self.hosts.nodes.len() as u64) as usize;
        match self.random.below(14) {
            0 => self.power_off(sim, (0..self.hosts.nodes.len()).collect()),
            1 | 2 => self.power_off(sim, vec![victim]),
            3 | 4 => {
                self.die(&host(victim), |hosts| &hosts.nodes[victim].wires);
                Lasting::Death(host(victim))
            }
            5 => {
                self.die("control", |hosts| &hosts.control);
                Lasting::Death("control".to_owned())
            }
            6 => {
                self.die("metadata", |hosts| &hosts.metadata);
                Lasting::Death("metadata".to_owned())
            }
            7 | 8 => {
                self.die("gateway", |hosts| &hosts.gateway);
                Lasting::Death("gateway".to_owned())
            }
            9 => self.cut(sim, "gateway", "metadata"),
            10 => self.cut(sim, "control", "metadata"),
            11 | 12 => {
                self.trace.note(format!("fault: {} is cut off", host(victim)));
                self.for_each_peer(victim, |a, b| sim.partition(a, b));
                Lasting::CutOff(victim)
            }
            _ => {
                let offset = self.random.below(2 * CLOCK_STEP_MS) as i64 - CLOCK_STEP_MS as i64;
                let name = host(victim);
                self.trace
                    .note(format!("fault: the clock of {name} is off by {offset} ms"));
                self.hosts.nodes[victim].clock.step_to(offset);
                Lasting::ClockStep(victim)
            }
        }
    }

    fn cut(&mut self, sim: &mut turmoil::Sim<'_>, a: &'static str, b: &'static str) -> Lasting {
        self.trace.note(format!("fault: {a} and {b} are cut apart"));
        sim.partition(a, b);
        Lasting::Cut(a, b)
    }

    fn power_off(&mut self, sim: &mut turmoil::Sim<'_>, victims: Vec<usize>) -> Lasting {
        for victim in &victims {
            self.trace.note(format!("fault: {} loses power", host(*victim)));
            let node = &self.hosts.nodes[*victim];
            node.disk.crash();
            node.wires.cut();
            self.trace.without_events(|| sim.crash(host(*victim)));
        }
        Lasting::PowerLoss(victims)
    }

    fn die(&mut self, name: &str, wires: impl FnOnce(&Hosts) -> &Wires) {
        self.trace.note(format!("fault: {name} dies"));
        wires(&self.hosts).hang_up();
        self.dying = Some(name.to_owned());
    }

    fn heal(&mut self, sim: &mut turmoil::Sim<'_>, lasting: Lasting) {
        match lasting {
            Lasting::PowerLoss(victims) => {
                for victim in victims {
                    self.hosts.nodes[victim].disk.reboot();
                    self.start(sim, &host(victim));
                }
            }
            Lasting::Death(name) => self.start(sim, &name),
            Lasting::CutOff(victim) => {
                self.trace.note(format!("heal: {} is reachable", host(victim)));
                self.for_each_peer(victim, |a, b| sim.repair(a, b));
            }
            Lasting::Cut(a, b) => {
                self.trace.note(format!("heal: {a} and {b} reach each other"));
                sim.repair(a, b);
            }
            Lasting::ClockStep(victim) => {
                self.trace
                    .note(format!("heal: the clock of {} is right", host(victim)));
                self.hosts.nodes[victim].clock.step_to(0);
            }
        }
    }

    fn start(&self, sim: &mut turmoil::Sim<'_>, name: &str) {
        self.trace.note(format!("heal: {name} starts"));
        sim.bounce(name);
    }

    fn for_each_peer(&self, victim: usize, act: impl Fn(String, String)) {
        for peer in (0..self.hosts.nodes.len()).filter(|peer| *peer != victim) {
            act(host(victim), host(peer));
        }
        act(host(victim), "gateway".to_owned());
    }
}

fn host(index: usize) -> String {
    format!("storage-{}", index + 1)
}
