"""A node's metrics as text that Prometheus reads.

Knows: Prometheus' text format, through its client library, and the catalogue. Must not know: where numbers come from.
Source: Prometheus' exposition format 0.0.4. There is a registry for each reading, and none that is global.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from converge_p2p.core import limits
from converge_p2p.node.gauges import Reading
from converge_p2p.node.metric_catalogue import COUNTERS, GAUGES, MEASURED, OTHERS, SPREADS, Metric, metric_of
from converge_p2p.runtime.metrics import OTHER, SECONDS, MemoryMetrics, Metrics

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class _Once(Collector):
    """Gives the families of one reading."""

    def __init__(self, families: Iterable[Family]) -> None:
        self._families = families

    def collect(self) -> Iterable[Family]:
        return self._families


def metrics_text(counters: Mapping[str, float], gauges: Iterable[Reading], measured: Metrics) -> str:
    """Return everything as text.

    Args:
        counters: by their short names.
        gauges: what was read.
        measured: what was counted through the port; only what the node keeps itself can be read back.
    """
    # what has not happened yet is shown too: rates begin at nothing, and not at the first time
    samples: dict[Metric, dict[str, float]] = {metric_of(name)[0]: {"": 0} for name in COUNTERS}
    samples |= {metric: {"": 0} for metric in MEASURED.values() if not metric.label}
    for name, count in counters.items():
        metric, label = metric_of(name)
        _put(samples, metric, label, count)
    for name, value, label in gauges:
        _put(samples, GAUGES[name], label, value)
    if isinstance(measured, MemoryMetrics):
        for name, by_label in measured.counts().items():
            for label, amount in by_label.items():
                _put(samples, MEASURED.get(name, OTHERS), label if name in MEASURED else name, amount)
    families = [_family(metric, by_label) for metric, by_label in samples.items()]
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Once([*families, *_spreads(measured)]))
    return generate_latest(registry).decode()


def _put(samples: dict[Metric, dict[str, float]], metric: Metric, label: str, value: float) -> None:
    by_label = samples.setdefault(metric, {})
    if label not in by_label and len(by_label) >= limits.METRIC_LABELS_MAX:
        label = OTHER
    by_label[label] = by_label.get(label, 0) + value


def _family(metric: Metric, by_label: Mapping[str, float]) -> Family:
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    family = kind(metric.name, metric.help, labels=[metric.label] if metric.label else [])
    for label, value in sorted(by_label.items()):
        family.add_metric([label] if metric.label else [], value)
    return family


def _spreads(measured: Metrics) -> Iterator[Family]:
    if not isinstance(measured, MemoryMetrics):
        return
    for name, spread in measured.spreads().items():
        if name not in SPREADS:
            continue
        family = HistogramMetricFamily(SPREADS[name].name, SPREADS[name].help)
        buckets, so_far = [], 0
        for bound, count in zip((*map(str, SECONDS), "+Inf"), spread.counts, strict=True):
            so_far += count
            buckets.append((bound, so_far))
        family.add_metric([], buckets, spread.total_s)
        yield family
