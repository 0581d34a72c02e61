//! The server.

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::Context;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::time::Instant;

use crate::SOON;
use crate::programs::{Unprivileged, find, run};

/// The server's superuser.
pub const USER: &str = "postgres";
/// Its password, for connections over TCP; the socket in the server's directory asks for none.
pub const PASSWORD: &str = "test-password-of-postgres";

/// Ends the server and deletes its directory when nobody holds the other end of the pipe any more, unless told to keep it.
const WATCH: &str = r#"
log=$1 dir=$2; shift 2
"$@" >>"$log" 2>&1 </dev/null &
server=$!
echo "$server"
if [ "$(cat)" = keep ]; then
    kill -INT "$server" 2>/dev/null
    wait "$server"
else
    kill -QUIT "$server" 2>/dev/null
    wait "$server"
    rm -rf "$dir"
fi
"#;

/// A PostgreSQL server of its own.
pub struct Server {
    dir: PathBuf,
    user: Option<Unprivileged>,
    settings: Vec<(String, String)>,
    port: u16,
    running: Option<Running>,
}

struct Running {
    watch: Child,
    pipe: ChildStdin,
    pid: u32,
}

impl Server {
    /// Makes and starts a server.
    pub async fn start() -> anyhow::Result<Self> {
        Self::start_with(&[]).await
    }

    /// Makes and starts a server with settings of `postgresql.conf`.
    pub async fn start_with(settings: &[(&str, &str)]) -> anyhow::Result<Self> {
        let user = Unprivileged::find().await?;
        Self::start_in(make_directory(user)?, user, settings).await
    }

