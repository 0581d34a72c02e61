//! Store of record: stations, users, nodes, placements, groups; revisions and a watch stream.

pub mod store;
