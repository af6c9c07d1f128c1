"""`scripts/verify_receipt.py`, which shares no code with the library, says the same of receipts as the library."""

from __future__ import annotations

import importlib.util
import itertools
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from converge_p2p.core.codec import encode, encode_value, tagged_hash
from converge_p2p.core.errors import CodecError
from converge_p2p.core.governance.check import least_honest_overlap
from converge_p2p.core.governance.formula import Threshold, encode_formula
from converge_p2p.core.identity import Identity, fingerprint
from converge_p2p.core.model.pool import GovernanceKind, ModelTerms, PoolSpec, pool_id
from converge_p2p.core.model.task import Outcome, TaskValue
from converge_p2p.core.oplog.bodies import Ballot, Body, Genesis, Phase, VoteBody
from converge_p2p.core.oplog.operation import sign_operation
from converge_p2p.core.types import OperationId, PoolId, TaskId
from converge_p2p.core.view.receipt import Receipt

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "verify_receipt.py"
VECTORS = json.loads((ROOT / "tests" / "vectors" / "receipts.json").read_text(encoding="utf-8"))
HOLDS = [(bytes.fromhex(case["hex"]), bytes.fromhex(case["pool"])) for case in VECTORS["holds"]]
FAILS = [bytes.fromhex(case["hex"]) for case in VECTORS["fails"]]
TASK = TaskId(tagged_hash("task", b"of the verifier"))


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("verify_receipt", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


VERIFIER = load()


def script_accepts(data: bytes, pool: bytes) -> bool:
    try:
        VERIFIER.verify(data, pool)
    except VERIFIER.NotProven:
        return False
    return True


def library_accepts(data: bytes, pool: bytes) -> bool:
    try:
        receipt = Receipt.from_bytes(data)
    except CodecError:
        return False
    return receipt.pool == pool and receipt.verify()


def agreed(data: bytes, pool: bytes) -> bool:
    accepted = script_accepts(data, pool)
    assert accepted == library_accepts(data, pool)
    return accepted


def test_good_receipts_are_accepted_and_say_what_they_prove() -> None:
    for data, pool in HOLDS:
        assert agreed(data, pool)
        receipt, proven = Receipt.from_bytes(data), VERIFIER.verify(data, pool)
        assert (proven.task, proven.worker, proven.result) == (receipt.task, receipt.value.worker, receipt.value.result)
        assert proven.outcome == receipt.value.outcome.name.lower()
    assert {len(Receipt.from_bytes(data).epochs) for data, _ in HOLDS} >= {0, 2}
    assert any(Receipt.from_bytes(data).veto for data, _ in HOLDS)


def test_proofs_that_lack_something_and_other_pools_are_refused() -> None:
    for data in FAILS:
        assert not agreed(data, Receipt.from_bytes(data).pool)
    for data, pool in HOLDS:
        assert not agreed(data, pool[:-1] + bytes([pool[-1] ^ 1]))


@pytest.mark.no_cover
@settings(max_examples=300, deadline=None)
@given(st.data())
def test_after_a_change_of_some_bytes_both_say_the_same(data: st.DataObject) -> None:
    good, pool = data.draw(st.sampled_from(HOLDS))
    changed = bytearray(good)
    at = data.draw(st.integers(0, len(good) - 1))
    kind = data.draw(st.sampled_from(["flip", "drop", "add", "cut"]))
    if kind == "flip":
        changed[at] ^= data.draw(st.integers(1, 255))
    elif kind == "drop":
        del changed[at]
    elif kind == "add":
        changed.insert(at, data.draw(st.integers(0, 255)))
    else:
        del changed[at:]
    assert not agreed(bytes(changed), pool)


JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.binary(max_size=40), st.text(max_size=5), st.just([])
)


@pytest.mark.no_cover
@settings(max_examples=300, deadline=None)
@given(st.data())
def test_after_a_change_of_a_field_both_say_the_same(data: st.DataObject) -> None:
    good, pool = data.draw(st.sampled_from(HOLDS))
    fields = VERIFIER.decode(good)
    place = fields
    for _ in range(data.draw(st.integers(0, 4))):
        inner = [item for item in place if isinstance(item, list) and item]
        if not inner:
            break
        place = data.draw(st.sampled_from(inner))
    at = data.draw(st.integers(0, len(place) - 1))
    match data.draw(st.sampled_from(["replace", "drop", "twice", "reverse", "junk"])):
        case "replace":
            other = VERIFIER.decode(data.draw(st.sampled_from(HOLDS))[0])
            place[at] = data.draw(st.sampled_from(other))
        case "drop":
            del place[at]
        case "twice":
            place.insert(at, place[at])
        case "reverse":
            place.reverse()
        case "junk":
            place[at] = data.draw(JUNK)
    agreed(encode(fields), pool)


PEOPLE = sorted((Identity.from_seed(bytes([number]) * 32) for number in range(5)), key=lambda each: each.public_key)
KEYS = tuple(each.public_key for each in PEOPLE)
ELECTORS = KEYS[:4]


