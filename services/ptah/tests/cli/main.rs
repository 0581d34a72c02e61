//! The command as people use it: real processes, a real cluster in `ptah up`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod starting;
mod up;

use std::collections::BTreeSet;

use self::up::{Up, code, error, stderr};

#[tokio::test]
async fn a_station_is_made_filled_read_shown_and_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let up = Up::start(&dir.path().join("data"), &[]).await;

    let made = up
        .json(&["station", "create", "Orders", "--partitions", "3"])
        .await;
    assert_eq!(
        (&made["created"], &made["station"]["name"]),
        (&true.into(), &"Orders".into())
    );
    let again = up
        .json(&["station", "create", "orders", "--partitions", "3"])
        .await;
    assert_eq!(
        (&again["created"], &again["station"]["name"]),
        (&false.into(), &"Orders".into())
    );

    let lines: Vec<String> = (0..1_000)
        .map(|n| format!("{{\"id\":{},\"n\":{n}}}", n % 50))
        .collect();
    let input = lines.join("\n");
    let produced = up
        .ptah_with(
            &["produce", "orders", "--key-field", "id", "--json"],
            input.as_bytes(),
        )
        .await;
    assert_eq!(code(&produced), 0, "{}", stderr(&produced));

    let info = up.json(&["station", "info", "ORDERS"]).await;
    let partitions = info["partitions"].as_array().unwrap();
    let stored: u64 = partitions
        .iter()
        .map(|p| p["next_sequence"].as_u64().unwrap() - 1)
        .sum();
    assert_eq!((partitions.len(), stored), (3, 1_000));

    let consumed = up.ptah(&["consume", "orders", "--group", "audit"]).await;
    assert_eq!(code(&consumed), 0, "{}", stderr(&consumed));
    let text = String::from_utf8(consumed.stdout).unwrap();
    let found: BTreeSet<&str> = text.lines().collect();
    assert_eq!(found, lines.iter().map(String::as_str).collect());
    assert_eq!(text.lines().count(), 1_000, "each message once");

    let nothing = up.ptah(&["consume", "orders", "--group", "audit"]).await;
    assert_eq!(
        (code(&nothing), nothing.stdout.len()),
        (0, 0),
        "all of it was acknowledged"
    );

    up.json(&["station", "rm", "orders", "--yes"]).await;
    let gone = up.ptah(&["station", "info", "orders", "--json"]).await;
    assert_eq!((code(&gone), &error(&gone)["kind"]), (4, &"not_found".into()));
    assert_eq!(
        up.json(&["station", "ls"]).await["stations"],
        serde_json::json!([])
    );
    up.stop().await;
}

#[tokio::test]
async fn messages_of_one_key_stay_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let up = Up::start(&dir.path().join("data"), &[]).await;
    up.json(&["station", "create", "orders", "--partitions", "4"])
        .await;
    let lines: Vec<String> = (0..2_000)
        .map(|n| format!("{{\"id\":\"key-{}\",\"n\":{n}}}", n % 7))
        .collect();
    up.ptah_with(
        &["produce", "orders", "--key-field", "id"],
        lines.join("\n").as_bytes(),
    )
    .await;
    let consumed = up.ptah(&["consume", "orders", "--group", "audit"]).await;
    let text = String::from_utf8(consumed.stdout).unwrap();
    for key in 0..7 {
        let of_key = |all: &mut dyn Iterator<Item = &str>| -> Vec<String> {
            all.filter(|line| line.contains(&format!("key-{key}\"")))
                .map(str::to_owned)
                .collect()
        };
        let sent = of_key(&mut lines.iter().map(String::as_str));
        assert_eq!(of_key(&mut text.lines()), sent, "key {key}");
    }
    up.stop().await;
}

#[tokio::test]
async fn payloads_come_back_byte_for_byte() {
    let dir = tempfile::tempdir().unwrap();
    let up = Up::start(&dir.path().join("data"), &[]).await;
    up.json(&["station", "create", "raw"]).await;
    let mut input = b"\n\xff\xfe\x00\r\nplain\n".to_vec();
    input.extend(vec![b'x'; 3 << 20]);
    input.push(b'\n');
    let produced = up.ptah_with(&["produce", "raw"], &input).await;
    assert_eq!(code(&produced), 0, "{}", stderr(&produced));
    let consumed = up.ptah(&["consume", "raw", "--group", "a"]).await;
    assert!(
        consumed.stdout == input,
        "{} bytes in, {} bytes out",
        input.len(),
        consumed.stdout.len()
    );
    let first = up.json(&["consume", "raw", "--group", "b", "--count", "1"]).await;
    let facts = (
        &first["sequence"],
        &first["payload"],
        &first["payload_encoding"],
        &first["door"],
    );
    assert_eq!(facts, (&1.into(), &"".into(), &"utf8".into(), &"grpc".into()));
    up.stop().await;
}

#[tokio::test]
async fn a_group_that_starts_at_the_end_follows_what_comes() {
    let dir = tempfile::tempdir().unwrap();
    let up = Up::start(&dir.path().join("data"), &[]).await;
    up.json(&["station", "create", "orders"]).await;
    up.ptah_with(&["produce", "orders"], b"old\n").await;
    let words = ["consume", "orders", "--group", "tail", "--start", "end"];
    let nothing = up.ptah(&words).await;
    assert_eq!((code(&nothing), nothing.stdout.len()), (0, 0));
    let following = up.ptah(&["consume", "orders", "--group", "tail", "--follow", "--count", "2"]);
    let producing = up.ptah_with(&["produce", "orders"], b"new 1\nnew 2\nnew 3\n");
    let (followed, _) = tokio::join!(following, producing);
    assert_eq!(followed.stdout, b"new 1\nnew 2\n");
    up.stop().await;
}

