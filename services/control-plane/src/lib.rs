//! Owns every decision: management calls, placement, reconciliation, authorization.
