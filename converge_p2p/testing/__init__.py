"""Test kit of the library: the seeded simulator of a pool, its faults, its liars and its checkers."""
