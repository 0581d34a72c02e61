//! A small service whose behaviour a test gives, its server, and clients.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{BufMut as _, Bytes};
use http::Request as HttpRequest;
use http_body::{Body as HttpBody, Frame};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message as _;
use ptah_proto::control::v1::node_service_client::NodeServiceClient;
use ptah_proto::control::v1::node_service_server::{NodeService, NodeServiceServer};
use ptah_proto::control::v1::{
    RegisterNodeRequest, RegisterNodeResponse, ReportNodeRequest, ReportNodeResponse,
};
use ptah_rpc::{
    CallEffect, Channels, ClusterSecret, MAX_RPC_MESSAGE_BYTES, MessageBudget, Network, RpcChannel, RpcError,
    Server, ServerHandle, ServerOptions, TcpNetwork, call,
};
use ptah_service::{BoxFuture, Metrics, Secret, SeededRandom, Tasks};
use tokio::sync::mpsc;
use tonic::{Request, Response, Status};

/// Long enough for a slow machine; nothing waits for it when all is well.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
pub(crate) const METHOD: &str = "/ptah.control.v1.NodeService/RegisterNode";

type Behaviour = dyn Fn(Request<RegisterNodeRequest>) -> BoxFuture<'static, Result<(), Status>> + Send + Sync;

/// Answers `RegisterNode` as a test says.
pub(crate) struct Probe(Box<Behaviour>);

impl Probe {
    pub(crate) fn new<F, Fut>(behaviour: F) -> Self
    where
        F: Fn(Request<RegisterNodeRequest>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), Status>> + Send + 'static,
    {
        Self(Box::new(move |request| Box::pin(behaviour(request))))
    }

    pub(crate) fn ok() -> Self {
        Self::new(|_| async { Ok(()) })
    }
}

#[tonic::async_trait]
impl NodeService for Probe {
    async fn register_node(
        &self,
        request: Request<RegisterNodeRequest>,
    ) -> Result<Response<RegisterNodeResponse>, Status> {
        (self.0)(request).await?;
        Ok(Response::new(RegisterNodeResponse::default()))
    }

    async fn report_node(
        &self,
        _: Request<ReportNodeRequest>,
    ) -> Result<Response<ReportNodeResponse>, Status> {
        Err(Status::unimplemented("not probed"))
    }
}

pub(crate) fn secret() -> ClusterSecret {
    ClusterSecret::new(&Secret::new("the secret of this cluster")).unwrap()
}

pub(crate) fn other_secret() -> ClusterSecret {
    ClusterSecret::generate(&SeededRandom::new(1))
}

/// A server with the probe.
pub(crate) struct Fixture {
    pub(crate) network: Arc<dyn Network>,
    pub(crate) server: ServerHandle,
    pub(crate) tasks: Tasks,
    pub(crate) metrics: Metrics,
}

pub(crate) async fn internal(probe: Probe) -> Fixture {
    start(Server::internal(secret()), probe, tcp(), "127.0.0.1:0").await
}

pub(crate) async fn public(budget: &MessageBudget, options: ServerOptions, probe: Probe) -> Fixture {
    let server = Server::public(budget.clone()).options(options);
    start(server, probe, tcp(), "127.0.0.1:0").await
}

pub(crate) fn tcp() -> Arc<dyn Network> {
    Arc::new(TcpNetwork::new())
}

pub(crate) async fn start(server: Server, probe: Probe, network: Arc<dyn Network>, address: &str) -> Fixture {
    let (tasks, metrics) = (Tasks::root(), Metrics::new());
    let listener = network.bind(address).await.unwrap();
    let service = NodeServiceServer::new(probe)
        .max_decoding_message_size(MAX_RPC_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_RPC_MESSAGE_BYTES);
    let server = server
        .metrics(&metrics)
        .add_service(service)
        .serve(listener, &tasks);
    Fixture {
        network,
        server,
        tasks,
        metrics,
    }
}

impl Fixture {
    pub(crate) fn address(&self) -> String {
        self.server.local_addr().to_string()
    }

    pub(crate) fn channel(&self) -> RpcChannel {
        let channels = Channels::new(Arc::clone(&self.network), secret());
        channels.to(&self.address()).unwrap()
    }

    pub(crate) fn public_channel(&self) -> RpcChannel {
        let channels = Channels::public(Arc::clone(&self.network));
        channels.to(&self.address()).unwrap()
    }

    /// Whether the server still serves a well-behaved client.
    pub(crate) async fn still_serves(&self) {
        let served = match register(&self.channel(), "still there").await {
            Err(error) => panic!("no longer served: {error:?}"),
            Ok(()) => true,
        };
        assert!(served);
    }

