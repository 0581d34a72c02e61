//! Servers and databases that are not taken: one sentence, the key, never the password, and nothing changed.

use ptah_test_postgres::PASSWORD;

use super::*;

async fn refused(url: &str) -> String {
    let Err(error) = Instance::try_open(url).await else {
        panic!("{url} is taken")
    };
    let text = error.to_string();
    assert!(text.starts_with("database_url"), "{text}");
    assert!(!text.contains(PASSWORD), "{text}");
    assert!(!text.contains("s3cr3t"), "{text}");
    assert!(!text.contains('\n'), "{text}");
    text
}

#[tokio::test]
async fn what_the_server_refuses_is_said_in_a_sentence() {
    let (name, server) = (database().await, server().await);
    let port = server.port();
    let text = refused(&format!("postgres://postgres:s3cr3t@127.0.0.1:{port}/{name}")).await;
    assert!(text.contains("check user and password"), "{text}");
    let text = refused(&server.url("nothing_here")).await;
    assert!(text.contains("CREATE DATABASE"), "{text}");
    let text = refused(&format!("{}?sslmode=require", server.url(&name))).await;
    assert!(text.contains("TLS"), "{text}");
    let tables = "SELECT COUNT(*) FROM pg_tables WHERE schemaname = 'public'";
    assert_eq!(server.query(&name, tables).await.unwrap(), "0");
}

#[tokio::test]
async fn a_database_that_is_not_fit_is_refused_untouched() {
    let server = server().await;
    let tables = "SELECT COUNT(*) FROM pg_tables WHERE schemaname = 'public'";
    let name = database().await;
    server
        .query(
            &name,
            &format!("ALTER DATABASE {name} SET default_transaction_read_only = on"),
        )
        .await
        .unwrap();
    let text = refused(&server.url(&name)).await;
    assert!(text.contains("read-only"), "{text}");
    assert_eq!(server.query(&name, tables).await.unwrap(), "0");
    let latin = "CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0";
    server.query("postgres", latin).await.unwrap();
    let text = refused(&server.url("latin")).await;
    assert!(text.contains("ENCODING 'UTF8'"), "{text}");
    let name = database().await;
    server
        .query(&name, "CREATE TABLE things (id BIGINT)")
        .await
        .unwrap();
    let text = refused(&server.url(&name)).await;
    assert!(text.contains("something else"), "{text}");
    assert_eq!(server.query(&name, tables).await.unwrap(), "1");
}

#[tokio::test]
async fn a_user_without_rights_is_refused() {
    let (name, server) = (database().await, server().await);
    server
        .query(
            &name,
            "CREATE ROLE guest LOGIN PASSWORD 's3cr3t'; REVOKE ALL ON SCHEMA public FROM PUBLIC",
        )
        .await
        .unwrap();
    let text = refused(&format!(
        "postgres://guest:s3cr3t@127.0.0.1:{}/{name}",
        server.port()
    ))
    .await;
    assert!(text.contains("grant it USAGE and CREATE"), "{text}");
}

#[tokio::test]
async fn an_owner_that_is_no_superuser_is_enough() {
    let (name, server) = (database().await, server().await);
    server
        .query(
            &name,
            &format!("CREATE ROLE ptah LOGIN PASSWORD 's3cr3t'; ALTER DATABASE {name} OWNER TO ptah"),
        )
        .await
        .unwrap();
    let instance = Instance::open(&format!(
        "postgres://ptah:s3cr3t@127.0.0.1:{}/{name}",
        server.port()
    ))
    .await;
    let epoch = instance.lead("test").await;
    assert_eq!(instance.put("a", epoch).await.unwrap(), 1);
    instance.close().await;
}

#[tokio::test]
async fn a_newer_schema_is_refused_untouched() {
    let (name, server) = (database().await, server().await);
    Instance::open(&server.url(&name)).await.close().await;
    let newer = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
                 VALUES (9999, 'future', TRUE, '', 0)";
    server.query(&name, newer).await.unwrap();
    let text = refused(&server.url(&name)).await;
    assert!(
        text.contains("schema version 9999") && text.contains("newer version of ptah"),
        "{text}"
    );
}

