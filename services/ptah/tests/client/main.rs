//! The client commands against a server that can be told to misbehave.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod server;

use std::net::SocketAddr;
use std::process::{Output, Stdio};

use serde_json::Value;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use self::server::{Fake, Fault};

/// Runs `ptah` with these words, and `input` on stdin.
async fn ptah(server: SocketAddr, words: &str, input: &[u8]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_ptah"))
        .env_clear()
        .env("PTAH_SERVER", server.to_string())
        .args(words.split_whitespace())
        .args(["--timeout", "10s"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // A command that ends early does not read its input.
    let _ = stdin.write_all(input).await;
    drop(stdin);
    child.wait_with_output().await.unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

#[tokio::test]
async fn every_line_becomes_a_message() {
    let (fake, address) = Fake::start(Fault::None).await;
    let output = ptah(address, "produce orders --json", b"a\n\nlast").await;
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert_eq!(json(&output)["stored"], 3);
    assert_eq!(fake.payloads(), ["a", "", "last"]);
}

#[tokio::test]
async fn many_lines_through_a_small_window_arrive_in_order() {
    let (fake, address) = Fake::start(Fault::None).await;
    let lines: Vec<String> = (0..20_000).map(|number| format!("line {number}")).collect();
    let output = ptah(
        address,
        "produce orders --window 7 --json",
        lines.join("\n").as_bytes(),
    )
    .await;
    assert_eq!(json(&output)["stored"], 20_000);
    assert_eq!(fake.payloads(), lines);
}

#[tokio::test]
async fn the_key_is_a_member_of_the_line() {
    let (fake, address) = Fake::start(Fault::None).await;
    let input = b"{\"id\":\"x\"}\n{\"id\":7}\n{\"other\":1}\nno json\n";
    let output = ptah(address, "produce orders --key-field id", input).await;
    assert_eq!(code(&output), 7);
    assert_eq!(fake.keys(), [Some("x".to_owned()), Some("7".to_owned())]);
    let told = stderr(&output);
    assert!(
        told.contains("line 3: no member `id`") && told.contains("line 4: not a JSON object"),
        "{told}"
    );
}

#[tokio::test]
async fn a_line_above_the_stations_limit_is_told_and_the_others_are_stored() {
    let (fake, address) = Fake::start(Fault::None).await;
    let mut input = b"first\n".to_vec();
    input.extend(vec![b'x'; (1 << 20) + 1]);
    input.extend(b"\nthird\n");
    let output = ptah(address, "produce orders", &input).await;
    assert_eq!(code(&output), 7);
    assert!(
        stderr(&output).contains("line 2: payload of 1048577 bytes exceeds"),
        "{}",
        stderr(&output)
    );
    assert_eq!(fake.payloads(), ["first", "third"]);
}

#[tokio::test]
async fn a_refused_line_is_named_and_the_others_are_stored() {
    let (fake, address) = Fake::start(Fault::Refuse(1)).await;
    let output = ptah(address, "produce orders --json", b"a\nb\nc\n").await;
    assert_eq!(code(&output), 7);
    let summary = json(&output);
    assert_eq!(
        (&summary["stored"], &summary["failed"], &summary["unknown"]),
        (&2.into(), &1.into(), &0.into())
    );
    assert_eq!(
        (
            &summary["failures"][0]["first_line"],
            &summary["failures"][0]["kind"]
        ),
        (&2.into(), &"unavailable".into())
    );
    assert_eq!(fake.payloads(), ["a", "c"]);
}

#[tokio::test]
async fn lines_that_lost_their_answer_are_unknown_and_not_failed() {
    let (_fake, address) = Fake::start(Fault::Cut(1)).await;
    let output = ptah(address, "produce orders --json", b"a\nb\nc\n").await;
    assert_eq!(code(&output), 8, "{}", stderr(&output));
    let summary = json(&output);
    assert_eq!(
        (&summary["stored"], &summary["failed"], &summary["unknown"]),
        (&0.into(), &0.into(), &3.into())
    );
}

#[tokio::test]
async fn consume_writes_payloads_byte_for_byte_and_acknowledges_them() {
    let (fake, address) = Fake::start(Fault::None).await;
    let input = b"a\n\n\xff\x00b\r\nlast\n";
    ptah(address, "produce orders", input).await;
    let output = ptah(address, "consume orders --group audit", b"").await;
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert_eq!(output.stdout, input);
    assert_eq!(fake.acked(), [1, 2, 3, 4]);
}

#[tokio::test]
async fn consume_takes_no_more_than_it_was_asked_for() {
    let (fake, address) = Fake::start(Fault::None).await;
    ptah(address, "produce orders", b"1\n2\n3\n4\n5\n").await;
    let first = ptah(address, "consume orders --group audit --count 2 --window 1", b"").await;
    assert_eq!(first.stdout, b"1\n2\n");
    assert_eq!(fake.acked(), [1, 2]);
    let rest = ptah(address, "consume orders --group audit --count 3", b"").await;
    assert_eq!(rest.stdout, b"3\n4\n5\n");
}

#[tokio::test]
async fn following_goes_on_over_lost_connections_and_ending_does_not() {
    let (_fake, address) = Fake::start(Fault::EndStreams).await;
    ptah(address, "produce orders", b"1\n2\n3\n").await;
    let follow = "consume orders --group audit --follow --count 3 --window 1";
    let output = ptah(address, follow, b"").await;
    assert_eq!(
        (code(&output), output.stdout.as_slice()),
        (0, b"1\n2\n3\n".as_slice()),
        "{}",
        stderr(&output)
    );

    let (_fake, address) = Fake::start(Fault::EndStreams).await;
    ptah(address, "produce orders", b"1\n2\n3\n").await;
    let output = ptah(address, "consume orders --group audit --window 1", b"").await;
    assert_eq!((code(&output), output.stdout.as_slice()), (3, b"1\n".as_slice()));
    assert!(stderr(&output).contains("lost"), "{}", stderr(&output));
}

#[tokio::test]
async fn a_lost_confirmation_is_an_unknown_outcome() {
    let (_fake, address) = Fake::start(Fault::LoseAcks).await;
    ptah(address, "produce orders", b"1\n2\n").await;
    for words in [
        "consume orders --group a --count 1",
        "consume orders --group a --count 1 --follow",
    ] {
        let output = ptah(address, words, b"").await;
        assert_eq!(code(&output), 8, "{words}: {}", stderr(&output));
        assert!(
            stderr(&output).contains("may or may not be acknowledged"),
            "{}",
            stderr(&output)
        );
    }
}

#[tokio::test]
async fn a_reader_that_leaves_ends_consume_quietly_and_unread_messages_stay() {
    let (fake, address) = Fake::start(Fault::None).await;
    let lines: String = (0..5_000).map(|number| format!("{number:0>200}\n")).collect();
    ptah(address, "produce orders", lines.as_bytes()).await;
    let script = format!(
        "{} consume orders --group audit --window 100 | head -n 1",
        env!("CARGO_BIN_EXE_ptah")
    );
    let output = Command::new("bash")
        .args(["-c", &format!("set -o pipefail; {script}")])
        .env("PTAH_SERVER", address.to_string())
        .output()
        .await
        .unwrap();
    assert_eq!((code(&output), stderr(&output).as_str()), (0, ""));
    assert_eq!(output.stdout, lines.as_bytes()[..201]);
    assert!(fake.acked().len() < 5_000, "what nobody read is not acknowledged");
}

#[tokio::test]
async fn a_server_that_is_not_there_is_named_with_the_next_thing_to_do() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let output = ptah(address, "station ls", b"").await;
    assert_eq!(code(&output), 3);
    let told = stderr(&output);
    assert!(
        told.contains(&address.to_string()) && told.contains("is `ptah up` running?"),
        "{told}"
    );
    assert_eq!(told.trim_end().lines().count(), 1, "one line: {told}");
    let output = ptah(address, "station ls --json", b"").await;
    let error: Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!(
        (&error["error"]["kind"], &error["error"]["exit_code"]),
        (&"unavailable".into(), &3.into())
    );
}

#[tokio::test]
async fn the_benchmark_is_content_with_a_server_that_keeps_its_word() {
    let (fake, address) = Fake::start(Fault::None).await;
    let words = "bench produce --messages 20k --connections 3 --window 500 --keys 5 --json";
    let output = ptah(address, words, b"").await;
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let report = json(&output);
    assert_eq!(
        (&report["stored"], &report["latency"]["samples"]),
        (&20_000.into(), &20_000.into())
    );
    assert_eq!(report["verified"]["acknowledged_found"], 20_000);
    assert_eq!(fake.payloads().len(), 20_000);
}

#[tokio::test]
async fn one_at_a_time_is_measured_beside_the_disk() {
    let (_fake, address) = Fake::start(Fault::None).await;
    let dir = tempfile::tempdir().unwrap();
    let words = format!(
        "bench produce --messages 20 --latency --disk-probe {} --json",
        dir.path().display()
    );
    let output = ptah(address, &words, b"").await;
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let report = json(&output);
    assert_eq!(
        (&report["window"], &report["disk"]["samples"]),
        (&1.into(), &20.into())
    );
    assert_eq!(
        std::fs::read_dir(dir.path()).unwrap().count(),
        0,
        "the probe cleans up"
    );
}

#[tokio::test]
async fn a_rate_is_not_exceeded() {
    let (_fake, address) = Fake::start(Fault::None).await;
    let output = ptah(address, "bench produce --messages 400 --rate 1000 --json", b"").await;
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let rate = json(&output)["messages_per_second"].as_f64().unwrap();
    // The last message leaves after 399 ms, however slow or fast everything else is.
    assert!(rate <= 400.0 / 0.399, "{rate} a second");
}

#[tokio::test]
async fn the_benchmark_fails_when_an_acknowledged_message_is_lost_doubled_or_damaged() {
    let cases = [
        (Fault::Lose(500), "lost"),
        (Fault::Double(500), "duplicates"),
        (Fault::Damage(500), "damaged"),
    ];
    for (fault, field) in cases {
        let (_fake, address) = Fake::start(fault).await;
        let output = ptah(address, "bench produce --messages 1000 --json", b"").await;
        assert_eq!(code(&output), 7, "{fault:?}: {}", stderr(&output));
        assert!(
            json(&output)["verified"][field].as_u64().unwrap() > 0,
            "{fault:?}"
        );
    }
}

#[tokio::test]
async fn the_benchmark_counts_unacknowledged_messages_apart_from_lost_ones() {
    let (_fake, address) = Fake::start(Fault::Forget(500)).await;
    let output = ptah(address, "bench produce --messages 1000 --json", b"").await;
    let report = json(&output);
    assert_eq!(code(&output), 7);
    assert_eq!(
        (&report["stored"], &report["unknown"], &report["verified"]["lost"]),
        (&999.into(), &1.into(), &0.into())
    );
}
