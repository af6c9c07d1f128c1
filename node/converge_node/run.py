"""Runs one node until it is told to stop.

Knows: the order in which things start and stop. Must not know: how the node works, or the command line.
Source: docs/operations.md, start and stop. The control interface starts first and ends last, so that `health` can say
what a node is doing that is not ready yet, or no longer.
"""

from __future__ import annotations

import gc
import ipaddress
import logging
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, TextIO

import msgspec
import structlog
import trio

from converge_node.config import Config, RelayClientName, Settings, TraceSection, TransportName, write_example
from converge_node.control.app import ControlApi
from converge_node.control.metrics_server import metrics_app, open_metrics_server
from converge_node.control.ports import NodeLike, PoolLike
from converge_node.control.server import open_control_server, open_tcp_server
from converge_node.control.state import ControlState, node_item
from converge_node.control.tokens import Tokens, read_tokens
from converge_node.errors import ExitCode, known_error
from converge_node.followed import read_followed
from converge_node.handlers import Handlers, load_handlers
from converge_node.hosted import load_agents
from converge_node.inheriting import Inheriting
from converge_node.key_files import accepted_key_of, network_key_of, passphrase_of, read_topic_key
from converge_node.log_book import LogBook
from converge_node.logs import adopt_library_logs, configure_logs
from converge_node.paths import NodePaths, checked_socket, resolve_paths, single_instance, token_file_of
from converge_node.reload import LiveSettings
from converge_node.settings_check import OPEN_POOLS, check_host_port, parse_private_topic, parse_topic, topic_text
from converge_node.shutdown import Shutdown
from converge_node.store_sections import StoreSection
from converge_node.supervisor import READY, STOPPING, tell_supervisor
from converge_p2p.client import schema
from converge_p2p.client.mesh_schema import FollowInvitation
from converge_p2p.core import limits
from converge_p2p.core.errors import ConfigError, ConvergeError
from converge_p2p.core.governance.invitation_line import InvitationLine
from converge_p2p.core.identity import Identity
from converge_p2p.core.model.network_key import NetworkKey
from converge_p2p.core.model.topic import Topic
from converge_p2p.core.model.topic_key import TopicKey
from converge_p2p.core.types import PoolId
from converge_p2p.store.keyfile import load_or_create_identity

if TYPE_CHECKING:
    from converge_p2p.node import Retention
    from converge_p2p.runtime.tracing import Tracer

CONTROL_CLOSE_S: Final = 5.0

_log = logging.getLogger("converge_node.run")
RUNNING: Final = "running"


@dataclass(frozen=True, slots=True)
class NodeArguments:
    """What a node is made from.

    Attributes:
        home: folder of its stores; None keeps everything in memory.
        network_key: of the private network it is in.
        accepted_key: a second one, of nodes that dial it.
        transport: whose code carries connections.
        mdns: whether it looks for nodes on the same link.
        relay_client: when it is reached through relays.
        hole_punch: whether it tries for direct connections past relays.
        relay_service: whether it serves as a relay.
        config: the settings, for what it lets happen.
    """

    identity: Identity
    home: Path | None
    listen: Sequence[str]
    announce: Sequence[str]
    bootstrap: Sequence[str]
    transport: TransportName
    network_key: NetworkKey | None = None
    accepted_key: NetworkKey | None = None
    mdns: bool = False
    relay_client: RelayClientName = "auto"
    hole_punch: bool = True
    relay_service: bool = False
    config: Config = field(default_factory=Config)


OpenNode = Callable[[NodeArguments], AbstractAsyncContextManager[NodeLike]]


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What the command line and the settings ask for.

    Attributes:
        ephemeral: a new identity, nothing kept; the home is a temporary folder.
        json: the first line on standard output is one JSON document, and the log is JSON.
        reread: reads the settings again from all their sources; None: they are never read again.
    """

    settings: Settings
    paths: NodePaths
    ephemeral: bool = False
    json: bool = False
    reread: Callable[[], Settings] | None = None


def open_real_node(arguments: NodeArguments) -> AbstractAsyncContextManager[NodeLike]:
    """Return the library's node. Imports libp2p, which takes a second or two."""
    from converge_node.node_policy import node_policy
    from converge_p2p.net import NetworkConfig, RelayBounds, RelayUse, Transport
    from converge_p2p.node import Node, NodeConfig

    # what imported modules hold stays as long as the process: a full collection that visits it takes twice as long
    gc.freeze()
    return Node(
        home=arguments.home,
        identity=arguments.identity,
        listen=arguments.listen,
        announce=arguments.announce,
        bootstrap=arguments.bootstrap,
        config=NodeConfig(
            network=NetworkConfig(
                listen=(),
                accepted_key=arguments.accepted_key,
                connections_per_host=arguments.config.network.connections_per_address,
                connections_on_this_machine=arguments.config.network.connections_on_this_machine,
                transport=Transport(arguments.transport),
                mdns=arguments.mdns,
                relay_client=RelayUse(arguments.relay_client),
                hole_punch=arguments.hole_punch,
                relay_service=RelayBounds() if arguments.relay_service else None,
            ),
            network_key=arguments.network_key,
            policy=node_policy(arguments.config),
            blob_bytes_max=arguments.config.blobs.max_bytes,
            store_bytes_max=arguments.config.store.max_bytes,
            retention=_retention(arguments.config.store),
            tracer=_tracer(arguments.config.trace),
        ),
    )