#[tokio::test]
async fn a_server_that_may_lose_answered_changes_is_refused_or_told_better() {
    let (name, server) = (database().await, server().await);
    server
        .query(
            &name,
            &format!("ALTER DATABASE {name} SET synchronous_commit = off"),
        )
        .await
        .unwrap();
    let instance = Instance::open(&server.url(&name)).await;
    let mut held = Vec::new();
    for _ in 0..5 {
        let mut connection = instance.store.database().pool.acquire().await.unwrap();
        let shown: String = sqlx::query_scalar("SELECT current_setting('synchronous_commit')")
            .fetch_one(&mut *connection)
            .await
            .unwrap();
        assert_eq!(shown, "on");
        for limit in [
            "statement_timeout",
            "lock_timeout",
            "idle_in_transaction_session_timeout",
        ] {
            let shown: String = sqlx::query_scalar("SELECT current_setting($1)")
                .bind(limit)
                .fetch_one(&mut *connection)
                .await
                .unwrap();
            assert_ne!(shown, "0", "{limit}");
        }
        held.push(connection);
    }
    drop(held);
    instance.close().await;
    let careless = Server::start_with(&[("fsync", "off")]).await.unwrap();
    let text = refused(&careless.url("postgres")).await;
    assert!(text.contains("fsync"), "{text}");
}

#[tokio::test]
async fn a_server_that_is_not_there_is_waited_for_and_then_named() {
    let gone = {
        let mut server = Server::start().await.unwrap();
        server.stop().await.unwrap();
        server.url("ptah")
    };
    let text = refused(&gone).await;
    assert!(text.contains("does not answer"), "{text}");
}

#[tokio::test]
async fn an_instance_that_becomes_read_only_says_so_and_recovers() {
    let (name, server) = (database().await, server().await);
    let instance = Instance::open(&server.url(&name)).await;
    let epoch = instance.lead("test").await;
    let end = "SELECT COUNT(pg_terminate_backend(pid)) FROM pg_stat_activity \
               WHERE datname = current_database() AND pid <> pg_backend_pid()";
    server
        .query(
            &name,
            &format!("ALTER DATABASE {name} SET default_transaction_read_only = on"),
        )
        .await
        .unwrap();
    server
        .query(
            "postgres",
            &format!(
                "SELECT COUNT(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = '{name}'"
            ),
        )
        .await
        .unwrap();
    let refused = instance.put("a", epoch).await.unwrap_err();
    assert!(matches!(refused, StoreError::Unavailable { .. }), "{refused}");
    server
        .query(
            "postgres",
            &format!("ALTER DATABASE {name} RESET default_transaction_read_only"),
        )
        .await
        .unwrap();
    server.query(&name, end).await.unwrap();
    until("a commit", async || instance.put("a", epoch).await.ok()).await;
    instance.close().await;
}

#[tokio::test]
async fn sslmode_is_what_happens() {
    let (server, certificate) = Server::start_with_tls().await.unwrap();
    let ip = server.create_database("ptah").await.unwrap();
    let name = ip.replace("127.0.0.1", "localhost");
    let root = format!("&sslrootcert={}", certificate.display());
    let encrypted = async |url: String| {
        let instance = Instance::open(&url).await;
        let mut connection = instance.store.database().pool.acquire().await.unwrap();
        let facts = super::super::server::facts(&mut connection).await.unwrap();
        drop(connection);
        instance.close().await;
        facts.encrypted
    };
    assert!(!encrypted(format!("{ip}?sslmode=disable")).await);
    assert!(encrypted(ip.clone()).await, "prefer encrypts when the server can");
    assert!(encrypted(format!("{ip}?sslmode=require")).await);
    assert!(encrypted(format!("{ip}?sslmode=verify-ca{root}")).await);
    assert!(encrypted(format!("{name}?sslmode=verify-full{root}")).await);
    let text = refused(&format!("{name}?sslmode=verify-full")).await;
    assert!(text.contains("sslmode"), "nobody vouches for the server: {text}");
    let text = refused(&format!("{ip}?sslmode=verify-full{root}")).await;
    assert!(
        text.contains("sslmode"),
        "the certificate is for another name: {text}"
    );
}
