"""A node takes up what it inherits: in every pool that the old key handed over it takes the old key's place.

Knows: the inheritance, and the node through `control.ports`. Must not know: what a succession is.
Source: docs/operations.md, a new key. The library keeps each word before the pool is known here, and signs it before
anything else; a place leaves the file when this node is a member and has what the pool holds. So a kill at any moment
costs nothing, and the file says when the old node is needed no more.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio

from converge_node.control.ports import NodeLike, PoolLike
from converge_node.inheritance import Inheritance, Place, inheritance_file, read_inheritance, write_inheritance
from converge_node.paths import NodePaths
from converge_p2p.core.errors import ConfigError, ConvergeError
from converge_p2p.core.identity import Identity
from converge_p2p.core.types import PoolId

_log = logging.getLogger("converge_node.inheriting")


class Inheriting:
    """The inheritance of a node that runs."""

    def __init__(self, paths: NodePaths | None, own: Identity) -> None:
        """Read it.

        Args:
            paths: of the home; None: nothing is kept, so nothing is inherited.
            own: the node's identity.

        Raises:
            ConfigError: the file is damaged, or for another key.
        """
        self._paths = paths
        self._left = None if paths is None else read_inheritance(paths)
        if self._left is not None and paths is not None and self._left.new != own.public_key.hex():
            raise ConfigError(
                f"{inheritance_file(paths)} is for another key than this node's",
                hint="the folder holds files of two nodes: put the key back that it was made with, or remove the file",
            )
        self._writing = trio.Lock()

    @property
    def bootstrap(self) -> tuple[str, ...]:
        """Where somebody in the pools was found last, as long as a place is to be taken."""
        return self._left.bootstrap if self._left is not None and self._left.places else ()

    def holds(self, pool: PoolId) -> bool:
        """Whether a pool is joined in the place of the old key or not at all: a join here would waste that place."""
        left = self._left
        return left is not None and (pool.hex() in left.waiting or any(place.id == pool for place in left.places))

    async def enter(self, node: NodeLike) -> None:
        """Begin with every place, before anything else can sign in its pool. Waits for nobody; failures are logged."""
        left = self._left
        if left is None:
            return
        node.joins.asking.hold_back(PoolId(bytes.fromhex(pool)) for pool in left.waiting)
        for place in left.places:
            try:
                await self._take(node, left, place, 0.0)
            except ConvergeError:
                # as a rule the pool is not known here yet; `run` goes on, and says what is really wrong
                continue
        for pool in left.waiting:
            _log.warning(
                "the old key has not handed its place over in this pool: `converge-node identity rotate` goes on",
                extra={"pool": pool},
            )

    async def run(self, node: NodeLike, taken: Callable[[PoolLike], None]) -> None:
        """Take every place as soon as its pool is found, and tell."""
        left = self._left
        if left is None:
            return
        async with trio.open_nursery() as nursery:
            for place in left.places:
                nursery.start_soon(self._finish, node, left, place, taken)

    async def _finish(self, node: NodeLike, left: Inheritance, place: Place, taken: Callable[[PoolLike], None]) -> None:
        try:
            pool = await self._take(node, left, place, None)
            taken(pool)
            # before that the old node may be the only one that has what is in the pool, and would be ended too early
            await pool.wait_member()
            await self._forget(place)
            _log.info("took the place of the old key", extra={"pool": place.pool})
        except ConvergeError as error:
            extra = {"pool": place.pool, "error": str(error), "hint": error.hint}
            _log.error("cannot take the place of the old key", extra=extra)

    async def _take(self, node: NodeLike, left: Inheritance, place: Place, timeout_s: float | None) -> PoolLike:
        pool: PoolLike = await node.take_place(place.id, left.word(place), keys=place.secrets(), timeout_s=timeout_s)
        return pool

    async def _forget(self, place: Place) -> None:
        async with self._writing:
            assert self._left is not None
            assert self._paths is not None
            self._left = self._left.without(place.pool)
            await trio.to_thread.run_sync(write_inheritance, self._paths, self._left)
