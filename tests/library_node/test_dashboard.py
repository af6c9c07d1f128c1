"""The dashboard: every query names metrics and labels that there are, in a form that fits their kind."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from converge_p2p.node.metric_catalogue import all_metrics

DASHBOARD = json.loads(
    (Path(__file__).resolve().parents[2] / "docs" / "grafana" / "converge-p2p.json").read_text(encoding="utf-8")
)
KNOWN = all_metrics()


def queries(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        yield from (value for key, value in node.items() if key in ("expr", "query") and isinstance(value, str))
        for value in node.values():
            yield from queries(value)
    elif isinstance(node, list):
        for value in node:
            yield from queries(value)


def test_every_query_names_metrics_that_exist() -> None:
    found = [query for query in queries(DASHBOARD) if query != "prometheus"]
    assert len(found) > 30
    for query in found:
        names = re.findall(r"converge_\w+", query)
        assert names, query
        for name in names:
            base = re.sub(r"_(bucket|sum|count)$", "", name)
            metric = KNOWN.get(name) or KNOWN.get(base)
            assert metric is not None, f"{name} in {query}"
            assert (metric.kind == "histogram") == (name != base), f"{name} in {query}"
            assert (metric.kind == "counter") == name.endswith("_total"), name
            if metric.kind == "counter" and metric.name not in ("converge_forks",):
                assert re.search(rf"(rate|increase)\({name}", query), f"a counter is shown by its growth: {query}"
        for labels in re.findall(r"by \(([^)]*)\)", query):
            own = {KNOWN[name].label for name in names if name in KNOWN} | {"instance", "le"}
            assert set(labels.split(", ")) <= own, query


def test_every_panel_has_its_own_number_and_place() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]
    assert len(set(places)) == len(places)
