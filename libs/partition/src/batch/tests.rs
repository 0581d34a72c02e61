use bytes::Bytes;
use proptest::prelude::*;
use ptah_types::SessionId;
use ptah_types::limits::{MAX_BATCH_BYTES, MAX_BATCH_MESSAGES, MAX_MESSAGE_BYTES, MAX_MESSAGE_META_BYTES};

use super::*;
use crate::SessionNumber;

/// A message that owns its fields.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Owned {
    subject: String,
    headers: Vec<(Vec<u8>, Vec<u8>)>,
    key: Option<Vec<u8>>,
    id: Option<Vec<u8>>,
    producer: Option<String>,
    door: u8,
    schema: Option<u64>,
    session: Option<(u64, u64)>,
    payload: Vec<u8>,
}

impl Owned {
    fn push_to(&self, builder: &mut BatchBuilder) {
        let parts = MessageParts {
            subject: &self.subject,
            key: self.key.as_deref(),
            id: self.id.as_deref(),
            producer: self.producer.as_deref(),
            door: Door::new(self.door).unwrap(),
            schema: self.schema,
            session: self
                .session
                .and_then(|(session, number)| SessionNumber::new(SessionId::new(session).unwrap(), number)),
            payload: &self.payload,
        };
        let headers = self
            .headers
            .iter()
            .map(|(name, value)| (name.as_slice(), value.as_slice()));
        builder.push(&parts, headers).unwrap();
    }

    fn read(view: &MessageView<'_>) -> Self {
        assert_eq!(view.header_count(), view.headers().count());
        assert_eq!(view.payload_bytes(), view.payload());
        Self {
            subject: view.subject().to_owned(),
            headers: view
                .headers()
                .map(|(name, value)| (name.to_vec(), value.to_vec()))
                .collect(),
            key: view.key().map(<[u8]>::to_vec),
            id: view.id().map(<[u8]>::to_vec),
            producer: view.producer().map(str::to_owned),
            door: view.door().number(),
            schema: view.schema(),
            session: view.session().map(|s| (s.session.get(), s.number.get())),
            payload: view.payload().to_vec(),
        }
    }
}

fn bytes(most: usize) -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..most)
}

fn messages(most: usize) -> impl Strategy<Value = Vec<Owned>> {
    let message = (
        ".{0,20}",
        prop::collection::vec((bytes(10), bytes(30)), 0..4),
        prop::option::of(bytes(10)),
        prop::option::of(bytes(10)),
        prop::option::of(".{0,10}"),
        1_u8..,
        any::<Option<u64>>(),
        prop::option::of((1_u64.., 1_u64..)),
        bytes(100),
    )
        .prop_map(
            |(subject, headers, key, id, producer, door, schema, session, payload)| Owned {
                subject,
                headers,
                key,
                id,
                producer,
                door,
                schema,
                session,
                payload,
            },
        );
    prop::collection::vec(message, 1..most)
}

fn build(messages: &[Owned]) -> Batch {
    let mut builder = BatchBuilder::new();
    for message in messages {
        message.push_to(&mut builder);
    }
    let expected_len = builder.encoded_len();
    let batch = builder.finish().unwrap();
    assert_eq!(batch.payload.len(), expected_len);
    batch
}

fn read(payload: Bytes) -> Vec<Owned> {
    BatchView::parse(payload)
        .unwrap()
        .iter()
        .map(|message| Owned::read(&message))
        .collect()
}

/// Uses every way to look at a batch.
fn look_everywhere(view: &BatchView) {
    for (index, message) in view.iter().enumerate() {
        let owned = Owned::read(&message);
        assert_eq!(view.message(index).map(|again| Owned::read(&again)), Some(owned));
    }
    assert!(view.message(view.len()).is_none());
}