    /// Makes and starts a server that speaks TLS, with a certificate of its own for `localhost`: the server, and the file
    /// with the certificate.
    pub async fn start_with_tls() -> anyhow::Result<(Self, PathBuf)> {
        let user = Unprivileged::find().await?;
        let dir = make_directory(user)?;
        let (certificate, key) = (dir.join("server.crt"), dir.join("server.key"));
        let mut openssl = Command::new("openssl");
        openssl.args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]);
        openssl.args([
            "-subj",
            "/CN=localhost",
            "-addext",
            "subjectAltName=DNS:localhost",
        ]);
        openssl.args(["-addext", "basicConstraints=critical,CA:FALSE"]);
        openssl.arg("-keyout").arg(&key).arg("-out").arg(&certificate);
        run(&mut openssl).await.context("make a certificate")?;
        if let Some(user) = user {
            std::os::unix::fs::chown(&key, Some(user.uid), Some(user.gid)).context("give the key away")?;
        }
        let (crt, key) = (certificate.to_string_lossy(), key.to_string_lossy());
        let settings = [
            ("ssl", "on"),
            ("ssl_cert_file", crt.as_ref()),
            ("ssl_key_file", key.as_ref()),
        ];
        let server = Self::start_in(dir, user, &settings).await?;
        Ok((server, certificate))
    }

    async fn start_in(
        dir: PathBuf,
        user: Option<Unprivileged>,
        settings: &[(&str, &str)],
    ) -> anyhow::Result<Self> {
        let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        let mut server = Self {
            dir,
            user,
            settings: settings.iter().map(owned).collect(),
            port: 0,
            running: None,
        };
        server.init().await?;
        // A port that was free a moment ago may be taken now: then another one.
        let mut tries = 5;
        loop {
            server.port = free_port()?;
            match server.start_again().await {
                Ok(()) => return Ok(server),
                Err(error) if tries == 0 => return Err(error),
                Err(_) => tries -= 1,
            }
        }
    }

    async fn init(&self) -> anyhow::Result<()> {
        let password = self.dir.join("password");
        std::fs::write(&password, PASSWORD).context("write the password")?;
        let mut command = self.command("initdb");
        command.args([
            "--username",
            USER,
            "--encoding=UTF8",
            "--locale=C.UTF-8",
            "--no-sync",
        ]);
        command.args(["--auth-local=trust", "--auth-host=scram-sha-256", "--pwfile"]);
        command.arg(&password).arg("--pgdata").arg(self.data());
        run(&mut command).await.context("make a database directory")?;
        Ok(())
    }

    /// A command of PostgreSQL as the server's user.
    fn command(&self, program: &str) -> Command {
        let mut words = self.user.map(Unprivileged::prefix).unwrap_or_default();
        words.push(find(program).to_string_lossy().into_owned());
        let mut command = Command::new(&words[0]);
        command
            .args(&words[1..])
            .current_dir(&self.dir)
            .env("LC_ALL", "C.UTF-8");
        command
    }

    /// Starts the server after it was stopped or killed, at the same port.
    pub async fn start_again(&mut self) -> anyhow::Result<()> {
        anyhow::ensure!(self.running.is_none(), "the server runs already");
        let deadline = Instant::now() + SOON;
        loop {
            let mut running = self.spawn().await?;
            match self.wait_until_it_answers(&mut running, deadline).await {
                Ok(()) => {
                    self.running = Some(running);
                    return Ok(());
                }
                // The remains of a killed server go by themselves, and hold its memory until then.
                Err(_) if self.is_held_by_remains() && Instant::now() < deadline => {
                    running.end("keep").await?;
                }
                Err(error) => {
                    let log = self.log_tail();
                    running.end("keep").await?;
                    return Err(error.context(log));
                }
            }
        }
    }

    fn is_held_by_remains(&self) -> bool {
        let log = self.log_tail();
        let last = log.lines().rev().take(3).collect::<String>();
        last.contains("shared memory block") || last.contains("lock file")
    }

    async fn spawn(&self) -> anyhow::Result<Running> {
        let mut watch = Command::new("sh");
        watch.args(["-c", WATCH, "watch"]).arg(self.log()).arg(&self.dir);
        watch.args(self.user.map(Unprivileged::prefix).unwrap_or_default());
        watch.arg(find("postgres")).arg("-D").arg(self.data());
        let sockets = self.dir.to_string_lossy().into_owned();
        for (key, value) in [
            ("port", self.port.to_string()),
            ("listen_addresses", "127.0.0.1".to_owned()),
            ("unix_socket_directories", sockets),
            ("log_line_prefix", "%m [%p] %d ".to_owned()),
        ] {
            watch.arg("-c").arg(format!("{key}={value}"));
        }
        for (key, value) in &self.settings {
            watch.arg("-c").arg(format!("{key}={value}"));
        }
        // A group of its own, so that an interrupt from the keyboard reaches the test alone; the rest follows from the pipe.
        let mut watch = watch
            .process_group(0)
            .current_dir(&self.dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("start the server")?;
        let pipe = watch.stdin.take().context("the watch has no pipe")?;
        let told = watch.stdout.take().context("the watch says nothing")?;
        let line = BufReader::new(told).lines().next_line().await?;
        let pid = line
            .context("the watch ended")?
            .trim()
            .parse()
            .context("read a process id")?;
        Ok(Running { watch, pipe, pid })
    }

    async fn wait_until_it_answers(&self, running: &mut Running, deadline: Instant) -> anyhow::Result<()> {
        loop {
            let Err(error) = self.query("postgres", "SELECT 1").await else {
                return Ok(());
            };
            anyhow::ensure!(is_alive(running.pid), "the server ended");
            if Instant::now() >= deadline {
                return Err(error.context("the server does not answer"));
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }

    /// Stops the server as an operator does: transactions that are open are rolled back.
    pub async fn stop(&mut self) -> anyhow::Result<()> {
        let running = self.running.take().context("the server does not run")?;
        signal("INT", &[running.pid]).await?;
        running.end("keep").await
    }

    /// Kills the server and everything that belongs to it.
    pub async fn kill(&mut self) -> anyhow::Result<()> {
        let running = self.running.take().context("the server does not run")?;
        signal("KILL", &family(running.pid)).await?;
        running.end("keep").await
    }

    /// Stops every process of the server without ending it.
    pub async fn pause(&self) -> anyhow::Result<()> {
        let pid = self.pid()?;
        // The parent first: then nobody makes new ones.
        signal("STOP", &[pid]).await?;
        signal("STOP", &family(pid)).await
    }

    /// Lets a paused server go on.
    pub async fn resume(&self) -> anyhow::Result<()> {
        signal("CONT", &family(self.pid()?)).await
    }

    fn pid(&self) -> anyhow::Result<u32> {
        Ok(self.running.as_ref().context("the server does not run")?.pid)
    }

    /// Port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// URL of a database as the superuser.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://{USER}:{PASSWORD}@127.0.0.1:{}/{database}", self.port)
    }

    /// Makes an empty database.
    pub async fn create_database(&self, database: &str) -> anyhow::Result<String> {
        self.query("postgres", &format!("CREATE DATABASE \"{database}\""))
            .await?;
        Ok(self.url(database))
    }

    /// Runs SQL as the superuser; columns of the answer are parted by `|`.
    pub async fn query(&self, database: &str, sql: &str) -> anyhow::Result<String> {
        let mut command = self.client("psql", database);
        command.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", sql]);
        Ok(run(&mut command).await?.trim().to_owned())
    }

    /// Writes a database to a file, as `pg_dump` does it with these arguments.
    pub async fn dump(&self, database: &str, arguments: &[&str], file: &Path) -> anyhow::Result<()> {
        let mut command = self.client("pg_dump", database);
        let text = run(command.args(arguments)).await?;
        std::fs::write(file, text).context("write the dump")
    }

    /// Runs a file of SQL, for example a dump.
    pub async fn run_file(&self, database: &str, file: &Path) -> anyhow::Result<()> {
        let mut command = self.client("psql", database);
        command
            .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-f"])
            .arg(file);
        run(&mut command).await.map(drop)
    }

    fn client(&self, program: &str, database: &str) -> Command {
        let mut command = Command::new(find(program));
        command
            .arg("-h")
            .arg(&self.dir)
            .arg("-p")
            .arg(self.port.to_string());
        command.args(["-U", USER, "-d", database]);
        command
    }

    /// Copies the whole data directory, as a snapshot of the disk does. The server must be stopped.
    pub async fn copy_data(&self, name: &str) -> anyhow::Result<()> {
        anyhow::ensure!(self.running.is_none(), "stop the server first");
        run(Command::new("cp")
            .arg("-a")
            .arg(self.data())
            .arg(self.dir.join(name)))
        .await
        .map(drop)
    }

    /// Puts such a copy in the place of the data directory. The server must be stopped.
    pub async fn put_data_back(&self, name: &str) -> anyhow::Result<()> {
        anyhow::ensure!(self.running.is_none(), "stop the server first");
        std::fs::remove_dir_all(self.data()).context("delete the data directory")?;
        run(Command::new("cp")
            .arg("-a")
            .arg(self.dir.join(name))
            .arg(self.data()))
        .await
        .map(drop)
    }

    fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    fn log(&self) -> PathBuf {
        self.dir.join("server.log")
    }

    /// The end of what the server logged.
    pub fn log_tail(&self) -> String {
        let text = std::fs::read(self.log()).unwrap_or_default();
        let start = text.len().saturating_sub(4_000);
        String::from_utf8_lossy(&text[start..]).into_owned()
    }
}

impl Running {
    /// Tells the watch what to do with the directory and waits for its end.
    async fn end(mut self, said: &str) -> anyhow::Result<()> {
        self.pipe
            .write_all(said.as_bytes())
            .await
            .context("tell the watch")?;
        drop(self.pipe);
        let ended = tokio::time::timeout(SOON, self.watch.wait()).await;
        ended.context("the server did not end")??;
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            #[allow(clippy::print_stderr)] // tells a person where to look
            {
                eprintln!("log and data of postgresql are kept in {}", self.dir.display());
            }
            if let Some(running) = &mut self.running {
                // Room for one word is always there.
                use std::io::Write as _;
                if let Ok(pipe) = running.pipe.as_fd_file() {
                    let _ = (&pipe).write_all(b"keep");
                }
            }
        } else if self.running.is_none() {
            let _ = std::fs::remove_dir_all(&self.dir);
        }
        // The pipe closes with the field, and the watch does the rest.
    }
}