def _retention(section: StoreSection) -> Retention:
    from converge_p2p.node import Retention

    return Retention(
        results_days=section.results_days,
        left_pools_days=section.left_pools_days,
        blobs_days=section.blobs_days,
        records_days=section.records_days,
    )


def _tracer(section: TraceSection) -> Tracer | None:
    if not section.file:
        return None
    from converge_p2p.runtime.tracing import JsonLinesExporter, Tracer

    return Tracer(JsonLinesExporter(section.file), sample=section.sample)


def run(options: RunOptions, *, open_node: OpenNode = open_real_node, out: TextIO | None = None) -> ExitCode:
    """Run a node in this process until a signal or the control interface stops it.

    Args:
        out: where the start is announced; None is standard output.

    Raises:
        ConfigError: settings that cannot work here.
        AlreadyRunning: another process has the home.
        StoreError, NetworkError: the stores cannot be opened, or an address cannot be listened on.
    """
    with ExitStack() as stack:
        paths = options.paths
        if options.ephemeral:
            paths = resolve_paths(stack.enter_context(tempfile.TemporaryDirectory(prefix="converge-node-")))
        if options.settings.config.api.socket:
            paths = NodePaths(paths.config_file, paths.state_dir, checked_socket(options.settings.config.api.socket))
        paths.create()
        stack.enter_context(single_instance(paths.lock_file))
        book = configure_logs(options.settings.config.log, json_lines=options.json)
        if not options.ephemeral:
            write_example(paths.config_file)
        running = _Run(options, paths, open_node, sys.stdout if out is None else out, book)
        try:
            return trio.run(running.main, strict_exception_groups=True)
        except KeyboardInterrupt:
            return ExitCode.FORCED
        except BaseExceptionGroup as group:
            known = known_error(group)
            if known is None:
                raise
            raise known from group


