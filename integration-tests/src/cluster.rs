//! A cluster of real processes: metadata, control planes, storage nodes and gateways, as many as a test wants, each on
//! ports of its own choice, and with a controllable proxy on every link when the test asks for it.

use std::path::{Path, PathBuf};

use anyhow::Context;
use tempfile::TempDir;

use crate::client::Client;
use crate::links::{CLIENT, Links};
use crate::process::Process;
use crate::{SOON, until};

/// The secret of every cluster.
pub const SECRET: &str = "integration-tests-secret-0123456789";

/// What a cluster consists of.
#[derive(Clone, Debug)]
pub struct Layout {
    /// Metadata processes; more than one need `database`.
    pub metadata: usize,
    /// Control planes.
    pub controls: usize,
    /// Storage nodes.
    pub nodes: usize,
    /// Gateways.
    pub gateways: usize,
    /// URL of the database; an SQLite file of the cluster's own when it is `None`.
    pub database: Option<String>,
    /// A proxy on every link between processes; see [`Cluster::links`].
    pub proxied: bool,
    /// Further lines for the configuration of storage nodes.
    pub storage_config: String,
    /// Further lines for the configuration of control planes, in front of its tables.
    pub control_config: String,
    /// Further lines for the configuration of gateways.
    pub gateway_config: String,
}

impl Default for Layout {
    fn default() -> Self {
        Self {
            metadata: 1,
            controls: 1,
            nodes: 1,
            gateways: 1,
            database: None,
            proxied: false,
            storage_config: String::new(),
            control_config: String::new(),
            gateway_config: String::new(),
        }
    }
}

/// Kinds of process.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Service {
    /// Store of record.
    Metadata,
    /// Decides.
    Control,
    /// Keeps messages; node `i` has the id `i + 1`.
    Storage,
    /// Door for clients.
    Gateway,
}

impl Service {
    /// Name of an instance: of its directory, its proxy, and in faults of links.
    pub fn name(self, index: usize) -> String {
        let kind = match self {
            Self::Metadata => "metadata",
            Self::Control => "control",
            Self::Storage => "storage",
            Self::Gateway => "gateway",
        };
        format!("{kind}-{}", index + 1)
    }

    fn program(self) -> &'static str {
        match self {
            Self::Metadata => "ptah-metadata",
            Self::Control => "ptah-control-plane",
            Self::Storage => "ptah-storage-node",
            Self::Gateway => "ptah-gateway",
        }
    }
}

/// The cluster. Its directory is kept unless the test got as far as [`Cluster::finish`].
pub struct Cluster {
    dir: Option<TempDir>,
    layout: Layout,
    /// Metadata processes.
    pub metadata: Vec<Process>,
    /// Control planes.
    pub controls: Vec<Process>,
    /// Storage nodes; node `i` has the id `i + 1`.
    pub nodes: Vec<Process>,
    /// Gateways.
    pub gateways: Vec<Process>,
    /// Proxies on the links, when the layout asks for them.
    pub links: Links,
}

impl Cluster {
    /// Starts a cluster of `nodes` storage nodes, and one process of everything else.
    pub async fn start(nodes: usize) -> anyhow::Result<Self> {
        Self::start_with(nodes, "").await
    }

    /// Starts a cluster whose storage nodes have extra lines in their configuration.
    pub async fn start_with(nodes: usize, storage_config: &str) -> anyhow::Result<Self> {
        let layout = Layout {
            nodes,
            storage_config: storage_config.to_owned(),
            ..Layout::default()
        };
        Self::of(layout).await
    }

