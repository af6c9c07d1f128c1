"""Discovery among real nodes: from everywhere, after updates, restarts and losses, and without a bootstrap."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
from node_library_kit import QUICK, linked, real_node, until, who

from converge_p2p import AgentDescriptor, Capability, CapabilityNeed, DiscoveryQuery, Node
from converge_p2p.core.errors import NotFound
from converge_p2p.node import discovery

pytestmark = pytest.mark.network

TRANSLATE = DiscoveryQuery.of(["translate"])
assert QUICK.network is not None
TABLE = replace(QUICK, network=replace(QUICK.network, dht=True))


async def live(end: trio.Event, ended: trio.Event, node: AbstractAsyncContextManager[Node], task_status: Any) -> None:
    """A node that ends while others go on."""
    async with node as running:
        task_status.started(running)
        await end.wait()
    ended.set()


async def wait_for(node: Node, query: DiscoveryQuery, *agents: str) -> list[AgentDescriptor]:
    """Wait until a question is answered with exactly these agents."""
    async with node.discovery.watch() as news:
        while sorted(one.agent_id for one in node.discovery.find(query)) != sorted(agents):
            await news.receive()
    return node.discovery.find(query)


async def test_eight_nodes_find_each_other_and_go_on_without_two_of_them_and_the_bootstrap() -> None:
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
            end, ended = trio.Event(), trio.Event()
            first = await nursery.start(live, end, ended, real_node(1))
            lost = await nursery.start(live, end, trio.Event(), real_node(8, first))
            nodes = [await stack.enter_async_context(real_node(n, first)) for n in range(2, 8)]
            await until(lambda: all(len(node.connected_keys()) >= 3 for node in nodes), "a mesh")
            said = await nodes[0].discovery.register([Capability("translate", (1, 2), cost=5)], ["acme/text"])
            for node in (first, *nodes, lost):
                assert await wait_for(node, TRANSLATE, nodes[0].id) == [said]
            end.set()
            await ended.wait()
            await nodes[0].discovery.register([Capability("translate", (2, 0), cost=9)])
            await nodes[-1].discovery.register([Capability("translate", (1, 5), cost=1)])
            for node in nodes:
                found = await wait_for(node, TRANSLATE, nodes[0].id, nodes[-1].id)
                # the cheaper one first, and each as it is now
                assert [one.capabilities[0].cost for one in found] == [1, 9]
                assert node.discovery.find(DiscoveryQuery((CapabilityNeed("translate", (2, 0)),))) == found[1:]


async def test_who_ends_says_so_and_comes_back_with_a_higher_number(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with real_node(1) as one, real_node(2, one) as two:
            async with real_node(3, one, home=tmp_path) as node:
                await linked(one, node)
                before = await node.discovery.register(["translate"], keep=True)
                await wait_for(two, TRANSLATE, node.id)
            # at once, without waiting for anything to expire
            await wait_for(one, TRANSLATE)
            await wait_for(two, TRANSLATE)
            with pytest.raises(NotFound):
                await two.discovery.lookup(who(3).id)
            await two.discovery.register(["count"])
            async with real_node(3, one, home=tmp_path) as node:
                (after,) = await wait_for(two, TRANSLATE, node.id)
                assert after.sequence > before.sequence + 1
                await wait_for(node, DiscoveryQuery.of(["count"]), two.id)


async def test_a_node_that_lost_its_bootstrap_knows_whom_it_knew_and_hears_of_new_ones(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with real_node(2) as survivor:
            await survivor.discovery.register(["translate"])
            async with real_node(1) as bootstrap, real_node(3, bootstrap, survivor, home=tmp_path) as node:
                await wait_for(node, TRANSLATE, survivor.id)
            dead = ("/ip4/127.0.0.1/tcp/1/p2p/" + bootstrap.peer_id,)
            async with real_node(3, home=tmp_path, bootstrap=dead) as node:
                # from its own store, before it is linked with anybody
                assert [one.agent_id for one in node.discovery.find(TRANSLATE)] == [survivor.id]
                await linked(node, survivor)
                await survivor.discovery.register([Capability("translate", cost=7)])
                async with node.discovery.watch() as news:
                    while node.discovery.find(TRANSLATE)[0].capabilities[0].cost != 7:
                        await news.receive()


async def test_an_agent_is_found_through_the_hash_table_and_never_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "TABLE_DELAY_S", 0.1)
    with trio.fail_after(60):
        async with AsyncExitStack() as stack:
            one = await stack.enter_async_context(real_node(1, config=TABLE))
            two = await stack.enter_async_context(real_node(2, one, config=TABLE))
            three = await stack.enter_async_context(real_node(3, one, two, config=TABLE))
            tables = [node._network._dht for node in (one, two, three)]
            await until(lambda: all(table is not None and table.peers == 2 for table in tables), "tables are fed")
            await two.discovery.register(["translate"])
            claims = [table._kad.provider_store for table in tables if table is not None]
            await until(lambda: claims[0].providers and claims[2].providers, "claims are made")
            # as if gossip had never come here
            three.discovery._index.forget(two.id)
            assert [each.agent_id for each in await three.discovery.query(TRANSLATE)] == [two.id]
            newer = await two.discovery.register([Capability("translate", cost=3)])
            table = tables[0]
            assert table is not None
            key = f"/converge/{two.id}".encode()
            await until(lambda: table._kad.value_store.held(key) == newer.to_bytes(), "the record is renewed")
            # B7: an old copy in the own table, and an index that missed the news
            old = replace(newer, sequence=1, signature=b"").sign(who(2))
            three.discovery._index.forget(two.id)
            three.discovery._news.put(old, "test")
            held = tables[2]
            assert held is not None
            held._kad.value_store.remove(key)
            held._kad.value_store.put(key, old.to_bytes())
            assert await three.discovery.lookup(two.id) == newer
            assert held._kad.value_store.held(key) == newer.to_bytes()
            assert three.discovery.find(TRANSLATE) == [newer]
