"""Real nodes and their peers: pinged, disconnected, kept out, also after a restart, and forgotten; and other bootstrap
peers while a node runs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import trio
from node_library_kit import linked, real_node, until, who

from converge_p2p.core.errors import ConfigError, LocalError, NetworkError, NotFound
from converge_p2p.core.types import PeerId
from converge_p2p.net import peer_id_of
from converge_p2p.node.switchboard import Switchboard

pytestmark = pytest.mark.network


@pytest.fixture(autouse=True)
async def _in_time() -> Any:
    with trio.fail_after(60):
        yield


async def test_a_peer_is_named_pinged_disconnected_and_forgotten() -> None:
    async with real_node(1) as one, real_node(2, one) as two:
        await linked(one, two)
        for name in (two.peer_id, two.id, two.id[:6], two.addresses[0]):
            assert one.links.find(name) == two.peer_id
        for wrong, error in (("x", LocalError), ("abc", LocalError), ("ab" * 32, NotFound)):
            with pytest.raises(error):
                one.links.find(wrong)
        assert all(0 < each < 10 for each in await one.links.ping(two.peer_id, 2))
        stranger = peer_id_of(who(9).public_key)
        with pytest.raises(NetworkError):
            await one.links.ping(stranger)
        known = one.links.report(two.peer_id)
        assert known.connected is not None
        assert (known.agent_id, known.violations, known.blocked_s, known.bootstrap) == (two.id, 0, None, False)
        assert two.links.report(one.peer_id).bootstrap
        with pytest.raises(NotFound):
            await one.links.disconnect(stranger)
        one.links.learn(f"/ip4/192.0.2.1/tcp/1/p2p/{stranger}")
        assert one.links.report(stranger).addresses == ("/ip4/192.0.2.1/tcp/1",)
        one.links.forget(stranger)
        with pytest.raises(NotFound):
            one.links.forget(stranger)
        with pytest.raises(ConfigError):
            one.links.learn("/ip4/192.0.2.1/tcp/1")


async def test_who_is_kept_out_stays_out_over_a_restart_until_people_let_it_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out: list[int] = []
    opened = Switchboard.open

    async def opening(self: Any, network: Any, nursery: Any) -> None:
        out.append(len(network.acquaintance.bans()))
        await opened(self, network, nursery)

    async with real_node(1, home=tmp_path) as one, real_node(2, one) as two:
        await linked(one, two)
        await one.links.block(two.peer_id)
        await until(lambda: not one.peers(), "the peer is gone")
        with pytest.raises(LocalError):
            await one.links.block(one.peer_id)
    monkeypatch.setattr(Switchboard, "open", opening)
    async with real_node(1, home=tmp_path) as one, real_node(2) as two:
        # before anything of a peer is taken
        assert out == [1, 0]
        assert one.links.blocked() == {two.peer_id: math.inf}
        with pytest.raises(NetworkError, match="banned"):
            await one.links.connect(two.addresses[0])
        await one.links.unblock(two.peer_id)
        assert one.links.blocked() == {}
        assert await one.links.connect(two.addresses[0]) == two.peer_id
        await linked(one, two)
        # for a time: what is over is not written down for ever
        await one.links.block(two.peer_id, 3600.0)
        assert 3500 < one.links.blocked()[two.peer_id] <= 3600
        await one.links.block(two.peer_id, 60.0)
        assert one.links.blocked()[two.peer_id] <= 60
        with pytest.raises(NotFound):
            await one.links.unblock(PeerId(one.peer_id))


async def test_other_bootstrap_peers_are_dialled_while_the_node_runs() -> None:
    async with real_node(1) as one, real_node(2) as two, real_node(3) as three:
        two.links.set_bootstrap(one.addresses)
        await linked(one, two)
        with pytest.raises(ConfigError):
            two.links.set_bootstrap([*three.addresses, "nonsense"])
        assert set(two.links.bootstrap) == set(one.addresses)
        two.links.set_bootstrap(three.addresses)
        await linked(two, three)
        # what is connected stays, and is dialled no more once it is gone
        assert one.public_key in two.connected_keys()
        await one.links.block(two.peer_id)
        await until(lambda: one.peer_id not in {each.peer_id for each in two.peers()}, "the old one is gone")
        assert not two.links.report(one.peer_id).bootstrap
