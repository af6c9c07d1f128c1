"""Vectors of admission: an invitation for its holder, one for a named agent, and vouches.

Knows: who invites whom. `generate.py` writes what is made here.
"""

from __future__ import annotations

import hashlib
from typing import Any

from converge_p2p.core.codec import decode, encode
from converge_p2p.core.governance.proofs import make_invitation, make_vouch, prove_invitation, prove_vouches
from converge_p2p.core.identity import Identity
from converge_p2p.core.types import PoolId

POOL = PoolId(bytes(range(32)))
NAMES = ("alice", "bob", "carol", "holder")
PEOPLE = {name: Identity.from_seed(hashlib.sha256(name.encode()).digest()) for name in NAMES}


def admission(to_json: Any) -> dict[str, Any]:
    """Invitations, vouches, the proofs made of them, and what each signature is over."""
    alice, bob, carol = (PEOPLE[name] for name in ("alice", "bob", "carol"))
    secret = PEOPLE["holder"].seed
    held = make_invitation(alice, POOL, secret=secret, until_epoch=7, expires_ms=1_700_000_000_000)
    named = make_invitation(alice, POOL, joiner=carol.public_key, until_epoch=0, role="reviewer")
    vouches = [make_vouch(elector, POOL, carol.public_key, until_epoch=7) for elector in (alice, bob)]

    def proof(name: str, data: bytes) -> dict[str, Any]:
        return {"name": name, "hex": data.hex(), "fields": to_json(decode(data))}

    return {
        "pool": POOL.hex(),
        "joiner": carol.public_key.hex(),
        "electors": sorted(elector.public_key.hex() for elector in (alice, bob)),
        "invitations": [proof("for its holder", held.to_bytes()), proof("for one agent", named.to_bytes())],
        "vouch": proof("a vouch", vouches[0].to_bytes()),
        "proofs": {
            "invitation": proof("its holder joins", prove_invitation(held, carol.public_key)),
            "named invitation": proof("the named agent joins", prove_invitation(named, carol.public_key)),
            "vouches": proof("two electors vouch", prove_vouches(vouches)),
        },
        "signed": {
            "invitation": encode([POOL, held.key, 7, "worker", 1_700_000_000_000]).hex(),
            "invitation-use": encode([POOL, carol.public_key]).hex(),
            "vouch": encode([POOL, carol.public_key, 7]).hex(),
        },
    }