def sign(number: int, pool: PoolId, body: Body, *, seq: int = 0, epoch: int = 0) -> bytes:
    prev = OperationId(b"p" * 32) if seq else None
    return sign_operation(PEOPLE[number], pool, body, seq=seq, prev=prev, epoch=epoch, hlc=1).signed


def custom() -> bytes:
    inner = Threshold.flat(2, ELECTORS[:3])
    return encode_formula(Threshold(3, ((2, inner), (1, ELECTORS[2]), (1, ELECTORS[3]))))


TERMS: dict[str, dict[str, Any]] = {
    "democratic": {"governance": GovernanceKind.DEMOCRATIC},
    "democratic, f=1": {"governance": GovernanceKind.DEMOCRATIC, "faults": 1},
    "quorum of all": {"governance": GovernanceKind.DEMOCRATIC, "quorum": 4},
    "private": {"governance": GovernanceKind.DEMOCRATIC, "private": True},
    "dictatorial": {
        "governance": GovernanceKind.DICTATORIAL,
        "model": ModelTerms(leader=KEYS[1], successor=KEYS[3], provisional=True),
    },
    "alone": {"governance": GovernanceKind.DICTATORIAL, "electors": KEYS[:1]},
    "bicameral": {
        "governance": GovernanceKind.BICAMERAL,
        "model": ModelTerms(chambers=(ELECTORS[:2], ELECTORS[1:])),
    },
    "bicameral with tie-breaker": {
        "governance": GovernanceKind.BICAMERAL,
        "model": ModelTerms(
            chambers=(ELECTORS[:2], ELECTORS[1:]), chamber_quorums=(2, 3), tie_breaker=KEYS[0], provisional=True
        ),
    },
    "empirical": {
        "governance": GovernanceKind.EMPIRICAL,
        "faults": 1,
        "model": ModelTerms(weights=(1, 2, 3, 4), speculative=2, evidence=1, provisional=True),
    },
    "custom": {
        "governance": GovernanceKind.CUSTOM,
        "model": ModelTerms(formula=custom(), provisional=True),
    },
}


@pytest.mark.parametrize("name", TERMS)
def test_both_count_the_votes_of_every_model_alike(name: str) -> None:
    terms = {"electors": ELECTORS} | TERMS[name]
    spec = PoolSpec("verifier", b"n" * 16, **terms)
    pool = pool_id(KEYS[0], spec)
    genesis = sign(0, pool, Genesis(spec))
    value = TaskValue(Outcome.COMPLETED, KEYS[4], encode_value("done"))
    accept = Ballot(Phase.ACCEPT, TASK, 0, value.hash)
    accepted = 0
    for who in itertools.chain.from_iterable(itertools.combinations(range(5), count) for count in range(6)):
        votes = tuple(sign(number, pool, VoteBody((accept,)), seq=1) for number in who)
        accepted += agreed(Receipt(pool, TASK, value, genesis, votes).to_bytes(), pool)
    assert 0 < accepted < 32


UNSAFE: dict[str, dict[str, Any]] = {
    "half": {"governance": GovernanceKind.DEMOCRATIC, "quorum": 2},
    "too many may lie": {"governance": GovernanceKind.DEMOCRATIC, "quorum": 3, "faults": 2},
    "bicameral": {
        "governance": GovernanceKind.BICAMERAL,
        "model": ModelTerms(chambers=(ELECTORS[:2], ELECTORS[2:]), chamber_quorums=(1, 1)),
    },
    "empirical": {
        "governance": GovernanceKind.EMPIRICAL,
        "quorum": 5,
        "model": ModelTerms(weights=(1, 2, 3, 4), speculative=2),
    },
    "custom": {
        "governance": GovernanceKind.CUSTOM,
        "model": ModelTerms(formula=encode_formula(Threshold.flat(2, ELECTORS))),
    },
}


@pytest.mark.parametrize("name", UNSAFE)
def test_terms_under_which_two_sets_could_decide_differently_are_refused_by_both_unless_they_say_so(name: str) -> None:
    value = TaskValue(Outcome.COMPLETED, KEYS[4], encode_value("done"))
    for provisional in (False, True):
        terms = {"electors": ELECTORS, "model": ModelTerms()} | UNSAFE[name]
        spec = PoolSpec("verifier", b"n" * 16, **terms | {"model": replace(terms["model"], provisional=provisional)})
        pool = pool_id(KEYS[0], spec)
        accept = VoteBody((Ballot(Phase.ACCEPT, TASK, 0, value.hash),))
        votes = tuple(sign(number, pool, accept, seq=1) for number in range(4))
        proof = Receipt(pool, TASK, value, sign(0, pool, Genesis(spec)), votes)
        assert agreed(proof.to_bytes(), pool) is provisional
        if provisional:
            (terms_said,) = VERIFIER.verify(proof.to_bytes(), pool).terms
            assert "may share only" in terms_said.unsafe
            assert proof.prove().terms[0].rules.provisional
        else:
            with pytest.raises(VERIFIER.NotProven, match="no pool may have these terms"):
                VERIFIER.verify(proof.to_bytes(), pool)


