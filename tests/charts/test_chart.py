"""What can be said of the chart without Helm: its plain files agree with each other and with the planner.

The templates are rendered and applied by the cluster tests; here only their braces are counted.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.fake_cluster import APIS, START, service_of

from baton_operator.crd import KINDS
from baton_operator.planner import Observed, Settings, plan
from baton_operator.planner.context import OPERATOR_NAME

CHART = Path(__file__).parents[2] / "charts" / "baton"
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
TEMPLATES = sorted(path for path in (CHART / "templates").rglob("*") if path.is_file())
TYPES = {"object": dict, "array": list, "string": str, "boolean": bool, "integer": int}
EVERYTHING = (
    "{model: {uri: 'hf://a/b'}, prefill: {parallelism: {tensor: 2, nodes: 2}}, "
    "decode: {parallelism: {tensor: 2}, autoscaling: {maxReplicas: 2}}, metrics: {podMonitor: true}, "
    "gateway: {route: {parents: [{name: g}]}, ingress: {host: h}}, security: {token: {name: t, key: k}}}"
)


def disagreements(value: Any, schema: dict[str, Any], path: str = "") -> list[str]:
    found = []
    if "enum" in schema and value not in schema["enum"]:
        found.append(f"{path}: {value!r} is not among {schema['enum']}")
    if "type" in schema and not isinstance(value, TYPES[schema["type"]]):
        found.append(f"{path}: {value!r} is not of type {schema['type']}")
    known = schema.get("properties", {})
    if isinstance(value, dict) and known:
        found += [f"{path}.{name}: not in the schema" for name in value if name not in known]
        found += [f"{path}.{name}: no default" for name in known if name not in value and name != "global"]
        for name in value.keys() & known.keys():
            found += disagreements(value[name], known[name], f"{path}.{name}")
    return found


def test_values_and_schema_agree() -> None:
    assert disagreements(VALUES, SCHEMA) == []
    assert disagreements({**VALUES, "crd": {}}, SCHEMA) == [".crd: not in the schema"]


def test_every_value_that_a_template_reads_exists() -> None:
    for path in TEMPLATES:
        for name in re.findall(r"\.Values\.([\w.]+)", path.read_text()):
            value: Any = VALUES
            for part in name.split("."):
                assert part in value, f"{path.name}: .Values.{name}"
                value = value[part]


def test_every_value_is_read_by_a_template() -> None:
    text = "".join(path.read_text() for path in TEMPLATES)
    for group, values in VALUES.items():
        for name in values if isinstance(values, dict) else [""]:
            assert f".Values.{group}" + (f".{name}" if name else "") in text


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_template_blocks_are_closed(path: Path) -> None:
    text = path.read_text()
    assert text.count("{{") == text.count("}}")
    opened = re.findall(r"{{-?\s*(?:if|range|with|define)\b", text)
    assert len(opened) == len(re.findall(r"{{-?\s*end\b", text))


def test_definitions_are_kept_when_the_release_goes() -> None:
    for kind in KINDS:
        text = (CHART / "templates" / "crds" / f"{kind.plural}.yaml").read_text()
        body = "\n".join(line for line in text.splitlines() if not line.startswith("{{"))
        definition = yaml.safe_load(body)
        assert definition["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
        assert "{{" not in body


def rules(*names: str) -> dict[tuple[str, str], set[str]]:
    """Verbs by API group and resource, of all rules unless some are named."""
    entries = [
        entry
        for name in names or ("rules", "secret-rules")
        for entry in yaml.safe_load((CHART / "files" / f"{name}.yaml").read_text())
    ]
    return {
        (group, resource): set(entry["verbs"])
        for entry in entries
        for group in entry["apiGroups"]
        for resource in entry["resources"]
    }


def plural(kind: str) -> str:
    return {"NetworkPolicy": "networkpolicies", "Ingress": "ingresses"}.get(kind, f"{kind.lower()}s")


def test_the_operator_may_apply_and_delete_what_it_plans_and_nothing_else() -> None:
    made = plan(service_of(EVERYTHING), Observed(), START, Settings(apis=APIS))
    applied, created = (
        {(str(item["apiVersion"]).rpartition("/")[0], plural(str(item["kind"]))) for item in items}
        for items in (made.apply, made.create)
    )
    applied.add(("", "secrets"))  # made by the reconciler beside the plan, where security.mutualTls asks for them
    written = {key for key, verbs in rules().items() if "delete" in verbs}
    assert written == applied | created
    assert all(rules()[key] >= {"list", "create", "delete"} for key in written)
    assert {key for key in written if "patch" in rules()[key]} == applied


def test_no_rule_reaches_everything() -> None:
    for (group, resource), verbs in rules().items():
        assert "*" not in (group, resource, *verbs)


def test_secrets_are_out_of_reach_unless_asked_for() -> None:
    assert VALUES["secrets"] is False
    assert ("", "secrets") not in rules("rules")
    assert rules("secret-rules") == {("", "secrets"): {"get", "list", "create", "patch", "delete"}}


def test_the_operators_pods_are_those_that_network_policies_let_in() -> None:
    assert f"app.kubernetes.io/name: {OPERATOR_NAME}\n" in (CHART / "templates" / "_helpers.tpl").read_text()


def test_the_chart_has_the_version_of_the_package() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    project = (CHART.parents[1] / "pyproject.toml").read_text()
    assert f'\nversion = "{chart["appVersion"]}"\n' in project
    assert Settings().worker_image.endswith(f":{chart['appVersion']}")
