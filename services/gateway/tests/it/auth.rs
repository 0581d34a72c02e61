//! Sign-in over the public port.

use std::time::Duration;

use ptah_proto::api::v1 as api;
use ptah_rpc::records::{RecordKey, RecordValue, UserRecord};
use ptah_service::Secret;
use ptah_types::{Role, TenantName};
use tonic::{Code, Request, Status};

use crate::support::{APP, Cluster, ROOT, cluster, signed, until};

async fn list(cluster: &Cluster, request: Request<api::ListStationsRequest>) -> Result<(), Status> {
    cluster.stations().list_stations(request).await.map(drop)
}

#[tokio::test]
async fn a_wrong_password_and_an_unknown_user_are_answered_alike() {
    let cluster = cluster().start().await;
    // app:wrong and nobody:password
    let wrong = list(&cluster, signed("Basic YXBwOndyb25n", Default::default()))
        .await
        .unwrap_err();
    let unknown = list(&cluster, signed("Basic bm9ib2R5OnBhc3N3b3Jk", Default::default()))
        .await
        .unwrap_err();
    assert_eq!(
        (wrong.code(), wrong.message()),
        (Code::Unauthenticated, "user name or password is wrong")
    );
    assert_eq!(
        (unknown.code(), unknown.message()),
        (wrong.code(), wrong.message())
    );
    assert_eq!(cluster.counter("ptah_gateway_sign_ins_failed_total"), 2);
    assert_eq!(
        cluster.counter("ptah_gateway_sign_ins_verified_total"),
        2,
        "both cost a verification"
    );
}

#[tokio::test]
async fn calls_without_credentials_are_told_what_to_send() {
    let cluster = cluster().start().await;
    let refused = list(&cluster, Request::new(Default::default()))
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert!(
        refused.message().contains("authorization: Basic"),
        "{}",
        refused.message()
    );
}

#[tokio::test]
async fn a_verified_password_is_remembered_until_it_is_changed() {
    let cluster = cluster().start().await;
    for _ in 0..50 {
        list(&cluster, signed(APP, Default::default())).await.unwrap();
    }
    assert_eq!(cluster.counter("ptah_gateway_sign_ins_verified_total"), 1);
    assert_eq!(cluster.counter("ptah_gateway_sign_ins_cached_total"), 49);
    let user: ptah_types::UserName = "app".parse().unwrap();
    let changed = UserRecord {
        name: user.clone(),
        role: Role::Client,
        password_hash: Secret::new(
            "$argon2id$v=19$m=8,t=1,p=1$c29tZXNhbHRzb21l$AAAAAAAAAAAAAAAAAAAAAA".to_owned(),
        ),
    };
    cluster.metadata.put(
        RecordKey::user(&TenantName::default_tenant(), &user),
        RecordValue::User(changed),
    );
    let refused = async {
        while list(&cluster, signed(APP, Default::default())).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(crate::support::LIMIT, refused)
        .await
        .expect("the old password is refused");
}

#[tokio::test]
async fn a_client_may_not_make_stations() {
    let cluster = cluster().start().await;
    let request = api::CreateStationRequest {
        name: "orders".to_owned(),
        ..Default::default()
    };
    let refused = cluster
        .stations()
        .create_station(signed(APP, request))
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(
        refused.message().contains("user `app` may not create stations"),
        "{}",
        refused.message()
    );
}

#[tokio::test]
async fn the_default_password_is_refused_where_it_is_not_allowed() {
    let cluster = cluster()
        .config(|config| config.allow_default_password = Some(false))
        .start()
        .await;
    let refused = list(&cluster, signed(ROOT, Default::default()))
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert!(
        refused.message().contains("bootstrap.root_password"),
        "{}",
        refused.message()
    );
    list(&cluster, signed(APP, Default::default())).await.unwrap();
}

#[tokio::test]
async fn another_tenant_is_refused() {
    let cluster = cluster().start().await;
    let request = api::ListStationsRequest {
        tenant: "other".to_owned(),
        ..Default::default()
    };
    let refused = list(&cluster, signed(APP, request)).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn sign_in_works_while_metadata_is_down() {
    let cluster = cluster().start().await;
    cluster.metadata.down.send_replace(true);
    until("the gateway notices", || {
        cluster.counter("ptah_gateway_catalog_connected") == 0
    })
    .await;
    list(&cluster, signed(APP, Default::default())).await.unwrap();
}
