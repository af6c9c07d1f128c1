"""What one simulation is: sizes, network, faults and seed, all checked.

Knows: the bounds of a run, and how its parts are written on a command line. Must not know: how it is run.
Source: docs/capacity.md; docs/decisions/0026-capacity-simulation.md.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from converge_node.errors import UsageError
from converge_p2p.core import limits
from converge_p2p.core.errors import ConvergeError
from converge_p2p.core.governance.models import compile_rules
from converge_p2p.core.identity import Identity
from converge_p2p.core.model.pool import GovernanceKind, ModelTerms, PoolSpec

NODES_MAX = 20_000
TASKS_MAX = 10_000
SIZES_MAX = 16
CUTS_MAX = 16
DEGREE_MIN, DEGREE_MAX = 2, 12
LATENCY_MS_MAX = 10_000
PAYLOAD_BYTES_MAX = 16 * 1024
RUN_S_MAX = 24 * 3600

MODELS = {
    "democratic": GovernanceKind.DEMOCRATIC,
    "dictatorial": GovernanceKind.DICTATORIAL,
    "bicameral": GovernanceKind.BICAMERAL,
    "veto": GovernanceKind.VETO,
    "empirical": GovernanceKind.EMPIRICAL,
}
VETO_WINDOW_MS = 1000

_CUT = re.compile(r"(\d+(?:\.\d+)?):(\d+(?:\.\d+)?):(\d+(?:\.\d+)?)%?")


@dataclass(frozen=True, slots=True)
class Cut:
    """A partition: some nodes, drawn by the seed, are cut off from all others.

    Attributes:
        start_ms: when, after the first task.
        length_ms: how long.
        share: how many of the nodes, above 0 and below 1.
    """

    start_ms: int
    length_ms: int
    share: float


@dataclass(frozen=True, slots=True)
class Plan:
    """One run.

    Attributes:
        nodes: how many, at least the electors and the workers.
        electors: how many of these vote.
        workers: how many besides join the pool and work; all others follow it and sign nothing.
        tasks: how many are submitted, by electors and workers.
        rate: tasks a second.
        work_ms: how long one takes.
        payload: bytes of each input and each result.
        model: one of `MODELS`.
        faults: how many electors may lie; None is the most that so many can bear, but at most one.
        degree: neighbours in the gossip mesh that a node wants.
        links: connections that it wants.
        latency_ms: of a link, from and to.
        loss: share of the messages that are lost.
        disk_ms: how long an own operation takes to be durable.
        cuts: partitions.
        patience_s: after the last task and partition the run ends after so long, whatever it came to.
    """

    nodes: int
    electors: int = 5
    workers: int = 8
    tasks: int = 20
    rate: float = 10.0
    work_ms: int = 200
    payload: int = 64
    model: str = "democratic"
    faults: int | None = None
    degree: int = 6
    links: int = 8
    latency_ms: tuple[int, int] = (10, 60)
    loss: float = 0.0
    disk_ms: int = 3
    cuts: tuple[Cut, ...] = ()
    patience_s: float = 300.0
    seed: int = 0
    spec: PoolSpec = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Check that this can be run.

        Raises:
            UsageError: it cannot; the message says what is wrong.
        """
        if not 1 <= self.electors <= limits.ELECTORS_MAX:
            raise UsageError(f"{self.electors} electors; a pool has 1 to {limits.ELECTORS_MAX}")
        if self.workers < 1:
            raise UsageError("nobody works: electors only vote here", hint="--workers 1, and enough --nodes")
        if not self.electors + self.workers <= self.nodes <= NODES_MAX:
            raise UsageError(
                f"{self.nodes} nodes for {self.electors} electors and {self.workers} workers; at most {NODES_MAX}",
                hint="more --nodes, or fewer --electors or --workers",
            )
        if not DEGREE_MIN <= self.degree <= min(self.links, DEGREE_MAX) or self.links > limits.PEERS_MAX:
            raise UsageError(
                f"a mesh degree of {self.degree} with {self.links} links; the degree is {DEGREE_MIN} to {DEGREE_MAX} "
                f"and not above the links, these are at most {limits.PEERS_MAX}"
            )
        if self.model == "bicameral" and self.electors < 2:
            raise UsageError("two chambers need at least two electors", hint="--electors 6")
        spec = self._spec()
        try:
            spec.check()
            compile_rules(spec)
        except ConvergeError as error:
            raise UsageError(f"no pool may have these terms: {error}", hint="other --electors or --faults") from error
        object.__setattr__(self, "spec", spec)

    def identity(self, index: int) -> Identity:
        """The key of a node: a function of seed and number."""
        return Identity.from_seed((b"sim %d %d" % (self.seed, index)).ljust(32, b"."))

    def _spec(self) -> PoolSpec:
        kind = MODELS[self.model]
        keys = [self.identity(index).public_key for index in range(self.electors)]
        match kind:
            case GovernanceKind.DICTATORIAL:
                terms = ModelTerms(leader=keys[0], successor=keys[1] if self.electors > 1 else b"")
            case GovernanceKind.BICAMERAL:
                half = (self.electors + 1) // 2
                terms = ModelTerms(chambers=(tuple(sorted(keys[:half])), tuple(sorted(keys[half:]))))
            case GovernanceKind.VETO:
                terms = ModelTerms(vetoers=(keys[0],), veto_window_ms=VETO_WINDOW_MS)
            case GovernanceKind.EMPIRICAL:
                terms = ModelTerms(speculative=1)
            case _:
                terms = ModelTerms()
        faults = self.faults
        if faults is None:
            voters = min(map(len, terms.chambers), default=self.electors)
            faults = int(voters >= 4 and kind is not GovernanceKind.DICTATORIAL)
        return PoolSpec("sim", b"capacity".ljust(16, b"."), kind, tuple(sorted(keys)), faults=faults, model=terms)


