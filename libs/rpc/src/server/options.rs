//! Limits of a server.

use std::time::Duration;

use crate::MAX_RPC_MESSAGE_BYTES;

/// Limits of a server. Every bound says what happens beyond it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerOptions {
    /// Largest request message on a port with a budget; larger ones are refused before they are read. Services of
    /// internal ports have the limit of their generated server.
    pub max_message_bytes: usize,
    /// Most connections; further ones are closed at once.
    pub max_connections: usize,
    /// Most calls of one connection at a time; the client holds further ones back.
    pub max_concurrent_streams: u32,
    /// Most calls of all connections whose handler has not answered yet; further ones are refused as exhausted.
    pub max_requests: usize,
    /// Unread bytes that a client may send in one call; small messages of the call wait behind them.
    pub stream_window_bytes: u32,
    /// Unread bytes that a client may send on one connection.
    pub connection_window_bytes: u32,
    /// Largest HTTP/2 frame that is taken.
    pub max_frame_bytes: u32,
    /// Bytes of answers that wait for a slow reader, per call; then the handler waits.
    pub max_send_buffer_bytes: usize,
    /// Largest header list of a call, in bytes; larger ones are refused.
    pub max_header_bytes: u32,
    /// Calls that a client took back before they were looked at, until its connection counts as an attack and is closed.
    /// Among processes of the cluster many deadlines end together when a node is busy, and closing the connection would
    /// end everything else on it as well.
    pub max_pending_resets: usize,
    /// A connection without traffic is probed this often.
    pub keep_alive_interval: Duration,
    /// A probe without answer for this long ends the connection.
    pub keep_alive_timeout: Duration,
    /// A connection that says nothing for this long after it was made is closed.
    pub handshake_timeout: Duration,
    /// On a port with a budget: how long a message that was begun may pause; then its call ends.
    pub stall_timeout: Duration,
    /// On a port with a budget: how long a message may wait for room; then it is refused for now. Shorter than callers
    /// wait for answers, so that they are told and do not give up.
    pub wait_timeout: Duration,
    /// What a handler may take until it answers (for streams: until they begin) when the caller sets no shorter
    /// deadline; `None` means as long as it takes.
    pub handler_timeout: Option<Duration>,
}

/// A frame and its header together fill an allocation of a round size.
const FRAME_HEADER_BYTES: u32 = 9;

impl ServerOptions {
    /// Messages of one connection that may wait for the budget: their unread bytes take at most half of the connection's
    /// window, so that the other half is there for messages that have been granted room.
    pub(super) fn waiting_per_connection(&self) -> usize {
        let streams = self.connection_window_bytes / self.stream_window_bytes.max(1);
        (streams as usize / 2).max(1)
    }

    /// For processes of the cluster: few connections, large windows.
    pub fn internal() -> Self {
        Self {
            max_message_bytes: MAX_RPC_MESSAGE_BYTES,
            max_connections: 4_096,
            max_concurrent_streams: 1_024,
            max_requests: 8_192,
            stream_window_bytes: 1 << 20,
            connection_window_bytes: 32 << 20,
            max_frame_bytes: 256 << 10,
            max_send_buffer_bytes: 1 << 20,
            max_header_bytes: 16 << 10,
            max_pending_resets: 4_096,
            keep_alive_interval: Duration::from_secs(5),
            keep_alive_timeout: Duration::from_secs(5),
            handshake_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(30),
            wait_timeout: Duration::from_secs(15),
            handler_timeout: None,
        }
    }

    /// For outside programs: many connections, small windows. What a client sends and nobody reads lies in memory
    /// outside of every budget, so that windows are what it costs to have many clients.
    pub fn public() -> Self {
        Self {
            max_connections: 16_384,
            max_concurrent_streams: 256,
            max_pending_resets: 20,
            stream_window_bytes: 256 << 10,
            connection_window_bytes: 4 << 20,
            max_frame_bytes: (64 << 10) - FRAME_HEADER_BYTES,
            max_send_buffer_bytes: 256 << 10,
            keep_alive_interval: Duration::from_secs(20),
            keep_alive_timeout: Duration::from_secs(20),
            handler_timeout: Some(Duration::from_secs(120)),
            ..Self::internal()
        }
    }
}
