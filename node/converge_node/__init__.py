"""converge-node: the program that runs one node of a converge-p2p network, and the commands that talk to it.

Knows: the library's public surface. Must not know: libp2p, or anything below `converge_p2p.node` but values.
Imports nothing, so that `converge-node --help` is quick.
"""
