//! Hosts partition replicas: append, fetch, consume, snapshot, repair.
