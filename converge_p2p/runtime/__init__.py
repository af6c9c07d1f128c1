"""The runtime: an agent's loop, its inbox, the executor of its decisions, tools, safety, and workers.

Knows: a node only as the Protocols in `ports`. Must not know: the network, the store, or `Node`.
"""
