"""Reading the settings again while the node runs.

Knows: which settings can be taken over, and how. Must not know: signals, or HTTP.
Source: docs/operations.md, reload. Everything is read and checked before anything changes: settings that are wrong
change nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

import msgspec
import trio

from converge_node.config import Config, Settings, all_keys
from converge_node.control.mesh import Meshes
from converge_node.control.ports import NodeLike
from converge_node.errors import NotReady
from converge_node.key_files import read_topic_key
from converge_node.logs import set_log_level
from converge_node.settings_check import OPEN_POOLS, parse_private_topic, parse_topic
from converge_node.shutdown import Shutdown
from converge_p2p.client.mesh_schema import LeaveTopic
from converge_p2p.client.peer_schema import ReloadItem, SettingChange
from converge_p2p.core.errors import ConvergeError
from converge_p2p.core.model.topic import Topic
from converge_p2p.core.model.topic_key import TopicKey
from converge_p2p.core.types import PoolId

_log = logging.getLogger("converge_node.reload")

COMMANDS_ONLY: Final = frozenset({"governance.default", "admission.default"})
"""Settings that commands read each time, and the running node never."""
TOPICS: Final = frozenset({"node.topics", "node.private_topics"})


class LiveSettings:
    """The settings a node runs with, and how each of them is changed."""

    def __init__(
        self,
        settings: Settings,
        read: Callable[[], Settings],
        file: str,
        *,
        node: NodeLike,
        meshes: Meshes,
        shutdown: Shutdown,
        join_pool: Callable[[PoolId], None],
    ) -> None:
        """Begin with what the node was started with.

        Args:
            settings: in force.
            read: reads them again from all their sources.
            file: name of the file, for people.
            node: what is changed.
            meshes: the topics that were joined.
            shutdown: how the node ends.
            join_pool: begins to join a pool, in the background.
        """
        self._values = _values(settings.config)
        self._read = read
        self._file = file
        self._node = node
        self._meshes = meshes
        self._shutdown = shutdown
        self._join_pool = join_pool
        self._not_joined: set[str] = set()
        """Topics that a reload could not join; the next one tries again."""
        self._reloading = trio.Lock()
        self._appliers: Mapping[str, Callable[[Any, Any], Awaitable[list[str]]]] = {
            # the first may still say that the settings are wrong
            "network.bootstrap": self._bootstrap,
            "log.level": self._log_level,
            "shutdown.timeout_s": self._timeout,
            "trust.join_threshold": self._join_threshold,
            "node.topics": self._topics,
            "node.private_topics": self._private_topics,
            "node.pools": self._pools,
            **dict.fromkeys(COMMANDS_ONLY, _nothing),
        }

    @property
    def live(self) -> frozenset[str]:
        """The settings that can be changed while the node runs."""
        return frozenset(self._appliers)

    async def reload(self) -> ReloadItem:
        """Read the settings again, and take over what can be.

        What needs a restart is said again at every reload, until there was one.

        Raises:
            ConfigError: something in them is wrong; then nothing was changed.
            NotReady: the node is stopping.
        """
        async with self._reloading:
            new = _values((await trio.to_thread.run_sync(self._read)).config)
            self._check_running()
            changed = [path for path in all_keys() if new[path] != self._values[path]]
            for place in new["node.private_topics"]:
                read_topic_key(parse_private_topic(place)[1])
            troubles: list[str] = []
            for path, apply in self._appliers.items():
                if path in changed or (path in TOPICS and not self._not_joined.isdisjoint(new[path])):
                    self._check_running()
                    troubles += await apply(self._values[path], new[path])
            changes = [
                SettingChange(
                    key=path,
                    before=self._values[path],
                    after=new[path],
                    effect="applied" if path in self._appliers else "restart",
                )
                for path in changed
            ]
            self._values |= {path: new[path] for path in changed if path in self._appliers}
        applied = [each.key for each in changes if each.effect == "applied"]
        waiting = [each.key for each in changes if each.effect == "restart"]
        _log.info("settings read again", extra={"applied": applied, "restart": waiting, "troubles": troubles})
        return ReloadItem(file=self._file, changes=changes, troubles=troubles)

    def _check_running(self) -> None:
        """What would be changed is being closed. Raises `NotReady`."""
        if self._shutdown.requested.is_set():
            raise NotReady("the node is stopping", hint="the settings are read when it starts again")

    # ------------------------------------------------------------ one each

    async def _bootstrap(self, _before: list[str], after: list[str]) -> list[str]:
        self._node.links.set_bootstrap(after)
        return []

    async def _log_level(self, _before: str, after: Any) -> list[str]:
        set_log_level(after)
        return []

    async def _timeout(self, _before: float, after: float) -> list[str]:
        self._shutdown.timeout_s = after
        return []

    async def _join_threshold(self, _before: float, after: float) -> list[str]:
        policy = self._node.policy
        self._node.policy = replace(policy, trust=replace(policy.trust, join_threshold=after))
        return []

    async def _topics(self, before: list[str], after: list[str]) -> list[str]:
        return await self._change_topics(before, after, lambda text: (parse_topic(text), None))

    async def _private_topics(self, before: list[str], after: list[str]) -> list[str]:
        def read(text: str) -> tuple[Topic, TopicKey | None]:
            topic, path = parse_private_topic(text)
            return topic, read_topic_key(path)

        return await self._change_topics(before, after, read)

    async def _change_topics(
        self, before: Iterable[str], after: Iterable[str], read: Callable[[str], tuple[Topic, TopicKey | None]]
    ) -> list[str]:
        troubles = []
        for text in before:
            if text in after:
                continue
            if text in self._not_joined:
                # who takes part in the topic does so for another reason
                self._not_joined.discard(text)
                continue
            try:
                name = text.partition("=")[0]
                await self._meshes.leave_topic(self._node, LeaveTopic(topic=name))
            except ConvergeError as error:
                troubles.append(f"{text}: {error}")
        for text in after:
            if text in before and text not in self._not_joined:
                continue
            self._not_joined.discard(text)
            try:
                await self._meshes.join(self._node, *read(text))
            except ConvergeError as error:
                self._not_joined.add(text)
                troubles.append(f"{text}: {error}")
        return troubles

    async def _pools(self, before: list[str], after: list[str]) -> list[str]:
        for text in after:
            if text not in before and text != OPEN_POOLS:
                self._join_pool(PoolId(bytes.fromhex(text)))
        if (OPEN_POOLS in before) != (OPEN_POOLS in after):
            return [f"node.pools: {OPEN_POOLS!r} counts from the next start on"]
        # who is a member stays one, as after a restart: `pool leave` ends that
        return []


async def _nothing(_before: Any, _after: Any) -> list[str]:
    return []


def _values(config: Config) -> dict[str, Any]:
    tree = msgspec.to_builtins(config)
    return {path: tree[path.split(".")[0]][path.split(".")[1]] for path in all_keys()}