    /// A sample of this server.
    pub(crate) fn metric(&self, sample: &str) -> Option<f64> {
        let label = format!("listener=\"{}\"", self.address());
        let text = self.metrics.render();
        let text = text
            .replace(&format!("{{{label}}}"), "")
            .replace(&format!("{label},"), "");
        let line = text.lines().find_map(|line| line.strip_prefix(sample))?;
        line.trim().parse().ok()
    }
}

pub(crate) async fn register(channel: &RpcChannel, name: &str) -> Result<(), RpcError> {
    register_with(channel, request(name), PATIENCE, CallEffect::Write).await
}

pub(crate) async fn register_with(
    channel: &RpcChannel,
    request: RegisterNodeRequest,
    deadline: Duration,
    effect: CallEffect,
) -> Result<(), RpcError> {
    let mut client =
        NodeServiceClient::new(channel.clone()).max_encoding_message_size(2 * MAX_RPC_MESSAGE_BYTES);
    call(deadline, effect, request, |request| client.register_node(request)).await?;
    Ok(())
}

pub(crate) fn request(name: &str) -> RegisterNodeRequest {
    RegisterNodeRequest {
        name: name.to_owned(),
        ..Default::default()
    }
}

/// A request whose message has about `bytes` bytes.
pub(crate) fn large_request(bytes: usize) -> RegisterNodeRequest {
    request(&"x".repeat(bytes))
}

/// A message with its prefix, as it goes over the wire.
pub(crate) fn framed(request: &RegisterNodeRequest) -> Vec<u8> {
    let mut framed = prefix(request.encoded_len());
    framed.extend(request.encode_to_vec());
    framed
}

pub(crate) fn prefix(bytes: usize) -> Vec<u8> {
    let mut prefix = vec![0];
    prefix.put_u32(u32::try_from(bytes).unwrap());
    prefix
}

/// A body that a test sends piece by piece.
pub(crate) struct Pieces(mpsc::UnboundedReceiver<Bytes>);

impl HttpBody for Pieces {
    type Data = Bytes;
    type Error = Infallible;
    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0
            .poll_recv(cx)
            .map(|data| data.map(|data| Ok(Frame::data(data))))
    }
}

pub(crate) fn pieces() -> (mpsc::UnboundedSender<Bytes>, Pieces) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (sender, Pieces(receiver))
}

/// A client that knows HTTP/2 and nothing of gRPC.
pub(crate) struct RawClient {
    send: SendRequest<Pieces>,
    address: String,
    _connection: Tasks,
}

/// What a raw call was answered.
#[derive(Debug)]
pub(crate) struct RawAnswer {
    pub(crate) http: u16,
    pub(crate) grpc_status: Option<i32>,
    pub(crate) message: String,
}

impl RawClient {
    pub(crate) async fn connect(fixture: &Fixture) -> Self {
        let address = fixture.address();
        let io = fixture.network.connect(&address).await.unwrap();
        let (send, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(io))
            .await
            .unwrap();
        let tasks = Tasks::root();
        tasks.spawn("connection", async move {
            let _ = connection.await;
        });
        Self {
            send,
            address,
            _connection: tasks,
        }
    }

    pub(crate) fn post(&self, path: &str) -> http::request::Builder {
        HttpRequest::post(format!("http://{}{path}", self.address)).header("te", "trailers")
    }

    pub(crate) fn grpc(&self) -> http::request::Builder {
        self.post(METHOD).header("content-type", "application/grpc")
    }

    pub(crate) async fn send(
        &mut self,
        request: http::request::Builder,
        body: Pieces,
    ) -> Result<RawAnswer, hyper::Error> {
        self.send.ready().await?;
        let response = self.send.send_request(request.body(body).unwrap()).await?;
        answer(response).await
    }
}

async fn answer(response: http::Response<Incoming>) -> Result<RawAnswer, hyper::Error> {
    let (parts, mut body) = response.into_parts();
    let mut headers = parts.headers;
    while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        if let Ok(trailers) = frame?.into_trailers() {
            headers.extend(trailers);
        }
    }
    let text = |name: &str| {
        headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    };
    Ok(RawAnswer {
        http: parts.status.as_u16(),
        grpc_status: text("grpc-status").parse().ok(),
        message: text("grpc-message").to_owned(),
    })
}

/// Polls until `holds`; fails after the patience is used up.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    assert!(
        tokio::time::timeout(PATIENCE, waiting).await.is_ok(),
        "waited in vain until {what}"
    );
}
