//! Starting, stopping and starting again.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use ptah::client::DEFAULT_ROOT_PASSWORD;

use crate::up::{Up, code, command, error, stderr, up_fails};

/// Everything below a directory, with sizes and modes.
fn tree(dir: &Path) -> BTreeMap<String, (u64, u32)> {
    let mut found = BTreeMap::new();
    let Ok(entries) = std::fs::read_dir(dir) else {
        return found;
    };
    for entry in entries {
        let path = entry.unwrap().path();
        let metadata = std::fs::symlink_metadata(&path).unwrap();
        found.insert(
            path.display().to_string(),
            (metadata.len(), metadata.permissions().mode()),
        );
        if metadata.is_dir() {
            found.extend(tree(&path));
        }
    }
    found
}

#[tokio::test]
async fn a_restart_on_the_same_directory_continues() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let up = Up::start(&data, &["--storage-nodes", "3"]).await;
    up.json(&["station", "create", "orders", "--replicas", "3"]).await;
    up.ptah_with(&["produce", "orders"], b"1\n2\n3\n").await;
    let first = up
        .ptah(&["consume", "orders", "--group", "audit", "--count", "1"])
        .await;
    assert_eq!(first.stdout, b"1\n");
    let cluster = up.ready["cluster_id"].clone();
    up.stop().await;

    let up = Up::start(&data, &[]).await;
    assert_eq!(up.ready["cluster_id"], cluster);
    assert_eq!(
        up.ready["storage_nodes"].as_array().unwrap().len(),
        3,
        "as many as before"
    );
    let rest = up.ptah(&["consume", "orders", "--group", "audit"]).await;
    assert_eq!(rest.stdout, b"2\n3\n");
    up.stop().await;
}

#[tokio::test]
async fn what_was_acknowledged_survives_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let up = Up::start(&data, &[]).await;
    up.json(&["station", "create", "orders"]).await;
    let lines: String = (0..500).map(|n| format!("{n}\n")).collect();
    let produced = up.ptah_with(&["produce", "orders"], lines.as_bytes()).await;
    assert_eq!(code(&produced), 0, "{}", stderr(&produced));
    up.signal("-KILL").await;
    up.ended().await;

    let up = Up::start(&data, &[]).await;
    let consumed = up.ptah(&["consume", "orders", "--group", "audit"]).await;
    assert_eq!(String::from_utf8(consumed.stdout).unwrap(), lines);
    up.stop().await;
}

#[tokio::test]
async fn both_signals_stop_in_order() {
    for signal in ["-INT", "-TERM"] {
        let dir = tempfile::tempdir().unwrap();
        let up = Up::start(&dir.path().join("data"), &[]).await;
        up.signal(signal).await;
        let (status, told) = up.ended().await;
        assert!(status.success(), "{signal}: {status}: {told}");
        assert_eq!(told, "", "{signal}: nothing to say");
    }
}

#[tokio::test]
async fn storage_nodes_may_be_added_and_not_taken_away() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    Up::start(&data, &[]).await.stop().await;
    let up = Up::start(&data, &["--storage-nodes", "3"]).await;
    up.json(&["station", "create", "orders", "--replicas", "3"]).await;
    up.stop().await;
    let before = tree(&data);
    let refused = up_fails(&data, &["--ephemeral-ports", "--storage-nodes", "2"]).await;
    assert_eq!(code(&refused), 9);
    assert!(
        error(&refused)["message"]
            .as_str()
            .unwrap()
            .contains("--storage-nodes 3")
    );
    assert_eq!(tree(&data), before, "nothing changed");
}

#[tokio::test]
async fn a_directory_in_use_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let up = Up::start(&data, &[]).await;
    let refused = up_fails(&data, &["--ephemeral-ports"]).await;
    assert_eq!(code(&refused), 9);
    assert!(
        error(&refused)["message"]
            .as_str()
            .unwrap()
            .contains("in use by another process")
    );
    assert_eq!(
        code(&up.ptah(&["station", "ls"]).await),
        0,
        "the first one does not notice"
    );
    up.stop().await;
}

#[tokio::test]
async fn an_occupied_port_is_named_and_nothing_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    // An offset at which the door for clients is taken by this test.
    let (taken, offset) = (0..)
        .find_map(|_| {
            let taken = TcpListener::bind("127.0.0.1:0").unwrap();
            let port = taken.local_addr().unwrap().port();
            port.checked_sub(5555).map(|offset| (taken, offset))
        })
        .unwrap();
    let refused = up_fails(&data, &["--port-offset", &offset.to_string()]).await;
    assert_eq!(code(&refused), 9, "{}", stderr(&refused));
    let message = error(&refused)["message"].as_str().unwrap().to_owned();
    let port = taken.local_addr().unwrap().port().to_string();
    for part in [port.as_str(), "gRPC door", "--port-offset"] {
        assert!(message.contains(part), "{part:?} in {message:?}");
    }
    assert!(!data.exists(), "nothing was made");
}

