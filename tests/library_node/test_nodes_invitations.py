"""Invitations among real nodes: one line leads into network, topics and pool, for as many as was said and no more."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
from node_library_kit import QUICK, linked, real_node, until, who

from converge_p2p import AdmissionKind, NetworkKey, Node, Topic
from converge_p2p.core.codec import encode
from converge_p2p.core.errors import LocalError, NetworkError, NotAuthorised, NotFound
from converge_p2p.core.governance.invitation_line import InvitationLine
from converge_p2p.core.governance.proofs import INVITED_TAG
from converge_p2p.core.identity import Identity
from converge_p2p.core.types import PoolId
from converge_p2p.node.switchboard import REDEEM

pytestmark = pytest.mark.network

KEY = NetworkKey(bytes(range(32)))
PRIVATE = replace(QUICK, network_key=KEY)


@pytest.fixture(autouse=True)
async def _in_time() -> Any:
    with trio.fail_after(90):
        yield


async def invited_pool(node: Node, name: str = "few") -> Any:
    return await node.create_pool(name, admission=AdmissionKind.TOKEN)


async def test_one_line_leads_into_a_private_network_its_private_topic_and_a_pool() -> None:
    async with real_node(1, config=PRIVATE) as one, real_node(2, config=PRIVATE) as two:
        await one.join("acme/secret", key=b"k" * 32)
        pool = await invited_pool(one)
        text = await one.invitations.write(pool=pool, topics=[Topic("acme/secret")], role="tester", valid_s=60)
        assert "\n" not in text
        accepted = await two.invitations.accept(text, capabilities=["gpu"], timeout_s=20)
        assert accepted.line.role == "tester"
        assert accepted.pool is not None
        assert accepted.pool.is_member
        assert accepted.pool.own_capabilities == ("gpu",)
        assert two.topics() == one.topics()
        # the same line again changes nothing, and takes no second place
        assert (await two.invitations.accept(text, timeout_s=20)).pool is not None


async def test_an_invitation_lets_in_as_many_as_was_said_also_after_a_restart(tmp_path: Path) -> None:
    async with real_node(1, home=tmp_path) as one:
        pool = await invited_pool(one)
        text = await one.invitations.write(pool=pool.id, uses=2)
        with pytest.raises(NotFound, match="no part in the pool"):
            await one.invitations.write(pool=PoolId(bytes(32)))
        listen = (one.addresses[0].split("/p2p/")[0],)
        async with real_node(2) as two:
            assert (await two.invitations.accept(text, timeout_s=20)).pool.is_member
    async with real_node(1, home=tmp_path, listen=listen) as one, real_node(3) as three, real_node(4) as four:
        assert (await three.invitations.accept(text, timeout_s=20)).pool.is_member
        with pytest.raises(NotAuthorised, match="used as often as its issuer allowed"):
            await four.invitations.accept(text, timeout_s=20)
        assert four.pools == {}
        members = {member.public_key for member in one.pools[pool.id].members()}
        assert four.public_key not in members
        assert len(members) == 3


async def test_many_that_come_at_once_with_one_invitation_are_one() -> None:
    async with real_node(1) as one, real_node(2) as two, real_node(3) as three, real_node(4) as four:
        text = await one.invitations.write(pool=await invited_pool(one))
        came: list[Any] = []

        async def come(node: Node) -> None:
            try:
                came.append((await node.invitations.accept(text, timeout_s=20)).pool.is_member)
            except NotAuthorised:
                came.append(False)

        async with trio.open_nursery() as nursery:
            for node in (two, three, four):
                nursery.start_soon(come, node)
        assert sorted(came) == [False, False, True]


async def test_the_ticket_in_a_line_is_worth_nothing_without_its_issuer() -> None:
    """It is no invitation that a join could show, and its issuer gives one only to the key that asks."""
    async with real_node(1) as one, real_node(2, one) as two:
        await linked(one, two)
        pool = await invited_pool(one)
        line = InvitationLine.from_text(await one.invitations.write(pool=pool))
        assert line.pool is not None
        assert not line.pool.invitation
        ticket = Identity.from_seed(line.pool.ticket)
        for key, use in (
            # for another agent than the one that asks, of another pool, unsigned, and an unknown ticket
            (ticket.public_key, ticket.sign(INVITED_TAG, encode([pool.id, who(77).public_key]))),
            (ticket.public_key, ticket.sign(INVITED_TAG, encode([bytes(32), two.public_key]))),
            (ticket.public_key, bytes(64)),
            (two.public_key, two.identity.sign(INVITED_TAG, encode([pool.id, two.public_key]))),
        ):
            answer = await two._network.request(one.peer_id, REDEEM + key + use)
            assert answer[:1] == b"\x00"
        for junk in (b"", b"x" * 95, b"x" * 97):
            assert await two._network.request(one.peer_id, REDEEM + junk) == b"\x00unknown"


async def test_lines_that_cannot_be_followed_say_why() -> None:
    async with real_node(1) as one, real_node(2) as two, real_node(3, config=PRIVATE) as private:
        pool = await invited_pool(one)
        with pytest.raises(NotAuthorised, match="expired"):
            await two.invitations.accept(await one.invitations.write(pool=pool, valid_s=0), timeout_s=5)
        text = await one.invitations.write(pool=pool)
        with pytest.raises(LocalError, match="not for this network"):
            await private.invitations.accept(text, timeout_s=5)
        with pytest.raises(LocalError, match="not for this network"):
            await two.invitations.accept(await private.invitations.write(), timeout_s=5)
        with pytest.raises(LocalError, match="wrote the invitation"):
            await one.invitations.accept(text, timeout_s=5)
        with pytest.raises(NotFound, match="takes no part"):
            await one.invitations.write(topics=[Topic("acme/never")])
        with pytest.raises(LocalError, match="1 to"):
            await one.invitations.write(pool=pool, uses=0)
    async with real_node(4) as four:
        with pytest.raises(NetworkError, match="nobody that the invitation names"):
            await four.invitations.accept(text, timeout_s=5)


async def test_named_and_bearer_and_open_pools_need_no_issuer_to_count() -> None:
    async with real_node(1) as one, real_node(2, one) as two, real_node(3, one) as three:
        pool, public = await invited_pool(one), await one.create_pool("all")
        named = await one.invitations.write(pool=pool, joiner=f"key:{two.public_key.hex()}")
        bearer = await one.invitations.write(pool=pool, uses=None)
        with pytest.raises(LocalError, match="for another agent"):
            await three.invitations.accept(named, timeout_s=20)
        assert (await two.invitations.accept(named, timeout_s=20)).pool.is_member
        assert (await three.invitations.accept(bearer, timeout_s=20)).pool.is_member
        assert (await three.invitations.accept(await one.invitations.write(pool=public), timeout_s=20)).pool.is_member
        with pytest.raises(NotAuthorised):
            await two.invitations.write(pool=two.pools[pool.id])
        await until(lambda: len(pool.members()) == 3, "the electors see them")
