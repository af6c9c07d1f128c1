"""Metrics: every name that is counted under is described, labels are few, and Prometheus reads the text."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from node_library_kit import DriverRig, spec_of
from prometheus_client.parser import text_string_to_metric_families

from converge_p2p.core import limits
from converge_p2p.core.model.task import Outcome, task_id
from converge_p2p.core.replica import events as ev
from converge_p2p.node import gauges
from converge_p2p.node.exposition import metrics_text
from converge_p2p.node.metric_catalogue import COUNTERS, FAMILIES, GAUGES, MEASURED, SPREADS, all_metrics, metric_of
from converge_p2p.node.observation import Observation
from converge_p2p.runtime.metrics import OTHER, SECONDS, MemoryMetrics, NoMetrics

ROOT = Path(__file__).resolve().parents[2]
ELSEWHERE = {"converge_p2p/runtime/workbook.py", "converge_p2p/runtime/workers.py", "converge_p2p/runtime/outcomes.py"}
"""Their counters come out as `work_<name>`, or one by one in an agent's health."""


def trees() -> Iterator[tuple[str, ast.Module]]:
    for room in ("net", "node", "runtime"):
        for path in sorted((ROOT / "converge_p2p" / room).rglob("*.py")):
            yield str(path.relative_to(ROOT)), ast.parse(path.read_text(encoding="utf-8"))


def texts(node: ast.expr) -> Iterator[str]:
    """The names that an expression can give; of one with a changing end, its beginning and a star."""
    match node:
        case ast.Constant(str(name)):
            yield name
        case ast.IfExp(_, one, other):
            yield from texts(one)
            yield from texts(other)
        case ast.JoinedStr([ast.Constant(str(begin)), *_]):
            yield f"{begin}*"


def counted() -> Iterator[tuple[str, str]]:
    """Every name that the code counts under, with its file."""
    for path, tree in trees():
        if path in ELSEWHERE:
            continue
        for node in ast.walk(tree):
            match node:
                case ast.Subscript(ast.Name(name) | ast.Attribute(_, name), key) if re.search("count(er)?s$", name):
                    yield from ((text, path) for text in texts(key))
                case ast.Call(ast.Attribute(_, "count" | "_refuse"), arguments):
                    yield from ((text, path) for each in arguments for text in texts(each) if " " not in text)
                case ast.Call(ast.Name("Counter"), [], keywords):
                    yield from ((word.arg, path) for word in keywords if word.arg)


def measured(method: str) -> set[str]:
    found: set[str] = set()
    for _, tree in trees():
        for node in ast.walk(tree):
            match node:
                case ast.Call(ast.Attribute(_, name), [ast.Constant(str(said)), *_]) if name == method:
                    found.add(said)
    return found


def test_every_counter_that_the_code_counts_under_is_described() -> None:
    names = dict(counted())
    assert len(names) > 100, "the search does not find them any more"
    missing = {
        f"{name} ({path})"
        for name, path in names.items()
        if not (name in COUNTERS or name in GAUGES or (name.endswith("*") and name[:-1] in FAMILIES))
    }
    assert missing == set()


def test_no_description_is_of_a_counter_that_is_gone() -> None:
    source = "".join((ROOT / path).read_text(encoding="utf-8") for path, _ in trees())
    source += (ROOT / "node/converge_node/control/observing.py").read_text(encoding="utf-8")
    catalogue = (ROOT / "converge_p2p/node/metric_catalogue.py").read_text(encoding="utf-8")
    source = source.replace(catalogue, "")
    gone = [name for name in COUNTERS if f'"{name}"' not in source and f"{name}=" not in source]
    assert gone == []


def test_what_is_measured_through_the_port_is_described_and_nothing_else() -> None:
    assert measured("observe") | measured("_took") == set(SPREADS)
    assert {name for name in measured("add") if name in MEASURED} == set(MEASURED)


def test_every_metric_has_one_name_a_sentence_and_its_unit_at_the_end() -> None:
    listed = [*MEASURED.values(), *SPREADS.values(), *GAUGES.values(), *FAMILIES.values()]
    listed += [metric_of(name)[0] for name in COUNTERS]
    names = [metric.name for metric in listed]
    assert len(names) == len(set(names))
    for metric in listed:
        assert re.fullmatch(r"converge_[a-z][a-z0-9_]*", metric.name)
        assert metric.help.endswith(".")
        assert not metric.name.endswith("_total")
        assert metric.unit in ("", "seconds", "bytes")
        assert metric.name.endswith(metric.unit)


