//! A cluster of real processes: metadata, control plane, storage nodes and a gateway, each on ports of its own choice.

use std::path::{Path, PathBuf};

use anyhow::Context;
use tempfile::TempDir;

use crate::client::Client;
use crate::process::Process;
use crate::{SOON, until};

const SECRET: &str = "integration-tests-secret-0123456789";

/// The cluster. Its directory is kept unless the test got as far as [`Cluster::finish`].
pub struct Cluster {
    dir: Option<TempDir>,
    /// Metadata process.
    pub metadata: Process,
    /// Control-plane process.
    pub control: Process,
    /// Storage nodes; node `i` has the id `i + 1`.
    pub nodes: Vec<Process>,
    /// Gateway process.
    pub gateway: Process,
    extra: String,
    database_url: String,
}

impl Cluster {
    /// Starts a cluster of `nodes` storage nodes and waits until it is ready.
    pub async fn start(nodes: usize) -> anyhow::Result<Self> {
        Self::start_with(nodes, "").await
    }

    /// Starts a cluster whose metadata lies in the database of a URL instead of a file.
    pub async fn start_on(nodes: usize, database_url: &str) -> anyhow::Result<Self> {
        Self::start_all(nodes, "", Some(database_url)).await
    }

    /// Starts a cluster whose storage nodes have extra lines in their configuration.
    pub async fn start_with(nodes: usize, storage_config: &str) -> anyhow::Result<Self> {
        Self::start_all(nodes, storage_config, None).await
    }

    async fn start_all(
        nodes: usize,
        storage_config: &str,
        database_url: Option<&str>,
    ) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("ptah-cluster-")
            .tempdir()
            .context("make directory")?;
        let root = dir.path();
        let file = format!("sqlite://{}?mode=rwc", root.join("metadata/ptah.db").display());
        let database_url = database_url.map_or(file, str::to_owned);
        let metadata = start_metadata(root, "127.0.0.1:0", &database_url).await?;
        let control = start_control(root, "127.0.0.1:0", metadata.address("grpc")?).await?;
        let mut started = Vec::new();
        for id in 1..=nodes {
            started
                .push(start_node(root, id, "127.0.0.1:0", control.address("grpc")?, storage_config).await?);
        }
        let gateway = start_gateway(
            root,
            "127.0.0.1:0",
            metadata.address("grpc")?,
            control.address("grpc")?,
        )
        .await?;
        let extra = storage_config.to_owned();
        let cluster = Self {
            dir: Some(dir),
            metadata,
            control,
            nodes: started,
            gateway,
            extra,
            database_url,
        };
        cluster.ready().await?;
        Ok(cluster)
    }

    /// Waits until every process says that it is ready.
    pub async fn ready(&self) -> anyhow::Result<()> {
        self.metadata.ready().await?;
        self.control.ready().await?;
        for node in &self.nodes {
            node.ready().await?;
        }
        self.gateway.ready().await
    }

    /// Directory of everything.
    pub fn path(&self) -> &Path {
        self.dir
            .as_ref()
            .map(TempDir::path)
            .expect("the directory is there until the cluster is dropped")
    }

    /// Data directory of a node.
    pub fn node_dir(&self, index: usize) -> PathBuf {
        self.path().join(format!("storage-{}/data", index + 1))
    }

    /// A client of the gateway.
    pub async fn client(&self) -> anyhow::Result<Client> {
        Client::connect(self.gateway.address("grpc")?).await
    }

    /// Starts a node again after it was stopped or killed.
    pub async fn restart_node(&mut self, index: usize) -> anyhow::Result<()> {
        let address = self.nodes[index].address("grpc")?.to_owned();
        let control = self.control.address("grpc")?.to_owned();
        self.nodes[index] = start_node(self.path(), index + 1, &address, &control, &self.extra).await?;
        Ok(())
    }

    /// Starts the gateway again, at the same address.
    pub async fn restart_gateway(&mut self) -> anyhow::Result<()> {
        let address = self.gateway.address("grpc")?.to_owned();
        let (metadata, control) = (self.metadata.address("grpc")?, self.control.address("grpc")?);
        self.gateway = start_gateway(self.path(), &address, metadata, control).await?;
        Ok(())
    }

    /// Starts the control plane again, at the same address.
    pub async fn restart_control(&mut self) -> anyhow::Result<()> {
        let address = self.control.address("grpc")?.to_owned();
        self.control = start_control(self.path(), &address, self.metadata.address("grpc")?).await?;
        Ok(())
    }

    /// Starts metadata again, at the same address.
    pub async fn restart_metadata(&mut self) -> anyhow::Result<()> {
        let address = self.metadata.address("grpc")?.to_owned();
        self.metadata = start_metadata(self.path(), &address, &self.database_url).await?;
        Ok(())
    }

    /// Ends a test that went well: stops every process in order and deletes the directory.
    pub async fn finish(mut self) -> anyhow::Result<()> {
        self.gateway.stop().await?;
        for node in &mut self.nodes {
            node.stop().await?;
        }
        self.control.stop().await?;
        self.metadata.stop().await?;
        if let Some(dir) = self.dir.take() {
            dir.close().context("delete the cluster's directory")?;
        }
        Ok(())
    }

    /// Index of the node that leads a partition of a station.
    pub async fn leader(&self, client: &Client, station: &str, partition: u32) -> anyhow::Result<usize> {
        until(&format!("a leader of {station}/{partition}"), SOON, || async {
            let answer = client
                .station(station)
                .await
                .map_err(|status| status.to_string())?;
            let status = answer
                .partitions
                .into_iter()
                .find(|status| status.partition == partition);
            match status.map(|status| status.leader_node_id) {
                Some(id) if id > 0 => Ok(id as usize - 1),
                other => Err(format!("{other:?}")),
            }
        })
        .await
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let Some(dir) = self.dir.take() else { return };
        #[allow(clippy::print_stderr)] // tells a person where to look
        {
            eprintln!(
                "the test did not finish: logs and data are kept in {}",
                dir.keep().display()
            );
        }
    }
}

