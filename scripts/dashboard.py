"""Write the Grafana dashboard of a service, charts/baton/files/dashboard.json, or say with --check that it is stale."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

DASHBOARD = Path(__file__).resolve().parents[1] / "charts" / "baton" / "files" / "dashboard.json"
_WIDTH, _HEIGHT, _COLUMNS = 8, 8, 3


@dataclass(frozen=True)
class Panel:
    """One graph. `queries` are pairs of a legend and an expression."""

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]


def _rate(metric: str, by: str = "") -> str:
    return f"sum{f' by ({by})' if by else ''} (rate({metric}[$__rate_interval]))"


def _quantiles(metric: str) -> tuple[tuple[str, str], ...]:
    return tuple(
        (name, f"histogram_quantile({q}, {_rate(f'{metric}_bucket', 'le')})")
        for name, q in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))
    )


ROWS: tuple[tuple[str, tuple[Panel, ...]], ...] = (
    (
        "Gateway",
        (
            Panel("Requests by outcome", "reqps", (("{{outcome}}", _rate("baton_gateway_requests_total", "outcome")),)),
            Panel("Time to first byte", "s", _quantiles("baton_gateway_time_to_first_byte_seconds")),
            Panel("Request duration", "s", _quantiles("baton_gateway_request_duration_seconds")),
            Panel("Open requests", "short", (("{{state}}", "sum by (state) (baton_gateway_open_requests)"),)),
            Panel(
                "Lost legs and migrations",
                "ops",
                (
                    ("lost {{leg}}", _rate("baton_gateway_lost_legs_total", "leg")),
                    ("migrated: {{how}}", _rate("baton_gateway_migrations_total", "how")),
                ),
            ),
            Panel(
                "Workers in view",
                "short",
                (
                    ("{{role}} {{state}}", "max by (role, state) (baton_gateway_workers)"),
                    ("open circuits: {{kind}}", "sum by (kind) (baton_gateway_open_circuits)"),
                ),
            ),
        ),
    ),
    (
        "Workers",
        (
            Panel("Time to first token", "s", _quantiles("baton_time_to_first_token_seconds")),
            Panel("Time between tokens", "s", _quantiles("baton_inter_token_latency_seconds")),
            Panel("Time in the queue", "s", _quantiles("baton_queue_time_seconds")),
            Panel(
                "Requests",
                "short",
                tuple(
                    (name, f"sum (baton_requests_{name})") for name in ("waiting", "prefilling", "running", "reserved")
                ),
            ),
            Panel(
                "Tokens",
                "short",
                (
                    ("prompt", _rate("baton_prompt_tokens_total")),
                    ("cached", _rate("baton_cached_tokens_total")),
                    ("generated", _rate("baton_generation_tokens_total")),
                ),
            ),
            Panel("KV pool in use", "percentunit", (("{{instance}}", "baton_token_usage_ratio"),)),
        ),
    ),
    (
        "Handoff",
        (
            Panel("Bytes between workers", "Bps", (("sent", _rate("baton_handoff_sent_bytes_total")),)),
            Panel(
                "Handoffs",
                "ops",
                (
                    ("delivered", _rate("baton_handoffs_delivered_total")),
                    ("send failures", _rate("baton_handoff_send_failures_total")),
                    ("receive failures", _rate("baton_handoff_receive_failures_total")),
                ),
            ),
            Panel(
                "Pages out of reach",
                "short",
                (
                    ("quarantined", "sum (baton_kv_pages_quarantined)"),
                    ("still being read", "sum (baton_handoff_source_pages_quarantined)"),
                ),
            ),
        ),
    ),
)


def dashboard() -> str:
    """The dashboard as Grafana imports it; its data source is a variable."""
    panels: list[dict[str, object]] = []
    top = 0
    for title, row in ROWS:
        panels.append({"type": "row", "title": title, "collapsed": False, "gridPos": _place(0, top, 24, 1)})
        top += 1
        for index, panel in enumerate(row):
            line, column = divmod(index, _COLUMNS)
            panels.append(_panel(panel, _place(column * _WIDTH, top + line * _HEIGHT, _WIDTH, _HEIGHT)))
        top += -(-len(row) // _COLUMNS) * _HEIGHT
    for number, one in enumerate(panels, 1):
        one["id"] = number
    source = {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}
    whole = {
        "uid": "baton",
        "title": "Baton",
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [source]},
        "panels": panels,
    }
    return json.dumps(whole, indent=1) + "\n"


def _place(x: int, y: int, width: int, height: int) -> dict[str, int]:
    return {"x": x, "y": y, "w": width, "h": height}


def _panel(panel: Panel, place: dict[str, int]) -> dict[str, object]:
    source = {"type": "prometheus", "uid": "${datasource}"}
    return {
        "type": "timeseries",
        "title": panel.title,
        "datasource": source,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": panel.unit}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + index), "datasource": source, "expr": expression, "legendFormat": legend}
            for index, (legend, expression) in enumerate(panel.queries)
        ],
    }


def main(check: bool) -> int:
    """Exit status 1 when `check` finds that the file differs from what would be written."""
    if DASHBOARD.exists() and DASHBOARD.read_text() == dashboard():
        return 0
    print("charts/baton/files/dashboard.json " + ("is stale: run make docs" if check else "written"))
    if not check:
        DASHBOARD.write_text(dashboard())
    return int(check)


if __name__ == "__main__":
    sys.exit(main(check="--check" in sys.argv[1:]))