def test_prometheus_reads_everything_as_it_is_meant() -> None:
    metrics = MemoryMetrics()
    for name in MEASURED:
        metrics.add(name, 2, label='a "label"\\\n' if MEASURED[name].label else "")
    for name in SPREADS:
        for seconds in (0.0001, SECONDS[0], 7.0, 1e6):
            metrics.observe(name, seconds)
    counters = {**dict.fromkeys(COUNTERS, 3), "rejected_bad_signature": 4, "work_claims": 5, "unheard_of": 6}
    read = [(name, 1.5, "x" if GAUGES[name].label else "") for name in GAUGES]
    families = {family.name: family for family in text_string_to_metric_families(metrics_text(counters, read, metrics))}
    known = {metric.name: metric for metric in all_metrics().values()}
    assert set(families) <= set(known)
    assert {metric.name for metric in (*MEASURED.values(), *SPREADS.values(), *GAUGES.values())} <= set(families)
    for name, family in families.items():
        assert family.type == known[name].kind
        assert family.documentation == known[name].help
    value = {sample.name: sample.value for family in families.values() for sample in family.samples}
    assert value["converge_sent_total"] == 3
    assert value["converge_claims_total"] == 2
    rejected = families["converge_operations_rejected"].samples[0]
    assert (rejected.labels, rejected.value) == ({"reason": "bad_signature"}, 4)
    assert families["converge_other"].samples[0].labels == {"name": "unheard_of"}
    commits = {s.labels.get("le"): s.value for s in families["converge_store_commit_seconds"].samples}
    # a value on the bound of a bucket is in it
    assert commits[str(SECONDS[0])] == 2
    assert commits["10.0"] == 3
    assert commits["+Inf"] == 4


def test_labels_are_few_whatever_is_counted() -> None:
    metrics = MemoryMetrics()
    for number in range(3 * limits.METRIC_LABELS_MAX):
        metrics.add("claims", label=str(number))
    by_label = metrics.counts()["claims"]
    assert len(by_label) == limits.METRIC_LABELS_MAX + 1
    assert by_label[OTHER] == 2 * limits.METRIC_LABELS_MAX
    counters = {f"rejected_{number}": 1 for number in range(3 * limits.METRIC_LABELS_MAX)}
    (family,) = [
        family
        for family in text_string_to_metric_families(metrics_text(counters, [], NoMetrics()))
        if family.name == "converge_operations_rejected"
    ]
    assert len(family.samples) == limits.METRIC_LABELS_MAX + 1
    assert sum(sample.value for sample in family.samples) == 3 * limits.METRIC_LABELS_MAX


def test_pools_beyond_the_bound_are_shown_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gauges, "_pool", lambda _pool, _: {"pool_operations": 2, "pool_oldest_task_seconds": 7.0})
    count = limits.METRIC_POOLS_MAX + 5
    pools: Any = {bytes([number]) * 32: object() for number in range(count)}
    read = list(gauges._pools(pools, Observation()))
    labels = {label for _, _, label in read}
    assert len(labels) == limits.METRIC_POOLS_MAX + 1
    assert ("pool_operations", 10, OTHER) in read
    assert ("pool_oldest_task_seconds", 7, OTHER) in read


async def test_what_happens_to_a_task_is_counted_and_timed(autojump_clock: Any) -> None:
    rig, observation = DriverRig(), Observation()
    driver = rig.found()
    watcher = driver.watcher = observation.watch(driver.replica)
    task = task_id(driver.pool, rig.identity.public_key, b"k")
    async with rig.running():
        driver.propose(ev.Submit(spec_of()))
        await rig.passes(1.0)
        oldest, held = watcher.oldest_s()
        assert 0.5 < oldest < 1.5
        assert held == 0
        driver.propose(ev.Claim(task))
        await rig.passes(2.0)
        assert watcher.oldest_s()[1] > 1.0
        driver.propose(ev.Report(task, Outcome.COMPLETED, b"\xf6"))
        await rig.passes(1.0)
    assert watcher.oldest_s() == (0, 0)
    assert isinstance(observation.metrics, MemoryMetrics)
    counts = observation.metrics.counts()
    assert counts["claims"] == {"asked": 1, "granted": 1}
    assert (counts["tasks_submitted"], counts["tasks_heard"], counts["grants"]) == ({"": 1}, {"": 1}, {"": 1})
    assert counts["settlements"] == {"completed": 1}
    spreads = observation.metrics.spreads()
    assert {name: spread.count for name, spread in spreads.items()} == {
        "task_settle": 1, "claim_settle": 1, "claim_grant": 1,
    }  # fmt: skip
    assert spreads["task_settle"].total_s > spreads["claim_settle"].total_s > 1.0


async def test_every_operation_that_is_read_is_counted_with_its_cost_also_a_bad_one() -> None:
    rig, observation = DriverRig(), Observation()
    good = rig.writer
    rig.found()
    signed = good.rows[-1][1]
    assert observation.read_operation(signed, rig.driver.pool).signed == signed
    with pytest.raises(Exception, match="signature"):
        observation.read_operation(bytes([signed[0] ^ 1]) + signed[1:], rig.driver.pool)
    assert isinstance(observation.metrics, MemoryMetrics)
    counts = observation.metrics.counts()
    assert counts["operations_checked"] == {"": 2}
    assert counts["operation_check_seconds"][""] > 0