trait AsFile {
    fn as_fd_file(&self) -> std::io::Result<std::fs::File>;
}

impl AsFile for ChildStdin {
    fn as_fd_file(&self) -> std::io::Result<std::fs::File> {
        use std::os::fd::AsFd as _;
        Ok(self.as_fd().try_clone_to_owned()?.into())
    }
}

fn make_directory(user: Option<Unprivileged>) -> anyhow::Result<PathBuf> {
    let dir: TempDir = tempfile::Builder::new()
        .prefix("ptah-postgres-")
        .tempdir()
        .context("make a directory")?;
    if let Some(user) = user {
        std::os::unix::fs::chown(dir.path(), Some(user.uid), Some(user.gid))
            .context("give the directory away")?;
    }
    Ok(dir.keep())
}

fn free_port() -> anyhow::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("find a free port")?;
    Ok(listener.local_addr()?.port())
}

fn is_alive(pid: u32) -> bool {
    // A process that has ended and was not waited for yet has no command line.
    std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty())
}

/// A process and its children.
fn family(pid: u32) -> Vec<u32> {
    let mut found = vec![pid];
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(child) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        // Behind the name, which is in brackets: state, parent.
        let parent = stat
            .rsplit_once(')')
            .and_then(|(_, rest)| rest.split_whitespace().nth(1));
        if parent.and_then(|parent| parent.parse().ok()) == Some(pid) {
            found.push(child);
        }
    }
    found
}

/// Sends a signal. Processes that have ended meanwhile do not matter.
async fn signal(name: &str, pids: &[u32]) -> anyhow::Result<()> {
    let mut command = Command::new("kill");
    command.arg("-s").arg(name).args(pids.iter().map(u32::to_string));
    command.stderr(Stdio::null());
    command.status().await.context("send a signal")?;
    Ok(())
}
