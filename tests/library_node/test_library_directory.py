"""The directory: only genuine announcements, own pools always, and places shared out among peers."""

from __future__ import annotations

import pytest
from node_library_kit import founding, who

from converge_p2p.core import limits
from converge_p2p.core.codec import decode, encode
from converge_p2p.core.errors import CodecError
from converge_p2p.core.types import PeerId, PoolId
from converge_p2p.net import peer_id_of
from converge_p2p.node.directory import Directory, encode_announcements

QUOTA = limits.POOLS_PER_PEER_ANNOUNCED_MAX
ROOM = limits.ANNOUNCED_POOLS_MAX


def peer(number: int) -> PeerId:
    return peer_id_of(who(number).public_key)


def pools(first: int, count: int) -> list[tuple[PoolId, bytes]]:
    found = [founding(who(1), number) for number in range(first, first + count)]
    return [(pool, operation.signed) for pool, operation in found]


def payload(items: list[tuple[PoolId, bytes]]) -> bytes:
    return encode([[pool, genesis] for pool, genesis in items])


def filled(*peers: int, each: int = QUOTA) -> Directory:
    """A directory to which some peers announced pools of their own."""
    directory = Directory()
    for number in peers:
        directory.peer_up(peer(number))
        assert len(directory.take(peer(number), payload(pools(1000 * number, each)))) == each
    return directory


def held(directory: Directory, first: int, count: int = QUOTA) -> int:
    return sum(directory.get(pool) is not None for pool, _ in pools(first, count))


def test_an_announcement_is_read_once_and_shows_the_founding_terms() -> None:
    directory = Directory()
    items = pools(0, 2)
    new = directory.take(peer(2), payload(items))
    assert [(item.id, item.name, item.governance) for item in new] == [
        (items[0][0], "pool-0", "dictatorial"),
        (items[1][0], "pool-1", "dictatorial"),
    ]
    assert new[0].creator == who(1).id
    assert directory.take(peer(3), payload(items)) == []
    assert directory.all() == new


@pytest.mark.parametrize("what", ["junk", "not a list", "too many", "wrong shape", "foreign id", "forged"])
def test_what_is_not_genuine_is_refused_and_nothing_of_it_kept(what: str) -> None:
    (pool, genesis), (other, _) = pools(0, 2)
    bad = {
        "junk": b"\xff\xff",
        "not a list": encode({"a": 1}),
        "too many": payload([(pool, genesis)] * (ROOM + 1)),
        "wrong shape": encode([[pool, genesis], [pool]]),
        "foreign id": payload([(pool, genesis), (other, genesis)]),
        "forged": payload([(pool, genesis[:-1] + bytes([genesis[-1] ^ 1]))]),
    }[what]
    directory = Directory()
    with pytest.raises(CodecError):
        directory.take(peer(2), bad)
    assert directory.all() == []


def test_a_peer_has_a_quota_that_a_reconnection_does_not_renew() -> None:
    directory = filled(2)
    assert directory.take(peer(2), payload(pools(0, 5))) == []
    directory.peer_down(peer(2))
    directory.peer_up(peer(2))
    assert directory.take(peer(2), payload(pools(0, 5))) == []
    assert held(directory, 2000) == QUOTA


def test_one_payload_cannot_go_over_the_quota() -> None:
    directory = Directory()
    assert len(directory.take(peer(2), payload(pools(0, QUOTA + 10)))) == QUOTA


def test_when_all_places_are_taken_the_peer_with_the_most_makes_room() -> None:
    directory = filled(*range(2, 2 + ROOM // QUOTA))
    assert len(directory.all()) == ROOM
    honest = peer(90)
    directory.peer_up(honest)
    assert len(directory.take(honest, payload(pools(0, QUOTA)))) >= ROOM // (ROOM // QUOTA + 1) - 1
    assert len(directory.all()) == ROOM


def test_peers_with_equal_shares_do_not_push_each_other_out() -> None:
    directory = filled(*range(2, 2 + ROOM // QUOTA))
    before = directory.all()
    # the quota is not what stops it here
    assert directory._make_room(peer(2)) is False
    assert directory.all() == before


def test_what_a_peer_that_is_gone_announced_makes_room_first() -> None:
    directory = filled(2, 3, 4, each=QUOTA)
    directory.peer_up(peer(5))
    directory.take(peer(5), payload(pools(5000, 4)))
    directory.peer_up(peer(6))
    directory.take(peer(6), payload(pools(6000, ROOM - 3 * QUOTA - 4)))
    assert len(directory.all()) == ROOM
    directory.peer_down(peer(5))
    directory.peer_up(peer(7))
    assert len(directory.take(peer(7), payload(pools(7000, 4)))) == 4
    assert held(directory, 5000, 4) == 0
    assert held(directory, 2000) == QUOTA
    # until then it stayed, since nobody needed the place
    assert len(directory.all()) == ROOM


def test_own_pools_are_announced_however_full_it_is_and_cannot_be_pushed_out() -> None:
    directory = filled(*range(2, 2 + ROOM // QUOTA))
    own = pools(0, ROOM + 10)
    for pool, genesis in own:
        directory.add_own(pool, genesis)
    for number in range(50, 60):
        directory.peer_up(peer(number))
        directory.take(peer(number), payload(pools(1000 * number, QUOTA)))
    assert held(directory, 0, ROOM + 10) == ROOM + 10
    assert len(directory.all()) == ROOM + ROOM + 10


def test_a_pool_that_became_own_takes_no_place_of_the_peer_that_announced_it() -> None:
    directory = filled(2)
    directory.add_own(*pools(2000, 1)[0])
    assert len(directory.take(peer(2), payload(pools(0, 1)))) == 1


def test_many_announcements_are_split_so_that_a_peer_takes_each_part() -> None:
    directory = Directory()
    for pool, genesis in pools(0, ROOM + 10):
        directory.add_own(pool, genesis)
    parts = list(encode_announcements(directory.all()))
    sizes = []
    for part in parts:
        plain = decode(part)
        assert isinstance(plain, list)
        assert len(part) < limits.SYNC_FRAME_BYTES_MAX
        sizes.append(len(plain))
    assert sum(sizes) == ROOM + 10
    assert max(sizes) <= ROOM


def test_tables_shrink_with_what_they_count() -> None:
    directory = filled(2)
    directory.peer_down(peer(2))
    for pool, _ in pools(2000, QUOTA):
        directory.forget(pool)
    assert (directory._by_peer, directory._gone, directory._heard_from, directory.all()) == ({}, set(), {}, [])
