"""The replica: one pool as a pure state machine. Events in, effects out."""
