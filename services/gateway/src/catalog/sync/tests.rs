//! What the log says while the store is down.

use std::collections::VecDeque;
use std::fmt::Write as _;

use parking_lot::Mutex;
use ptah_service::{Health, SeededRandom, Tasks};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber, span};

use super::*;

/// Keeps the lines of the log that a person sees.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<(Level, String)>>>);

#[derive(Default)]
struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        write!(self.0, "{field}={value:?} ").unwrap();
    }
}

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::INFO
    }
    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn event(&self, event: &Event<'_>) {
        let mut line = Line::default();
        event.record(&mut line);
        self.0.lock().push((*event.metadata().level(), line.0));
    }
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

impl Log {
    fn lines(&self, level: Level) -> Vec<String> {
        let lines = self.0.lock();
        let of_level = lines.iter().filter(|(of, _)| *of == level);
        of_level.map(|(_, text)| text.clone()).collect()
    }
}

/// A store that refuses with these reasons, one after the other, and then answers for good.
struct Store(Mutex<VecDeque<&'static str>>);

impl MetadataSource for Store {
    fn list(&self, _: RecordKind) -> BoxFuture<'_, Result<Listing, RpcError>> {
        let refusal = self.0.lock().pop_front();
        Box::pin(async move {
            match refusal {
                Some(why) => Err(RpcError::new(ErrorKind::Unavailable, why)),
                None => Ok(Listing {
                    records: Vec::new(),
                    revision: 1,
                    incarnation: 1,
                }),
            }
        })
    }

    fn watch(&self, _: u64, _: u64) -> BoxFuture<'_, Result<Box<dyn ChangeStream>, RpcError>> {
        Box::pin(async { Ok(Box::new(Silent) as Box<dyn ChangeStream>) })
    }
}

struct Silent;

impl ChangeStream for Silent {
    fn next(&mut self) -> BoxFuture<'_, Option<Result<CatalogChanges, RpcError>>> {
        Box::pin(std::future::pending())
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_does_not_answer_is_a_warning_once_per_reason_and_its_return_is_told() {
    let log = Log::default();
    let _guard = tracing::subscriber::set_default(log.clone());
    let refusals = ["connection refused", "connection refused", "wrong secret"];
    let catalog = Catalog::new();
    let sync = CatalogSync {
        catalog: catalog.clone(),
        source: Arc::new(Store(Mutex::new(refusals.into()))),
        random: Arc::new(SeededRandom::new(1)),
        component: Health::new("gateway").component("catalog"),
        metrics: CatalogMetrics::default(),
    };
    let tasks = Tasks::root();
    let mut position = catalog.watch();
    tasks.spawn("sync", sync.run(tasks.stopping()));
    position.wait_for(|position| position.loaded).await.unwrap();
    tokio::time::timeout(Duration::from_secs(60), async {
        while catalog.outage().is_some() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    let warnings = log.lines(Level::WARN);
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(warnings[0].contains("connection refused"), "{warnings:?}");
    assert!(warnings[1].contains("wrong secret"), "{warnings:?}");
    let told = log.lines(Level::INFO);
    assert!(
        told.iter().any(|line| line.contains("metadata answers again")),
        "{told:?}"
    );
    tasks.stop(Duration::from_secs(5)).await.unwrap();
}
