#!/usr/bin/env python3
"""Verify a receipt of a converge-p2p pool, offline: `verify_receipt.py FILE POOL`. Needs PyNaCl and cbor2 only.

POOL is the id of the pool in hexadecimal, from a source that you trust: a receipt proves what *that* pool settled. Exit
code 0: it holds, and what it proves is printed; 1: it does not hold; 2: wrong usage.

This is a second implementation, written from docs/protocol.md (encoding, pools, operations, epochs, vetoes, receipts)
without the code of the node. It prints the terms of every epoch. Terms under which two sets of electors could decide
differently are refused; if their founder declared that they are provisional, the receipt holds and a warning says so.
A custom model whose formula does not stand in the terms cannot be verified.
"""

from __future__ import annotations

import functools
import hashlib
import sys
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple

import cbor2
from nacl.exceptions import CryptoError
from nacl.signing import VerifyKey

FILE_BYTES_MAX = 256 * 1024 * 1024
OPERATION_BYTES_MAX = 64 * 1024
DEPTH_MAX = 16
ELECTORS_MAX, EPOCHS_MAX, BALLOTS_MAX, DEPS_MAX, CUTS_MAX = 31, 4096, 256, 8, 16
SEQ_MAX, ROUND_MAX, WEIGHT_MAX = 2**53 - 1, 2**31 - 1, 1_000_000
FORMULA_DEPTH_MAX, FORMULA_PARTS_MAX = 4, 256
OVERLAP_STEPS_MAX = 2_000_000
GENESIS, VOTE = 0, 7
ACCEPT = 2
COMPLETED = 0
OUTCOMES = ("completed", "failed", "cancelled")


class Governance(IntEnum):
    """Who decides in a pool."""

    DICTATORIAL = 0
    DEMOCRATIC = 1
    BICAMERAL = 2
    VETO = 3
    EMPIRICAL = 4
    CUSTOM = 5


class NotProven(Exception):
    """The receipt does not hold; the text says why."""


def need(condition: bool, what: str) -> None:
    """Go on only if a condition holds."""
    if not condition:
        raise NotProven(what)


# ---------------------------------------------------------------- encoding


def tagged_hash(tag: str, *parts: bytes) -> bytes:
    """SHA-256 behind the domain tag, each part behind its length."""
    whole = b"".join(len(part).to_bytes(8, "big") + part for part in parts)
    return hashlib.sha256(b"converge-p2p/1/" + tag.encode() + b"\0" + whole).digest()


def agent_id(key: bytes) -> str:
    """What everybody calls the agent that has a key."""
    return hashlib.sha256(key).hexdigest()


def encode(value: Any) -> bytes:
    """Canonical CBOR."""
    encoded: bytes = cbor2.dumps(value, canonical=True)
    return encoded


def decode(data: bytes) -> Any:
    """Read canonical CBOR of what a receipt is made of: integers, bytes, text, arrays, true, false and null."""
    value, end = _read(data, 0, DEPTH_MAX)
    need(end == len(data), "bytes after the end of the encoding")
    return value


def _read(data: bytes, at: int, depth: int) -> tuple[Any, int]:
    need(at < len(data), "the encoding is cut off")
    major, low = data[at] >> 5, data[at] & 31
    at += 1
    if major == 7:
        need(low in (20, 21, 22), "a simple value that has no place here")
        return {20: False, 21: True, 22: None}[low], at
    number = low
    if low >= 24:
        need(low <= 27, "an indefinite length")
        size = 1 << (low - 24)
        need(at + size <= len(data), "the encoding is cut off")
        number = int.from_bytes(data[at : at + size], "big")
        at += size
        need(number >= (24 if size == 1 else 1 << (4 * size)), "a number longer than needed")
    if major == 0:
        return number, at
    if major == 1:
        need(number < 2**63, "a number out of range")
        return -1 - number, at
    if major in (2, 3):
        need(at + number <= len(data), "the encoding is cut off")
        raw = bytes(data[at : at + number])
        try:
            return (raw if major == 2 else raw.decode()), at + number
        except UnicodeDecodeError as error:
            raise NotProven("text that is not UTF-8") from error
    need(major == 4 and depth > 0, "a map or tag, or too many levels")
    need(number <= len(data) - at, "the encoding is cut off")
    items = []
    for _ in range(number):
        item, at = _read(data, at, depth - 1)
        items.append(item)
    return items, at


