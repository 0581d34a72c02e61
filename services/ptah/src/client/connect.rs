//! Where the server is, who calls, and the connection.

use std::fmt;
use std::net::IpAddr;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};

use super::ClientError;
use super::error::Effect;
use crate::args::Global;
use crate::encoding::base64;
use crate::failure::Failure;

/// Port of the gRPC door when the address names none.
const DEFAULT_PORT: u16 = 5555;
/// Password that a fresh cluster on loopback has for `root`.
pub const DEFAULT_ROOT_PASSWORD: &str = "memphis"; // DEFAULT_ROOT_PASSWORD
/// Room for what the server sends before it must wait for the reader.
const STREAM_WINDOW_BYTES: u32 = 8 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Address of a gateway's gRPC door.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerAddress {
    host: String,
    port: u16,
}

impl ServerAddress {
    /// Whether it is on this machine only.
    pub fn is_loopback(&self) -> bool {
        self.host == "localhost" || self.host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }
}

impl FromStr for ServerAddress {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let plain = text.strip_prefix("http://").unwrap_or(text).trim_end_matches('/');
        if text.starts_with("https://") {
            return Err(format!(
                "server `{text}`: this version speaks plain gRPC only; use http:// or host:port"
            ));
        }
        let invalid = || format!("server `{text}` is not an address; write it like 127.0.0.1:{DEFAULT_PORT}");
        // `::1` is an address without a port, `[::1]` as well.
        let is_bare = plain.ends_with(']') || (!plain.starts_with('[') && plain.matches(':').count() > 1);
        let (host, port) = match plain.rsplit_once(':') {
            Some((host, port)) if !is_bare => (host, port.parse().map_err(|_| invalid())?),
            _ => (plain, DEFAULT_PORT),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let is_host = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
        if host.is_empty() || port == 0 || !host.chars().all(is_host) {
            return Err(invalid());
        }
        Ok(Self {
            host: host.to_owned(),
            port,
        })
    }
}

impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            return write!(f, "[{}]:{}", self.host, self.port);
        }
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// Who calls. Never printed.
#[derive(Clone)]
pub struct Credentials {
    user: String,
    password: String,
}

impl Credentials {
    /// A user and the password.
    pub fn new(user: impl Into<String>, password: impl Into<String>) -> Self {
        Self {
            user: user.into(),
            password: password.into(),
        }
    }

    /// From the options: `--password`, its variable, `--password-file`, or what a fresh loopback cluster has.
    pub fn from_options(global: &Global, server: &ServerAddress) -> Result<Self, Failure> {
        if let Some(password) = &global.password {
            return Ok(Self::new(&global.user, password));
        }
        if let Some(path) = &global.password_file {
            return Ok(Self::new(&global.user, read_password(path)?));
        }
        if global.user == "root" && server.is_loopback() {
            return Ok(Self::new("root", DEFAULT_ROOT_PASSWORD));
        }
        Err(Failure::usage(format!(
            "no password for user `{}` on {server}; set PTAH_PASSWORD or give --password-file",
            global.user
        )))
    }

    fn header(&self) -> Result<MetadataValue<Ascii>, ClientError> {
        if self.user.contains(':') {
            let message = format!("user `{}` is no name: it has a colon", self.user);
            return Err(ClientError::new(ptah_types::ErrorKind::InvalidArgument, message));
        }
        let text = format!(
            "Basic {}",
            base64(format!("{}:{}", self.user, self.password).as_bytes())
        );
        let mut value = MetadataValue::try_from(text).map_err(|_| {
            ClientError::new(ptah_types::ErrorKind::Internal, "credentials do not fit a header")
        })?;
        value.set_sensitive(true);
        Ok(value)
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

/// Reads a password file; the last line end does not belong to the password.
pub(crate) fn read_password(path: &Path) -> Result<String, Failure> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Failure::usage(format!("read password file `{}`: {error}", path.display())))?;
    let password = text.strip_suffix('\n').unwrap_or(&text);
    let password = password.strip_suffix('\r').unwrap_or(password);
    if password.is_empty() {
        return Err(Failure::usage(format!(
            "password file `{}` is empty",
            path.display()
        )));
    }
    Ok(password.to_owned())
}