const ONE_OF_EACH: &[u8] = &[
    1, 0, 0, 0, 2, 0, 0, 0, // format, flags, -, messages
    // message 0: nothing optional
    0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, b's', b'p', b'q', //
    // message 1: everything
    31, 1, 2, 0, 1, 0, 2, 0, 3, 0, 2, 0, 14, 0, 0, 0, // fixed fields
    9, 0, 0, 0, 0, 0, 0, 0, // schema
    7, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, // session, number
    b's', b't', // subject
    1, 0, 2, 0, b'N', b'v', b'w', 1, 0, 2, 0, b'n', 0, 255, // headers
    b'k', b'i', b'd', b'p', b'r', b'o', b'x', // key, id, producer, payload
    27, 0, 0, 0, 90, 0, 0, 0, // ends
];

fn one_of_each() -> Vec<Owned> {
    let bare = Owned {
        subject: "s".into(),
        headers: Vec::new(),
        key: None,
        id: None,
        producer: None,
        door: 2,
        schema: None,
        session: None,
        payload: b"pq".to_vec(),
    };
    let full = Owned {
        subject: "st".into(),
        headers: vec![(b"N".to_vec(), b"vw".to_vec()), (b"n".to_vec(), vec![0, 255])],
        key: Some(b"k".to_vec()),
        id: Some(b"id".to_vec()),
        producer: Some("pro".into()),
        door: 1,
        schema: Some(9),
        session: Some((7, 5)),
        payload: b"x".to_vec(),
    };
    vec![bare, full]
}

#[test]
fn stored_bytes_do_not_move() {
    assert_eq!(build(&one_of_each()).payload, ONE_OF_EACH);
    assert_eq!(read(Bytes::from_static(ONE_OF_EACH)), one_of_each());
}

#[test]
fn checksum_is_castagnoli() {
    assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    let batch = build(&one_of_each());
    assert_eq!(batch.crc, crc32c(&batch.payload));
}

#[test]
fn an_empty_builder_gives_no_batch_and_a_used_one_can_be_used_again() {
    let mut builder = BatchBuilder::with_capacity(100);
    assert_eq!((builder.finish(), builder.encoded_len()), (None, 0));
    for _ in 0..2 {
        for message in one_of_each() {
            message.push_to(&mut builder);
        }
        assert_eq!(builder.len(), 2);
        assert_eq!(builder.finish().unwrap().payload, ONE_OF_EACH);
        assert!(builder.is_empty());
    }
}

#[test]
fn an_absent_key_and_an_empty_one_are_different() {
    let mut messages = one_of_each();
    messages[0].key = Some(Vec::new());
    assert_eq!(read(build(&messages).payload), messages);
}

#[test]
fn the_message_behind_the_last_one_that_fits_is_refused_and_changes_nothing() {
    let mut builder = BatchBuilder::new();
    let parts = MessageParts::new(Door::SDK, "s", b"");
    for _ in 0..MAX_BATCH_MESSAGES {
        builder.push(&parts, []).unwrap();
    }
    assert_eq!(builder.push(&parts, []), Err(BuildError::Full));
    let batch = builder.finish().unwrap();
    assert_eq!(BatchView::parse(batch.payload).unwrap().len(), MAX_BATCH_MESSAGES);
}

#[test]
fn a_message_of_the_largest_size_travels_alone_and_a_larger_one_not_at_all() {
    let mut payload = vec![7_u8; MAX_MESSAGE_BYTES as usize];
    let mut builder = BatchBuilder::new();
    builder
        .push(&MessageParts::new(Door::SDK, "s", b"first"), [])
        .unwrap();
    builder
        .push(&MessageParts::new(Door::SDK, "s", &payload), [])
        .unwrap();
    let another = builder.push(&MessageParts::new(Door::SDK, "s", &payload[..2 << 20]), []);
    assert_eq!(another, Err(BuildError::Full));
    let view = BatchView::parse(builder.finish().unwrap().payload).unwrap();
    assert_eq!(view.message(1).unwrap().payload(), payload);
    payload.push(7);
    let too_large = builder.push(&MessageParts::new(Door::SDK, "s", &payload), []);
    assert_eq!(
        too_large,
        Err(BuildError::PayloadTooLarge { bytes: payload.len() })
    );
}