    /// Starts a cluster and waits until it is ready.
    pub async fn of(layout: Layout) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("ptah-cluster-").tempdir();
        let mut cluster = Self {
            dir: Some(dir.context("make directory")?),
            metadata: Vec::new(),
            controls: Vec::new(),
            nodes: Vec::new(),
            gateways: Vec::new(),
            links: Links::default(),
            layout,
        };
        for service in [
            Service::Metadata,
            Service::Control,
            Service::Storage,
            Service::Gateway,
        ] {
            for index in 0..cluster.count(service) {
                let process = cluster.launch(service, index, "127.0.0.1:0").await?;
                cluster.processes(service).push(process);
            }
        }
        cluster.ready().await?;
        Ok(cluster)
    }

    fn count(&self, service: Service) -> usize {
        match service {
            Service::Metadata => self.layout.metadata,
            Service::Control => self.layout.controls,
            Service::Storage => self.layout.nodes,
            Service::Gateway => self.layout.gateways,
        }
    }

    /// The processes of a service.
    pub fn processes(&mut self, service: Service) -> &mut Vec<Process> {
        match service {
            Service::Metadata => &mut self.metadata,
            Service::Control => &mut self.controls,
            Service::Storage => &mut self.nodes,
            Service::Gateway => &mut self.gateways,
        }
    }

    /// One process.
    pub fn process(&mut self, service: Service, index: usize) -> &mut Process {
        &mut self.processes(service)[index]
    }

    /// Every process of the cluster.
    pub fn all(&self) -> impl Iterator<Item = &Process> {
        let services = [&self.metadata, &self.controls, &self.nodes, &self.gateways];
        services.into_iter().flatten()
    }

    /// Names of all processes, as links know them.
    pub fn names(&self) -> Vec<String> {
        let services = [
            Service::Metadata,
            Service::Control,
            Service::Storage,
            Service::Gateway,
        ];
        let of = |service: Service| (0..self.count(service)).map(move |index| service.name(index));
        services.into_iter().flat_map(of).collect()
    }

    /// Adds a storage node to a running cluster; its index.
    pub async fn add_node(&mut self) -> anyhow::Result<usize> {
        let index = self.nodes.len();
        self.layout.nodes += 1;
        let process = self.launch(Service::Storage, index, "127.0.0.1:0").await?;
        process.ready().await?;
        self.nodes.push(process);
        Ok(index)
    }

    /// Waits until every process says that it is ready.
    pub async fn ready(&self) -> anyhow::Result<()> {
        for process in self.all() {
            process.ready().await?;
        }
        Ok(())
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

    /// Address of the first gateway's door.
    pub fn gateway_address(&self) -> anyhow::Result<&str> {
        self.gateways
            .first()
            .context("the cluster has no gateway")?
            .address("grpc")
    }

    /// Where clients find the gateways: their proxies when there are any.
    pub fn gateway_doors(&self) -> anyhow::Result<Vec<String>> {
        let names = (0..self.gateways.len()).map(|index| (index, Service::Gateway.name(index)));
        let door = |(index, name): (usize, String)| match self.layout.proxied {
            true => self.links.address(&name),
            false => Ok(self.gateways[index].address("grpc")?.to_owned()),
        };
        names.map(door).collect()
    }

    /// Everybody who dials or is dialled: all processes, and clients.
    pub fn everybody(&self) -> Vec<String> {
        let mut names = self.names();
        names.push(CLIENT.to_owned());
        names
    }

    /// A client of the first gateway.
    pub async fn client(&self) -> anyhow::Result<Client> {
        self.client_of(0).await
    }

    /// A client of a gateway.
    pub async fn client_of(&self, gateway: usize) -> anyhow::Result<Client> {
        Client::connect(self.gateways[gateway].address("grpc")?).await
    }

    /// Starts a process again after it was stopped or killed, at the same address.
    pub async fn restart(&mut self, service: Service, index: usize) -> anyhow::Result<()> {
        let address = self.process(service, index).address("grpc")?.to_owned();
        let process = self.launch(service, index, &address).await?;
        *self.process(service, index) = process;
        Ok(())
    }

    /// Starts a node again.
    pub async fn restart_node(&mut self, index: usize) -> anyhow::Result<()> {
        self.restart(Service::Storage, index).await
    }

    /// Ends a test that went well: stops every process in order and deletes the directory.
    pub async fn finish(mut self) -> anyhow::Result<()> {
        for service in [
            Service::Gateway,
            Service::Storage,
            Service::Control,
            Service::Metadata,
        ] {
            for process in self.processes(service) {
                process.stop().await?;
            }
        }
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

    /// Starts one process, listening at `listen`; behind its proxy when there is one.
    async fn launch(&mut self, service: Service, index: usize, listen: &str) -> anyhow::Result<Process> {
        let name = service.name(index);
        let door = match self.layout.proxied {
            true => Some(self.links.door(&name).await?),
            false => None,
        };
        let config = self.config(service, index, listen, door.as_deref())?;
        let dir = self.path().join(&name);
        std::fs::create_dir_all(&dir).context("make service directory")?;
        let ports = dir.join("ports.json");
        let common = format!(
            "ports_file = {ports:?}\n{config}\n[cluster]\nsecret = \"{SECRET}\"\n\
             [monitor]\nmonitor_listen = \"127.0.0.1:0\"\nmetrics_listen = \"127.0.0.1:0\"\n"
        );
        let file = dir.join("config.toml");
        std::fs::write(&file, common).context("write configuration")?;
        let file = file.to_str().context("path is not text")?;
        let args = ["--config", file];
        let process = Process::start(&name, service.program(), &args, &ports, dir.join("log")).await?;
        self.links.lead(&name, process.address("grpc")?);
        Ok(process)
    }

    fn config(
        &self,
        service: Service,
        index: usize,
        listen: &str,
        door: Option<&str>,
    ) -> anyhow::Result<String> {
        let listen = format!("grpc_listen = \"{listen}\"\n");
        let metadata = || self.addresses("metadata_addresses", Service::Metadata, &self.metadata);
        let controls = || self.addresses("control_plane_addresses", Service::Control, &self.controls);
        Ok(match service {
            Service::Metadata => format!("{listen}database_url = {:?}\n", self.database()),
            Service::Control => format!(
                "{listen}name = \"{}\"\n{}{}\n\
                 [bootstrap]\nroot_password = \"memphis\"\nallow_default_password = true\n",
                service.name(index),
                metadata()?,
                self.layout.control_config
            ),
            Service::Storage => {
                let advertised = door.map(|door| format!("advertise_address = \"{door}\"\n"));
                // Tests need little room, and must not depend on how full the machine's disk is otherwise.
                format!(
                    "{listen}node_id = {}\nname = \"{}\"\ndata_dir = {:?}\n{}{}\
                     [disk]\nfull_percent = 99\nreserve_bytes = 268435456\nenough_bytes = 268435456\n{}",
                    index + 1,
                    service.name(index),
                    self.node_dir(index),
                    advertised.unwrap_or_default(),
                    controls()?,
                    self.layout.storage_config
                )
            }
            Service::Gateway => {
                let snapshot = self.path().join(service.name(index)).join("catalog");
                format!(
                    "{listen}name = \"{}\"\ncatalog_file = {snapshot:?}\n{}{}{}",
                    service.name(index),
                    metadata()?,
                    controls()?,
                    self.layout.gateway_config
                )
            }
        })
    }

    fn database(&self) -> String {
        let file = || {
            format!(
                "sqlite://{}?mode=rwc",
                self.path().join("metadata-1/ptah.db").display()
            )
        };
        self.layout.database.clone().unwrap_or_else(file)
    }

    /// A setting with the addresses of all instances of a service, or of their proxies.
    fn addresses(&self, key: &str, service: Service, processes: &[Process]) -> anyhow::Result<String> {
        let addresses = (0..processes.len()).map(|index| match self.layout.proxied {
            true => self.links.address(&service.name(index)),
            false => Ok(processes[index].address("grpc")?.to_owned()),
        });
        let addresses = addresses.collect::<anyhow::Result<Vec<_>>>()?;
        Ok(format!("{key} = {addresses:?}\n"))
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