def read_cut(text: str) -> Cut:
    """Read a partition, `START:LENGTH:SHARE`: two times in seconds, and a percentage of the nodes.

    Raises:
        UsageError: it is not one.
    """
    match = _CUT.fullmatch(text)
    if match is None:
        raise UsageError(
            f"{text!r} is not a partition", hint="START:LENGTH:PERCENT, such as 1:10:30 (30 % of the nodes)"
        )
    start, length, percent = map(float, match.groups())
    if not 0 < percent < 100 or not 0 < length <= RUN_S_MAX or start > RUN_S_MAX:
        raise UsageError(f"partition {text!r}: it has a length, and cuts off more than 0 % and less than 100 %")
    return Cut(int(start * 1000), max(1, int(length * 1000)), percent / 100)


def read_latency(text: str) -> tuple[int, int]:
    """Read a latency in milliseconds, `N` or `FROM-TO`.

    Raises:
        UsageError: it is not one.
    """
    low, dash, high = text.partition("-")
    numbers = (low, high if dash else low)
    if not all(number.isascii() and number.isdigit() for number in numbers):
        raise UsageError(f"{text!r} is not a latency", hint="milliseconds: 40, or 10-60")
    first, last = int(numbers[0]), int(numbers[1])
    if not 0 < first <= last <= LATENCY_MS_MAX:
        raise UsageError(f"a latency of {text} ms; it is 1 to {LATENCY_MS_MAX}, the lower number first")
    return first, last


def read_sizes(text: str) -> tuple[int, ...]:
    """Read several numbers of nodes, separated by commas, in ascending order.

    Raises:
        UsageError: they are not.
    """
    parts = text.split(",")
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise UsageError(f"{text!r} are not sizes", hint="numbers of nodes: 10,100,1000")
    sizes = tuple(map(int, parts))
    if list(sizes) != sorted(set(sizes)) or not sizes[0] >= 2 or sizes[-1] > NODES_MAX or len(sizes) > SIZES_MAX:
        raise UsageError(f"sizes are ascending, 2 to {NODES_MAX}, at most {SIZES_MAX} of them")
    return sizes
