//! One message at a time, each within the budget.

use std::convert::Infallible;

use bytes::BufMut as _;
use tokio::sync::mpsc;

use super::*;

/// A body whose frames a test sends.
struct Sent(mpsc::UnboundedReceiver<Bytes>);

impl Body for Sent {
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

struct Stream {
    client: Option<mpsc::UnboundedSender<Bytes>>,
    body: MeteredBody<Sent>,
    current: CurrentMessage,
}

const LIMIT: usize = 1_000;
const PATIENT: Duration = Duration::from_secs(30);

fn stream(budget: &MessageBudget, stall_timeout: Duration) -> Stream {
    let (client, sent) = mpsc::unbounded_channel();
    let current = CurrentMessage::default();
    let settings = MeterSettings {
        max_message_bytes: LIMIT,
        stall_timeout,
        wait_timeout: 2 * stall_timeout,
        single: false,
        places: WaitingPlaces::new(8),
        request: None,
    };
    let body = MeteredBody::new(Sent(sent), budget.clone(), current.clone(), settings);
    Stream {
        client: Some(client),
        body,
        current,
    }
}

impl Stream {
    fn send(&self, data: impl Into<Bytes>) {
        self.client.as_ref().unwrap().send(data.into()).unwrap();
    }

    fn end(&mut self) {
        self.client = None;
    }

    async fn next(&mut self) -> Option<Result<Bytes, RpcError>> {
        let frame = std::future::poll_fn(|cx| Pin::new(&mut self.body).poll_frame(cx)).await?;
        Some(match frame {
            Ok(frame) => Ok(frame.into_data().unwrap()),
            Err(status) => Err(status.into()),
        })
    }

    /// Reads frames until `bytes` have come, and no further.
    async fn read(&mut self, bytes: usize) -> Vec<u8> {
        let mut read = Vec::new();
        while read.len() < bytes {
            read.extend_from_slice(&self.next().await.unwrap().unwrap());
        }
        assert_eq!(read.len(), bytes, "bytes of the next message came along");
        read
    }

    async fn refused(&mut self) -> RpcError {
        loop {
            if let Err(error) = self.next().await.expect("ended without an error") {
                return error;
            }
        }
    }

