"""Invitations as lines: what is written is read, nothing else is, and a line that is no good says why."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from converge_p2p.core import limits
from converge_p2p.core.errors import CodecError, ConvergeError, LimitExceeded, LocalError, NotAuthorised, SignatureError
from converge_p2p.core.governance.invitation_line import InvitationLine, PoolInvitation
from converge_p2p.core.identity import Identity
from converge_p2p.core.model.network_key import NetworkKey
from converge_p2p.core.model.topic import Topic
from converge_p2p.core.model.topic_key import TopicKey
from converge_p2p.core.types import PoolId

ISSUER, OTHER = Identity.from_seed(b"i" * 32), Identity.from_seed(b"o" * 32)
NETWORK, TOPIC_KEY = NetworkKey(b"n" * 32), TopicKey(b"t" * 32)
POOL = PoolId(b"p" * 32)
NOW = 1_700_000_000_000
ADDRESS = "/ip4/192.0.2.1/tcp/4001/p2p/12D3KooWB8ByWevpkhVFdFUEu13bju4ATMQXMdK2pY25hCSqBLUy"


def line(**changes: Any) -> InvitationLine:
    fields: dict[str, Any] = {
        "expires_ms": NOW + 1000,
        "role": "worker",
        "bootstrap": (ADDRESS,),
        "network_key": NETWORK,
        "topics": ((Topic("acme/a"), TOPIC_KEY), (Topic("acme/b"), None)),
        "pool": PoolInvitation(POOL, ticket=b"s" * 32),
    }
    return InvitationLine(ISSUER.public_key, **{**fields, **changes}).sign(ISSUER)


lines = st.builds(
    line,
    expires_ms=st.integers(0, 2**53 - 1),
    role=st.text(max_size=40),
    bootstrap=st.lists(st.text(max_size=40), max_size=8).map(tuple),
    network_key=st.none() | st.just(NETWORK),
    topics=st.lists(st.tuples(st.just(Topic("a/b")), st.none() | st.just(TOPIC_KEY)), max_size=8).map(tuple),
    pool=st.none()
    | st.builds(PoolInvitation, st.just(POOL), invitation=st.binary(max_size=300))
    | st.just(PoolInvitation(POOL, ticket=b"s" * 32)),
)


@settings(deadline=None)
@given(lines)
def test_what_is_written_is_read(written: InvitationLine) -> None:
    text = written.to_text()
    assert InvitationLine.from_text(text) == written
    assert len(text.splitlines()) == 1
    # as mail programs break it
    assert InvitationLine.from_text("  " + "\r\n".join(text[start : start + 60] for start in range(0, len(text), 60)))


@settings(deadline=None, max_examples=300)
@given(st.integers(0, 5000), st.integers(0, 5000), st.characters(codec="ascii"))
def test_a_line_that_is_cut_off_mistyped_or_glued_is_refused_and_breaks_nothing(
    start: int, end: int, typed: str
) -> None:
    text = line().to_text()
    cut = text[start % len(text) : end % len(text)]
    place = start % len(text)
    changed = text[:place] + typed + text[place + 1 :]
    for bad in (cut, text + cut, changed if changed != text and typed.strip() else ""):
        if "".join(bad.split()) != text:
            with pytest.raises(CodecError):
                InvitationLine.from_text(bad)


@given(st.text(max_size=200), st.binary(max_size=200))
def test_no_text_breaks_the_reader(text: str, data: bytes) -> None:
    for bad in (text, f"converge1:{text}", data.hex()):
        with pytest.raises(ConvergeError):
            InvitationLine.from_text(bad)


def test_each_kind_of_wrong_line_says_what_is_wrong() -> None:
    text = line().to_text()
    for bad, reason in (
        ("hello", "no invitation"),
        ("", "no invitation"),
        (text[:-1], "cut off"),
        (text[:-9], "cut off"),
        (text[: len(text) // 2], "cut off"),
        (text[:20] + ("A" if text[20] != "A" else "B") + text[21:], "checksum"),
        (text.replace("converge1:", "converge2:", 1), "version 2; this program reads version 1"),
        ("x" * 100_000, "too long"),
    ):
        with pytest.raises(CodecError, match=reason):
            InvitationLine.from_text(bad)


def test_it_is_signed_by_its_issuer() -> None:
    good = line()
    for forged in (
        replace(good, issuer=OTHER.public_key),
        replace(good, role="leader"),
        replace(good, expires_ms=0),
        replace(good, bootstrap=()),
        replace(good, network_key=None),
        replace(good, topics=()),
        replace(good, pool=None),
        replace(good, signature=bytes(64)),
    ):
        with pytest.raises(SignatureError):
            InvitationLine.from_text(forged.to_text())
    with pytest.raises(LocalError, match="issuer"):
        replace(good, signature=b"").sign(OTHER)
    with pytest.raises(LocalError, match="signed before"):
        replace(good, signature=b"").to_text()


def test_it_ends_and_is_for_one_network() -> None:
    good = line()
    good.check_for(NETWORK, NOW)
    with pytest.raises(NotAuthorised, match="expired 5 hours ago"):
        good.check_for(NETWORK, NOW + 1000 + 5 * 3_600_000)
    line(expires_ms=0).check_for(NETWORK, NOW * 2)
    for key in (None, NetworkKey(b"x" * 32)):
        with pytest.raises(LocalError, match="not for this network: it is for a private one"):
            good.check_for(key, NOW)
    with pytest.raises(LocalError, match="not for this network: it is for the public one"):
        line(network_key=None).check_for(NETWORK, NOW)


def test_what_is_in_it_is_bounded() -> None:
    many = tuple((Topic(f"t/{number}"), None) for number in range(limits.INVITATION_TOPICS_MAX + 1))
    for too_much in ({"topics": many}, {"bootstrap": ("a",) * 9}, {"bootstrap": ("a" * 257,)}, {"role": "x" * 257}):
        with pytest.raises(CodecError):
            line(**too_much)
    with pytest.raises((LimitExceeded, CodecError)):
        line(pool=PoolInvitation(POOL, invitation=bytes(limits.INVITATION_LINE_BYTES_MAX)))
    with pytest.raises(CodecError):
        line(pool=PoolInvitation(POOL, b"i", b"s" * 32))


def test_its_secrets_are_not_shown() -> None:
    shown = repr(line())
    assert all(repr(secret) not in shown for secret in (b"s" * 32, b"n" * 32, b"t" * 32))
