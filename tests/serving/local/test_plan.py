from __future__ import annotations

from pathlib import Path

import pytest

from baton_operator.api import InferenceService, parse_manifest
from baton_serving.errors import ConfigError
from baton_serving.local.plan import MEETING, Kind, Machine, Plan, ProcessSpec, make_plan

MACHINE = Machine(cores=8)
HEAD = "apiVersion: baton.dev/v1alpha1\nkind: InferenceService\nmetadata: {name: demo}\n"


def service(spec: str = "", uri: str = "file://.") -> InferenceService:
    return parse_manifest(f"{HEAD}spec:\n  model: {{uri: '{uri}'}}\n{spec}".encode())


def plan_of(tmp_path: Path, spec: str = "", machine: Machine = MACHINE, port: int | None = None) -> Plan:
    return make_plan(service(spec), tmp_path, machine, gateway_port=port)


def worker(plan: Plan, name: str) -> ProcessSpec:
    return next(spec for spec in plan.processes if spec.name == name)


def flag(spec: ProcessSpec, name: str) -> str | None:
    return spec.argv[spec.argv.index(name) + 1] if name in spec.argv else None


def test_a_service_is_bootstrap_workers_and_gateway(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "  prefill: {replicas: 2}\n  decode: {replicas: 3}\n  bootstrap: {replicas: 2}\n")
    assert [spec.name for spec in plan.processes] == [
        *("bootstrap-0", "bootstrap-1", "prefill-0", "prefill-1", "decode-0", "decode-1", "decode-2", "gateway")
    ]
    assert {spec.env["BATON_WORKER_ID"] for spec in plan.of(Kind.WORKER)} == {
        spec.name for spec in plan.of(Kind.WORKER)
    }


def test_the_manifest_becomes_flags(tmp_path: Path) -> None:
    plan = plan_of(
        tmp_path,
        "  prefill: {parallelism: {tensor: 2}, extraArgs: ['--page-size', '16']}\n"
        "  decode: {env: [{name: X, value: 'y'}]}\n"
        "  transfer: {backend: nixl, protocol: rdma, devices: [mlx5_0, mlx5_1]}\n"
        "  gateway: {policy: round_robin, port: 9000}\n"
        "  bootstrap: {leaseSeconds: 7}\n",
    )
    prefill, decode = worker(plan, "prefill-0"), worker(plan, "decode-0")
    assert flag(prefill, "--model-path") == str(tmp_path)
    assert flag(prefill, "--served-model-name") == "demo"
    assert (flag(prefill, "--disaggregation-mode"), flag(decode, "--disaggregation-mode")) == ("prefill", "decode")
    assert (flag(prefill, "--tp-size"), flag(decode, "--tp-size")) == ("2", "1")
    assert flag(prefill, "--disaggregation-transfer-backend") == "nixl"
    assert flag(prefill, "--disaggregation-transfer-protocol") == "rdma"
    assert flag(prefill, "--disaggregation-ib-device") == "mlx5_0,mlx5_1"
    assert prefill.argv[-2:] == ("--page-size", "16")
    assert decode.env["X"] == "y"
    assert flag(worker(plan, "gateway"), "--port") == "9000"
    assert flag(worker(plan, "gateway"), "--policy") == "round_robin"
    assert flag(worker(plan, "bootstrap-0"), "--lease") == "7"


def test_no_prefill_means_whole_workers(tmp_path: Path) -> None:
    by_manifest = plan_of(tmp_path, "  prefill: {replicas: 0}\n  decode: {replicas: 2}\n")
    by_option = make_plan(service("  decode: {replicas: 2}\n"), tmp_path, MACHINE, undivided=True)
    assert by_manifest.processes == by_option.processes
    assert [spec.name for spec in by_manifest.of(Kind.WORKER)] == ["worker-0", "worker-1"]
    assert flag(worker(by_manifest, "worker-0"), "--disaggregation-mode") == "null"
    assert flag(worker(by_manifest, "worker-0"), "--disaggregation-transfer-backend") is None


def test_commands_take_what_others_announced_and_leave_the_rest_to_the_system(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "  decode: {extraArgs: ['--json-model-override-args', '{\"a\": {}}']}\n", port=0)
    known = {"{bootstrap}": "h:1,h:2"}
    command = worker(plan, "decode-0").command(known)
    assert command[command.index("--disaggregation-bootstrap-addr") + 1] == "h:1,h:2"
    assert command[-1] == '{"a": {}}'
    gateway = worker(plan, "gateway")
    assert flag_of(gateway.command(known), "--port") == "0"
    assert flag_of(gateway.command({**known, "{port}": "8123"}), "--port") == "8123"
    bootstrap = worker(plan, "bootstrap-0").command({"{port}": "1", "{http_port}": "2"})
    assert (flag_of(bootstrap, "--port"), flag_of(bootstrap, "--http-port")) == ("1", "2")


def flag_of(command: list[str], name: str) -> str:
    return command[command.index(name) + 1]


