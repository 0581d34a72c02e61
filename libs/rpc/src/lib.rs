//! gRPC plumbing: network port, channels, deadlines, retry, cluster secret, typed internal clients.
