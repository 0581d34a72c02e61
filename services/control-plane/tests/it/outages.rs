//! Metadata goes away and comes back.

use ptah_control_plane::DEFAULT_ROOT_PASSWORD;
use ptah_control_plane::config::BootstrapConfig;
use ptah_rpc::clients::ListQuery;
use ptah_rpc::records::{RecordKind, RecordValue};
use ptah_service::Secret;
use ptah_types::ErrorKind;

use crate::harness::{World, station, until, until_async};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_metadata_calls_fail_clearly_and_work_again_afterwards() {
    let mut world = World::with_nodes(3).await;
    world
        .management(0)
        .create_station(&station("before", 1, 3))
        .await
        .unwrap();
    world.until_placed(1).await;
    world.stop_store().await;
    let refused = world
        .management(0)
        .create_station(&station("during", 1, 3))
        .await
        .unwrap_err();
    assert!(
        matches!(refused.kind, ErrorKind::Unavailable | ErrorKind::OutcomeUnknown),
        "{refused:?}"
    );
    until("the lease runs out", || !world.planes[0].control.decides()).await;
    let refused = world
        .management(0)
        .create_station(&station("during", 1, 3))
        .await
        .unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Unavailable, "{refused}");
    assert!(refused.message.contains("cannot decide"), "{refused}");
    world.start_store().await;
    until("it decides again", || world.planes[0].control.decides()).await;
    world.until_alive(3).await;
    world
        .management(0)
        .create_station(&station("after", 1, 3))
        .await
        .unwrap();
    let stations = world
        .metadata()
        .list(&ListQuery::all(RecordKind::Station))
        .await
        .unwrap();
    world.until_placed(stations.records.len()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_control_plane_that_starts_before_metadata_waits_for_it() {
    let mut world = World::new().await;
    world.stop_store().await;
    world.start_plane().await;
    let refused = world
        .management(1)
        .create_station(&station("a", 1, 1))
        .await
        .unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Unavailable, "{refused}");
    world.start_store().await;
    until("one of them decides", || {
        world.planes.iter().any(|plane| plane.control.decides())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_start_makes_root_and_the_second_leaves_it() {
    let mut world = World::new().await;
    let before = root_hash(&world).await;
    assert!(before.starts_with("$argon2id$v=19$"), "{before}");
    world.stop_plane(0).await;
    world.start_plane().await;
    until_async("it decides", async || world.planes[0].control.decides()).await;
    assert_eq!(root_hash(&world).await, before);
}

async fn root_hash(world: &World) -> String {
    let users = world
        .metadata()
        .list(&ListQuery::all(RecordKind::User))
        .await
        .unwrap()
        .records;
    match users.as_slice() {
        [user] => match &user.value {
            RecordValue::User(user) => user.password_hash.expose().to_owned(),
            other => panic!("{other:?}"),
        },
        other => panic!("one user, not {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_default_password_gives_way_to_a_configured_one_and_no_other_does() {
    let mut world = World::without_planes().await;
    let with = |password: &str| BootstrapConfig {
        root_password: Secret::new(password.to_owned()),
        allow_default_password: password == DEFAULT_ROOT_PASSWORD,
        ..BootstrapConfig::default()
    };
    for (configured, holds) in [
        (DEFAULT_ROOT_PASSWORD, DEFAULT_ROOT_PASSWORD),
        ("the first of my own", "the first of my own"),
        ("another one, later", "the first of my own"),
        (DEFAULT_ROOT_PASSWORD, "the first of my own"),
    ] {
        let plane = world.start_plane_with(with(configured)).await;
        until("it decides", || world.planes[plane].control.decides()).await;
        assert!(is_password(&root_hash(&world).await, holds), "after {configured}");
        world.stop_plane(plane).await;
    }
}

fn is_password(hash: &str, password: &str) -> bool {
    use argon2::password_hash::PasswordVerifier;
    let parsed = argon2::password_hash::phc::PasswordHash::new(hash).unwrap();
    argon2::Argon2::default()
        .verify_password(password.as_bytes(), &parsed)
        .is_ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_without_a_password_for_root_decides_nothing_and_says_what_to_set() {
    let mut world = World::without_planes().await;
    let bootstraps = [
        (BootstrapConfig::default(), "set `bootstrap.root_password`"),
        (
            BootstrapConfig {
                root_password_hash: Secret::new(hash_of(DEFAULT_ROOT_PASSWORD)),
                ..BootstrapConfig::default()
            },
            "set `bootstrap.allow_default_password`",
        ),
    ];
    for (bootstrap, expected) in bootstraps {
        world.start_plane_with(bootstrap).await;
        until_async(expected, async || {
            let refused = world
                .management(0)
                .create_station(&station("a", 1, 1))
                .await
                .unwrap_err();
            assert_eq!(refused.kind, ErrorKind::Unavailable, "{refused}");
            refused.message.contains(expected)
        })
        .await;
        world.stop_plane(0).await;
    }
    let hash = hash_of("the password of root");
    let bootstrap = BootstrapConfig {
        root_password_hash: Secret::new(hash),
        ..BootstrapConfig::default()
    };
    world.start_plane_with(bootstrap).await;
    until("it decides", || world.planes[0].control.decides()).await;
}

fn hash_of(password: &str) -> String {
    use argon2::password_hash::PasswordHasher;
    argon2::Argon2::default()
        .hash_password_with_salt(password.as_bytes(), b"salt of the test")
        .unwrap()
        .to_string()
}