def test_cores_are_shared_out(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "  prefill: {replicas: 1}\n  decode: {replicas: 1}\n")
    assert {spec.env["OMP_NUM_THREADS"] for spec in plan.of(Kind.WORKER)} == {"4"}
    plan = plan_of(tmp_path, "  decode: {env: [{name: OMP_NUM_THREADS, value: '7'}]}\n")
    assert worker(plan, "decode-0").env["OMP_NUM_THREADS"] == "7"


def test_every_worker_gets_gpus_of_its_own_first(tmp_path: Path) -> None:
    machine = Machine(cores=8, gpus=("0", "1", "2", "3"))
    plan = plan_of(tmp_path, "  prefill: {parallelism: {tensor: 2}}\n  decode: {replicas: 2}\n", machine)
    visible = [spec.env["CUDA_VISIBLE_DEVICES"] for spec in plan.of(Kind.WORKER)]
    assert visible == ["0,1,2,3", "2,3,0,1", "3,0,1,2"]
    with pytest.raises(ConfigError, match=r"spec\.prefill\.parallelism takes 8 GPUs per worker, but there are 4"):
        plan_of(tmp_path, "  prefill: {parallelism: {tensor: 8}}\n", machine)


def test_a_worker_over_nodes_is_a_process_for_each(tmp_path: Path) -> None:
    machine = Machine(cores=8, gpus=("0", "1", "2", "3"))
    spread = "  prefill: {parallelism: {tensor: 2, nodes: 2}}\n  decode: {parallelism: {tensor: 2}}\n"
    prefill, decode = plan_of(tmp_path, spread, machine).of(Kind.WORKER)
    (other,) = prefill.nodes
    assert (prefill.name, other.name, decode.nodes) == ("prefill-0", "prefill-0", ())
    assert (flag(prefill, "--node-rank"), flag(other, "--node-rank")) == (None, "1")
    known = {MEETING: "127.0.0.1:7"}
    for spec in (prefill, other):
        assert flag_of(spec.command(known), "--dist-init-addr") == "127.0.0.1:7"
        assert (flag(spec, "--nnodes"), flag(spec, "--tp-size")) == ("2", "2")
    visible = [spec.env["CUDA_VISIBLE_DEVICES"] for spec in (prefill, other, decode)]
    assert visible == ["0,1,2,3", "1,2,3,0", "2,3,0,1"]


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("pvc://claim/x", "pvc:// is for clusters; locally write file://, hf:// or s3://"),
        ("file://absent", "there is no .*absent; a path without a leading slash begins at"),
    ],
)
def test_models_out_of_reach_are_refused(tmp_path: Path, uri: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make_plan(service(uri=uri), tmp_path, MACHINE)


def test_a_bucket_is_found_by_the_manifest_and_read_by_whom_the_environment_says(tmp_path: Path) -> None:
    s3 = "{endpoint: 'http://localhost:9000', credentials: mine}"
    text = f"{HEAD}spec: {{model: {{uri: 's3://bucket/m', s3: {s3}}}, prefill: {{replicas: 0}}}}"
    (worker,) = make_plan(parse_manifest(text.encode()), tmp_path, MACHINE).of(Kind.WORKER)
    assert worker.argv[worker.argv.index("--model-path") + 1] == "s3://bucket/m"
    assert {name: value for name, value in worker.env.items() if name.startswith("AWS")} == {
        "AWS_ENDPOINT_URL": "http://localhost:9000"
    }


def test_clients_keys_come_from_a_file_and_whoever_has_none_gets_a_port(tmp_path: Path) -> None:
    def gateway(keys: str) -> tuple[str, ...]:
        plan = make_plan(service(f"  gateway: {{apiKeys: {{{keys}}}}}\n"), tmp_path, MACHINE)
        return plan.of(Kind.GATEWAY)[0].argv

    assert gateway("file: keys, secret: s")[-4:] == ("--api-keys", str(tmp_path / "keys"), "--probe-port", "0")
    with pytest.raises(ConfigError, match="local runs know no Secrets; write file"):
        gateway("secret: s")


def test_models_come_from_the_hub_or_an_absolute_path(tmp_path: Path) -> None:
    plan = make_plan(service(uri="hf://owner/name"), tmp_path, MACHINE)
    assert flag(worker(plan, "prefill-0"), "--model-path") == "owner/name"
    plan = make_plan(service(uri=f"file://{tmp_path}"), Path("/"), MACHINE)
    assert flag(worker(plan, "prefill-0"), "--model-path") == str(tmp_path)


def test_other_weights_or_numbers_are_no_other_settings(tmp_path: Path) -> None:
    """What a running worker can follow; anything else takes new processes."""
    (tmp_path / "b").mkdir()

    def settings(spec: str = "", uri: str = "file://.") -> str:
        return make_plan(service(spec, uri), tmp_path, MACHINE, gateway_port=None).workers.settings

    assert settings() == settings(uri="file://b")
    assert settings() == settings("  decode: {replicas: 3}\n") == settings("  prefill: {replicas: 2}\n")
    assert settings() != settings("  decode: {extraArgs: ['--page-size', '16']}\n")
    assert settings() != settings("  decode: {env: [{name: X, value: 'y'}]}\n")
