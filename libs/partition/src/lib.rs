//! Pure state machine of one partition: commands in, effects out.
