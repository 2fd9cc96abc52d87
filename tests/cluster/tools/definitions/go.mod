module baton.dev/tests/cluster/tools/definitions

go 1.26.0

// Nothing is built from these: their archives hold the CustomResourceDefinitions that other projects install.
require (
	sigs.k8s.io/gateway-api v1.4.0
	sigs.k8s.io/lws v0.7.0
)
