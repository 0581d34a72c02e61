//! Records, conditions, lists, the lease, and who may call at all.

use std::time::Duration;

use ptah_rpc::clients::ListQuery;
use ptah_rpc::records::{
    Commit, NodeDuty, NodeRecord, Precondition, RecordKey, RecordKind, RecordValue, UserRecord, Write,
};
use ptah_service::Secret;
use ptah_types::{ErrorKind, NodeId, Role, TenantName};

use crate::harness::{Service, client, counter, increment, lead, set_counter};

fn node(id: u64) -> Write {
    let node = NodeId::new(id).unwrap();
    let record = NodeRecord {
        node,
        name: format!("node-{id}").parse().unwrap(),
        address: format!("127.0.0.1:{id}"),
        disk_id: format!("disk-{id}"),
        zone: String::new(),
        duty: NodeDuty::Serving,
    };
    Write {
        key: RecordKey::node(node),
        value: Some(RecordValue::Node(record)),
    }
}

#[tokio::test]
async fn records_are_written_read_listed_and_deleted() {
    let service = Service::start().await;
    let client = service.client();
    let epoch = lead(&client, "test").await;
    let commit = Commit {
        writes: (1..=1_200).map(node).collect(),
        lease_epoch: epoch,
        ..Commit::default()
    };
    assert_eq!(client.commit(&commit).await.unwrap(), 1);

    let (record, revision) = client
        .get(&RecordKey::node(NodeId::new(7).unwrap()))
        .await
        .unwrap();
    assert_eq!((record.unwrap().value, revision), (node(7).value.unwrap(), 1));
    let list = client.list(&ListQuery::all(RecordKind::Node)).await.unwrap();
    let ids: Vec<u64> = list
        .records
        .iter()
        .map(|record| match &record.value {
            RecordValue::Node(node) => node.node.get(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(ids, (1..=1_200).collect::<Vec<_>>(), "all pages, in order");

    let delete = Commit {
        preconditions: vec![Precondition {
            key: RecordKey::node(NodeId::new(7).unwrap()),
            revision: 1,
        }],
        writes: vec![Write {
            value: None,
            ..node(7)
        }],
        lease_epoch: epoch,
    };
    assert_eq!(client.commit(&delete).await.unwrap(), 2);
    let (record, _) = client
        .get(&RecordKey::node(NodeId::new(7).unwrap()))
        .await
        .unwrap();
    assert_eq!(record, None);
    let tombstones = ListQuery {
        tombstones: true,
        ..ListQuery::all(RecordKind::Node)
    };
    let buried = client.list(&tombstones).await.unwrap().records;
    assert_eq!(buried.len(), 1);
    assert!(buried[0].deleted);
    assert_eq!(client.compact(2, epoch).await.unwrap(), 2);
    assert!(client.list(&tombstones).await.unwrap().records.is_empty());
}

#[tokio::test]
async fn a_user_keeps_its_hash_verbatim() {
    let service = Service::start().await;
    let client = service.client();
    let epoch = lead(&client, "test").await;
    let user = RecordValue::User(UserRecord {
        name: "root".parse().unwrap(),
        role: Role::Root,
        password_hash: Secret::new("$argon2id$v=19$'; DROP TABLE record; --"),
    });
    let key = RecordKey::user(&TenantName::default_tenant(), &"root".parse().unwrap());
    let commit = Commit {
        writes: vec![Write {
            key: key.clone(),
            value: Some(user.clone()),
        }],
        lease_epoch: epoch,
        ..Commit::default()
    };
    client.commit(&commit).await.unwrap();
    let found = client.get(&key).await.unwrap().0.unwrap().value;
    assert_eq!(found, user);
    let RecordValue::User(found) = found else {
        panic!("{found:?}")
    };
    assert!(found.password_hash.expose().contains("DROP TABLE"));
}

#[tokio::test]
async fn a_commit_that_saw_an_older_record_is_refused() {
    let service = Service::start().await;
    let client = service.client();
    let epoch = lead(&client, "test").await;
    assert_eq!(set_counter(&client, epoch, 0, 5).await.unwrap(), 1);
    let refused = set_counter(&client, epoch, 0, 6).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Conflict);
    assert!(
        refused.message.contains("expected revision 0, found 1"),
        "{refused}"
    );
}

#[tokio::test]
async fn a_holder_with_an_older_epoch_cannot_commit() {
    let service = Service::start().await;
    let (one, two) = (service.client(), service.client());
    let first = lead(&one, "one").await;
    let refused = two
        .acquire_lease("two", Duration::from_secs(30), false)
        .await
        .unwrap();
    assert_eq!((refused.acquired, refused.holder.as_str()), (false, "one"));
    one.acquire_lease("one", Duration::ZERO, true).await.unwrap();
    let second = lead(&two, "two").await;
    assert!(second > first);
    let stale = set_counter(&one, first, 0, 1).await.unwrap_err();
    assert_eq!(stale.kind, ErrorKind::Conflict);
    assert!(stale.message.contains("lease epoch"), "{stale}");
    let stale = one.compact(1, first).await.unwrap_err();
    assert_eq!(stale.kind, ErrorKind::Conflict);
    set_counter(&two, second, 0, 1).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_writers_of_one_record_count_every_change() {
    let service = Service::start().await;
    let epoch = lead(&service.client(), "test").await;
    let mut writers = Vec::new();
    for _ in 0..8 {
        let client = service.client();
        writers.push(async move {
            let mut revisions = Vec::new();
            for _ in 0..10 {
                revisions.push(increment(&client, epoch).await);
            }
            revisions
        });
    }
    let mut revisions: Vec<u64> = futures_util::future::join_all(writers).await.concat();
    revisions.sort_unstable();
    assert_eq!(
        revisions,
        (1..=80).collect::<Vec<_>>(),
        "each commit its own revision"
    );
    assert_eq!(increment(&service.client(), epoch).await, 81);
}

#[tokio::test]
async fn commits_that_are_too_large_say_so() {
    let service = Service::start().await;
    let client = service.client();
    let epoch = lead(&client, "test").await;
    let many = Commit {
        writes: (1..=10_001).map(node).collect(),
        lease_epoch: epoch,
        ..Commit::default()
    };
    assert_eq!(client.commit(&many).await.unwrap_err().kind, ErrorKind::TooLarge);
    let none = Commit {
        lease_epoch: epoch,
        ..Commit::default()
    };
    assert_eq!(
        client.commit(&none).await.unwrap_err().kind,
        ErrorKind::InvalidArgument
    );
    let twice = Commit {
        writes: vec![counter(1), counter(2)],
        lease_epoch: epoch,
        ..Commit::default()
    };
    assert_eq!(
        client.commit(&twice).await.unwrap_err().kind,
        ErrorKind::InvalidArgument
    );
}

#[tokio::test]
async fn callers_without_the_secret_are_refused() {
    let service = Service::start().await;
    let stranger = client(service.address(), &Secret::new("another secret, long enough"));
    let refused = stranger.info().await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Unauthenticated, "{refused}");
}
