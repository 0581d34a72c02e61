//! The tasks that watch nodes and groups: who lives, who takes over, who rests.

use std::sync::Arc;

use futures_util::FutureExt;
use ptah_service::Tasks;

use crate::detector::{self, Detector, Limits};
use crate::directory::Directory;
use crate::options::HostOptions;
use crate::quiesce::Quiesce;
use crate::takeover::Takeover;
use crate::transport::Transport;

/// What they work on.
pub(crate) struct Watchers {
    pub(crate) directory: Arc<Directory>,
    pub(crate) detector: Arc<Detector>,
    pub(crate) transport: Transport,
    pub(crate) tasks: Tasks,
}

/// The detector's settings.
pub(crate) fn limits(options: &HostOptions) -> Limits {
    Limits {
        interval: options.ping_interval,
        shortest: options.suspect_after,
        longest: options.suspect_after_max.max(options.suspect_after),
    }
}

impl Watchers {
    /// Starts them; they run until the host stops.
    pub(crate) fn start(self, options: &HostOptions) {
        let Self {
            directory,
            detector,
            transport,
            tasks,
        } = self;
        if options.takeover {
            let takeover = Takeover {
                directory: Arc::clone(&directory),
                detector: Arc::clone(&detector),
                transport: transport.clone(),
                tasks: tasks.clone(),
            };
            tasks.spawn_critical("takeover", takeover.run().map(Ok));
        }
        let quiesce = Arc::new(Quiesce {
            directory: Arc::clone(&directory),
            detector: Arc::clone(&detector),
            transport: transport.clone(),
            after: options.quiesce_after,
        });
        let waking = Arc::clone(&quiesce).follow_nodes(tasks.clone());
        tasks.spawn_critical("idle groups and nodes", waking.map(Ok));
        let checking = Arc::clone(&quiesce).check(tasks.clone());
        tasks.spawn_critical("idle groups and leaders", checking.map(Ok));
        tasks.spawn_critical("idle groups", quiesce.rest(tasks.clone()).map(Ok));
        let watching = detector::run(detector, directory, transport, tasks.clone());
        tasks.spawn_critical("detector", watching.map(Ok));
    }
}
