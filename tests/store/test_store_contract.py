"""The contract of `store.api`, held by every store."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from converge_p2p.core import limits
from converge_p2p.core.errors import LimitExceeded, LocalError, StoreError
from converge_p2p.core.types import OperationId, PoolId
from converge_p2p.store.api import KeptStore, NodeStore
from converge_p2p.store.memory import MemoryStore
from converge_p2p.store.sqlite import SqliteStore

POOL, OTHER = PoolId(b"p" * 32), PoolId(b"q" * 32)

MAKERS: dict[str, Callable[[Path], NodeStore]] = {
    "memory": lambda _: MemoryStore(),
    "sqlite": lambda folder: SqliteStore(folder / "store.db"),
}


@pytest.fixture(params=sorted(MAKERS))
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[NodeStore]:
    made = MAKERS[request.param](tmp_path)
    yield made
    made.close()


def operation(number: int) -> tuple[OperationId, bytes]:
    return OperationId(number.to_bytes(32, "big")), b"operation %d" % number


# ------------------------------------------------------------- keys and values


def test_a_key_holds_what_was_put_last(store: NodeStore) -> None:
    assert store.get("a") is None
    store.put("a", b"1")
    store.put("a", b"2")
    store.put("b", b"")
    assert (store.get("a"), store.get("b")) == (b"2", b"")


def test_delete_says_whether_there_was_something(store: NodeStore) -> None:
    store.put("a", b"")
    assert store.delete("a")
    assert not store.delete("a")
    assert store.get("a") is None


def test_many_are_deleted_together_and_missing_ones_do_not_matter(store: NodeStore) -> None:
    assert isinstance(store, KeptStore)
    for key in ("a", "b", "c"):
        store.put(key, b"1")
    with pytest.raises(LocalError):
        store.delete_many(["a", ""])
    assert store.list() == ["a", "b", "c"]
    assert store.delete_many(["a", "c", "d"]) == 2
    assert store.list() == ["b"]


def test_what_is_held_grows_and_shrinks_with_what_is_written(store: NodeStore) -> None:
    assert isinstance(store, KeptStore)
    empty = store.held_bytes()
    store.put("a", bytes(1_000_000))
    store.append(POOL, [operation(number) for number in range(100)], durable=False)
    full = store.held_bytes()
    assert 1_001_000 < full - empty < 1_200_000
    store.delete("a")
    store.delete_pool(POOL)
    assert store.held_bytes() <= empty + 20_000


def test_put_if_absent_sets_once_and_again_after_delete(store: NodeStore) -> None:
    assert store.put_if_absent("a", b"1")
    assert not store.put_if_absent("a", b"2")
    assert store.get("a") == b"1"
    store.delete("a")
    assert store.put_if_absent("a", b"3")
    assert store.get("a") == b"3"


def test_list_gives_the_keys_with_a_prefix_in_code_point_order(store: NodeStore) -> None:
    keys = ["a", "a/", "a/b", "a/c", "a0", "b", "%", "_", "ä", "\U0001f600", "\ufffd", "a\0b", "A"]
    for key in keys:
        store.put(key, b"")
    assert store.list() == sorted(keys)
    assert store.list("a") == sorted(key for key in keys if key.startswith("a"))
    assert store.list("a/") == ["a/", "a/b", "a/c"]
    assert store.list("%") == ["%"]
    assert store.list("zzz") == []
    assert store.list("\U0001f600") == ["\U0001f600"]


@pytest.mark.parametrize("key", ["", None, b"a", 3, "\ud800"])
def test_other_keys_are_refused(store: NodeStore, key: Any) -> None:
    for call in (lambda: store.put(key, b""), lambda: store.get(key), lambda: store.put_if_absent(key, b"")):
        with pytest.raises(LocalError):
            call()
    assert store.list() == []


@pytest.mark.parametrize("value", [None, "text", 3, bytearray(b"x"), memoryview(b"x")])
def test_other_values_are_refused(store: NodeStore, value: Any) -> None:
    with pytest.raises(LocalError):
        store.put("a", value)
    with pytest.raises(LocalError):
        store.append(POOL, [(OperationId(b"i"), value)], durable=False)
    assert store.get("a") is None
    assert store.count(POOL) == 0


def test_sizes_are_bounded(store: NodeStore) -> None:
    store.put("k" * limits.STORE_KEY_BYTES_MAX, b"")
    with pytest.raises(LimitExceeded):
        store.put("ä" * (limits.STORE_KEY_BYTES_MAX // 2 + 1), b"")
    with pytest.raises(LimitExceeded):
        store.put("a", bytes(limits.STORE_VALUE_BYTES_MAX + 1))


def test_keys_cannot_reach_out_of_the_store(store: NodeStore, tmp_path: Path) -> None:
    before = sorted(path.name for path in tmp_path.parent.iterdir())
    for key in ("../escaped", "/etc/escaped", "a\0b", "..", "'; DROP TABLE entries; --"):
        store.put(key, key.encode())
    assert all(store.get(key) == key.encode() for key in store.list())
    assert sorted(path.name for path in tmp_path.parent.iterdir()) == before


def test_of_many_threads_one_wins_each_key(store: NodeStore) -> None:
    wins: list[tuple[int, int]] = []
    start = threading.Barrier(4)

    def run(number: int) -> None:
        start.wait()
        wins.extend((key, number) for key in range(50) if store.put_if_absent(f"{key}", b"%d" % number))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(key for key, _ in wins) == list(range(50))
    assert all(store.get(f"{key}") == b"%d" % number for key, number in wins)


# ------------------------------------------------------------- the operation log


@pytest.mark.parametrize("durable", [True, False])
def test_operations_come_back_in_the_order_they_came(store: NodeStore, durable: bool) -> None:
    numbers = [5, 3, 9, 1]
    store.append(POOL, [operation(number) for number in numbers[:2]], durable=durable)
    store.append(POOL, [operation(number) for number in numbers[2:]], durable=not durable)
    assert list(store.load(POOL)) == [operation(number)[1] for number in numbers]
    assert store.count(POOL) == 4


def test_an_id_that_is_there_keeps_its_place_and_its_bytes(store: NodeStore) -> None:
    store.append(POOL, [operation(1), operation(2)], durable=False)
    store.append(POOL, [(operation(1)[0], b"other"), operation(3), operation(3), operation(2)], durable=False)
    assert list(store.load(POOL)) == [operation(number)[1] for number in (1, 2, 3)]


def test_pools_do_not_mix(store: NodeStore) -> None:
    store.append_many([(OTHER, [operation(1)]), (POOL, [operation(1), operation(2)])], durable=True)
    store.append(OTHER, [operation(3)], durable=False)
    assert store.pools() == [POOL, OTHER]
    assert list(store.load(OTHER)) == [operation(1)[1], operation(3)[1]]
    assert store.delete_pool(OTHER) == 2
    assert store.delete_pool(OTHER) == 0
    assert store.pools() == [POOL]
    assert list(store.load(OTHER)) == []
    assert store.count(POOL) == 2


def test_a_deleted_pool_can_be_filled_again(store: NodeStore) -> None:
    store.append(POOL, [operation(1), operation(2)], durable=False)
    store.delete_pool(POOL)
    store.append(POOL, [operation(2), operation(1)], durable=False)
    assert list(store.load(POOL)) == [operation(2)[1], operation(1)[1]]


def test_nothing_is_no_pool(store: NodeStore) -> None:
    store.append(POOL, [], durable=True)
    store.append_many([], durable=True)
    assert store.pools() == []
    assert store.count(POOL) == 0
    assert list(store.load(POOL)) == []


def test_of_a_refused_batch_nothing_is_written(store: NodeStore) -> None:
    bad: Any = [(POOL, [operation(1)]), (OTHER, [operation(2), (b"", b"x")])]
    with pytest.raises(LocalError):
        store.append_many(bad, durable=True)
    assert store.pools() == []


def test_loading_goes_on_while_others_write(store: NodeStore) -> None:
    store.append(POOL, [operation(number) for number in range(1000)], durable=False)
    loading = store.load(POOL)
    first = [next(loading) for _ in range(10)]
    store.append(POOL, [operation(5000)], durable=False)
    store.append(OTHER, [operation(1)], durable=False)
    rest = list(loading)
    assert (first + rest)[:1000] == [operation(number)[1] for number in range(1000)]


def test_every_call_on_a_closed_store_raises(store: NodeStore) -> None:
    store.close()
    store.close()
    calls: list[Callable[[], object]] = [
        lambda: store.put("a", b""), lambda: store.get("a"), lambda: store.delete("a"), store.list,
        lambda: store.put_if_absent("a", b""), lambda: store.append(POOL, [operation(1)], durable=True),
        lambda: list(store.load(POOL)), store.pools, lambda: store.count(POOL), lambda: store.delete_pool(POOL),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(StoreError, match="closed"):
            call()


# ------------------------------------------------------------- compaction


def test_a_compaction_replaces_operations_by_a_snapshot_and_keeps_the_others_in_order(store: NodeStore) -> None:
    store.append(POOL, [operation(number) for number in range(6)], durable=False)
    store.append(OTHER, [operation(1)], durable=False)
    assert store.snapshot(POOL) is None
    store.compact(POOL, b"one", [operation(number)[0] for number in (0, 1, 3, 5, 99)], {"ended": b"value"})
    store.append(POOL, [operation(7), operation(4)], durable=False)
    assert list(store.load(POOL)) == [operation(number)[1] for number in (2, 4, 7)]
    assert (store.snapshot(POOL), store.snapshot(OTHER), store.get("ended")) == (b"one", None, b"value")
    assert list(store.load(OTHER)) == [operation(1)[1]]
    store.compact(POOL, b"two", [operation(number)[0] for number in (2, 4, 7)], {})
    assert (store.snapshot(POOL), store.count(POOL), store.pools()) == (b"two", 0, sorted([POOL, OTHER]))
    assert store.delete_pool(POOL) == 0
    assert (store.snapshot(POOL), store.pools()) == (None, [OTHER])


def test_a_compaction_that_cannot_be_written_changes_nothing(store: NodeStore) -> None:
    store.append(POOL, [operation(1)], durable=True)
    with pytest.raises(LocalError):
        store.compact(POOL, b"one", [operation(1)[0]], {"": b"a key that is none"})
    with pytest.raises(LocalError):
        store.compact(POOL, "text", [operation(1)[0]], {})  # type: ignore[arg-type]
    assert (store.snapshot(POOL), store.count(POOL)) == (None, 1)


# ------------------------------------------------------------- against a model

keys = st.text(st.sampled_from("a/\0ä\U0001f600"), min_size=1, max_size=3)
values = st.binary(max_size=8)
numbers = st.integers(0, 12)
pools = st.sampled_from([POOL, OTHER])


class StoreMachine(RuleBasedStateMachine):
    """Does the same to a store and to plain dictionaries. Subclasses say which store."""

    kind: str

    @initialize()
    def open(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.store = MAKERS[self.kind](Path(self.folder.name))
        self.entries: dict[str, bytes] = {}
        self.operations: dict[PoolId, dict[OperationId, bytes]] = {}
        self.snapshots: dict[PoolId, bytes] = {}

    def teardown(self) -> None:
        self.store.close()
        self.folder.cleanup()

    @rule(key=keys, value=values)
    def put(self, key: str, value: bytes) -> None:
        self.store.put(key, value)
        self.entries[key] = value

    @rule(key=keys, value=values)
    def put_if_absent(self, key: str, value: bytes) -> None:
        assert self.store.put_if_absent(key, value) == (key not in self.entries)
        self.entries.setdefault(key, value)

    @rule(key=keys)
    def delete(self, key: str) -> None:
        assert self.store.delete(key) == (self.entries.pop(key, None) is not None)

    @rule(prefix=keys | st.just(""))
    def keys_with(self, prefix: str) -> None:
        assert self.store.list(prefix) == sorted(key for key in self.entries if key.startswith(prefix))

    @rule(batches=st.lists(st.tuples(pools, st.lists(numbers, max_size=4)), max_size=3), durable=st.booleans())
    def append(self, batches: list[tuple[PoolId, list[int]]], durable: bool) -> None:
        self.store.append_many(
            [(pool, [operation(number) for number in some]) for pool, some in batches], durable=durable
        )
        for pool, some in batches:
            for number in some:
                self.operations.setdefault(pool, {}).setdefault(*operation(number))

    @rule(pool=pools)
    def delete_pool(self, pool: PoolId) -> None:
        self.snapshots.pop(pool, None)
        assert self.store.delete_pool(pool) == len(self.operations.pop(pool, {}))

    @rule(
        pool=pools,
        drop=st.lists(numbers, max_size=4),
        data=st.binary(max_size=9),
        entries=st.dictionaries(keys, values),
    )
    def compact(self, pool: PoolId, drop: list[int], data: bytes, entries: dict[str, bytes]) -> None:
        self.store.compact(pool, data, [operation(number)[0] for number in drop], entries)
        self.snapshots[pool] = data
        self.entries |= entries
        known = self.operations.get(pool, {})
        for number in drop:
            known.pop(operation(number)[0], None)
        if not known:
            self.operations.pop(pool, None)

    @rule()
    def reopen(self) -> None:
        if self.kind != "memory":
            self.store.close()
            self.store = MAKERS[self.kind](Path(self.folder.name))

    @invariant()
    def both_are_the_same(self) -> None:
        if not hasattr(self, "store"):
            return
        assert {key: self.store.get(key) for key in self.store.list()} == self.entries
        assert self.store.pools() == sorted(self.operations.keys() | self.snapshots.keys())
        for pool in (POOL, OTHER):
            assert self.store.snapshot(pool) == self.snapshots.get(pool)
            expected = list(self.operations.get(pool, {}).values())
            assert list(self.store.load(pool)) == expected
            assert self.store.count(pool) == len(expected)


@pytest.mark.parametrize("kind", sorted(MAKERS))
def test_any_sequence_of_calls_does_what_dictionaries_would_do(kind: str) -> None:
    machine = type("Machine", (StoreMachine,), {"kind": kind})
    run_state_machine_as_test(machine, settings=settings(max_examples=25, stateful_step_count=25, deadline=None))