formulas = st.recursive(
    st.sampled_from(KEYS),
    lambda parts: st.builds(
        lambda share, items: Threshold(1 + share % sum(weight for weight, _ in items), tuple(items)),
        st.integers(0, 100),
        st.lists(st.tuples(st.integers(1, 3), parts), min_size=1, max_size=5),
    ),
    max_leaves=10,
).filter(lambda made: isinstance(made, Threshold) and made.depth <= 4)


@pytest.mark.no_cover
@settings(max_examples=300, deadline=None)
@given(formulas, st.integers(0, 3), st.sets(st.sampled_from(KEYS), max_size=2))
def test_both_find_the_same_two_sets_that_share_least(made: Threshold, faults: int, trusted: set[Any]) -> None:
    least = least_honest_overlap(made, made, trusted=frozenset(trusted), enough=faults + 1)
    said = VERIFIER.lacking_overlap(
        VERIFIER.read_formula(VERIFIER.decode(encode_formula(made)), 4), faults, tuple(sorted(trusted))
    )
    assert said == (
        "" if least is None else f"two sets that decide may share only {least} electors, of which {faults} may lie"
    )
    # against every pair of sets, where these are few enough
    sets = [set(some) for count in range(len(KEYS) + 1) for some in itertools.combinations(KEYS, count)]
    deciding = [some for some in sets if made.satisfied_by(some)]
    shared = [len(one & other) for one in deciding for other in deciding if not one & other & trusted]
    assert (min(shared, default=faults + 1) > faults) is (said == "")


def test_votes_of_other_rounds_epochs_phases_and_values_do_not_add_up() -> None:
    spec = PoolSpec("verifier", b"n" * 16, GovernanceKind.DEMOCRATIC, ELECTORS)
    pool = pool_id(KEYS[0], spec)
    genesis = sign(0, pool, Genesis(spec))
    value = TaskValue(Outcome.COMPLETED, KEYS[4], encode_value("done"))
    good = Ballot(Phase.ACCEPT, TASK, 0, value.hash)
    others = [
        Ballot(Phase.ACCEPT, TASK, 1, value.hash),
        Ballot(Phase.ENDORSE, TASK, 0, value.hash),
        Ballot(Phase.ACCEPT, TaskId(b"o" * 32), 0, value.hash),
        Ballot(Phase.ACCEPT, TASK, 0, TaskValue(Outcome.COMPLETED, KEYS[3], b"").hash),
    ]
    two = [sign(number, pool, VoteBody((good,)), seq=1) for number in range(2)]
    thirds = [sign(2, pool, VoteBody((ballot,)), seq=1) for ballot in others]
    thirds += [sign(2, pool, VoteBody((good,)), seq=1, epoch=1), two[0], genesis]
    for third in thirds:
        assert not agreed(Receipt(pool, TASK, value, genesis, (*two, third)).to_bytes(), pool)
    both = sign(2, pool, VoteBody((*others[:3], good)), seq=1)
    assert agreed(Receipt(pool, TASK, value, genesis, (*two, both)).to_bytes(), pool)


_ALONE = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as ended:
    loaded = {name.partition(".")[0] for name, module in sys.modules.items()
              if "site-packages" in (getattr(module, "__file__", None) or "")}
    print(",".join(sorted(loaded)))
    sys.exit(ended.code)
"""


def test_it_runs_with_two_packages_and_says_how_it_ended(tmp_path: Path) -> None:
    data, pool = HOLDS[0]
    file = tmp_path / "receipt"
    file.write_bytes(data)

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-I", "-c", _ALONE, str(SCRIPT), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    good = run(str(file), pool.hex())
    assert (good.returncode, "completed" in good.stdout) == (0, True), good.stderr
    receipt = Receipt.from_bytes(data)
    said = dict(line.split(maxsplit=1) for line in good.stdout.replace("accepted by", "accepted_by").splitlines()[:-1])
    assert said["worker"] == fingerprint(receipt.value.worker)
    assert said["accepted_by"] == ", ".join(fingerprint(key)[:12] for key in receipt.prove().signers)
    # the last two belong to environments and not to packages
    theirs = {"nacl", "_sodium", "cffi", "_cffi_backend", "cbor2", "_distutils_hack", "_virtualenv"}
    assert {"nacl", "cbor2"} <= set(good.stdout.splitlines()[-1].split(",")) <= theirs
    other = run(str(file), "00" * 32)
    assert (other.returncode, "not proven: a receipt of another pool" in other.stderr) == (1, True)
    assert run(str(file)).returncode == run(str(tmp_path / "none"), pool.hex()).returncode == 2
