"""Vectors of networks, sealed messages, private topics and invitations: one of each, with everything that goes in.

Knows: fixed keys and fixed randomness. `generate.py` writes what is made here.
"""

from __future__ import annotations

import hashlib
from typing import Any

from converge_p2p.core import limits
from converge_p2p.core.governance.invitation_line import InvitationLine, PoolInvitation
from converge_p2p.core.identity import Identity
from converge_p2p.core.model.delivery import sign_delivery
from converge_p2p.core.model.message import Message
from converge_p2p.core.model.network_key import NetworkKey
from converge_p2p.core.model.topic import Topic
from converge_p2p.core.model.topic_key import PrivateTopic, TopicKey
from converge_p2p.core.types import PoolId
from converge_p2p.net.topic_access import PRIVATE_PREFIX, TAG_BYTES, TopicAccess, proof_context

NOW_MS = 1_700_000_000_000


def _bytes(name: str) -> bytes:
    return hashlib.sha256(b"vector " + name.encode()).digest()


def mail() -> dict[str, Any]:
    """A network key, a sealed message and its receipt, a message on a private topic and a proof, an invitation."""
    alice, bob = Identity.from_seed(_bytes("alice")), Identity.from_seed(_bytes("bob"))
    network, topic, topic_key = NetworkKey(_bytes("network")), Topic("acme/secret"), TopicKey(_bytes("topic"))
    private = PrivateTopic(topic, topic_key)
    message_id, entropy = _bytes("id")[:16], _bytes("entropy")
    direct = Message.create(alice.id, {"n": 1}, recipient=bob.id, topics=(topic,)).stamp(NOW_MS, message_id=message_id)
    sealed = direct.seal(bob.public_key, entropy=entropy).sign(alice)
    receipt = sign_delivery(bob, sealed, NOW_MS + 5)
    spoken = Message.create(alice.id, "hello", topics=(topic,)).stamp(NOW_MS, message_id=message_id).sign(alice)
    access = TopicAccess()
    access.guard(f"{PRIVATE_PREFIX}1/{private.name}", private.member_key)
    names = (b"asker's peer id", b"asked's peer id", _bytes("asker nonce"), _bytes("asked nonce"))
    noise = b"".join(_bytes(f"noise {number}") for number in range(limits.PRIVATE_TOPICS_MAX))
    assert len(noise) == limits.PRIVATE_TOPICS_MAX * TAG_BYTES
    line = InvitationLine(
        alice.public_key,
        NOW_MS + 1000,
        "worker",
        ("/ip4/192.0.2.1/tcp/4001/p2p/12D3KooWB8ByWevpkhVFdFUEu13bju4ATMQXMdK2pY25hCSqBLUy",),
        network,
        ((topic, topic_key),),
        PoolInvitation(PoolId(_bytes("pool")), ticket=_bytes("ticket")),
    ).sign(alice)
    return {
        "network": {
            "key": network.secret.hex(),
            "file": network.to_file().decode(),
            "name": network.network.hex(),
        },
        "sealed_message": {
            "sender_seed": alice.seed.hex(),
            "recipient_seed": bob.seed.hex(),
            "entropy": entropy.hex(),
            "payload": direct.body.hex(),
            "body": sealed.body.hex(),
            "envelope": sealed.to_bytes().hex(),
        },
        "receipt": {"taken_ms": receipt.taken_ms, "hash": receipt.message.hex(), "bytes": receipt.to_bytes().hex()},
        "private_topic": {
            "topic": topic.to_bytes().hex(),
            "key": topic_key.secret.hex(),
            "file": topic_key.to_file().decode(),
            "name": private.name,
            "member_key": private.member_key.hex(),
            "envelope": spoken.to_bytes().hex(),
            "seq": 7,
            "sealed": private.seal(alice.public_key, 7, spoken.to_bytes()).to_bytes().hex(),
        },
        "proof": {
            "asker": names[0].hex(),
            "asked": names[1].hex(),
            "asker_nonce": names[2].hex(),
            "asked_nonce": names[3].hex(),
            "filling": noise[: 3 * TAG_BYTES].hex(),
            "tags_of_asker": access.tags(proof_context("asker", *names), noise).hex(),
            "tags_of_asked": access.tags(proof_context("asked", *names), noise).hex(),
        },
        "invitation": {
            "issuer_seed": alice.seed.hex(),
            "expires_ms": line.expires_ms,
            "pool": _bytes("pool").hex(),
            "ticket": _bytes("ticket").hex(),
            "text": line.to_text(),
        },
    }