#[tokio::test]
async fn directories_that_cannot_be_used_are_refused_untouched() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "x").unwrap();
    let foreign = dir.path().join("foreign");
    std::fs::create_dir(&foreign).unwrap();
    std::fs::write(foreign.join("thesis.txt"), "x").unwrap();
    let before = tree(dir.path());
    let cases = [
        (file.clone(), "not a directory"),
        (file.join("below"), "not a directory"),
        (foreign, "thesis.txt"),
    ];
    for (path, why) in cases {
        let refused = up_fails(&path, &["--ephemeral-ports"]).await;
        assert_eq!(code(&refused), 9, "{}", stderr(&refused));
        let message = error(&refused)["message"].as_str().unwrap().to_owned();
        assert!(
            message.contains(why) && message.contains("--data-dir"),
            "{message}"
        );
    }
    assert_eq!(tree(dir.path()), before, "nothing changed");
}

#[tokio::test]
async fn a_directory_of_somebody_else_is_refused_untouched() {
    let dir = tempfile::tempdir().unwrap();
    let closed = dir.path().join("closed");
    std::fs::create_dir(&closed).unwrap();
    std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o000)).unwrap();
    let is_root = std::fs::metadata("/proc/self").unwrap().uid() == 0;
    let mut up = if is_root {
        // Nothing is closed to root: somebody else has to try, with a copy of the program that is open to everybody.
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let program = dir.path().join("ptah");
        std::fs::copy(env!("CARGO_BIN_EXE_ptah"), &program).unwrap();
        let mut up = tokio::process::Command::new("setpriv");
        up.args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .arg(program);
        up
    } else {
        tokio::process::Command::new(env!("CARGO_BIN_EXE_ptah"))
    };
    up.args(["up", "--json", "--ephemeral-ports", "--data-dir"])
        .arg(&closed);
    let refused = tokio::time::timeout(std::time::Duration::from_secs(60), up.output())
        .await
        .expect("`ptah up` ends")
        .unwrap();
    assert_eq!(code(&refused), 9, "{}", stderr(&refused));
    let message = error(&refused)["message"].as_str().unwrap().to_owned();
    assert!(
        message.contains("permission denied") && message.contains("--data-dir"),
        "{message}"
    );
    std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o700)).unwrap();
    assert_eq!(tree(&closed).len(), 0, "nothing was made in it");
}

#[tokio::test]
async fn data_of_another_cluster_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (ours, theirs) = (dir.path().join("ours"), dir.path().join("theirs"));
    Up::start(&ours, &[]).await.stop().await;
    Up::start(&theirs, &[]).await.stop().await;
    std::fs::remove_dir_all(ours.join("storage-node-1")).unwrap();
    std::fs::rename(theirs.join("storage-node-1"), ours.join("storage-node-1")).unwrap();
    let before = tree(&ours.join("storage-node-1"));
    let refused = up_fails(&ours, &["--ephemeral-ports"]).await;
    assert_eq!(code(&refused), 9, "{}", stderr(&refused));
    let message = error(&refused)["message"].as_str().unwrap().to_owned();
    assert!(message.contains("holds data of cluster"), "{message}");
    assert_eq!(tree(&ours.join("storage-node-1")), before, "nothing changed");
}

#[tokio::test]
async fn options_are_checked_without_making_anything() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let path = data.to_str().unwrap();
    let checked = command(&["up", "--data-dir", path, "--check-config"])
        .output()
        .await
        .unwrap();
    assert_eq!(code(&checked), 0, "{}", stderr(&checked));
    assert!(checked.stdout.starts_with(b"ok: "), "{checked:?}");
    for (words, named) in [
        (["--bind", "0.0.0.0"], "PTAH_ROOT_PASSWORD"),
        (
            ["--root-password-file", "/nonexistent/password"],
            "/nonexistent/password",
        ),
        (["--log", "info,=x="], "--log"),
        (["--port-offset", "65000"], "--port-offset"),
    ] {
        let mut words = words.to_vec();
        words.push("--check-config");
        let refused = up_fails(&data, &words).await;
        assert_eq!(code(&refused), 2, "{words:?}");
        let told = stderr(&refused);
        assert_eq!(told.lines().count(), 1, "{told}");
        assert!(told.contains(named), "{told}");
    }
    assert!(!data.exists(), "nothing was made");
}

