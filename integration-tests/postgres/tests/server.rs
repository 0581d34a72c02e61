//! The server does what its tests rely on.

use ptah_test_postgres::Server;

#[tokio::test]
async fn a_server_keeps_its_data_over_a_stop_a_kill_and_a_pause() {
    let mut server = Server::start().await.unwrap();
    let port = server.port();
    server.create_database("a").await.unwrap();
    server
        .query("a", "CREATE TABLE t AS SELECT 7 AS n")
        .await
        .unwrap();
    server.stop().await.unwrap();
    assert!(server.query("a", "SELECT 1").await.is_err(), "stopped");
    server.start_again().await.unwrap();
    server.kill().await.unwrap();
    assert!(server.query("a", "SELECT 1").await.is_err(), "killed");
    server.start_again().await.unwrap();
    assert_eq!(server.port(), port);
    server.pause().await.unwrap();
    server.resume().await.unwrap();
    assert_eq!(
        server
            .query("a", "SELECT n, current_setting('fsync') FROM t")
            .await
            .unwrap(),
        "7|on"
    );
}
