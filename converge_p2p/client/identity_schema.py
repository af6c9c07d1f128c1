"""What the control interface says and hears about the node's key; the rest of its schema is in `schema`.

Knows: the shape of requests and answers in JSON. Must not know: HTTP, the node, or how a terminal shows it.
Source: docs/control.md.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from converge_p2p.client.schema import Positive

Key = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Signature = Annotated[str, Meta(pattern="^[0-9a-f]{128}$")]
WAIT_S = 10.0
"""So long the electors of a pool are waited for if nothing is said."""


class RotateIdentity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Hand the node's place in a pool over to a new key. Both keys sign the pool's id, the old key and the new one.

    Attributes:
        pool: its id.
        successor: the new key.
        signature: of the new key, tag `rotation`.
        authorisation: of the node's key, tag `succession`: who asks has the key, and not only the interface.
        timeout_s: how long to wait for the electors, where the terms give the old key a role.
    """

    pool: Key
    successor: Key
    signature: Signature
    authorisation: Signature
    timeout_s: Positive = WAIT_S


class RotatedItem(msgspec.Struct, frozen=True, kw_only=True):
    """A place that was handed over.

    Attributes:
        pool: its id.
        name: its name.
        successor: id of the agent that has the new key.
        content_keys: of a private pool, sealed to the new key, in base64; empty if there are none.
        others: how many other members are connected, from whom the new key's node can get what the pool holds.
    """

    pool: str
    name: str
    successor: str
    content_keys: str
    others: int
