"""Discovery without a network: what is said reaches everybody, the newest counts, and lies and floods are contained."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
from discovery_kit import NOW, Member, Mesh
from node_library_kit import who

from converge_p2p.core import limits
from converge_p2p.core.codec import decode, encode
from converge_p2p.core.errors import LimitExceeded, NetworkError, NotFound
from converge_p2p.core.model import agent_exchange as exchange
from converge_p2p.core.model.capability import Capability
from converge_p2p.core.model.descriptor import AgentDescriptor
from converge_p2p.core.model.query import DiscoveryQuery
from converge_p2p.net import peer_id_of
from converge_p2p.node.agent_news import ROUND_S
from converge_p2p.node.agent_shelf import SHELF_KEY
from converge_p2p.node.declarations import SEQUENCE_KEY
from converge_p2p.node.discovery import RENEW_S, RETRY_S, TABLE_DELAY_S
from converge_p2p.node.records import DescriptorRecords, capability_claim, claims_of, record_key, topic_claim
from converge_p2p.store.memory import MemoryStore

TRANSLATE = DiscoveryQuery.of(["translate"])


@pytest.fixture
async def mesh(nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Mesh]:
    async def at_once(function: Any, *arguments: Any) -> Any:
        await trio.lowlevel.checkpoint()
        return function(*arguments)

    # the simulated clock does not wait for threads: hours would pass while one writes
    monkeypatch.setattr(trio.to_thread, "run_sync", at_once)
    # in the library's clock the year is right, so that the hash table's own checks hold
    mesh = Mesh(nursery)
    mesh.now_ms = lambda: int(time.time() * 1000) + int(trio.current_time() * 1000)
    # simulated seconds: whoever waits for ever is told where
    with trio.fail_after(100_000):
        yield mesh
    nursery.cancel_scope.cancel()


async def settle() -> None:
    await trio.testing.wait_all_tasks_blocked()


def finds(member: Member, query: DiscoveryQuery = TRANSLATE) -> list[str]:
    return [one.agent_id for one in member.service.find(query)]


async def test_what_is_registered_is_found_everywhere_at_once_and_not_after_it_left(
    mesh: Mesh, autojump_clock: Any
) -> None:
    one = await mesh.join(1)
    two = await mesh.join(2, one)
    three = await mesh.join(3, two)
    said = await three.service.register([Capability("translate", (1, 2), cost=5)], ["acme/text"], "Three")
    for member in (one, two, three):
        assert finds(member) == [three.identity.id]
        assert member.service.known(three.identity.id) == said
        assert finds(member, DiscoveryQuery.of([], ["acme/text"])) == [three.identity.id]
    assert await three.service.unregister()
    assert not await three.service.unregister()
    for member in (one, two, three):
        assert finds(member) == []
        assert member.service.known(three.identity.id) is None
        with pytest.raises(NotFound):
            await member.service.lookup(three.identity.id)


async def test_an_update_is_seen_within_its_announcement_and_the_old_is_gone(mesh: Mesh, autojump_clock: Any) -> None:
    one = await mesh.join(1)
    two = await mesh.join(2, one)
    async with one.service.watch() as news:
        first = await two.service.register(["translate"])
        second = await two.service.register([Capability("count", cost=3)])
        assert second.sequence > first.sequence
        assert [await news.receive(), await news.receive()] == [first, second]
    assert finds(one) == []
    assert finds(one, DiscoveryQuery.of(["count"])) == [two.identity.id]


async def test_parts_of_a_node_speak_together(mesh: Mesh, autojump_clock: Any) -> None:
    one = await mesh.join(1)
    two = await mesh.join(2, one)
    from converge_p2p.node.declarations import Declaration

    two.service.declare("agent", Declaration.of(capabilities=["count"], topics=["t"]))
    said = await two.service.register(["translate"], name="Two")
    assert [skill.name for skill in said.capabilities] == ["count", "translate"]
    assert await two.service.unregister()
    left = one.service.known(two.identity.id)
    assert left is not None
    assert [skill.name for skill in left.capabilities] == ["count"]
    with pytest.raises(LimitExceeded):
        two.service.declare("huge", Declaration.of(capabilities=[f"c{n}{'x' * 250}" for n in range(60)]))
    assert two.service.withdraw("agent")
    await trio.sleep(10)
    assert one.service.known(two.identity.id) is None


async def test_what_gossip_lost_comes_with_the_next_comparison(mesh: Mesh, autojump_clock: Any) -> None:
    one = await mesh.join(1)
    two = await mesh.join(2, one)
    three = await mesh.join(3, two)
    mesh.deaf = True
    await three.service.register(["translate"])
    assert finds(one) == []
    await trio.sleep(6 * ROUND_S)
    assert finds(one) == [three.identity.id]
    sent = one.sent + two.sent + three.sent
    await trio.sleep(20 * ROUND_S)
    # when all agree a comparison is one frame
    assert one.sent + two.sent + three.sent - sent <= 3 * 20 * 2


async def test_a_newcomer_hears_of_everybody_and_everybody_of_it(mesh: Mesh, autojump_clock: Any) -> None:
    one = await mesh.join(1)
    two = await mesh.join(2, one)
    await one.service.register(["translate"])
    alone = await mesh.join(9)
    await alone.service.register(["translate"])
    assert finds(two) == [one.identity.id]
    alone.link(two)
    await settle()
    both = sorted([one.identity.id, alone.identity.id])
    # the newcomer is passed on by whom it met, to those that it never meets
    assert finds(one) == finds(two) == finds(alone) == both


async def test_a_large_network_is_learned_in_rounds_of_bounded_size(mesh: Mesh, autojump_clock: Any) -> None:
    one = await mesh.join(1)
    now = mesh.now_ms()
    for number in range(700):
        descriptor = AgentDescriptor.create(who(1000 + number), sequence=1, now_ms=now, capabilities=[Capability("x")])
        one.service._news.put(descriptor, "test")
    two = await mesh.join(2, one)
    await settle()
    assert two.service.size <= limits.DESCRIPTORS_PER_ROUND_MAX
    await trio.sleep(10 * ROUND_S)
    assert two.service.size == 700


# ---------------------------------------------------------------- trust, registry, hash table


async def test_a_threshold_leaves_out_whom_this_node_does_not_trust(mesh: Mesh, autojump_clock: Any) -> None:
    one = await mesh.join(1)
    members = [await mesh.join(number, one) for number in (2, 3, 4)]
    for member in members:
        await member.service.register(["translate"])
    good, bad, _ = (member.identity.id for member in members)
    one.service.trust.set(good, 0.9)
    one.service.trust.set(bad, 0.9, "poems")
    assert len(finds(one)) == 3
    assert finds(one, DiscoveryQuery.of(["translate"], trust_threshold=0.6)) == [good]
    asked = DiscoveryQuery.of(["translate"], trust_threshold=0.6, trust_context="poems")
    assert finds(one, asked) == sorted([good, bad])
    assert len(finds(one, DiscoveryQuery.of(["translate"], trust_threshold=0.5))) == 3


async def test_keys_of_found_agents_are_registered_and_of_others_not(mesh: Mesh, autojump_clock: Any) -> None:
    one = await mesh.join(1)
    two = await mesh.join(2, one)
    await two.service.register(["translate"])
    assert two.identity.id not in one.registry
    await one.service.query(TRANSLATE)
    assert one.registry.public_key(two.identity.id) == two.identity.public_key


async def test_whom_nobody_here_knows_is_found_through_the_hash_table(mesh: Mesh, autojump_clock: Any) -> None:
    mesh.deaf = True
    one = await mesh.join(1)
    two = await mesh.join(2)
    # two neighbourhoods that share nothing but the table
    for member, number in ((one, 11), (two, 12)):
        await mesh.join(number, member)
    said = await two.service.register(["translate"], ["acme/text"])
    await trio.sleep(2 * TABLE_DELAY_S)
    assert set(mesh.claims) == set(claims_of(said)) == {capability_claim("translate"), topic_claim("acme/text")}
    assert finds(one) == []
    assert [each.agent_id for each in await one.service.query(TRANSLATE)] == [two.identity.id]
    three = await mesh.join(3)
    assert [each.agent_id for each in await three.service.query(DiscoveryQuery.of([], ["acme/text"]))] == [
        said.agent_id
    ]
    assert await three.service.query(DiscoveryQuery.of(["nobody"])) == []
    # what was found once is asked again on request alone
    later = await two.service.register([Capability("translate", cost=7)])
    await trio.sleep(2 * TABLE_DELAY_S)
    assert [each.sequence for each in await one.service.query(TRANSLATE)] == [said.sequence]
    assert await one.service.query(TRANSLATE, refresh=True) == [later]


async def test_a_claimant_that_proves_nothing_is_not_found(mesh: Mesh, autojump_clock: Any) -> None:
    one = await mesh.join(1)
    mesh.claims[capability_claim("translate")] = {peer_id_of(who(n).public_key): None for n in range(50, 60)}
    now = mesh.now_ms()
    other = AgentDescriptor.create(who(51), sequence=1, now_ms=now, capabilities=[Capability("count")])
    mesh.records[record_key(who(51).id)] = other.to_bytes()
    assert await one.service.query(TRANSLATE) == []


async def test_a_lookup_takes_the_newest_of_table_and_news(mesh: Mesh, autojump_clock: Any) -> None:
    one = await mesh.join(1)
    now = mesh.now_ms()
    old, new = (AgentDescriptor.create(who(5), sequence=n, now_ms=now) for n in (1, 2))
    mesh.records[record_key(who(5).id)] = new.to_bytes()
    one.service._news.put(old, "test")
    assert await one.service.lookup(who(5).id) == new
    assert one.service.known(who(5).id) == new
    mesh.records[record_key(who(5).id)] = old.to_bytes()
    assert await one.service.lookup(who(5).id) == new


async def test_the_table_waits_for_company_and_is_renewed_and_tried_again(mesh: Mesh, autojump_clock: Any) -> None:
    one = await mesh.join(1)
    one.network.put_failure = NetworkError("nobody took it")
    await one.service.register(["translate"])
    await trio.sleep(100)
    assert one.network.puts == 0, "alone, the record would only be kept here"
    await mesh.join(2, one)
    await trio.sleep(TABLE_DELAY_S)
    assert (one.network.puts, one.counters["advertise_failed"]) == (1, 1)
    one.network.put_failure = None
    await trio.sleep(RETRY_S + TABLE_DELAY_S)
    first = AgentDescriptor.from_bytes(mesh.records[record_key(one.identity.id)])
    await trio.sleep(RENEW_S + TABLE_DELAY_S)
    assert one.network.puts >= 3
    assert AgentDescriptor.from_bytes(mesh.records[record_key(one.identity.id)]).sequence > first.sequence


def test_the_hash_table_takes_genuine_descriptors_under_their_own_id_alone() -> None:
    now, me = int(time.time() * 1000), who(1)
    descriptor = AgentDescriptor.create(me, sequence=7, now_ms=now)
    data, records = descriptor.to_bytes(), DescriptorRecords()
    assert records.rank(record_key(me.id), data) == descriptor.rank
    assert records.rank(record_key(who(2).id), data) is None
    assert records.rank(record_key(me.id), data[:-1] + bytes([data[-1] ^ 1])) is None
    assert records.rank(record_key(me.id), b"") is None
    assert records.rank(record_key(me.id), b"x" * limits.DESCRIPTOR_BYTES_MAX) is None
    stale = AgentDescriptor.create(me, sequence=8, now_ms=now - 10_000, ttl_ms=5000)
    early = AgentDescriptor.create(me, sequence=8, now_ms=now + 2 * limits.MESSAGE_CLOCK_SKEW_MS)
    assert records.rank(record_key(me.id), stale.to_bytes()) is None
    assert records.rank(record_key(me.id), early.to_bytes()) is None
    gone = AgentDescriptor.tombstone(me, sequence=8, now_ms=now)
    assert (records.rank(record_key(me.id), gone.to_bytes()) or 0) > descriptor.rank


# ---------------------------------------------------------------- restarts


async def test_a_node_that_comes_back_knows_whom_it_knew_and_counts_on(mesh: Mesh, autojump_clock: Any) -> None:
    one = await mesh.join(1)
    two = await mesh.join(2, one)
    await one.service.register(["translate"])
    kept = await two.service.register(["count"], keep=True)
    await two.service.close()
    assert one.service.known(two.identity.id) is None, "it said that it goes"
    two.leave()
    again = await mesh.join(2, store=two.store)
    assert finds(again) == [one.identity.id], "before anybody is connected"
    await settle()
    assert again.service.own is not None
    assert again.service.own.capabilities == kept.capabilities
    assert again.service.own.sequence > kept.sequence + 1
    again.link(one)
    await settle()
    assert finds(one, DiscoveryQuery.of(["count"])) == [two.identity.id]
    await again.service.unregister()
    third = await mesh.join(2, store=two.store)
    await settle()
    assert third.service.own is None, "what was taken back is not published again"


async def test_a_restored_store_and_a_clock_set_back_do_not_make_a_node_unheard(
    mesh: Mesh, autojump_clock: Any
) -> None:
    one = await mesh.join(1)
    two = await mesh.join(2, one)
    old_store = MemoryStore()
    before = await two.service.register(["translate"])
    two.leave()
    # an empty store in the place of the lost one, and a clock that is an hour late
    again = await mesh.join(2, store=old_store, lag_ms=3_600_000)
    said = await again.service.register(["count"])
    assert said.sequence < before.sequence
    again.link(one)
    await trio.sleep(10)
    now = one.service.known(two.identity.id)
    assert now is not None
    assert [skill.name for skill in now.capabilities] == ["count"]
    assert now.sequence > before.sequence > 0
    assert again.counters["descriptor_contested"] == 1
    assert decode(old_store.get(SEQUENCE_KEY + two.identity.id) or b"") == now.sequence


async def test_two_nodes_with_one_key_do_not_shout_at_each_other_for_ever(mesh: Mesh, autojump_clock: Any) -> None:
    one = await mesh.join(1)
    for name in ("left", "right"):
        member = await mesh.join(2, one)
        await member.service.register([name])
        mesh.members.pop(member.peer)
        mesh.members[peer_id_of(who(50 if name == "left" else 51).public_key)] = member
    heard = one.counters["agents_heard"]
    await trio.sleep(600)
    assert one.counters["agents_heard"] - heard < 100


async def test_a_damaged_shelf_counts_as_empty(mesh: Mesh, autojump_clock: Any) -> None:
    store = MemoryStore()
    for number, junk in enumerate([b"junk", encode([1]), encode({}), encode([b"x"])]):
        store.put(f"{SHELF_KEY}{number:x}", junk)
    store.put(SEQUENCE_KEY + who(1).id, encode("x"))
    member = await mesh.join(1, store=store)
    assert member.service.size == 0


# ---------------------------------------------------------------- lies and floods


def stranger(number: int, sequence: int = 1, now_ms: int = NOW, **more: Any) -> AgentDescriptor:
    skills = more.pop("capabilities", [Capability("translate")])
    return AgentDescriptor.create(who(number), sequence=sequence, now_ms=now_ms, capabilities=skills, **more)


LIAR = peer_id_of(who(66).public_key)


async def test_lies_are_refused_blamed_and_not_passed_on(mesh: Mesh, autojump_clock: Any) -> None:
    one = await mesh.join(1)
    now = mesh.now_ms()
    good = stranger(5, 3, now)
    data = bytearray(good.to_bytes())
    data[-1] ^= 1
    validate = one.network.topics["converge/agents/1"][1]
    for lie in (bytes(data), b"", b"junk", good.to_bytes() + b"x", bytes(limits.DESCRIPTOR_BYTES_MAX + 1)):
        assert not validate(LIAR, lie)
    assert len(one.network.blamed) == 5
    # untimely ones may be the fault of a clock
    assert not validate(LIAR, stranger(5, 3, now - 10_000, ttl_ms=5000).to_bytes())
    assert not validate(LIAR, stranger(5, 3, now + 2 * limits.MESSAGE_CLOCK_SKEW_MS).to_bytes())
    assert len(one.network.blamed) == 5
    assert one.service.size == 0
    assert validate(LIAR, good.to_bytes())
    # again, and an older one: neither passed on nor blamed, and never verified
    assert not validate(LIAR, good.to_bytes())
    assert not validate(LIAR, stranger(5, 2, now).to_bytes())
    assert one.service.known(who(5).id) == good
    assert len(one.network.blamed) == 5
    one.service.frame(LIAR, b"junk")
    one.service.frame(LIAR, exchange.encode_agent_message(exchange.Descriptors((b"junk",))))
    assert len(one.network.blamed) == 7


async def test_a_flood_of_one_peer_is_cut_off_before_anything_is_verified(
    mesh: Mesh, autojump_clock: Any, monkeypatch: Any
) -> None:
    one = await mesh.join(1)
    now = mesh.now_ms()
    verified = 0
    real = AgentDescriptor.verify

    def counting(self: AgentDescriptor) -> bool:
        nonlocal verified
        verified += 1
        return real(self)

    flood = [stranger(100 + n, 1, now).to_bytes() for n in range(300)]
    monkeypatch.setattr(AgentDescriptor, "verify", counting)
    monkeypatch.setattr(limits, "DESCRIPTORS_PER_PEER_BURST_MAX", 100)
    for data in flood:
        one.service._news.take(data, LIAR)
    assert verified == one.service.size == 100
    assert one.counters["agents_rate_limited"] == 200
    # connecting again renews nothing
    one.service.peer_up(LIAR)
    one.service.peer_down(LIAR)
    one.service._news.take(flood[250], LIAR)
    assert verified == 100
    # others are heard meanwhile
    assert one.service._news.take(flood[250], peer_id_of(who(67).public_key)) is not None


async def test_an_agent_that_updates_all_the_time_is_not_verified_each_time(mesh: Mesh, autojump_clock: Any) -> None:
    one = await mesh.join(1)
    now = mesh.now_ms()
    for sequence in range(50):
        one.service._news.take(stranger(5, sequence, now).to_bytes(), LIAR)
    known = one.service.known(who(5).id)
    assert known is not None
    assert known.sequence == limits.DESCRIPTOR_UPDATES_BURST_MAX
    assert one.counters["agents_too_often"] == 49 - limits.DESCRIPTOR_UPDATES_BURST_MAX
    # a forgery in its name uses up nothing of what it may say
    one.service._news.take(stranger(6, 1, now).to_bytes(), LIAR)
    forged = bytearray(stranger(6, 9, now).to_bytes())
    forged[-1] ^= 1
    for _ in range(50):
        one.service._news.take(bytes(forged), LIAR)
    assert one.service._news.take(stranger(6, 2, now).to_bytes(), LIAR) is not None


async def test_an_honest_node_that_changes_all_the_time_is_heard_all_the_same(mesh: Mesh, autojump_clock: Any) -> None:
    one = await mesh.join(1)
    two = await mesh.join(2, one)
    from converge_p2p.node.declarations import Declaration

    for number in range(30):
        two.service.declare("busy", Declaration.of(capabilities=[f"c{number}"]))
        await trio.sleep(0.5)
    await trio.sleep(10)
    known = one.service.known(two.identity.id)
    assert known is not None
    assert [skill.name for skill in known.capabilities] == ["c29"]
    assert one.counters["agents_too_often"] == 0


async def test_comparisons_are_answered_only_so_often_and_only_if_they_were_begun(
    mesh: Mesh, autojump_clock: Any
) -> None:
    one = await mesh.join(1)
    one.service._news.put(stranger(5, 1, mesh.now_ms()), "test")
    sent: list[bytes] = []
    one.service._news._send = lambda _peer, payload: sent.append(payload)
    digests = exchange.encode_agent_message(exchange.Digests(bytes(2048)))
    for _ in range(50):
        one.service.frame(LIAR, digests)
    assert len(sent) == limits.AGENT_ROUNDS_BURST_MAX
    wants = exchange.encode_agent_message(exchange.Wants((who(5).id,) * 4000))
    one.service.frame(LIAR, wants)
    answered = sent[limits.AGENT_ROUNDS_BURST_MAX :]
    assert sum(len(decode(each)[1]) for each in answered) == limits.DESCRIPTORS_PER_ROUND_MAX
    for _ in range(10):
        one.service.frame(LIAR, wants)
        one.service.frame(LIAR, exchange.encode_agent_message(exchange.Holdings(())))
    assert len(sent) == limits.AGENT_ROUNDS_BURST_MAX + len(answered)


async def test_connected_and_trusted_agents_stay_in_a_flood_of_strangers(mesh: Mesh, autojump_clock: Any) -> None:
    one = await mesh.join(1)
    two = await mesh.join(2, one)
    index = one.service._index
    index._entries_max = 20
    await two.service.register(["translate"])
    one.service.trust.set(who(7).id, 0.8)
    now = mesh.now_ms()
    one.service._news.put(stranger(7, 1, now), LIAR)
    for number in range(100, 300):
        one.service._news.put(stranger(number, 1, now), f"name-{number}")
    assert one.service.size == 20
    assert one.service.known(two.identity.id)
    assert one.service.known(who(7).id)
    assert one.counters["agents_no_room"] > 0