#[test]
fn a_batch_can_be_filled_to_the_last_byte() {
    let payload = vec![7_u8; 40 << 20];
    let first = MessageParts::new(Door::SDK, "s", &payload);
    for over in [0, 1] {
        let mut builder = BatchBuilder::new();
        builder.push(&first, []).unwrap();
        let header = (&b"n"[..], &b"v"[..]);
        let around = 16 + 1 + 6 + 4;
        let rest = MAX_BATCH_BYTES - builder.encoded_len() - around + over;
        let pushed = builder.push(&MessageParts::new(Door::SDK, "s", &payload[..rest]), [header]);
        assert_eq!(pushed, if over == 0 { Ok(()) } else { Err(BuildError::Full) });
        let view = BatchView::parse(builder.finish().unwrap().payload).unwrap();
        assert_eq!(view.payload().len() == MAX_BATCH_BYTES, over == 0);
    }
}

#[test]
fn headers_beyond_the_limit_are_refused_and_change_nothing() {
    let mut builder = BatchBuilder::new();
    let parts = MessageParts::new(Door::SDK, "", b"x");
    let half = vec![b'h'; MAX_MESSAGE_META_BYTES / 2 - 4];
    let header = (half.as_slice(), &b""[..]);
    builder.push(&parts, [header, header]).unwrap();
    let before = builder.encoded_len();
    assert_eq!(
        builder.push(&parts, [header, header, (b"", b"")]),
        Err(BuildError::MetaTooLarge)
    );
    let long = vec![b'h'; 70_000];
    assert_eq!(
        builder.push(&parts, [(&b"n"[..], long.as_slice())]),
        Err(BuildError::MetaTooLarge)
    );
    assert_eq!(builder.encoded_len(), before);
    let text = "s".repeat(70_000);
    let subject = builder.push(&MessageParts::new(Door::SDK, &text, b"x"), []);
    assert_eq!(subject, Err(BuildError::MetaTooLarge));
    assert_eq!(
        BatchView::parse(builder.finish().unwrap().payload).unwrap().len(),
        1
    );
}

#[test]
fn a_refused_first_message_leaves_an_empty_builder() {
    let mut builder = BatchBuilder::new();
    let long = vec![b'h'; 70_000];
    let refused = builder.push(
        &MessageParts::new(Door::SDK, "s", b"x"),
        [(&b"n"[..], long.as_slice())],
    );
    assert_eq!(refused, Err(BuildError::MetaTooLarge));
    for message in one_of_each() {
        message.push_to(&mut builder);
    }
    assert_eq!(builder.finish().unwrap().payload, ONE_OF_EACH);
}

#[test]
fn slices_and_selections_keep_messages_byte_for_byte() {
    let messages: Vec<_> = (0..10_u8)
        .map(|i| Owned {
            payload: vec![i; usize::from(i) * 3],
            ..one_of_each()[usize::from(i) % 2].clone()
        })
        .collect();
    let view = BatchView::parse(build(&messages).payload).unwrap();
    assert_eq!(read(view.slice(3..7).unwrap()), messages[3..7]);
    assert_eq!(view.slice(0..10).unwrap(), view.payload());
    assert_eq!(view.slice(2..5).unwrap(), build(&messages[2..5]).payload);
    let picked = [messages[9].clone(), messages[0].clone(), messages[4].clone()];
    assert_eq!(view.select(&[9, 0, 4]).unwrap(), build(&picked).payload);
    assert_eq!(
        (
            view.slice(3..3),
            view.slice(5..11),
            view.select(&[]),
            view.select(&[10])
        ),
        Default::default()
    );
}

#[test]
fn a_selection_larger_than_a_batch_is_refused() {
    let mut builder = BatchBuilder::new();
    builder
        .push(&MessageParts::new(Door::SDK, "s", &vec![0; 40 << 20]), [])
        .unwrap();
    let view = BatchView::parse(builder.finish().unwrap().payload).unwrap();
    assert_eq!(view.select(&[0, 0]), None);
    assert_eq!(view.select(&[0; MAX_BATCH_MESSAGES + 1]), None);
}

#[test]
fn batches_of_other_versions_are_named_as_such() {
    let mut newer = ONE_OF_EACH.to_vec();
    newer[0] = 2;
    assert_eq!(
        BatchHead::read(&newer),
        Err(BatchError::UnknownVersion { found: 2 })
    );
    newer[0] = 1;
    newer[1] = 4;
    assert_eq!(
        BatchHead::read(&newer),
        Err(BatchError::UnknownFlags { found: 4 })
    );
}

