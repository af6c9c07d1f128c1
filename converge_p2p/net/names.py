"""Peer ids and public keys: two spellings of one identity.

Knows: a libp2p peer id of an Ed25519 key is the identity multihash of its protobuf encoding, so that either can be
had from the other. Must not know: connections.
Source: libp2p peer-ids specification (keys of up to 42 bytes are embedded, not hashed).
"""

from __future__ import annotations

import functools

from libp2p.peer.id import ID

from converge_p2p.core.errors import CodecError
from converge_p2p.core.identity import PUBLIC_KEY_BYTES
from converge_p2p.core.types import PeerId, PublicKey

_ED25519_PREFIX = bytes.fromhex("002408011220")
"""Identity multihash of 36 bytes, holding the protobuf fields "key type Ed25519" and "32 bytes of key"."""


def peer_id_of(public_key: PublicKey) -> PeerId:
    """Return the peer id of the node that holds a key.

    Raises:
        CodecError: the key has not 32 bytes.
    """
    if len(public_key) != PUBLIC_KEY_BYTES:
        raise CodecError(f"public key has {len(public_key)} bytes; expected {PUBLIC_KEY_BYTES}")
    return peer_name(ID(_ED25519_PREFIX + public_key))


@functools.lru_cache(maxsize=4096)
def public_key_of(peer_id: PeerId) -> PublicKey:
    """Return the key that a peer id embeds.

    Raises:
        CodecError: not a peer id, or one of another key type.
    """
    raw = raw_peer_id(peer_id).to_bytes()
    if not is_ed25519(raw):
        raise CodecError(f"peer {peer_id} has no Ed25519 key; only Ed25519 nodes take part in this network")
    return PublicKey(raw[len(_ED25519_PREFIX) :])


def is_ed25519(raw: bytes) -> bool:
    """Say whether the bytes of a peer id embed an Ed25519 key."""
    return len(raw) == len(_ED25519_PREFIX) + PUBLIC_KEY_BYTES and raw.startswith(_ED25519_PREFIX)


def embedded_key(raw: bytes) -> bytes | None:
    """Return the 32 key bytes inside the bytes of a peer id, or None for another key type."""
    return raw[len(_ED25519_PREFIX) :] if is_ed25519(raw) else None


@functools.lru_cache(maxsize=4096)
def raw_peer_id(peer_id: PeerId) -> ID:
    """Return the transport library's object for a peer id.

    Raises:
        CodecError: not base58.
    """
    try:
        return ID.from_base58(peer_id)
    except Exception as error:
        raise CodecError(f"{peer_id!r} is not a peer id; expected base58 such as 12D3Koo…") from error


def peer_name(raw: ID) -> PeerId:
    """Return the base58 text of the transport library's peer id."""
    return PeerId(raw.to_base58())