    fn is_waiting(&mut self) -> bool {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        Pin::new(&mut self.body).poll_frame(&mut cx).is_pending()
    }
}

fn message(bytes: usize) -> Vec<u8> {
    let mut message = prefix(bytes);
    message.extend((0..bytes).map(|i| i as u8));
    message
}

fn prefix(bytes: usize) -> Vec<u8> {
    let mut prefix = vec![0];
    prefix.put_u32(bytes as u32);
    prefix
}

#[tokio::test]
async fn the_bytes_are_the_same_however_they_are_cut() {
    let budget = MessageBudget::new(LIMIT);
    let sent: Vec<u8> = [message(300), message(0), message(7), message(LIMIT)].concat();
    for piece in [1, 2, 3, 4, 5, 6, 299, 5_000] {
        let mut stream = stream(&budget, PATIENT);
        for data in sent.chunks(piece) {
            stream.send(data.to_vec());
        }
        stream.end();
        let mut read = Vec::new();
        while let Some(data) = stream.next().await {
            read.extend_from_slice(&data.unwrap());
        }
        assert_eq!(read, sent, "in pieces of {piece}");
        assert_eq!(budget.in_use_bytes(), 0);
    }
}

#[tokio::test]
async fn a_message_holds_its_bytes_until_the_next_one_is_asked_for() {
    let budget = MessageBudget::new(LIMIT);
    let mut stream = stream(&budget, PATIENT);
    stream.send([message(400), message(30)].concat());
    stream.read(405).await;
    assert_eq!(budget.in_use_bytes(), 400);
    stream.read(35).await;
    assert_eq!(budget.in_use_bytes(), 30);
    assert!(stream.is_waiting());
    assert_eq!(budget.in_use_bytes(), 0);
}

#[tokio::test]
async fn a_permit_that_was_taken_along_outlives_the_stream() {
    let budget = MessageBudget::new(LIMIT);
    let mut stream = stream(&budget, PATIENT);
    stream.send(message(400));
    stream.read(405).await;
    let permit = stream.current.take().unwrap();
    assert!(stream.current.take().is_none());
    drop(stream);
    assert_eq!(budget.in_use_bytes(), 400);
    drop(permit);
    assert_eq!(budget.in_use_bytes(), 0);
}

#[tokio::test]
async fn a_message_waits_for_room_and_is_not_read_before() {
    let budget = MessageBudget::new(LIMIT);
    let (mut first, mut second) = (stream(&budget, PATIENT), stream(&budget, PATIENT));
    first.send(message(700));
    first.read(705).await;
    second.send(message(400));
    assert!(second.is_waiting());
    drop(first);
    second.read(405).await;
    assert_eq!(budget.in_use_bytes(), 400);
}

#[tokio::test]
async fn a_message_that_finds_no_room_in_time_is_refused_for_now() {
    let budget = MessageBudget::new(LIMIT);
    let (mut first, mut second) = (
        stream(&budget, PATIENT),
        stream(&budget, Duration::from_millis(5)),
    );
    first.send(message(700));
    first.read(705).await;
    second.send(message(400));
    let refused = second.refused().await;
    assert_eq!(refused.kind, ErrorKind::Exhausted);
    assert!(second.next().await.is_none());
}

#[tokio::test]
async fn a_message_that_is_too_large_is_refused_by_its_prefix_alone() {
    let budget = MessageBudget::new(10 * LIMIT);
    let mut stream = stream(&budget, PATIENT);
    stream.send(prefix(LIMIT + 1));
    let refused = stream.refused().await;
    assert_eq!(refused.kind, ErrorKind::TooLarge);
    assert_eq!(
        refused.message,
        "message of 1001 bytes exceeds the limit of 1000 bytes"
    );
    assert_eq!(budget.in_use_bytes(), 0);
}

#[tokio::test]
async fn a_message_larger_than_the_whole_budget_is_refused_and_does_not_wait_for_ever() {
    let budget = MessageBudget::new(100);
    let mut stream = stream(&budget, PATIENT);
    stream.send(prefix(101));
    assert_eq!(stream.refused().await.kind, ErrorKind::TooLarge);
    stream.send(prefix(u32::MAX as usize));
    assert!(stream.next().await.is_none());
}

#[tokio::test]
async fn a_message_that_stalls_is_cut_off_and_gives_its_bytes_back() {
    let budget = MessageBudget::new(LIMIT);
    let mut stream = stream(&budget, Duration::from_millis(5));
    stream.send(message(400)[..200].to_vec());
    let refused = stream.refused().await;
    assert_eq!(refused.kind, ErrorKind::DeadlineExceeded);
    assert_eq!(budget.in_use_bytes(), 0);
}

#[tokio::test]
async fn an_idle_stream_is_not_a_stalled_one() {
    let budget = MessageBudget::new(LIMIT);
    let mut stream = stream(&budget, Duration::ZERO);
    stream.send(message(10));
    stream.read(15).await;
    let idle = tokio::time::timeout(Duration::from_millis(20), stream.next()).await;
    assert!(idle.is_err(), "the stream ended: {idle:?}");
}

#[tokio::test]
async fn a_message_that_is_cut_off_is_an_error_wherever_the_cut_is() {
    let budget = MessageBudget::new(LIMIT);
    for bytes in [1, 4, 5, 6, 14] {
        let mut stream = stream(&budget, PATIENT);
        stream.send(message(10)[..bytes].to_vec());
        stream.end();
        let refused = stream.refused().await;
        assert_eq!(refused.kind, ErrorKind::InvalidArgument, "after {bytes} bytes");
        assert_eq!(budget.in_use_bytes(), 0);
    }
}

#[tokio::test]
async fn the_one_message_of_a_call_holds_its_bytes_until_the_call_is_over() {
    let budget = MessageBudget::new(LIMIT);
    let mut stream = stream(&budget, PATIENT);
    stream.body.settings.single = true;
    stream.send(message(400));
    stream.read(405).await;
    assert!(stream.is_waiting());
    stream.end();
    assert!(stream.next().await.is_none());
    assert_eq!(budget.in_use_bytes(), 400);
    drop(stream);
    assert_eq!(budget.in_use_bytes(), 0);
}

#[tokio::test]
async fn a_second_message_where_one_is_expected_is_refused() {
    let budget = MessageBudget::new(LIMIT);
    let mut stream = stream(&budget, PATIENT);
    stream.body.settings.single = true;
    stream.send([message(400), message(1)].concat());
    stream.read(405).await;
    assert_eq!(stream.refused().await.kind, ErrorKind::InvalidArgument);
}

#[test]
fn every_part_moves_the_end_of_a_message_up_to_a_bound() {
    let stall = Duration::from_secs(30);
    let granted = Instant::now();
    let message = |progress: u64| Message {
        prefix: None,
        remaining: 1,
        deadline: granted + Duration::from_secs(100),
        progress: granted + Duration::from_secs(progress),
        timer: None,
    };
    let ends = [0, 20, 70, 99].map(|progress| (message(progress).end(stall) - granted).as_secs());
    assert_eq!(ends, [30, 50, 100, 100]);
}

#[tokio::test]
async fn only_so_many_messages_of_a_connection_wait_and_further_ones_are_refused_at_once() {
    let budget = MessageBudget::new(LIMIT);
    let mut first = stream(&budget, PATIENT);
    first.send(message(LIMIT));
    first.read(LIMIT + 5).await;
    let places = WaitingPlaces::new(1);
    let mut waiting = stream(&budget, PATIENT);
    waiting.body.settings.places = places.clone();
    waiting.send(message(10));
    assert!(waiting.is_waiting());
    let mut refused = stream(&budget, PATIENT);
    refused.body.settings.places = places.clone();
    refused.send(message(10));
    assert_eq!(refused.refused().await.kind, ErrorKind::Exhausted);
    drop(first);
    waiting.read(15).await;
    assert!(places.take().is_some(), "what got room waits no longer");
}

#[tokio::test]
async fn a_list_that_is_too_long_is_refused_before_the_message_is_there() {
    let mut encoded = vec![0];
    encoded.put_u32(60 << 20);
    encoded.extend([0x22, 0].repeat(1_025));
    for method in ["Produce", "ProduceStream", "Ack"] {
        let budget = MessageBudget::new(128 << 20);
        let mut stream = stream(&budget, PATIENT);
        stream.body.settings.max_message_bytes = 60 << 20;
        stream.body.scan = Some(scan(&format!("{method}Request")));
        let sent = if method == "ProduceStream" {
            // The list is in a batch, and two batches are one when they are decoded.
            let batch = [[0x12, 0xac, 0x02].to_vec(), [0x0a, 0].repeat(150)].concat();
            [prefix(60 << 20), batch.repeat(7)].concat()
        } else {
            encoded.clone()
        };
        stream.send(sent);
        let refused = stream.refused().await;
        assert_eq!(refused.kind, ErrorKind::TooLarge, "{method}: {refused}");
        assert!(
            refused.message.contains("more than 1024 elements in `"),
            "{refused}"
        );
        assert_eq!(budget.in_use_bytes(), 0);
    }
}

#[tokio::test]
async fn a_message_waits_for_the_memory_that_it_takes_decoded() {
    let budget = MessageBudget::new(4 * LIMIT);
    let many = [prefix(100), [0x22, 0].repeat(50)].concat();
    let mut first = stream(&budget, PATIENT);
    let mut second = stream(&budget, Duration::from_millis(5));
    for stream in [&mut first, &mut second] {
        stream.body.scan = Some(scan("ProduceRequest"));
        stream.send(many.clone());
    }
    first.read(105).await;
    second.read(5).await;
    assert!(second.is_waiting());
    let refused = second.refused().await;
    assert_eq!(refused.kind, ErrorKind::Exhausted);

    let mut third = stream(&budget, PATIENT);
    third.body.scan = Some(scan("ProduceRequest"));
    third.send(many);
    third.read(5).await;
    assert!(third.is_waiting());
    let permit = first.current.take();
    drop(first);
    assert!(third.is_waiting(), "the handler has the message still");
    drop(permit);
    third.read(100).await;
}

fn scan(request: &str) -> Scan {
    let shapes = crate::budget::Shapes::of(&[ptah_proto::FILE_DESCRIPTORS], &crate::RequestLimits::default());
    let request = Arc::new(shapes).request(&format!(".ptah.api.v1.{request}"));
    Scan::new(request.unwrap())
}
