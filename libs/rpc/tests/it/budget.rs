//! Bytes of incoming messages stay within the budget, over all clients.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ptah_rpc::{CallEffect, CurrentMessage, MessageBudget, ServerOptions};
use ptah_types::ErrorKind;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;

use crate::support::*;

const MIB: usize = 1 << 20;

/// Counts bytes that handlers have in their hands at the same time, and remembers the most.
#[derive(Default)]
struct Held {
    now: AtomicUsize,
    most: AtomicUsize,
}

impl Held {
    fn take(&self, bytes: usize) {
        let now = self.now.fetch_add(bytes, Ordering::SeqCst) + bytes;
        self.most.fetch_max(now, Ordering::SeqCst);
    }
    fn give_back(&self, bytes: usize) {
        self.now.fetch_sub(bytes, Ordering::SeqCst);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_large_uploads_at_once_never_exceed_the_budget_and_all_arrive() {
    const CLIENTS: usize = 24;
    let budget = MessageBudget::new(33 * MIB);
    let held = Arc::new(Held::default());
    let (counted, watched) = (Arc::clone(&held), budget.clone());
    let probe = Probe::new(move |request| {
        let (counted, watched) = (Arc::clone(&counted), watched.clone());
        async move {
            let bytes = request.into_inner().name.len();
            counted.take(bytes);
            assert!(counted.now.load(Ordering::SeqCst) <= watched.in_use_bytes());
            for _ in 0..20 {
                tokio::task::yield_now().await;
            }
            counted.give_back(bytes);
            Ok(())
        }
    });
    let fixture = public(&budget, ServerOptions::public(), probe).await;
    let uploads = (0..CLIENTS).map(|_| {
        // A connection each: windows are per connection.
        let channel = fixture.public_channel();
        async move { register_with(&channel, large_request(8 * MIB), PATIENCE * 4, CallEffect::Write).await }
    });
    let outcomes = futures_util::future::join_all(uploads).await;
    assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    let most = held.most.load(Ordering::SeqCst);
    assert!(
        most <= budget.total_bytes(),
        "{most} bytes were in handlers' hands"
    );
    assert_eq!(fixture.tasks.panics(), 0);
    until("the budget is free", || budget.in_use_bytes() == 0).await;
}

#[tokio::test]
async fn a_unary_message_holds_its_bytes_until_the_handler_has_answered() {
    let budget = MessageBudget::new(4 * MIB);
    let watched = budget.clone();
    let probe = Probe::new(move |request| {
        let watched = watched.clone();
        // The request with its extensions is gone before the handler looks.
        let bytes = request.into_inner().name.len();
        async move {
            assert!(watched.in_use_bytes() >= bytes);
            Ok(())
        }
    });
    let fixture = public(&budget, ServerOptions::public(), probe).await;
    register_with(
        &fixture.public_channel(),
        large_request(MIB),
        PATIENCE,
        CallEffect::Write,
    )
    .await
    .unwrap();
    until("the budget is free", || budget.in_use_bytes() == 0).await;
}

#[tokio::test]
async fn a_handler_can_keep_the_bytes_beyond_its_answer() {
    let budget = MessageBudget::new(4 * MIB);
    let kept = Arc::new(parking_lot::Mutex::new(None));
    let keep = Arc::clone(&kept);
    let probe = Probe::new(move |request| {
        let current = request.extensions().get::<CurrentMessage>().unwrap();
        *keep.lock() = current.take();
        async { Ok(()) }
    });
    let fixture = public(&budget, ServerOptions::public(), probe).await;
    register_with(
        &fixture.public_channel(),
        large_request(MIB),
        PATIENCE,
        CallEffect::Write,
    )
    .await
    .unwrap();
    assert!(budget.in_use_bytes() >= MIB);
    drop(kept.lock().take());
    assert_eq!(budget.in_use_bytes(), 0);
}

/// The beginning of a message of that many bytes.
fn begun(bytes: usize) -> Vec<u8> {
    // A field of a later version, as long as the message but for a few bytes.
    let mut message = vec![0xfa, 0x7f];
    prost::encode_length_delimiter(bytes - 10, &mut message).unwrap();
    message.resize(100, 0);
    [prefix(bytes), message].concat()
}

#[tokio::test]
async fn half_sent_messages_are_cut_off_and_others_get_their_room() {
    let budget = MessageBudget::new(MIB);
    let options = ServerOptions {
        stall_timeout: Duration::from_millis(200),
        ..ServerOptions::public()
    };
    let fixture = public(&budget, options, Probe::ok()).await;
    let mut client = RawClient::connect(&fixture).await;
    let (send, body) = pieces();
    send.send(begun(MIB).into()).unwrap();
    let request = client.grpc();
    let stalled = client.send(request, body);
    let other = async {
        until("the stalled message holds the budget", || {
            budget.in_use_bytes() == MIB
        })
        .await;
        register(&fixture.public_channel(), "other").await
    };
    let (stalled, other) = tokio::join!(stalled, other);
    assert_eq!(stalled.unwrap().grpc_status, Some(Code::DeadlineExceeded as i32));
    other.unwrap();
    assert_eq!(budget.in_use_bytes(), 0);
}

#[tokio::test]
async fn a_message_that_finds_no_room_in_time_is_refused_for_now() {
    let budget = MessageBudget::new(MIB);
    let options = ServerOptions {
        wait_timeout: Duration::from_millis(20),
        ..ServerOptions::public()
    };
    let release = Arc::new(tokio::sync::Notify::new());
    let released = Arc::clone(&release);
    let probe = Probe::new(move |_| {
        let released = Arc::clone(&released);
        async move {
            released.notified().await;
            Ok(())
        }
    });
    let fixture = public(&budget, options, probe).await;
    let channel = fixture.public_channel();
    let first = register_with(&channel, large_request(MIB - 100), PATIENCE, CallEffect::Write);
    let second = async {
        until("the first message is with its handler", || {
            budget.in_use_bytes() > MIB / 2
        })
        .await;
        let second = register_with(&channel, large_request(MIB / 2), PATIENCE, CallEffect::Write).await;
        release.notify_one();
        second
    };
    let (first, second) = tokio::join!(first, second);
    first.unwrap();
    assert_eq!(second.unwrap_err().kind, ErrorKind::Exhausted);
}

#[tokio::test]
async fn a_client_that_goes_away_half_way_gives_the_bytes_back() {
    let budget = MessageBudget::new(MIB);
    let fixture = public(&budget, ServerOptions::public(), Probe::ok()).await;
    let mut client = RawClient::connect(&fixture).await;
    let (send, body) = pieces();
    send.send(begun(MIB).into()).unwrap();
    let request = client.grpc();
    {
        let call = client.send(request, body);
        let taken = until("the message holds the budget", || budget.in_use_bytes() == MIB);
        tokio::select! {
            answer = call => panic!("answered: {answer:?}"),
            () = taken => {}
        }
    }
    drop(client);
    until("the budget is free", || budget.in_use_bytes() == 0).await;
}

#[tokio::test]
async fn an_idle_stream_holds_nothing_of_the_budget() {
    let budget = MessageBudget::new(MIB);
    let fixture = public(&budget, ServerOptions::public(), Probe::ok()).await;
    // The one service with a stream of requests that every port has.
    let mut reflection = ServerReflectionClient::new(fixture.public_channel());
    let (send, requests) = tokio::sync::mpsc::channel(1);
    let question = || ServerReflectionRequest {
        host: "x".repeat(MIB / 2),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    send.send(question()).await.unwrap();
    let answers = reflection
        .server_reflection_info(ReceiverStream::new(requests))
        .await;
    let mut answers = answers.unwrap().into_inner();
    for _ in 0..3 {
        answers.message().await.unwrap().unwrap();
        until("the stream asks for more", || budget.in_use_bytes() == 0).await;
        send.send(question()).await.unwrap();
    }
    answers.message().await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_wait_do_not_hold_up_those_of_their_connection_that_have_room() {
    const CALLS: usize = 12;
    let budget = MessageBudget::new(MIB);
    // Four calls that wait would fill the window of the connection, and the one that may be read would stall.
    let options = ServerOptions {
        stream_window_bytes: 64 << 10,
        connection_window_bytes: 256 << 10,
        stall_timeout: Duration::from_secs(5),
        ..ServerOptions::public()
    };
    let fixture = public(&budget, options, Probe::ok()).await;
    let channel = fixture.public_channel();
    let uploads = (0..CALLS).map(|_| async {
        loop {
            let request = large_request(MIB * 3 / 4);
            match register_with(&channel, request, PATIENCE, CallEffect::Write).await {
                Ok(()) => return,
                Err(refused) => assert_eq!(refused.kind, ErrorKind::Exhausted, "{refused}"),
            }
        }
    });
    futures_util::future::join_all(uploads).await;
    until("the budget is free", || budget.in_use_bytes() == 0).await;
}