def array(value: Any, *kinds: type | tuple[type, ...]) -> list[Any]:
    """An array of exactly these types."""
    need(type(value) is list and len(value) == len(kinds), f"expected an array of {len(kinds)}")
    for item, kind in zip(value, kinds, strict=True):
        need(type(item) in (kind if isinstance(kind, tuple) else (kind,)), "an item of another type than expected")
    return list(value)


def hashes(value: Any, most: int) -> list[bytes]:
    """A sorted array of ids or keys, without repeats."""
    need(type(value) is list and len(value) <= most, "too many ids or keys, or no array")
    need(all(type(item) is bytes and len(item) == 32 for item in value), "an id or key has 32 bytes")
    need(value == sorted(set(value)), "ids or keys out of order, or twice")
    return list(value)


# ---------------------------------------------------------------- terms


class Formula(NamedTuple):
    """Met by voters if what is met of the parts weighs so much."""

    need: int
    parts: tuple[tuple[int, bytes | Formula], ...]

    def met_by(self, voters: Collection[bytes]) -> bool:
        """Whether these voters decide."""
        weight = 0
        for part_weight, part in self.parts:
            met = part.met_by(voters) if isinstance(part, Formula) else part in voters
            weight += part_weight if met else 0
        return weight >= self.need

    def keys(self) -> set[bytes]:
        """Everybody who is counted."""
        found: set[bytes] = set()
        for _, part in self.parts:
            found |= part.keys() if isinstance(part, Formula) else {part}
        return found


class Terms(NamedTuple):
    """What decides about a receipt in the terms of an epoch; `unsafe` says why they are provisional, or nothing."""

    formula: Formula
    vetoers: tuple[bytes, ...]
    name: str
    governance: Governance
    faults: int
    trusted: tuple[bytes, ...]
    unsafe: str

    def __str__(self) -> str:
        words = [f"{self.governance.name.lower()}, {formula_text(self.formula)}"]
        words += [f"{self.faults} may lie"] if self.faults else []
        words += [f"{len(self.trusted)} trusted by name"] if self.trusted else []
        words += [f"{len(self.vetoers)} may deny"] if self.vetoers else []
        return "; ".join(words)


