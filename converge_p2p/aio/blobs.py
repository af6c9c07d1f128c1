"""Contents too large for a task, for asyncio.

Knows: which methods there are. Must not know: how a call crosses over, or how contents are kept.
Source: `docs/blobs.md`.
"""

from __future__ import annotations

from converge_p2p.aio.facade import Facade, bridged, direct
from converge_p2p.node import blobs, pool_blobs


class Blobs(Facade[blobs.Blobs]):
    """The blobs of a node. See `converge_p2p.Node.blobs`."""

    put = bridged(blobs.Blobs.put)
    get = bridged(blobs.Blobs.get)
    fetch = bridged(blobs.Blobs.fetch)
    remove = bridged(blobs.Blobs.remove)
    list = direct(blobs.Blobs.list)


class PoolBlobs(Facade[pool_blobs.PoolBlobs]):
    """The blobs of a pool's tasks. See `converge_p2p.PoolHandle.blobs`."""

    put = bridged(pool_blobs.PoolBlobs.put)
    get = bridged(pool_blobs.PoolBlobs.get)
    fetch = bridged(pool_blobs.PoolBlobs.fetch)
