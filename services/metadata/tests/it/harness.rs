//! A service in a directory, and clients of it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ptah_metadata::{Config, Deps, Metadata};
use ptah_rpc::records::{Commit, Counter, CounterRecord, Precondition, RecordKey, RecordValue, Write};
use ptah_rpc::{Channels, ClusterSecret, MetadataClient, RpcError, TcpNetwork};
use ptah_service::{ClusterConfig, Health, Metrics, Ports, Running, Secret, Tasks};

/// The secret of every cluster here.
pub(crate) fn secret() -> Secret {
    Secret::new("the secret of the tests")
}

/// A directory with a database, and the service on it when it runs.
pub(crate) struct Service {
    folder: tempfile::TempDir,
    // Instead of the one in the folder.
    database_url: Option<String>,
    address: String,
    running: Option<(Metadata, Tasks)>,
}

impl Service {
    pub(crate) async fn start() -> Self {
        Self::start_on(None).await
    }

    /// Starts on the database of a URL.
    pub(crate) async fn start_on(database_url: Option<String>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut service = Self {
            folder,
            database_url,
            address: "127.0.0.1:0".to_owned(),
            running: None,
        };
        service.start_again().await;
        service
    }

    /// Starts where it was before: on the same database and address.
    pub(crate) async fn start_again(&mut self) {
        let file = format!("sqlite://{}?mode=rwc", self.database().display());
        let config = Config {
            grpc_listen: self.address.clone(),
            database_url: self.database_url.clone().unwrap_or(file),
            cluster: ClusterConfig { secret: secret() },
            ..Config::default()
        };
        let tasks = Tasks::root();
        let deps = Deps {
            ports: Ports::system(),
            network: Arc::new(TcpNetwork::new()),
            tasks: tasks.clone(),
            metrics: Metrics::new(),
            health: Health::new("metadata"),
            store: None,
        };
        let metadata = ptah_metadata::start(config, deps).await.unwrap();
        self.address = metadata.address().to_string();
        self.running = Some((metadata, tasks));
    }

    pub(crate) async fn stop(&mut self) {
        let (metadata, tasks) = self.running.take().unwrap();
        Box::new(metadata).stop(Duration::from_secs(10)).await.unwrap();
        tasks.stop(Duration::from_secs(10)).await.unwrap();
    }

    pub(crate) fn database(&self) -> PathBuf {
        self.folder.path().join("metadata.db")
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    pub(crate) fn client(&self) -> MetadataClient {
        client(self.address(), &secret())
    }
}

pub(crate) fn client(address: &str, secret: &Secret) -> MetadataClient {
    let channels = Channels::new(Arc::new(TcpNetwork::new()), ClusterSecret::new(secret).unwrap());
    MetadataClient::new(channels.to(address).unwrap())
}

/// Takes the lease and answers its epoch.
pub(crate) async fn lead(client: &MetadataClient, holder: &str) -> u64 {
    let lease = client
        .acquire_lease(holder, Duration::from_secs(30), false)
        .await
        .unwrap();
    assert!(lease.acquired, "{lease:?}");
    lease.epoch
}

pub(crate) fn counter(next: u64) -> Write {
    Write {
        key: RecordKey::counter(Counter::Station),
        value: Some(RecordValue::Counter(CounterRecord { next })),
    }
}

/// Sets the counter if it is at a revision.
pub(crate) async fn set_counter(
    client: &MetadataClient,
    epoch: u64,
    at_revision: u64,
    next: u64,
) -> Result<u64, RpcError> {
    let commit = Commit {
        preconditions: vec![Precondition {
            key: RecordKey::counter(Counter::Station),
            revision: at_revision,
        }],
        writes: vec![counter(next)],
        lease_epoch: epoch,
    };
    client.commit(&commit).await
}

/// Adds one to the counter, as often as it takes.
pub(crate) async fn increment(client: &MetadataClient, epoch: u64) -> u64 {
    loop {
        let (record, _) = client.get(&RecordKey::counter(Counter::Station)).await.unwrap();
        let (revision, next) = match record {
            Some(record) => match record.value {
                RecordValue::Counter(counter) => (record.revision, counter.next),
                other => panic!("not a counter: {other:?}"),
            },
            None => (0, 0),
        };
        match set_counter(client, epoch, revision, next + 1).await {
            Ok(revision) => return revision,
            Err(error) if error.kind == ptah_types::ErrorKind::Conflict => {}
            Err(error) => panic!("{error}"),
        }
    }
}
