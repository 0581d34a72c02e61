//! A controllable proxy on every link: whatever one process sends to another passes here and can be stopped, delayed,
//! throttled or reset, for each pair of processes by itself.
//!
//! A door stands before each process that others dial. Who dials is found out by the kernel's tables: the socket's
//! owner, whose name the harness put into its environment. So processes need no setting to be told apart.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// Environment variable with the name of a process.
pub const NAME_VARIABLE: &str = "TEST_PROCESS";
/// Name of whoever dials and has none: the test itself and its clients.
pub const CLIENT: &str = "client";
/// Bytes that are forwarded at once.
const PIECE_BYTES: usize = 64 << 10;
/// Pieces under way in one direction, which bounds what a delay holds.
const PIECES: usize = 256;
/// How long a connection to a process that is not there yet waits.
const TARGET_PATIENCE: Duration = Duration::from_secs(10);

/// What is wrong with a link, from one process to another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// Nothing passes in either direction, and nobody is told: as when a cable is pulled. What was sent meanwhile
    /// passes when the fault ends.
    Cut,
    /// What the dialer sends does not arrive; what it is sent does.
    CutForward,
    /// What the dialer is sent does not arrive; what it sends does.
    CutBackward,
    /// Connections are closed, and new ones at once: as when a process is gone.
    Reset,
    /// Everything arrives this much later, in each direction.
    Delay(Duration),
    /// At most so many bytes a second pass in each direction.
    Throttle(u64),
}

type Pair = (String, String);
type Rules = Arc<BTreeMap<Pair, Fault>>;

/// All links of a cluster.
pub struct Links {
    rules: watch::Sender<Rules>,
    doors: BTreeMap<String, Door>,
    tasks: JoinSet<()>,
}

struct Door {
    address: SocketAddr,
    target: watch::Sender<Option<String>>,
}

impl Default for Links {
    fn default() -> Self {
        Self {
            rules: watch::channel(Rules::default()).0,
            doors: BTreeMap::new(),
            tasks: JoinSet::new(),
        }
    }
}