def read_terms(body: Any) -> Terms:
    """Read the terms of a pool, an array of fifteen."""
    fields = array(body, str, bytes, int, list, int, int, int, list, list, list, list, int, str, list, bool)
    electors, quorum, faults = hashes(fields[3], ELECTORS_MAX), fields[4], fields[5]
    model = list(fields[13])
    if len(model) == 15:
        evidence = model.pop()
        need(type(evidence) is int and evidence >= 1, "evidence stands in the terms only where some is asked for")
    leader, successor, chambers, quorums, tie, vetoers, _, _, weights, several, named, formula, name, provisional = (
        array(model, bytes, bytes, list, list, bytes, list, int, bool, list, int, list, bytes, str, bool)
    )
    need(all(type(number) is int and number >= 0 for number in (*quorums, *weights)), "a quorum or weight is a number")
    need(all(len(key) in (0, 32) for key in (leader, successor, tie)), "a key has 32 bytes")
    need((fields[2] == Governance.VETO) == bool(vetoers), "vetoers go with a pool where they may deny")
    need(bool(electors) and 0 <= faults < len(electors), "electors and faults do not fit")
    need(0 <= quorum <= (sum(weights) or len(electors)), "the quorum does not fit")
    match fields[2]:
        case Governance.DICTATORIAL if not successor:
            decides = of(1, electors)
            need(len(electors) == 1, "a leader without successor is the only elector")
        case Governance.DICTATORIAL:
            most = of(smallest(quorum, electors, faults), electors)
            decides = Formula(2, ((1, most), (1, of(1, [leader, successor]))))
        case Governance.DEMOCRATIC | Governance.VETO:
            decides = of(smallest(quorum, electors, faults), electors)
        case Governance.BICAMERAL:
            need(len(chambers) == 2 and len(quorums) in (0, 2), "there are two chambers")
            houses = [hashes(chamber, ELECTORS_MAX) for chamber in chambers]
            sizes = quorums or [0, 0]
            parts = [(1, of(smallest(q, house, faults), house)) for q, house in zip(sizes, houses, strict=True)]
            decides = Formula(2, (*parts, (1, tie)) if tie else tuple(parts))
        case Governance.EMPIRICAL:
            need(several >= 1 and len(weights) in (0, len(electors)), "weights do not fit the electors")
            shares = weights or [1] * len(electors)
            heaviest = sum(sorted(shares)[-faults:] if faults else [])
            least = min((sum(shares) + heaviest) // 2 + 1, sum(shares))
            decides = Formula(quorum or least, tuple(zip(shares, electors, strict=True)))
        case Governance.CUSTOM:
            need(bool(formula), f"the formula of model {name!r} does not stand in the terms: nobody can verify it")
            decides = read_formula(decode(formula), FORMULA_DEPTH_MAX)
        case _:
            raise NotProven("an unknown governance")
    need(decides.keys() == set(electors), "the formula does not count just the electors")
    trusted = tuple(hashes(named, ELECTORS_MAX))
    unsafe = lacking_overlap(decides, faults, trusted)
    need(provisional or not unsafe, f"no pool may have these terms: {unsafe}")
    denies = tuple(hashes(vetoers, ELECTORS_MAX))
    return Terms(decides, denies, fields[0], Governance(fields[2]), faults, trusted, unsafe)


@functools.lru_cache(maxsize=64)
def lacking_overlap(formula: Formula, faults: int, trusted: tuple[bytes, ...]) -> str:
    """Say why two sets that decide need not share an honest elector; nothing if they always do.

    They share one if they share more than may lie, or one that is trusted by name. To find two sets that do not, every
    elector goes into one of them, and as many as may lie into both: being in a set never keeps it from deciding.
    """
    nodes = list(_nodes(formula, -1, 1, [0]))
    places: dict[bytes, Counter[int]] = {}
    for number, (part, _, _) in enumerate(nodes):
        for weight, inner in part.parts:
            if isinstance(inner, bytes):
                places.setdefault(inner, Counter())[number] += weight
    if len(nodes) == 1:
        heaviest = sorted((where[0] for key, where in places.items() if key not in trusted), reverse=True)
        if 2 * formula.need - sum(where[0] for where in places.values()) > sum(heaviest[:faults]):
            return ""
    kinds = Counter((tuple(sorted(where.items())), key in trusted) for key, where in places.items())
    order = sorted(kinds)
    ends = [
        max((at for at, (where, _) in enumerate(order) if number in dict(where)), default=-1)
        for number in range(len(nodes))
    ]
    for number in reversed(range(1, len(nodes))):
        # inner formulas stand behind the outer one, which ends with the last of them
        ends[nodes[number][1]] = max(ends[nodes[number][1]], ends[number])
    states, steps = {((0,) * len(nodes), (0,) * len(nodes)): 0}, 0
    for at, (where, named) in enumerate(order):
        count, following = kinds[where, named], dict[tuple[tuple[int, ...], tuple[int, ...]], int]()
        for (first, second), shared in states.items():
            for both in range(0 if named else min(count, faults - shared), -1, -1):
                for one in range(count - both + 1):
                    steps += 1
                    if steps > OVERLAP_STEPS_MAX:
                        return "their formula treats too many electors differently to be checked"
                    pair = (
                        _reach(first, where, one + both, nodes, at, ends),
                        _reach(second, where, count - one, nodes, at, ends),
                    )
                    place = (min(pair), max(pair))
                    following[place] = min(shared + both, following.get(place, faults))
        states = following
    decided = [shared for (first, second), shared in states.items() if first[0] and second[0]]
    if not decided:
        return ""
    return f"two sets that decide may share only {min(decided)} electors, of which {faults} may lie"


def _nodes(formula: Formula, parent: int, weight: int, count: list[int]) -> Iterator[tuple[Formula, int, int]]:
    """A formula and those inside it, outer ones first, each with its place in the outer one."""
    own = count[0]
    count[0] += 1
    yield formula, parent, weight
    for heft, part in formula.parts:
        if isinstance(part, Formula):
            yield from _nodes(part, own, heft, count)


def _reach(
    state: tuple[int, ...],
    where: Sequence[tuple[int, int]],
    count: int,
    nodes: Sequence[tuple[Formula, int, int]],
    at: int,
    ends: Sequence[int],
) -> tuple[int, ...]:
    """What is reached of each formula, never more than it needs; of one that is over only whether it is met counts."""
    reached = list(state)
    for number, weight in where:
        reached[number] = min(nodes[number][0].need, reached[number] + weight * count)
    for number in reversed(range(len(nodes))):
        if ends[number] == at:
            part, parent, weight = nodes[number]
            met = reached[number] == part.need
            reached[number] = 1 if met and parent < 0 else 0
            if met and parent >= 0:
                reached[parent] = min(nodes[parent][0].need, reached[parent] + weight)
    return tuple(reached)


def formula_text(formula: Formula) -> str:
    """A formula in words."""
    if all(isinstance(part, bytes) and weight == 1 for weight, part in formula.parts):
        return f"{formula.need} of {len(formula.parts)} electors"
    names = [
        (f"{weight} x " if weight > 1 else "")
        + (agent_id(part)[:12] if isinstance(part, bytes) else f"({formula_text(part)})")
        for weight, part in formula.parts
    ]
    return f"{formula.need} of [{', '.join(names)}]"


def of(count: int, keys: Sequence[bytes]) -> Formula:
    """So many of some."""
    return Formula(count, tuple((1, key) for key in keys))


def smallest(given: int, keys: Sequence[bytes], faults: int) -> int:
    """A given quorum, or the smallest safe one."""
    need(given >= 0, "a quorum below 0")
    return int(given or min((len(keys) + faults) // 2 + 1, len(keys)))


def read_formula(value: Any, depth: int) -> Formula:
    """Read a formula, `[need, [weight, part] …]`."""
    need(type(value) is list and 2 <= len(value) <= FORMULA_PARTS_MAX + 1 and depth > 0, "not a formula")
    parts = []
    for item in value[1:]:
        weight, part = array(item, int, (bytes, list))
        need(1 <= weight <= WEIGHT_MAX, "a weight out of range")
        if isinstance(part, bytes):
            need(len(part) == 32, "a key has 32 bytes")
        parts.append((weight, part if isinstance(part, bytes) else read_formula(part, depth - 1)))
    need(type(value[0]) is int and 1 <= value[0] <= sum(weight for weight, _ in parts), "a need that cannot be met")
    return Formula(value[0], tuple(parts))


# ---------------------------------------------------------------- operations


class Operation(NamedTuple):
    """What a receipt needs of an operation."""

    author: bytes
    epoch: int
    kind: int
    body: Any


def read_operation(signed: bytes, pool: bytes) -> Operation:
    """Check the envelope and the signature of an operation of this pool."""
    need(64 < len(signed) <= OPERATION_BYTES_MAX, "an operation of a wrong size")
    payload = signed[64:]
    version, its_pool, author, seq, prev, deps, epoch, hlc, kind, body = array(
        decode(payload), int, bytes, bytes, int, (bytes, type(None)), list, int, int, int, list
    )
    need(version == 1 and its_pool == pool and len(author) == 32, "an operation of another version or pool")
    need(0 <= seq <= SEQ_MAX and (prev is None) == (seq == 0) and len(prev or pool) == 32, "a wrong place in a chain")
    hashes(deps, DEPS_MAX)
    need(0 <= epoch <= SEQ_MAX and 0 <= hlc < 2**63, "an epoch or clock out of range")
    try:
        VerifyKey(author).verify(b"converge-p2p/1/operation\0" + payload, signed[:64])
    except (CryptoError, ValueError) as error:
        raise NotProven("a signature does not hold") from error
    return Operation(author, epoch, kind, body)


def read_accepts(body: Any) -> set[tuple[bytes, int, bytes]]:
    """Read the ballots of a vote; return its accepts as subject, round and value hash."""
    need(1 <= len(body) <= BALLOTS_MAX, "a vote has 1 to 256 ballots")
    seen: set[tuple[int, bytes, int]] = set()
    accepts = set()
    for ballot in body:
        phase, subject, number, ref, lock, expired, held = array(
            ballot, int, bytes, int, bytes, (list, type(None)), (int, type(None)), list
        )
        need(phase in (0, 1, ACCEPT) and len(subject) == len(ref) == 32 and 0 <= number <= ROUND_MAX, "a wrong ballot")
        need((phase, subject, number) not in seen, "two ballots on one thing")
        need(phase == 0 or (lock, expired, held) == (None, None, []), "only a grant has a lock, lapsed round or cuts")
        need(len(held) <= CUTS_MAX, "too many cuts")
        seen.add((phase, subject, number))
        if phase == ACCEPT:
            accepts.add((subject, number, ref))
    return accepts


# ---------------------------------------------------------------- the proof


class Proven(NamedTuple):
    """What a receipt proves."""

    pool: bytes
    task: bytes
    outcome: str
    worker: bytes
    result: bytes
    epoch: int
    electors: tuple[bytes, ...]
    terms: tuple[Terms, ...]


def verify(data: bytes, pool: bytes) -> Proven:
    """Verify a receipt of a pool.

    Raises:
        NotProven: it does not hold.
    """
    fields = decode(data)
    need(type(fields) is list and len(fields) in (7, 8), "not a receipt: expected an array of seven or eight")
    version, its_pool, task, value, genesis, epochs, votes = array(
        fields[:7], int, bytes, bytes, list, bytes, list, list
    )
    need(version == 2, "a receipt of another version")
    need(its_pool == pool, "a receipt of another pool")
    need(len(task) == 32, "a task id has 32 bytes")
    founding = read_operation(genesis, pool)
    need(founding.kind == GENESIS, "the founding operation is none")
    need(tagged_hash("pool", founding.author, encode(founding.body)) == pool, "the founding is not this pool's")
    chain = _follow(pool, read_terms(founding.body), epochs)
    check_value(value)
    settled, veto = value, None
    if len(fields) == 8:
        veto = array(fields[7], list, list, list)
        settled = check_value(veto[0])
    first, voters = _accepted(pool, chain, task, settled, votes)
    denies = any(terms.vetoers for terms in chain[: first + 1]) and settled[0] == COMPLETED
    need(denies == (veto is not None), "what is said of vetoers does not fit the terms")
    if veto is not None:
        said = check_value(veto[1])
        _accepted(pool, chain, tagged_hash("veto", task, value_hash(settled)), said, veto[2])
        need(value == (settled if said[0] == COMPLETED else said), "the task ended with another value")
    counted = voters & chain[first].formula.keys()
    return Proven(pool, task, OUTCOMES[value[0]], value[1], value[2], first, tuple(sorted(counted)), tuple(chain))


def check_value(value: Any) -> list[Any]:
    """Check the shape of `[outcome, worker, result]`."""
    outcome, worker, _ = array(value, int, bytes, bytes)
    need(0 <= outcome < len(OUTCOMES) and len(worker) == 32, "a value is an outcome, a worker and a result")
    return list(value)


def value_hash(value: list[Any]) -> bytes:
    """What votes name."""
    return tagged_hash("value", encode(value))


def _follow(pool: bytes, founding: Terms, epochs: Any) -> list[Terms]:
    """The terms of every epoch, each certified under those of the one before."""
    need(len(epochs) <= EPOCHS_MAX, "too many epochs")
    chain, before = [founding], pool
    for number, proof in enumerate(epochs, 1):
        value, votes = array(proof, list, list)
        check_value(value)
        its_number, its_before, motion, terms, cuts, promises, key = array(
            decode(value[2]), int, bytes, bytes, list, list, list, bytes
        )
        need((value[0], its_number, its_before) == (COMPLETED, number, before), f"epoch {number} does not follow")
        need(len(motion) == 32 and len(key) in (0, 32) and len(cuts) <= CUTS_MAX, f"epoch {number} is malformed")
        hashes(promises, ELECTORS_MAX)
        subject = tagged_hash("epoch", pool, number.to_bytes(8, "big"))
        accepts = _accepts(pool, subject, value, votes)
        decides = chain[-1].formula
        need(
            any(epoch == number - 1 and decides.met_by(voters) for (epoch, _), voters in accepts.items()),
            f"the votes do not certify epoch {number}",
        )
        chain.append(read_terms(terms))
        before = value_hash(value)
    return chain


def _accepted(
    pool: bytes, chain: Sequence[Terms], subject: bytes, value: list[Any], votes: Any
) -> tuple[int, set[bytes]]:
    """The first epoch in which the votes accept a value, and who did."""
    for (epoch, _), voters in sorted(_accepts(pool, subject, value, votes).items()):
        if epoch < len(chain) and chain[epoch].formula.met_by(voters):
            return epoch, voters
    raise NotProven("the votes do not settle it")


def _accepts(pool: bytes, subject: bytes, value: list[Any], votes: Any) -> dict[tuple[int, int], set[bytes]]:
    """Who accepted a value, by epoch and round."""
    need(type(votes) is list and len(votes) <= ELECTORS_MAX, "too many votes")
    wanted, found = value_hash(value), dict[tuple[int, int], set[bytes]]()
    for signed in votes:
        need(type(signed) is bytes, "a vote is a byte string")
        vote = read_operation(signed, pool)
        need(vote.kind == VOTE, "an operation of the proof is not a vote")
        for named, number, ref in read_accepts(vote.body):
            if (named, ref) == (subject, wanted):
                found.setdefault((vote.epoch, number), set()).add(vote.author)
    return found


def main(arguments: Sequence[str]) -> int:
    """Verify a file, say what it proves, and return the exit code."""
    try:
        name, pool_text = arguments
        pool = bytes.fromhex(pool_text)
        with Path(name).open("rb") as file:
            data = file.read(FILE_BYTES_MAX)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"usage: verify_receipt.py FILE POOL (the pool's id, 64 hexadecimal digits): {error}\n")
        return 2
    try:
        proven = verify(data, pool)
    except NotProven as error:
        sys.stderr.write(f"not proven: {error}\n")
        return 1
    lines = {
        "pool": f"{proven.pool.hex()} {proven.terms[0].name!a}",
        "task": proven.task.hex(),
        "outcome": proven.outcome,
        "worker": agent_id(proven.worker),
        "epoch": proven.epoch,
        "accepted by": ", ".join(agent_id(key)[:12] for key in proven.electors),
        "result": f"{len(proven.result)} bytes, SHA-256 {hashlib.sha256(proven.result).hexdigest()}",
    }
    for number, terms in enumerate(proven.terms):
        lines[f"terms of {number}"] = str(terms)
        if terms.unsafe:
            sys.stderr.write(f"WARNING: epoch {number} is provisional: {terms.unsafe}\n")
    sys.stdout.write("".join(f"{label:<12} {text}\n" for label, text in lines.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
