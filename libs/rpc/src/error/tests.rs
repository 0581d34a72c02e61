//! Errors survive the wire, and foreign ones are read with care.

use ptah_types::Effect;

use super::*;

#[test]
fn every_kind_survives_the_status() {
    for kind in ErrorKind::ALL {
        let error = RpcError::new(kind, format!("something about {kind}"))
            .with_leader(NodeId::new(7).unwrap(), "127.0.0.1:6222")
            .with_retry_after(Duration::from_millis(250));
        let status = Status::from(error.clone());
        assert_eq!(status.code(), code_of(kind));
        assert_eq!(status.message(), error.message);
        assert_eq!(RpcError::from(status), error);
    }
}

#[test]
fn every_kind_survives_a_message() {
    for kind in ErrorKind::ALL {
        let error = RpcError::new(kind, "why");
        assert_eq!(RpcError::from_proto(error.to_proto()), error);
    }
}

#[test]
fn a_kind_of_a_newer_peer_is_neither_retried_nor_taken_for_harmless() {
    let mut told = RpcError::new(ErrorKind::Unavailable, "new").to_proto();
    told.kind = 99;
    let read = RpcError::from_proto(told);
    assert!(!read.kind.is_retryable());
    assert_eq!(read.kind.effect(), Effect::Unknown);
}

#[test]
fn a_domain_error_is_told_by_its_own_kind_and_text() {
    let error = crate::ConversionError::missing("partition");
    let status = to_status(&error);
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_eq!(status.message(), "field `partition` is missing");
}

#[test]
fn what_a_broken_connection_also_gives_may_have_had_an_effect() {
    for code in [
        Code::Unavailable,
        Code::Cancelled,
        Code::Unknown,
        Code::Internal,
        Code::DeadlineExceeded,
    ] {
        let error = RpcError::from(Status::new(code, "lost"));
        assert_eq!(error.kind, ErrorKind::OutcomeUnknown, "{code:?}");
    }
}

#[test]
fn what_is_lost_of_a_read_did_not_happen() {
    let lost = RpcError::of_read(Status::new(Code::Unavailable, "lost"));
    assert_eq!(lost.kind, ErrorKind::Unavailable);
    let late = RpcError::of_read(Status::new(Code::DeadlineExceeded, "late"));
    assert_eq!(late.kind, ErrorKind::DeadlineExceeded);
    let told = RpcError::new(ErrorKind::NotFound, "station `x` not found");
    assert_eq!(RpcError::of_read(told.clone().into()), told);
}

#[test]
fn a_failed_connect_had_no_effect() {
    let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
    let status = Status::from_error(Box::new(ConnectError(Box::new(refused))));
    assert_eq!(RpcError::from(status).kind, ErrorKind::Unavailable);
}

#[test]
fn a_trailer_that_is_garbage_is_passed_over() {
    let mut status = Status::new(Code::NotFound, "gone");
    let garbage = MetadataValue::from_bytes(&[0xff; 9]);
    status.metadata_mut().insert_bin(ERROR_TRAILER, garbage);
    let error = RpcError::from(status);
    assert_eq!(
        (error.kind, error.message.as_str()),
        (ErrorKind::NotFound, "gone")
    );
}

#[test]
fn a_long_message_is_cut_at_a_character() {
    let error = RpcError::new(ErrorKind::Internal, "ä".repeat(5_000));
    let status = Status::from(error);
    assert_eq!(status.message().len(), MAX_MESSAGE_BYTES);
    assert!(status.message().chars().all(|c| c == 'ä'));
}
