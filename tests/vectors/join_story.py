"""Golden vectors of join requests: what a newcomer sends, and what it is answered."""

from __future__ import annotations

import hashlib
from typing import Any

from converge_p2p.core.codec import encode
from converge_p2p.core.governance.proofs import make_vouch
from converge_p2p.core.identity import Identity
from converge_p2p.core.model.join_request import AnswerKind, JoinAnswer, JoinAsk
from converge_p2p.core.types import PoolId

POOL = PoolId(hashlib.sha256(b"a pool").digest())


def joins() -> dict[str, Any]:
    """Return what `joins.json` holds."""
    elector, joiner = (Identity.from_seed(hashlib.sha256(name).digest()) for name in (b"elector", b"joiner"))
    vouch = make_vouch(elector, POOL, joiner.public_key, until_epoch=16).to_bytes()
    answers = {
        "refused": JoinAnswer(AnswerKind.REFUSED, reason="no room"),
        "given": JoinAnswer(AnswerKind.GIVEN, vouch),
        "pending": JoinAnswer(AnswerKind.PENDING),
        "free": JoinAnswer(AnswerKind.FREE),
        "cannot": JoinAnswer(AnswerKind.CANNOT, reason="full"),
    }
    wrong = {
        "a pool of another length": encode([POOL[:-1], ""]),
        "a note that is too long": encode([POOL, "x" * 257]),
        "three fields": encode([POOL, "", 0]),
        "no array": encode(0),
        "nothing": b"",
        "too many bytes": encode([POOL, "x" * 2000]),
    }
    wrong_answers = {
        "an unknown kind": encode([5, b"", ""]),
        "given nothing": encode([1, b"", ""]),
        "pending with a proof": encode([2, b"x", ""]),
        "a proof that is too long": encode([1, bytes(1025), ""]),
        "a reason that is too long": encode([0, b"", "x" * 257]),
        "true for a kind": encode([True, b"x", ""]),
    }
    return {
        "pool": POOL.hex(),
        "ask": {"note": "let me in", "hex": (b"\x02" + JoinAsk(POOL, "let me in").to_bytes()).hex()},
        "decided": (b"\x03" + POOL).hex(),
        "answers": {name: answer.to_bytes().hex() for name, answer in answers.items()},
        "rejected": {name: data.hex() for name, data in wrong.items()},
        "rejected_answers": {name: data.hex() for name, data in wrong_answers.items()},
    }