#[tokio::test]
async fn names_of_0_and_129_characters_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let up = Up::start(&dir.path().join("data"), &[]).await;
    for name in [String::new(), "a".repeat(129), "a/b".to_owned()] {
        let refused = up.ptah(&["station", "create", &name, "--json"]).await;
        assert_eq!(
            (code(&refused), &error(&refused)["kind"]),
            (2, &"invalid_argument".into()),
            "{name:?}"
        );
    }
    let longest = "a".repeat(128);
    assert_eq!(up.json(&["station", "create", &longest]).await["created"], true);
    up.stop().await;
}

#[tokio::test]
async fn an_unknown_station_is_told_by_every_command() {
    let dir = tempfile::tempdir().unwrap();
    let up = Up::start(&dir.path().join("data"), &[]).await;
    let commands: [&[&str]; 4] = [
        &["station", "info", "nowhere"],
        &["station", "rm", "nowhere", "--yes"],
        &["produce", "nowhere"],
        &["consume", "nowhere", "--group", "a"],
    ];
    for words in commands {
        let refused = up.ptah_with(words, b"x\n").await;
        assert_eq!(code(&refused), 4, "{words:?}: {}", stderr(&refused));
        assert!(
            stderr(&refused).contains("nowhere"),
            "{words:?}: {}",
            stderr(&refused)
        );
        assert_eq!(
            stderr(&refused).lines().count(),
            1,
            "one line: {}",
            stderr(&refused)
        );
    }
    up.stop().await;
}

#[tokio::test]
async fn a_wrong_password_is_refused_and_not_repeated_in_the_answer() {
    let dir = tempfile::tempdir().unwrap();
    let up = Up::start(&dir.path().join("data"), &["--root-password", "correct-horse"]).await;
    for password in ["wrong-horse", ""] {
        let refused = up.ptah(&["station", "ls", "--password", password]).await;
        assert_eq!(code(&refused), 6, "{}", stderr(&refused));
        assert!(!stderr(&refused).contains("horse"));
    }
    assert_eq!(
        code(&up.ptah(&["station", "ls"]).await),
        6,
        "the default password is not the password"
    );
    let file = dir.path().join("password");
    std::fs::write(&file, "correct-horse\n").unwrap();
    up.json(&["station", "ls", "--password-file", file.to_str().unwrap()])
        .await;
    up.stop().await;
}

#[tokio::test]
async fn an_oversized_payload_is_told_with_its_line() {
    let dir = tempfile::tempdir().unwrap();
    let up = Up::start(&dir.path().join("data"), &[]).await;
    up.json(&["station", "create", "small", "--max-message-size", "1KiB"])
        .await;
    let input = format!("ok\n{}\n{}\n", "x".repeat(1024), "y".repeat(1025));
    let produced = up.ptah_with(&["produce", "small"], input.as_bytes()).await;
    assert_eq!(code(&produced), 7);
    assert!(
        stderr(&produced).contains("line 3: payload of 1025 bytes"),
        "{}",
        stderr(&produced)
    );
    let info = up.json(&["station", "info", "small"]).await;
    assert_eq!(info["partitions"][0]["next_sequence"], 3);
    up.stop().await;
}

#[tokio::test]
async fn the_same_name_made_twice_at_once_is_made_once() {
    let dir = tempfile::tempdir().unwrap();
    let up = Up::start(&dir.path().join("data"), &[]).await;
    let words = ["station", "create", "orders"];
    let (first, second) = tokio::join!(up.json(&words), up.json(&words));
    let created = [&first, &second]
        .into_iter()
        .filter(|made| made["created"] == true)
        .count();
    assert_eq!(created, 1);
    assert_eq!(first["station"]["id"], second["station"]["id"]);
    let other = up
        .ptah(&["station", "create", "orders", "--partitions", "2", "--json"])
        .await;
    assert_eq!(
        (code(&other), &error(&other)["kind"]),
        (5, &"already_exists".into())
    );
    up.stop().await;
}

#[tokio::test]
async fn replicated_stations_work_on_three_nodes_and_the_benchmark_verifies_them() {
    let dir = tempfile::tempdir().unwrap();
    let up = Up::start(&dir.path().join("data"), &["--storage-nodes", "3"]).await;
    let status = up.json(&["cluster", "status"]).await;
    let alive = |node: &&serde_json::Value| node["alive"] == true;
    assert_eq!(
        status["nodes"].as_array().unwrap().iter().filter(alive).count(),
        3
    );
    let pid = up.ready["pid"].to_string();
    let metrics = format!("http://{}/metrics", up.ready["metrics"].as_str().unwrap());
    let words = [
        "bench",
        "produce",
        "--messages",
        "20k",
        "--partitions",
        "2",
        "--replicas",
        "3",
        "--connections",
        "2",
        "--pids",
        &pid,
        "--metrics",
        &metrics,
    ];
    let report = up.json(&words).await;
    assert_eq!(
        (&report["stored"], &report["verified"]["acknowledged_found"]),
        (&20_000.into(), &20_000.into())
    );
    assert!(report["fsyncs"]["count"].as_f64().unwrap() > 0.0, "{report}");
    assert!(
        report["server_cpu"]["cpu_seconds"].as_f64().unwrap() > 0.0,
        "{report}"
    );
    assert_eq!(
        up.json(&["station", "ls"]).await["stations"],
        serde_json::json!([]),
        "its station is gone"
    );
    up.stop().await;
}