/// A connection to a gateway.
#[derive(Debug, Clone)]
pub struct Client {
    pub(super) server: ServerAddress,
    pub(super) channel: Channel,
    pub(super) timeout: Duration,
    authorization: MetadataValue<Ascii>,
}

impl Client {
    /// Connects as the options say.
    pub async fn from_options(global: &Global) -> Result<Self, Failure> {
        let server: ServerAddress = global.server.parse().map_err(Failure::usage)?;
        let credentials = Credentials::from_options(global, &server)?;
        Ok(Self::connect(server, &credentials, global.timeout).await?)
    }

    /// Connects; answers when the connection is there.
    pub async fn connect(
        server: ServerAddress,
        credentials: &Credentials,
        timeout: Duration,
    ) -> Result<Self, ClientError> {
        Self::connect_as(server, credentials.header()?, timeout).await
    }

    /// A second connection of the same caller.
    pub async fn another(&self) -> Result<Self, ClientError> {
        Self::connect_as(self.server.clone(), self.authorization.clone(), self.timeout).await
    }

    async fn connect_as(
        server: ServerAddress,
        authorization: MetadataValue<Ascii>,
        timeout: Duration,
    ) -> Result<Self, ClientError> {
        let unreachable = |why: &dyn std::error::Error| ClientError::unreachable(&server, &root_cause(why));
        let endpoint = Endpoint::from_shared(format!("http://{server}"))
            .map_err(|error| unreachable(&error))?
            .connect_timeout(timeout)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
        let channel = match tokio::time::timeout(timeout, endpoint.connect()).await {
            Ok(connected) => connected.map_err(|error| unreachable(&error))?,
            Err(_) => return Err(ClientError::unreachable(&server, "no answer")),
        };
        Ok(Self {
            server,
            channel,
            timeout,
            authorization,
        })
    }

    /// Where this client is connected to.
    pub fn server(&self) -> &ServerAddress {
        &self.server
    }

    /// Longest wait for an answer.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// A request with the credentials.
    pub(super) fn request<T>(&self, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        request
            .metadata_mut()
            .insert("authorization", self.authorization.clone());
        request
    }

    /// Waits for an answer, but not longer than the timeout.
    pub(super) async fn call<T>(
        &self,
        effect: Effect,
        call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    ) -> Result<T, ClientError> {
        match tokio::time::timeout(self.timeout, call).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(ClientError::from_status(&self.server, status, effect)),
            Err(_) => Err(ClientError::timeout(
                &self.server,
                self.timeout.as_secs_f64(),
                effect,
            )),
        }
    }
}

/// The innermost reason: what the operating system said.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string().to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_in_every_usual_form() {
        let cases = [
            ("127.0.0.1:5555", "127.0.0.1:5555"),
            ("http://broker:7000/", "broker:7000"),
            ("broker", "broker:5555"),
            ("[::1]:5555", "[::1]:5555"),
            ("[::1]", "[::1]:5555"),
            ("::1", "[::1]:5555"),
        ];
        for (text, expected) in cases {
            assert_eq!(
                text.parse::<ServerAddress>().unwrap().to_string(),
                expected,
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for bad in [
            "",
            ":5555",
            "host:x",
            "host:0",
            "host:70000",
            "a b:1",
            "https://host:1",
        ] {
            assert!(bad.parse::<ServerAddress>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn only_loopback_is_loopback() {
        let is_loopback = |text: &str| text.parse::<ServerAddress>().unwrap().is_loopback();
        assert!(is_loopback("127.0.0.9:1") && is_loopback("[::1]:1") && is_loopback("localhost"));
        assert!(!is_loopback("10.0.0.1:1") && !is_loopback("example.org"));
    }

    #[test]
    fn credentials_do_not_show_the_password() {
        let credentials = Credentials::new("root", "very-secret");
        assert!(!format!("{credentials:?}").contains("very-secret"));
        assert!(format!("{:?}", credentials.header().unwrap()).contains("Sensitive"));
    }

    #[test]
    fn a_password_file_ends_without_its_line_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("password");
        std::fs::write(&path, "p w\n").unwrap();
        assert_eq!(read_password(&path).unwrap(), "p w");
        std::fs::write(&path, "\n").unwrap();
        assert!(
            read_password(&path)
                .unwrap_err()
                .message()
                .unwrap()
                .contains("is empty")
        );
    }
}
