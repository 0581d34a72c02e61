//! The only door for clients: gRPC.
