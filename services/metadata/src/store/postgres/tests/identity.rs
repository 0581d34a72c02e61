//! Which database this is: restarts of the service, of the server, and backups put back in several ways.

use super::*;

/// A history that somebody has seen, and what must hold after an older one was put back.
struct Before {
    info: StoreInfo,
    epoch: u64,
}

async fn before(instance: &Instance) -> Before {
    let epoch = instance.lead("test").await;
    Before {
        info: instance.info().await,
        epoch,
    }
}

/// A new incarnation above every number that was in use, without a holder of the lease.
async fn check_new_incarnation(instance: &Instance, before: &Before) {
    let after = instance.info().await;
    assert_eq!(after.cluster, before.info.cluster);
    assert_ne!(after.incarnation, before.info.incarnation);
    assert!(after.revision > before.info.revision, "{after:?}");
    assert_eq!(after.compaction_floor, after.revision);
    let watch = instance.store.changes(before.info.revision).await.unwrap_err();
    assert!(matches!(watch, StoreError::Compacted { .. }), "{watch}");
    let stale = instance.put("stale", before.epoch).await.unwrap_err();
    assert!(matches!(stale, StoreError::StaleEpoch { .. }), "{stale}");
    let epoch = instance.lead("test").await;
    assert!(epoch > before.epoch);
    let revision = instance.put("new", epoch).await.unwrap();
    assert_eq!(revision, after.revision + 1);
    let history = instance.store.changes(after.revision).await.unwrap();
    assert_eq!(history.transactions.len(), 1);
    assert_eq!(history.incarnation, after.incarnation);
}

#[tokio::test]
async fn everything_is_there_after_a_restart_of_the_service() {
    let url = server().await.url(&database().await);
    let first = Instance::open(&url).await;
    let epoch = first.lead("test").await;
    first.put("a", epoch).await.unwrap();
    let info = first.info().await;
    first.close().await;
    let second = Instance::open(&url).await;
    assert_eq!(second.info().await, info);
    assert_eq!(second.lead("test").await, epoch);
    assert_eq!(second.put("b", epoch).await.unwrap(), 2);
    assert_eq!(second.store.changes(0).await.unwrap().transactions.len(), 2);
    second.close().await;
}

#[tokio::test]
async fn a_dump_that_is_put_back_begins_a_new_incarnation() {
    let (name, server) = (database().await, server().await);
    let first = Instance::open(&server.url(&name)).await;
    let epoch = first.lead("test").await;
    first.put("kept", epoch).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let dump = folder.path().join("dump.sql");
    server.dump(&name, &[], &dump).await.unwrap();
    first.put("lost", epoch).await.unwrap();
    let before = before(&first).await;
    first.close().await;
    server
        .query("postgres", &format!("DROP DATABASE {name}"))
        .await
        .unwrap();
    server.create_database(&name).await.unwrap();
    server.run_file(&name, &dump).await.unwrap();
    let second = Instance::open(&server.url(&name)).await;
    check_new_incarnation(&second, &before).await;
    assert!(second.store.get(&key("kept")).await.unwrap().0.is_some());
    assert!(second.store.get(&key("lost")).await.unwrap().0.is_none());
    let info = second.info().await;
    second.close().await;
    let third = Instance::open(&server.url(&name)).await;
    assert_eq!(third.info().await, info, "once only");
    third.close().await;
}

/// The hardest one to see: same server, same tables, and nobody was stopped.
#[tokio::test]
async fn rows_that_are_put_back_under_running_instances_begin_one_new_incarnation() {
    let (name, server) = (database().await, server().await);
    let url = server.url(&name);
    let (one, two) = (Instance::open(&url).await, Instance::open(&url).await);
    let epoch = one.lead("test").await;
    one.put("kept", epoch).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let dump = folder.path().join("dump.sql");
    let tables = [
        "--data-only",
        "-t",
        "store",
        "-t",
        "lease",
        "-t",
        "record",
        "-t",
        "change",
    ];
    server.dump(&name, &tables, &dump).await.unwrap();
    two.put("lost", epoch).await.unwrap();
    let before = before(&one).await;
    server
        .query(
            &name,
            "DELETE FROM store; DELETE FROM lease; DELETE FROM record; DELETE FROM change",
        )
        .await
        .unwrap();
    server.run_file(&name, &dump).await.unwrap();
    let (a, b) = tokio::join!(one.store.info(), two.store.info());
    assert_eq!(a.unwrap().incarnation, b.unwrap().incarnation, "one for both");
    check_new_incarnation(&two, &before).await;
    one.close().await;
    two.close().await;
}

#[tokio::test]
async fn a_row_that_only_this_process_knows_to_be_older_begins_a_new_incarnation() {
    let (name, server) = (database().await, server().await);
    let instance = Instance::open(&server.url(&name)).await;
    let epoch = instance.lead("test").await;
    instance.put("kept", epoch).await.unwrap();
    instance.put("lost", epoch).await.unwrap();
    let before = before(&instance).await;
    // As if disk and memory of the server's machine went back together.
    let back = "UPDATE store SET revision = 1, writer = pg_current_xact_id()::text::bigint";
    server.query(&name, back).await.unwrap();
    check_new_incarnation(&instance, &before).await;
    instance.close().await;
}

#[tokio::test]
async fn a_disk_that_is_put_back_begins_a_new_incarnation() {
    let mut server = Server::start().await.unwrap();
    let url = server.create_database("ptah").await.unwrap();
    let instance = Instance::open(&url).await;
    let epoch = instance.lead("test").await;
    instance.put("kept", epoch).await.unwrap();
    server.stop().await.unwrap();
    server.copy_data("backup").await.unwrap();
    server.start_again().await.unwrap();
    let epoch = until("the lease", async || {
        let lease = lease(&instance.store, "test").await.ok()?;
        lease.acquired.then_some(lease.epoch)
    })
    .await;
    assert!(instance.put("lost", epoch).await.is_ok());
    let before = before(&instance).await;
    server.stop().await.unwrap();
    server.put_data_back("backup").await.unwrap();
    server.start_again().await.unwrap();
    // The instance that was there all the time, and one that knows nothing of the past.
    until("an answer", async || instance.store.info().await.ok()).await;
    let other = Instance::open(&url).await;
    assert_eq!(other.info().await.incarnation, instance.info().await.incarnation);
    check_new_incarnation(&other, &before).await;
    assert!(other.store.get(&key("lost")).await.unwrap().0.is_none());
    other.close().await;
    instance.close().await;
}

#[tokio::test]
async fn a_database_of_another_cluster_is_not_served_to_those_who_know_the_first() {
    let (name, server) = (database().await, server().await);
    let instance = Instance::open(&server.url(&name)).await;
    server
        .query(
            &name,
            "UPDATE store SET cluster_id = '00000000-0000-4000-8000-000000000000'",
        )
        .await
        .unwrap();
    let refused = instance.store.info().await.unwrap_err();
    assert!(refused.to_string().contains("of cluster"), "{refused}");
    instance.close().await;
}