class _Run:
    def __init__(self, options: RunOptions, paths: NodePaths, open_node: OpenNode, out: TextIO, book: LogBook) -> None:
        self._book = book
        self._config = options.settings.config
        self._options = options
        self._paths = paths
        self._open_node = open_node
        self._out = out

    async def main(self) -> ExitCode:
        """Start, run, stop. Cancellation: stops without grace."""
        self._state = ControlState(
            home=str(self._paths.state_dir),
            socket=str(self._paths.socket),
            request_stop=self._stop,
            next_command=next_command,
            log_book=self._book,
        )
        self._shutdown = Shutdown(self._config.shutdown.timeout_s, on_stage=self._set_stage)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._shutdown.watch_signals)
            nursery.start_soon(self._watch_hangups)
            handlers = load_handlers(self._config.node.handlers, default_concurrency=self._config.tasks.concurrency)
            self._agents = load_agents(self._config.node.agents)
            self._state.pool_joined = handlers.attach
            async with self._open_servers():
                with trio.CancelScope() as life:
                    nursery.start_soon(self._shutdown.enforce, life)
                    nursery.start_soon(self._stop_while_starting, life)
                    await self._live(handlers)
                overran = life.cancelled_caught and self._state.node is not None
                self._state.node = None
                self._shutdown.stage("closing the control interface")
                # a client that does not read can hold its connection for ever; nothing of value waits for it
                self._shutdown.finish_within(CONTROL_CLOSE_S)
            self._shutdown.done()
            nursery.cancel_scope.cancel()
        _log.info("stopped")
        return ExitCode.FAILURE if overran else ExitCode.OK

    @asynccontextmanager
    async def _open_servers(self) -> AsyncIterator[None]:
        api, section, listen = ControlApi(self._state), self._config.api, self._config.metrics.listen
        tokens = token_file_of(section.token_file, self._paths)
        read_tokens(tokens)
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(open_control_server(api.app(), self._paths.socket))
            places = await stack.enter_async_context(open_tcp_server(api.app(Tokens(tokens)), section.listen))
            self._state.api_urls = tuple(places)
            if places:
                # what goes over a network is in clear: docs/control.md says what to put in front
                _log.info("control interface over TCP", extra={"places": places, "tokens": str(tokens)})
            if listen:
                app = metrics_app(self._state)
                port = await stack.enter_async_context(open_metrics_server(app, *check_host_port(listen)))
                _log.info("metrics can be read", extra={"listen": listen, "port": port})
            yield

    async def _live(self, handlers: Handlers) -> None:
        followed = () if self._options.ephemeral else read_followed(self._paths)
        private = [parse_private_topic(text) for text in self._config.node.private_topics]
        topics: list[tuple[Topic, TopicKey | None]] = [(topic, read_topic_key(path)) for topic, path in private]
        topics += [(parse_topic(text), None) for text in self._config.node.topics]
        network_key = network_key_of(self._config.network.psk_file, self._paths)
        if network_key is None and self._config.node.profile == "private":
            raise ConfigError(
                "the profile private needs the key of a network", hint="`converge-node mesh new FILE`, then --mesh FILE"
            )
        identity = self._identity()
        inheriting = Inheriting(None if self._options.ephemeral else self._paths, identity)
        arguments = NodeArguments(
            identity=identity,
            home=None if self._options.ephemeral else self._paths.state_dir,
            listen=self._config.network.listen,
            announce=self._config.network.announce,
            bootstrap=(*self._config.network.bootstrap, *_named(followed), *inheriting.bootstrap),
            network_key=network_key,
            accepted_key=accepted_key_of(self._config.network.psk_accept_file, network_key),
            transport=self._config.network.transport,
            mdns=self._config.network.mdns,
            relay_client=self._config.network.relay_client,
            hole_punch=self._config.network.hole_punch,
            relay_service=self._config.network.relay_service,
            config=self._config,
        )
        # every record of this run says whose it is
        structlog.contextvars.bind_contextvars(node=str(arguments.identity.id))
        opening = self._open_node(arguments)
        adopt_library_logs(self._config.log.level)
        async with opening as node:
            await inheriting.enter(node)
            self._state.node = node
            self._shutdown.stage(RUNNING)
            self._state.ready = True
            for pool in node.pools.values():
                handlers.attach(pool)
            for agent in self._agents:
                await node.host(agent, record=self._config.node.record)
            self._announce()
            async with trio.open_nursery() as nursery:
                node.joins.asking.when_joined = handlers.attach
                self._let_reload(node, lambda pool: nursery.start_soon(_join_pool, node, pool, handlers))
                # in the background: a pool or peer that cannot be reached yet must not keep the node from starting
                nursery.start_soon(inheriting.run, node, handlers.attach)
                named = (PoolId(bytes.fromhex(text)) for text in self._config.node.pools if text != OPEN_POOLS)
                for pool_id in named:
                    if not inheriting.holds(pool_id):
                        nursery.start_soon(_join_pool, node, pool_id, handlers)
                for topic, key in topics:
                    nursery.start_soon(self._join_topic, node, topic, key)
                for line in followed:
                    nursery.start_soon(self._follow, node, line, handlers, inheriting)
                if OPEN_POOLS in self._config.node.pools:
                    nursery.start_soon(_follow_open_pools, node, handlers, inheriting)
                await self._shutdown.requested.wait()
                self._state.ready = False
                self._state.stopping.set()
                self._shutdown.stage("closing the node: handing back claims, leaving peers, flushing stores")
                nursery.cancel_scope.cancel()

    def _let_reload(self, node: NodeLike, join_pool: Callable[[PoolId], None]) -> None:
        if self._options.reread is not None:
            self._state.reload = LiveSettings(
                self._options.settings,
                self._options.reread,
                str(self._paths.config_file),
                node=node,
                meshes=self._state.meshes,
                shutdown=self._shutdown,
                join_pool=join_pool,
            ).reload

    async def _watch_hangups(self) -> None:
        """SIGHUP reads the settings again; of a terminal that was closed it ends the node, as it always did."""
        with trio.open_signal_receiver(signal.SIGHUP) as hangups:
            async for _ in hangups:
                if sys.stdin is not None and sys.stdin.isatty():
                    self._shutdown.request("the terminal was closed")
                elif not self._state.ready:
                    _log.warning("the settings are not read again: the node is %s", self._state.stage)
                else:
                    try:
                        await self._state.reload()
                    except ConvergeError as error:
                        _log.error("nothing was changed", extra={"error": str(error), "hint": error.hint})
                    except Exception:  # noqa: BLE001 - the edge: a defect in one reload must not end the node
                        _log.exception("reading the settings again failed")

    async def _join_topic(self, node: NodeLike, topic: Topic, key: TopicKey | None) -> None:
        try:
            await self._state.meshes.join(node, topic, key)
        except ConvergeError as error:
            extra = {"topic": topic_text(topic), "error": str(error), "hint": error.hint}
            _log.error("cannot join the topic", extra=extra)

    async def _follow(self, node: NodeLike, line: InvitationLine, handlers: Handlers, inheriting: Inheriting) -> None:
        """Follow an invitation that waited for this start; of one that was followed, only the topics are missing."""
        try:
            if line.pool is None or line.pool.pool in node.pools or inheriting.holds(line.pool.pool):
                await self._state.meshes.take_part(node, line)
                return
            body = FollowInvitation(text=line.to_text(), capabilities=list(handlers.objectives))
            _, pool = await self._state.meshes.follow(node, body)
            if pool is not None:
                handlers.attach(pool)
        except ConvergeError as error:
            _log.error("cannot follow an invitation", extra={"error": str(error), "hint": error.hint})

    def _identity(self) -> Identity:
        if self._options.ephemeral:
            return Identity.generate()
        section = self._config.identity
        return load_or_create_identity(self._paths.chosen_key(section.path), passphrase_of(section.passphrase_file))

    def _announce(self) -> None:
        item = node_item(self._state)
        if self._options.json:
            self._out.write(msgspec.json.encode(schema.success(item)).decode() + "\n")
        else:
            self._out.write(start_text(item) + "\n")
        self._out.flush()

    def _set_stage(self, name: str) -> None:
        self._state.stage = name
        tell_supervisor(READY if name == RUNNING else STOPPING, f"STATUS={name}")

    def _stop(self) -> None:
        self._shutdown.request("asked by the control interface")

    async def _stop_while_starting(self, life: trio.CancelScope) -> None:
        await self._shutdown.requested.wait()
        if self._state.stage == "starting":
            life.cancel()