#[test]
fn a_field_that_this_version_does_not_know_is_refused() {
    let mut newer = ONE_OF_EACH.to_vec();
    newer[8] = 32;
    let refused = BatchView::parse(newer.into()).unwrap_err();
    assert_eq!(
        refused,
        BatchError::Malformed {
            what: "unknown field",
            message: Some(0)
        }
    );
    assert_eq!(
        refused.to_string(),
        "batch is malformed: unknown field of message 0"
    );
}

#[test]
fn counts_that_the_bytes_cannot_hold_are_refused() {
    for count in [0, 3, 16_385, u32::MAX] {
        let mut wrong = ONE_OF_EACH.to_vec();
        wrong[4..8].copy_from_slice(&u32::to_le_bytes(count));
        assert!(BatchView::parse(wrong.into()).is_err(), "{count}");
    }
    let zeros = vec![0; MAX_BATCH_BYTES + 1];
    assert_eq!(
        BatchHead::read(&zeros),
        Err(BatchError::TooLarge { bytes: zeros.len() })
    );
}

#[test]
fn a_truncated_batch_is_refused_at_every_length() {
    for len in 0..ONE_OF_EACH.len() {
        assert!(
            BatchView::parse(Bytes::from_static(&ONE_OF_EACH[..len])).is_err(),
            "{len} bytes"
        );
    }
}

#[test]
fn bits_flipped_anywhere_never_make_the_reader_panic() {
    for bit in 0..ONE_OF_EACH.len() * 8 {
        let mut flipped = ONE_OF_EACH.to_vec();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert_ne!(crc32c(&flipped), crc32c(ONE_OF_EACH));
        if let Ok(view) = BatchView::parse(flipped.into()) {
            look_everywhere(&view);
        }
    }
}

proptest! {
    #[test]
    fn messages_are_read_back(messages in messages(30)) {
        let batch = build(&messages);
        prop_assert_eq!(batch.count as usize, messages.len());
        let head = BatchHead::read(&batch.payload).unwrap();
        prop_assert_eq!((head.count, head.bytes), (batch.count, batch.payload.len() as u64));
        prop_assert_eq!(read(batch.payload), messages);
    }

    #[test]
    fn any_part_of_a_batch_is_a_batch(messages in messages(12), start: usize, len: usize, picks: Vec<usize>) {
        let view = BatchView::parse(build(&messages).payload).unwrap();
        let start = start % messages.len();
        let end = start + 1 + len % (messages.len() - start);
        prop_assert_eq!(read(view.slice(start..end).unwrap()), &messages[start..end]);
        let picks: Vec<_> = picks.iter().map(|pick| pick % messages.len()).collect();
        if !picks.is_empty() {
            let picked: Vec<_> = picks.iter().map(|pick| messages[*pick].clone()).collect();
            prop_assert_eq!(read(view.select(&picks).unwrap()), picked);
        }
    }

    #[test]
    fn damaged_batches_never_make_the_reader_panic(
        messages in messages(5), damage in prop::collection::vec((any::<usize>(), any::<u8>()), 1..6), cut: usize
    ) {
        let mut payload = build(&messages).payload.to_vec();
        for (at, value) in damage {
            let at = at % payload.len();
            payload[at] = value;
        }
        payload.truncate(1 + cut % (2 * payload.len()));
        if let Ok(view) = BatchView::parse(payload.into()) {
            look_everywhere(&view);
        }
    }

    #[test]
    fn random_bytes_never_make_the_reader_panic(mut payload in prop::collection::vec(any::<u8>(), 0..300), count in 1_u32..6) {
        if payload.len() >= 8 {
            payload[..4].copy_from_slice(&[1, 0, 0, 0]);
            payload[4..8].copy_from_slice(&count.to_le_bytes());
        }
        if let Ok(view) = BatchView::parse(payload.into()) {
            look_everywhere(&view);
        }
    }
}
