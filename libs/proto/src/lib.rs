//! Generated gRPC code and conversions to domain types.