impl Links {
    /// The address at which others find `name`; it leads nowhere until [`Links::lead`].
    pub async fn door(&mut self, name: &str) -> anyhow::Result<String> {
        if let Some(door) = self.doors.get(name) {
            return Ok(door.address.to_string());
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.context("bind a proxy")?;
        let address = listener.local_addr()?;
        let (target, targets) = watch::channel(None);
        let (rules, to) = (self.rules.subscribe(), name.to_owned());
        self.tasks.spawn(listen(listener, to, targets, rules));
        self.doors.insert(name.to_owned(), Door { address, target });
        Ok(address.to_string())
    }

    /// The address of a door that was made before.
    pub fn address(&self, name: &str) -> anyhow::Result<String> {
        let door = self
            .doors
            .get(name)
            .with_context(|| format!("no door leads to {name}"))?;
        Ok(door.address.to_string())
    }

    /// Lets the door of `name` lead to an address.
    pub fn lead(&self, name: &str, target: &str) {
        if let Some(door) = self.doors.get(name) {
            door.target.send_replace(Some(target.to_owned()));
        }
    }

    /// From now on this is wrong with the link that `from` dials to `to`.
    pub fn set(&self, from: &str, to: &str, fault: Fault) {
        let key = (from.to_owned(), to.to_owned());
        self.rules.send_modify(|rules| {
            Arc::make_mut(rules).insert(key, fault);
        });
    }

    /// From now on this is wrong with all links of a process to and from other processes of the cluster.
    pub fn isolate(&self, name: &str, fault: Fault, others: &[String]) {
        for other in others.iter().filter(|other| *other != name) {
            self.set(name, other, fault);
            self.set(other, name, fault);
        }
    }

    /// All links are well again.
    pub fn heal(&self) {
        self.rules.send_replace(Rules::default());
    }
}

async fn listen(
    listener: TcpListener,
    to: String,
    targets: watch::Receiver<Option<String>>,
    rules: watch::Receiver<Rules>,
) {
    let Ok(here) = listener.local_addr() else { return };
    let mut connections: JoinSet<anyhow::Result<Ended>> = JoinSet::new();
    let mut listener = Some(listener);
    loop {
        let Some(open) = &listener else {
            // The process is gone: whoever dials is refused, as without a proxy, until it is there again.
            until_reached(&targets).await;
            listener = TcpListener::bind(here).await.ok();
            continue;
        };
        tokio::select! {
            accepted = open.accept() => if let Ok((stream, peer)) = accepted {
                let link = Link {
                    to: to.clone(),
                    peer,
                    here,
                    targets: targets.clone(),
                    rules: rules.clone(),
                };
                connections.spawn(link.run(stream));
            },
            Some(ended) = connections.join_next() => {
                // Whatever ends a connection, its ends see it end.
                if matches!(ended, Ok(Ok(Ended::Refused))) {
                    listener = None;
                }
            }
        }
    }
}

/// Waits until the door's process takes connections.
async fn until_reached(targets: &watch::Receiver<Option<String>>) {
    loop {
        sleep(Duration::from_millis(5)).await;
        let target = targets.borrow().clone();
        if let Some(target) = target
            && TcpStream::connect(&target).await.is_ok()
        {
            return;
        }
    }
}

/// How a connection ended.
enum Ended {
    /// By one of its ends, or a fault.
    Over,
    /// There is no process behind the door.
    Refused,
}

struct Link {
    to: String,
    peer: SocketAddr,
    here: SocketAddr,
    targets: watch::Receiver<Option<String>>,
    rules: watch::Receiver<Rules>,
}

impl Link {
    async fn run(mut self, stream: TcpStream) -> anyhow::Result<Ended> {
        let (peer, here) = (self.peer, self.here);
        let from = tokio::task::spawn_blocking(move || dialer(peer, here)).await?;
        let pair = (from, self.to.clone());
        let rule = Rule {
            pair,
            rules: self.rules.clone(),
        };
        if rule.now() == Some(Fault::Reset) {
            return Ok(Ended::Over);
        }
        let target = timeout(TARGET_PATIENCE, self.target()).await?;
        let Ok(onward) = TcpStream::connect(&target).await else {
            return Ok(Ended::Refused);
        };
        stream.set_nodelay(true)?;
        onward.set_nodelay(true)?;
        let (from_dialer, to_dialer) = stream.into_split();
        let (from_target, to_target) = onward.into_split();
        let mut ended = rule.clone();
        tokio::select! {
            () = ended.until(|fault| fault == Some(Fault::Reset)) => return Ok(Ended::Over),
            _ = async {
                tokio::join!(
                    pass(from_dialer, to_target, rule.clone(), true),
                    pass(from_target, to_dialer, rule.clone(), false),
                )
            } => {}
        }
        // Perhaps because the process died.
        let reached = TcpStream::connect(&target).await.is_ok();
        Ok(if reached { Ended::Over } else { Ended::Refused })
    }
}

impl Link {
    async fn target(&mut self) -> String {
        loop {
            let known = self.targets.borrow_and_update().clone();
            if let Some(target) = known {
                return target;
            }
            if self.targets.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

/// What is wrong with one pair, as it changes.
#[derive(Clone)]
struct Rule {
    pair: Pair,
    rules: watch::Receiver<Rules>,
}

impl Rule {
    fn now(&self) -> Option<Fault> {
        self.rules.borrow().get(&self.pair).copied()
    }

    async fn until(&mut self, holds: impl Fn(Option<Fault>) -> bool) {
        loop {
            let now = self.rules.borrow_and_update().get(&self.pair).copied();
            if holds(now) {
                return;
            }
            if self.rules.changed().await.is_err() {
                // The cluster is gone; nothing changes any more.
                std::future::pending::<()>().await;
            }
        }
    }
}

/// Carries one direction until it ends.
async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, rule: Rule, forward: bool) -> io::Result<()> {
    let (pieces, mut waiting) = mpsc::channel::<(Instant, Vec<u8>)>(PIECES);
    let delays = rule.clone();
    let read = async move {
        let mut buffer = vec![0; PIECE_BYTES];
        loop {
            let read = from.read(&mut buffer).await?;
            if read == 0 {
                return Ok::<(), io::Error>(());
            }
            let due = match delays.now() {
                Some(Fault::Delay(delay)) => Instant::now() + delay,
                _ => Instant::now(),
            };
            if pieces.send((due, buffer[..read].to_vec())).await.is_err() {
                return Ok(());
            }
        }
    };
    let mut rule = rule;
    let write = async move {
        while let Some((due, piece)) = waiting.recv().await {
            sleep_until(due).await;
            rule.until(|fault| match fault {
                Some(Fault::Cut) => false,
                Some(Fault::CutForward) => !forward,
                Some(Fault::CutBackward) => forward,
                _ => true,
            })
            .await;
            if let Some(Fault::Throttle(bytes)) = rule.now() {
                sleep(Duration::from_secs_f64(piece.len() as f64 / bytes.max(1) as f64)).await;
            }
            to.write_all(&piece).await?;
        }
        to.shutdown().await
    };
    tokio::try_join!(read, write).map(|_| ())
}

/// Name of the process that dialled from `peer` to `here`.
fn dialer(peer: SocketAddr, here: SocketAddr) -> String {
    let owner = inode_of(peer, here).and_then(owner_of);
    owner.unwrap_or_else(|| CLIENT.to_owned())
}

/// Number of the socket at `local` that is connected to `remote`.
fn inode_of(local: SocketAddr, remote: SocketAddr) -> Option<u64> {
    let table = std::fs::read_to_string("/proc/net/tcp").ok()?;
    let (local, remote) = (hexadecimal(local)?, hexadecimal(remote)?);
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let ours = fields.get(1) == Some(&local.as_str()) && fields.get(2) == Some(&remote.as_str());
        ours.then(|| fields.get(9)?.parse().ok()).flatten()
    })
}

/// As the kernel's table writes an address.
fn hexadecimal(address: SocketAddr) -> Option<String> {
    let SocketAddr::V4(address) = address else {
        return None;
    };
    let ip = u32::from_le_bytes(address.ip().octets());
    Some(format!("{ip:08X}:{:04X}", address.port()))
}

/// Name of the process that has a socket open, if the harness gave it one.
fn owner_of(inode: u64) -> Option<String> {
    let wanted = format!("socket:[{inode}]");
    let processes = std::fs::read_dir("/proc").ok()?;
    processes.flatten().find_map(|process| {
        let name = name_of(&process.path())?;
        let files = std::fs::read_dir(process.path().join("fd")).ok()?;
        let holds = |file: std::fs::DirEntry| {
            std::fs::read_link(file.path()).is_ok_and(|link| link.as_os_str() == wanted.as_str())
        };
        files.flatten().any(holds).then_some(name)
    })
}

fn name_of(process: &Path) -> Option<String> {
    let pid: u32 = process.file_name()?.to_str()?.parse().ok()?;
    if let Some(known) = KNOWN.lock().ok()?.get(&pid) {
        return Some(known.clone());
    }
    let environment = std::fs::read(process.join("environ")).ok()?;
    let prefix = format!("{NAME_VARIABLE}=");
    let variables = environment.split(|byte| *byte == 0);
    let mut texts = variables.filter_map(|variable| std::str::from_utf8(variable).ok());
    let name = texts.find_map(|variable| Some(variable.strip_prefix(prefix.as_str())?.to_owned()));
    // A process that is just being made still has its parent's environment.
    if let Some(name) = &name {
        KNOWN.lock().ok()?.insert(pid, name.clone());
    }
    name
}

/// Names by process id; the system does not use an id again within a test.
static KNOWN: Mutex<BTreeMap<u32, String>> = Mutex::new(BTreeMap::new());

#[cfg(test)]
mod tests {
    use super::*;

