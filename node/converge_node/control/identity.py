"""The node's key at the control interface: its place in a pool is handed over to a new one.

Knows: requests and answers, and pools through `control.ports`. Must not know: HTTP, or key files.
Source: docs/control.md. The permission to ask is not enough: a rotation is for ever, so the request is signed with the
key that gives up its place, and whoever stole a token cannot take the node's pools.
"""

from __future__ import annotations

import base64
from typing import Final

from converge_node.control import views
from converge_node.control.state import Asked, Endpoint
from converge_p2p.client.identity_schema import RotatedItem
from converge_p2p.core.errors import SignatureError
from converge_p2p.core.identity import fingerprint
from converge_p2p.core.oplog.succession import SucceedBody, is_signed
from converge_p2p.core.types import PublicKey


async def rotate(asked: Asked) -> RotatedItem:
    """Hand over in one pool. Raises as `PoolKeys.pass_on`, and `SignatureError` unless the node's key agrees."""
    node, body = asked.node, asked.body
    pool = views.find_pool(node, body.pool)
    successor = PublicKey(bytes.fromhex(body.successor))
    if not is_signed(pool.id, successor, SucceedBody(node.public_key, bytes.fromhex(body.authorisation))):
        raise SignatureError(
            "the request is not signed with the key of this node for this pool and new key",
            hint="`converge-node identity rotate` signs it with the key file of the home, or with --key",
        )
    left = await pool.keys.pass_on(successor, bytes.fromhex(body.signature), timeout_s=body.timeout_s)
    near = {peer.public_key for peer in node.peers()} - {successor}
    return RotatedItem(
        pool=pool.id.hex(),
        name=pool.name,
        successor=str(fingerprint(successor)),
        content_keys=base64.b64encode(left.content_keys).decode("ascii"),
        others=sum(member.public_key in near for member in pool.members()),
    )


ENDPOINTS: Final[dict[str, Endpoint]] = {"rotate": rotate}