async fn start_service(root: &Path, name: &str, program: &str, config: String) -> anyhow::Result<Process> {
    let dir = root.join(name);
    std::fs::create_dir_all(&dir).context("make service directory")?;
    let ports = dir.join("ports.json");
    let common = format!(
        "ports_file = {ports:?}\n{config}\n[cluster]\nsecret = \"{SECRET}\"\n\
         [monitor]\nmonitor_listen = \"127.0.0.1:0\"\nmetrics_listen = \"127.0.0.1:0\"\n"
    );
    let file = dir.join("config.toml");
    std::fs::write(&file, common).context("write configuration")?;
    let file = file.to_str().context("path is not text")?;
    Process::start(name, program, &["--config", file], &ports, dir.join("log")).await
}

async fn start_metadata(root: &Path, listen: &str, database_url: &str) -> anyhow::Result<Process> {
    let config = format!("grpc_listen = \"{listen}\"\ndatabase_url = {database_url:?}\n");
    start_service(root, "metadata", "ptah-metadata", config).await
}

async fn start_control(root: &Path, listen: &str, metadata: &str) -> anyhow::Result<Process> {
    let config = format!(
        "grpc_listen = \"{listen}\"\nmetadata_addresses = [\"{metadata}\"]\n\
         [bootstrap]\nroot_password = \"memphis\"\nallow_default_password = true\n"
    );
    start_service(root, "control", "ptah-control-plane", config).await
}

async fn start_node(
    root: &Path,
    id: usize,
    listen: &str,
    control: &str,
    extra: &str,
) -> anyhow::Result<Process> {
    let name = format!("storage-{id}");
    let data = root.join(&name).join("data");
    // Tests need little room, and must not depend on how full the machine's disk is otherwise.
    let config = format!(
        "node_id = {id}\nname = \"{name}\"\ndata_dir = {data:?}\ngrpc_listen = \"{listen}\"\n\
         control_plane_addresses = [\"{control}\"]\n\
         [disk]\nfull_percent = 99\nreserve_bytes = 268435456\nenough_bytes = 268435456\n{extra}"
    );
    start_service(root, &name, "ptah-storage-node", config).await
}

async fn start_gateway(root: &Path, listen: &str, metadata: &str, control: &str) -> anyhow::Result<Process> {
    let config = format!(
        "grpc_listen = \"{listen}\"\nmetadata_addresses = [\"{metadata}\"]\ncontrol_plane_addresses = [\"{control}\"]\n"
    );
    start_service(root, "gateway", "ptah-gateway", config).await
}
