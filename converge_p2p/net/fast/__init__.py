"""The fast path: an own noise session, multiplexer and gossip reader, on the wire the same as the library's.

Knows: nothing by itself; see `records` and `frames` (bytes), `machine` (streams without input and output), `session`
and `yamux` (trio), `upgrade` (how libp2p is made to use them), `pubsub` (gossip).
Source: docs/decisions, "The fast transport".
"""
