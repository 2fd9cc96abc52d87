"""The dashboard and the alert rules speak of metrics and labels that exist."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from baton_serving.gateway import metrics as gateway
from baton_serving.runtime import metrics as worker

FILES = Path(__file__).parents[2] / "charts" / "baton" / "files"
ADDED_BY_PROMETHEUS = {"namespace", "pod", "instance", "le", "job"}
_METRIC = re.compile(r"\bbaton_\w+")
_LABELS = re.compile(r"by \(([^)]*)\)|\{([^}]*)\}")


def known() -> dict[str, set[str]]:
    """Labels of every series that gateways and workers expose."""
    series: dict[str, set[str]] = {}
    specs: list[tuple[str, str, tuple[str, ...]]] = []
    specs += [(one.name, one.kind, one.labels) for one in gateway.METRICS]
    specs += [(one.name, one.kind, one.labels) for one in worker.METRICS]
    for name, kind, labels in specs:
        suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(kind, [""])
        series |= {name + suffix: set(labels) | ADDED_BY_PROMETHEUS for suffix in suffixes}
    return series


def expressions() -> list[tuple[str, str]]:
    panels = json.loads((FILES / "dashboard.json").read_text())["panels"]
    queries = [
        (f"{one['title']}, {query['refId']}", query["expr"] + query["legendFormat"].replace("{{", "{"))
        for one in panels
        for query in one.get("targets", [])
    ]
    return [*queries, *((rule["alert"], rule["expr"]) for rule in yaml.safe_load((FILES / "alerts.yaml").read_text()))]


def strangers(expression: str) -> set[str]:
    """Metrics that do not exist, and labels that none of the expression's metrics has."""
    series = known()
    metrics = set(_METRIC.findall(expression))
    labels = {
        re.split(r"[=!]", label.strip())[0]
        for group in _LABELS.findall(expression)
        for label in "".join(group).split(",")
    }
    allowed = set[str]().union(*(series.get(name, set()) for name in metrics))
    return (metrics - series.keys()) | (labels - allowed)


@pytest.mark.parametrize(("name", "expression"), expressions(), ids=[name for name, _ in expressions()])
def test_an_expression_names_what_exists(name: str, expression: str) -> None:
    assert _METRIC.search(expression)
    assert strangers(expression) == set()


def test_strangers_are_found() -> None:
    assert strangers("sum by (colour) (baton_gateway_legs)") == {"colour"}
    assert strangers("baton_gateway_request_total") == {"baton_gateway_request_total"}
    assert strangers('baton_gateway_legs{size="1"}') == {"size"}


def test_every_alert_says_what_to_do() -> None:
    for rule in yaml.safe_load((FILES / "alerts.yaml").read_text()):
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"].endswith(".")