    async fn echo() -> (SocketAddr, JoinSet<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                connections.spawn(async move {
                    let (mut read, mut write) = stream.split();
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                });
            }
        });
        (address, tasks)
    }

    async fn linked() -> (Links, String, JoinSet<()>) {
        let (target, tasks) = echo().await;
        let mut links = Links::default();
        let door = links.door("echo").await.unwrap();
        links.lead("echo", &target.to_string());
        (links, door, tasks)
    }

    async fn exchange(stream: &mut TcpStream) -> io::Result<u8> {
        stream.write_u8(7).await?;
        stream.read_u8().await
    }

    #[tokio::test]
    async fn a_cut_holds_bytes_back_and_its_end_lets_them_pass() {
        let (links, door, _tasks) = linked().await;
        let mut stream = TcpStream::connect(&door).await.unwrap();
        assert_eq!(exchange(&mut stream).await.unwrap(), 7);
        for fault in [Fault::Cut, Fault::CutForward, Fault::CutBackward] {
            links.set(CLIENT, "echo", fault);
            let silent = timeout(Duration::from_millis(100), exchange(&mut stream)).await;
            assert!(silent.is_err(), "{fault:?}");
            links.heal();
            assert_eq!(stream.read_u8().await.unwrap(), 7, "{fault:?}");
        }
    }

    #[tokio::test]
    async fn a_reset_ends_connections_and_refuses_new_ones() {
        let (links, door, _tasks) = linked().await;
        let mut stream = TcpStream::connect(&door).await.unwrap();
        assert_eq!(exchange(&mut stream).await.unwrap(), 7);
        links.set(CLIENT, "echo", Fault::Reset);
        assert!(stream.read_u8().await.is_err());
        let mut refused = TcpStream::connect(&door).await.unwrap();
        assert!(exchange(&mut refused).await.is_err());
        links.heal();
        let mut again = TcpStream::connect(&door).await.unwrap();
        assert_eq!(exchange(&mut again).await.unwrap(), 7);
    }

    #[tokio::test]
    async fn a_delay_and_a_throttle_take_their_time() {
        let (links, door, _tasks) = linked().await;
        let mut stream = TcpStream::connect(&door).await.unwrap();
        for fault in [Fault::Delay(Duration::from_millis(40)), Fault::Throttle(25)] {
            links.set(CLIENT, "echo", fault);
            let began = Instant::now();
            assert_eq!(exchange(&mut stream).await.unwrap(), 7);
            assert!(began.elapsed() >= Duration::from_millis(80), "{fault:?}");
        }
    }

    #[tokio::test]
    async fn a_process_is_told_by_its_name() {
        let (links, door, _tasks) = linked().await;
        links.set("named", "echo", Fault::Reset);
        let script = format!(
            "exec 3<>/dev/tcp/{}; echo x >&3; read -r -t 20 line <&3",
            door.replace(':', "/")
        );
        for (name, passes) in [("named", false), ("other", true)] {
            let mut bash = tokio::process::Command::new("bash");
            bash.args(["-c", &script])
                .env(NAME_VARIABLE, name)
                .stderr(std::process::Stdio::null());
            assert_eq!(bash.status().await.unwrap().success(), passes, "{name}");
        }
    }
}
