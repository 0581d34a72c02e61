use super::*;

const LIMITS: Limits = Limits {
    interval: Duration::from_millis(100),
    shortest: Duration::from_millis(400),
    longest: Duration::from_millis(700),
};

/// A detector, one other node, and a clock that is moved by hand.
struct Bench {
    detector: Detector,
    events: broadcast::Receiver<Event>,
    node: NodeId,
    nodes: BTreeSet<NodeId>,
    now: Instant,
}

impl Bench {
    fn new() -> Self {
        let detector = Detector::new(LIMITS, Arc::new(Metrics::default()));
        let node = NodeId::new(7).unwrap();
        let bench = Self {
            events: detector.events(),
            detector,
            node,
            nodes: BTreeSet::from([node]),
            now: Instant::now(),
        };
        bench.detector.connected(node, 1, bench.now);
        bench.detector.look(&bench.nodes, bench.now);
        bench
    }

    /// Time passes in steps of an interval, with a look at each and a ping in those that `is_heard` names.
    fn pass(&mut self, steps: u32, is_heard: impl Fn(u32) -> bool) {
        for step in 0..steps {
            self.now += LIMITS.interval;
            if is_heard(step) {
                self.detector.heard(self.node, self.now);
            }
            self.detector.look(&self.nodes, self.now);
        }
    }

    fn belief(&self) -> Belief {
        self.detector.belief(self.node)
    }
}

#[test]
fn a_node_that_is_punctual_is_suspected_soon_after_it_falls_silent() {
    let mut bench = Bench::new();
    bench.pass(50, |_| true);
    bench.pass(4, |_| false);
    assert_eq!(bench.belief(), Belief::Alive);
    bench.pass(1, |_| false);
    assert_eq!(bench.belief(), Belief::Silent);
    assert_eq!(bench.events.try_recv(), Ok(Event::Suspected(bench.node)));
}

#[test]
fn a_node_that_is_often_late_is_given_more_time_and_not_for_ever() {
    let mut bench = Bench::new();
    bench.pass(58, |step| step % 3 == 0);
    bench.pass(6, |_| false);
    assert_eq!(bench.belief(), Belief::Alive);
    bench.pass(1, |_| false);
    assert_eq!(bench.belief(), Belief::Silent);
    // Pauses of 500 ms would be 1 s; the longest patience is less.
    bench.pass(56, |step| step % 5 == 0);
    bench.pass(7, |_| false);
    assert_eq!(bench.belief(), Belief::Alive);
    bench.pass(1, |_| false);
    assert_eq!(bench.belief(), Belief::Silent);
}

#[test]
fn time_in_which_this_process_did_not_run_is_nobodys_silence() {
    let mut bench = Bench::new();
    bench.pass(50, |_| true);
    bench.now += Duration::from_secs(60);
    bench.detector.look(&bench.nodes, bench.now);
    bench.pass(2, |_| false);
    assert_eq!(bench.belief(), Belief::Alive);
    bench.pass(5, |_| false);
    assert_eq!(bench.belief(), Belief::Silent);
}

#[test]
fn a_suspicion_is_withdrawn_and_counted_when_the_node_is_heard_again() {
    let mut bench = Bench::new();
    bench.pass(50, |_| true);
    bench.pass(20, |_| false);
    bench.pass(1, |_| true);
    assert_eq!(bench.belief(), Belief::Alive);
    let metrics = &bench.detector.metrics;
    assert_eq!(
        (metrics.suspicions.get(), metrics.suspicions_withdrawn.get()),
        (1, 1)
    );
    // Its long silence is no habit that buys it time.
    bench.pass(5, |_| false);
    assert_eq!(bench.belief(), Belief::Silent);
}

#[test]
fn another_process_at_a_node_means_that_the_one_before_is_gone() {
    let mut bench = Bench::new();
    bench.pass(3, |_| true);
    bench.detector.connected(bench.node, 1, bench.now);
    assert!(bench.events.try_recv().is_err(), "the same process came again");
    bench.detector.connected(bench.node, 2, bench.now);
    assert_eq!(bench.events.try_recv(), Ok(Event::Replaced(bench.node)));
    assert_eq!(bench.belief(), Belief::Alive);
    assert_eq!(bench.detector.metrics.suspicions_withdrawn.get(), 0);
}

#[test]
fn a_node_that_was_never_heard_is_given_time_to_start_and_not_counted() {
    let mut bench = Bench::new();
    let other = NodeId::new(9).unwrap();
    bench.nodes.insert(other);
    bench.pass(19, |_| true);
    assert_eq!(bench.detector.belief(other), Belief::Alive);
    bench.pass(3, |_| true);
    assert_eq!(bench.detector.belief(other), Belief::Silent);
    assert_eq!(bench.detector.metrics.suspicions.get(), 0);
    assert!(bench.events.try_recv().is_err(), "nobody moves because of it");
}