def start_text(item: schema.NodeItem) -> str:
    """Return what a person sees when a node has started."""
    listening = "\n".join(f"{'listening' if not index else '':<10} {text}" for index, text in enumerate(item.addresses))
    return (
        f"{'agent id':<10} {item.id}\n{'peer id':<10} {item.peer_id}\n{listening}\n"
        f"{'home':<10} {item.home}\n{'next node':<10} {item.next_command}"
    )


def next_command(addresses: Sequence[str]) -> str:
    """Return the command that starts another node which finds this one.

    Of several addresses the one that most machines can reach is taken. If only this machine can reach it, the next
    node runs here too and so needs a home of its own.
    """
    best = max((str(address) for address in addresses), key=_reach, default="")
    if not best:
        return "converge-node --bootstrap ADDRESS"
    own_home = "--home ./second-node " if _reach(best) <= 1 else ""
    return f"converge-node {own_home}--bootstrap {best}"


def _reach(address: str) -> int:
    parts = address.split("/")
    if len(parts) < 3:
        return 0
    if parts[1].startswith("dns"):
        return 4
    try:
        host = ipaddress.ip_address(parts[2])
    except ValueError:
        return 0
    if host.is_unspecified:
        return 0
    if host.is_loopback:
        return 1
    return 2 if host.is_private or host.is_link_local else 3


async def _join_pool(node: NodeLike, pool_id: PoolId, handlers: Handlers) -> None:
    try:
        pool = node.pools.get(pool_id)
        if pool is None or not _is_member(node, pool, handlers.objectives):
            pool = await node.join_pool(pool_id, capabilities=handlers.objectives)
        handlers.attach(pool)
    except ConvergeError as error:
        _log.error("cannot join the pool", extra={"pool": pool_id.hex(), "error": str(error), "hint": error.hint})


def _is_member(node: NodeLike, pool: PoolLike, capabilities: Sequence[str]) -> bool:
    """Whether the pool knows this node as a member that can do all this: then a restart has nothing to sign."""
    own = [member for member in pool.members() if member.agent_id == node.id] if pool.ready else []
    return bool(own) and set(capabilities) <= set(own[0].capabilities)


def _named(followed: Iterable[InvitationLine]) -> tuple[str, ...]:
    """Addresses to find the network through, each once; of many invitations the newest."""
    found = dict.fromkeys(address for line in followed for address in line.bootstrap)
    return tuple(found)[-limits.ADDRESSES_PER_PEER_MAX :]


async def _follow_open_pools(node: NodeLike, handlers: Handlers, inheriting: Inheriting) -> None:
    """Join every announced pool that has work for a handler, as it is announced."""
    refused: set[PoolId] = set()
    async with node.watch_pools() as announcements:
        async for announcement in announcements:
            # what is no longer announced is forgotten, so that strangers cannot make the set grow
            refused &= {known.id for known in node.known_pools()}
            if announcement.id in node.pools or announcement.id in refused or inheriting.holds(announcement.id):
                continue
            if not set(handlers.objectives) & set(announcement.task_types):
                continue
            await _join_pool(node, announcement.id, handlers)
            if announcement.id not in node.pools:
                refused.add(announcement.id)