#[tokio::test]
async fn a_door_for_other_machines_needs_a_password_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let refused = up_fails(&data, &["--ephemeral-ports", "--bind", "0.0.0.0"]).await;
    assert_eq!(code(&refused), 2);
    assert!(
        error(&refused)["message"]
            .as_str()
            .unwrap()
            .contains("PTAH_ROOT_PASSWORD")
    );
    assert!(!data.exists(), "nothing was made");
}

#[tokio::test]
async fn with_a_password_of_its_own_the_door_opens_for_others_and_the_default_does_not_fit() {
    let dir = tempfile::tempdir().unwrap();
    let words = ["--bind", "0.0.0.0", "--root-password", "of my own"];
    let up = Up::start(&dir.path().join("data"), &words).await;
    assert!(up.server().starts_with("0.0.0.0:"), "{}", up.server());
    up.json(&["station", "ls", "--password", "of my own"]).await;
    let port = up.server().rsplit_once(':').unwrap().1.to_owned();
    let refused = up
        .ptah(&["station", "ls", "--server", &format!("127.0.0.1:{port}")])
        .await;
    assert_eq!(code(&refused), 6, "{}", stderr(&refused));
    let nothing = up.ptah(&["station", "ls"]).await;
    assert_eq!(
        code(&nothing),
        2,
        "no default password for other machines: {}",
        stderr(&nothing)
    );
    up.stop().await;
}

#[tokio::test]
async fn another_root_password_at_a_later_start_is_refused_instead_of_ignored() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    Up::start(&data, &["--root-password", "the first one"])
        .await
        .stop()
        .await;
    let refused = up_fails(&data, &["--ephemeral-ports", "--root-password", "another one"]).await;
    assert_eq!(code(&refused), 9, "{}", stderr(&refused));
    let message = error(&refused)["message"].as_str().unwrap().to_owned();
    assert!(
        message.contains("another password") && !message.contains("the first one"),
        "{message}"
    );
    Up::start(&data, &["--root-password", "the first one"])
        .await
        .stop()
        .await;
}

#[tokio::test]
async fn the_default_password_is_replaced_by_one_of_its_own_at_a_later_start() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    Up::start(&data, &[]).await.stop().await;
    let up = Up::start(&data, &["--bind", "0.0.0.0", "--root-password", "one of my own"]).await;
    let list = ["station", "ls", "--password"];
    let default = up.ptah(&[&list[..], &[DEFAULT_ROOT_PASSWORD]].concat()).await;
    assert_eq!(code(&default), 6, "{}", stderr(&default));
    let own = up.ptah(&[&list[..], &["one of my own"]].concat()).await;
    assert_eq!(code(&own), 0, "{}", stderr(&own));
    up.stop().await;
}

#[tokio::test]
async fn a_storage_node_whose_directory_is_gone_is_refused_unless_the_loss_is_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    Up::start(&data, &["--storage-nodes", "3"]).await.stop().await;
    let (lost, aside) = (data.join("storage-node-2"), dir.path().join("aside"));
    std::fs::rename(&lost, &aside).unwrap();
    let refused = up_fails(&data, &["--ephemeral-ports"]).await;
    assert_eq!(code(&refused), 9, "{}", stderr(&refused));
    let message = error(&refused)["message"].as_str().unwrap().to_owned();
    assert!(
        message.contains("storage-node-2") && message.contains("--accept-lost-node"),
        "{message}"
    );
    assert!(!lost.exists(), "a refused start makes nothing");
    Up::start(&data, &["--accept-lost-node"]).await.stop().await;
    std::fs::remove_dir_all(&lost).unwrap();
    std::fs::rename(&aside, &lost).unwrap();
    Up::start(&data, &[]).await.stop().await;
}

#[tokio::test]
async fn wrong_arguments_are_told_as_json_when_json_is_asked_for() {
    let output = command(&["--json", "station", "create"]).output().await.unwrap();
    assert_eq!(code(&output), 2);
    assert_eq!(stderr(&output).lines().count(), 1, "{}", stderr(&output));
    assert_eq!(error(&output)["kind"], "invalid_argument");
}

#[tokio::test]
async fn up_does_not_take_options_of_clients() {
    let output = command(&["up", "--server", "127.0.0.1:1"])
        .output()
        .await
        .unwrap();
    assert_eq!(code(&output), 2);
    assert!(stderr(&output).contains("--server"));
}

#[tokio::test]
async fn the_cluster_secret_is_for_its_owner_only() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    Up::start(&data, &[]).await.stop().await;
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&data), mode(&data.join("cluster-secret"))), (0o700, 0o600));
}
