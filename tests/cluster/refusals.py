"""Manifests that the API server must refuse: the part of the spec, the field that it has to name, and the remedy."""

from __future__ import annotations

FLAGS = "may not hold {}; set {} instead"
TENSOR = "one divides the other"
BELOW = "should be greater than or equal to {}"
ABOVE = "should be less than or equal to {}"

# id: (spec, field, remedy)
REFUSED: dict[str, tuple[str, str, str]] = {
    "no_model": ("{}", "spec.model", "Required value"),
    "no_uri": ("{model: {}}", "spec.model.uri", "Required value"),
    "unknown_scheme": ("{model: {uri: 'http://a/b'}}", "spec.model.uri", "should match '^(hf|pvc|s3|oci|file)://"),
    "bucket_of_the_hub": (
        "{model: {uri: 'hf://a/b', s3: {region: x}}}",
        "spec.model.s3",
        "leave it out, or write s3://bucket/path as the uri",
    ),
    "revision_of_an_image": (
        "{model: {uri: 'oci://a/b', revision: x}}",
        "spec.model.revision",
        "leave it out and name the version in the uri",
    ),
    "token_of_an_image": (
        "{model: {uri: 'oci://a/b', token: {name: a, key: b}}}",
        "spec.model.token",
        "use placement.imagePullSecrets",
    ),
    "cache_of_a_claim": (
        "{model: {uri: 'pvc://a/b', cache: {claim: c}}}",
        "spec.model.cache",
        "leave it out, since nothing is downloaded",
    ),
    "two_caches": (
        "{model: {uri: 'hf://a/b', cache: {claim: c, nodePath: /x}}}",
        "spec.model.cache",
        "write either claim or nodePath",
    ),
    "no_cache_named": (
        "{model: {uri: 'hf://a/b', cache: {}}}",
        "spec.model.cache",
        "write either claim or nodePath",
    ),
    "relative_cache": (
        "{model: {uri: 'hf://a/b', cache: {nodePath: x}}}",
        "spec.model.cache.nodePath",
        "should match '^/",
    ),
    "misspelt_field": ("{model: {url: 'hf://a/b', uri: 'hf://a/b'}}", "spec.model.url", "unknown field"),
    "keys_from_a_file": (
        "gateway: {apiKeys: {file: keys}}",
        "spec.gateway.apiKeys.secret",
        "write secret, the name of one with an entry for each client",
    ),
    "decode_at_zero": ("decode: {replicas: 0}", "spec.decode.replicas", "raise decode.replicas"),
    "negative_replicas": ("prefill: {replicas: -1}", "spec.prefill.replicas", BELOW.format(0)),
    "too_many_replicas": ("decode: {replicas: 10001}", "spec.decode.replicas", ABOVE.format(10000)),
    "replicas_as_text": ("decode: {replicas: '2'}", "spec.decode.replicas", 'must be of type integer: "string"'),
    "tensor_sizes": (
        "prefill: {parallelism: {tensor: 4}}, decode: {parallelism: {tensor: 6}}",
        "spec.prefill.parallelism.tensor",
        TENSOR,
    ),
    "no_tensor_size": ("decode: {parallelism: {tensor: 0}}", "spec.decode.parallelism.tensor", BELOW.format(1)),
    "uneven_nodes": (
        "decode: {parallelism: {tensor: 3, nodes: 2}}",
        "spec.decode.parallelism.nodes",
        "choose nodes so that all have equally many",
    ),
    "several_nodes": (
        "decode: {parallelism: {tensor: 2, nodes: 2}}",
        "spec.decode.parallelism.nodes",
        "choose tensor so that a worker fits on one node",
    ),
    "pipeline": ("prefill: {parallelism: {pipeline: 2}}", "spec.prefill.parallelism.pipeline", "raise tensor"),
    "flip_between_unlike_roles": (
        "scaling: {roleFlip: true}, prefill: {extraArgs: [--page-size, '64']}",
        "spec.scaling.roleFlip",
        "write the same parallelism and extraArgs",
    ),
    "flip_in_place": (
        "scaling: {roleFlip: true}, rollout: {strategy: InPlace}",
        "spec.rollout.strategy",
        "write rollout.strategy: Surge",
    ),
    "flag_of_the_model": (
        "decode: {extraArgs: [--model-path, x]}",
        "spec.decode.extraArgs",
        FLAGS.format("--model-path or --model", "spec.model.uri"),
    ),
    "flag_of_the_tensor_size": (
        "prefill: {extraArgs: ['--tp=2']}",
        "spec.prefill.extraArgs",
        FLAGS.format("--tp or --tp-size or --tensor-parallel-size", "parallelism.tensor"),
    ),
    "flag_of_the_transfer": (
        "decode: {extraArgs: [--disaggregation-transfer-backend, nixl]}",
        "spec.decode.extraArgs",
        FLAGS.format("--disaggregation-transfer-backend", "spec.transfer.backend"),
    ),
    "flag_of_the_port": ("decode: {extraArgs: [--port, '1']}", "spec.decode.extraArgs", "Baton wires the ports"),
    "variable_twice_given": (
        "decode: {env: [{name: A, value: b, secret: {name: a, key: b}}]}",
        "spec.decode.env[0]",
        "write either value or secret",
    ),
    "variable_without_value": ("decode: {env: [{name: A}]}", "spec.decode.env[0]", "write either value or secret"),
    "variable_name": ("decode: {env: [{name: 1x, value: a}]}", "spec.decode.env[0].name", "should match '^[A-Za-z_]"),
    "quantity": (
        "decode: {resources: {limits: {cpu: lots}}}",
        "spec.decode.resources.limits.cpu",
        "should match '^[0-9]+",
    ),
    "toleration_of_anything": (
        "decode: {placement: {tolerations: [{key: a, operator: Exists, value: b}]}}",
        "spec.decode.placement.tolerations[0].value",
        "leave value out or write operator: Equal",
    ),
    "toleration_of_nothing": (
        "decode: {placement: {tolerations: [{value: b}]}}",
        "spec.decode.placement.tolerations[0].key",
        "name the taint's key or write operator: Exists",
    ),
    "toleration_operator": (
        "decode: {placement: {tolerations: [{key: a, operator: Is}]}}",
        "spec.decode.placement.tolerations[0].operator",
        'supported values: "Exists", "Equal"',
    ),
    "rdma_without_devices": (
        "transfer: {protocol: rdma}",
        "spec.transfer",
        "write transfer.resource, the name of your device plugin's resource",
    ),
    "devices_without_rdma": (
        "transfer: {devices: [mlx5_0]}",
        "spec.transfer.devices",
        "write protocol: rdma or leave devices out",
    ),
    "resource_without_rdma": (
        "transfer: {resource: rdma/hca}",
        "spec.transfer.resource",
        "write protocol: rdma or leave resource out",
    ),
    "nvlink_between_pods": (
        "transfer: {protocol: nvlink}",
        "spec.transfer.protocol",
        "write protocol: rdma or protocol: tcp",
    ),
    "unknown_backend": ("transfer: {backend: nccl}", "spec.transfer.backend", 'supported values: "mooncake", "nixl"'),
    "scaling_bounds": (
        "decode: {autoscaling: {minReplicas: 3, maxReplicas: 2}}",
        "spec.decode.autoscaling.minReplicas",
        "lower it or raise maxReplicas",
    ),
    "scaling_without_bound": ("decode: {autoscaling: {}}", "spec.decode.autoscaling.maxReplicas", "Required value"),
    "half_a_pair_to_zero": (
        "decode: {autoscaling: {minReplicas: 0, maxReplicas: 2}}",
        "spec.decode.autoscaling",
        "write prefill.autoscaling.minReplicas: 0",
    ),
    "nobody_holds_requests": (
        "prefill: {autoscaling: {minReplicas: 0, maxReplicas: 2}}, "
        "decode: {autoscaling: {minReplicas: 0, maxReplicas: 2}}",
        "spec.gateway.workerWaitSeconds",
        "write gateway.workerWaitSeconds",
    ),
    "unknown_policy": ("gateway: {policy: fastest}", "spec.gateway.policy", 'supported values: "round_robin"'),
    "port": ("gateway: {port: 70000}", "spec.gateway.port", ABOVE.format(65535)),
    "no_bootstrap": ("bootstrap: {replicas: 0}", "spec.bootstrap.replicas", BELOW.format(1)),
    "short_drain": ("rollout: {drainSeconds: 1}", "spec.rollout.drainSeconds", BELOW.format(5)),
    "route_without_gateway": (
        "gateway: {route: {parents: []}}",
        "spec.gateway.route.parents",
        "should have at least 1 items",
    ),
    "proxy": ("security: {proxy: {url: 'socks://a'}}", "spec.security.proxy.url", "should match '^https?://"),
}
