# `make` prints this list. `make demo` and `make test` need nothing but Python 3.11 to 3.13 and a network the first time.
SHELL := /bin/bash
BIN := .venv/bin
PACKAGES := operator/baton_operator serving/baton_serving bootstrap/baton_bootstrap kernels/baton_kernels
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest
WORKERS := 2
# Tests start many processes: each would compile all of torch's sources anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help

.PHONY: help
help:  ## Print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup:
	@scripts/setup.sh

.PHONY: demo
demo: setup  ## Run the quickstart on this machine, ask it a few questions, stop again
	@$(BIN)/baton demo

.PHONY: test
test: lint  ## Everything that must hold: format, lint, types, layers, tests on the CPU
	$(PYTEST) -n $(WORKERS) --dist loadgroup --max-worker-restart 0 -m "not gpu and not deep and not cluster" --durations=15

.PHONY: lint
lint: setup  ## Format check, lint, types and import layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy $(PACKAGES) scripts tests examples/models/train benchmarks
	$(BIN)/lint-imports

# KUBECONFIG=FILE: only what needs real pods, on that cluster; CHART_VALUES=FILE then names images that it can pull.
.PHONY: test-cluster
test-cluster: setup  ## Operator, CRDs and chart on a real API server, then with real pods; builds what is missing
	PYTHONPATH=tests $(BIN)/python -m support.kube.binaries
	$(PYTEST) -m "$(if $(KUBECONFIG),node,cluster)" tests/cluster --durations=15

.PHONY: cluster-up
cluster-up: setup  ## Start a cluster with real pods on this machine (root); NODES=2 for two nodes
	PYTHONPATH=tests $(BIN)/python -m support.devcluster up --nodes $(or $(NODES),1)

.PHONY: cluster-down
cluster-down: setup  ## Stop it and leave nothing behind
	PYTHONPATH=tests $(BIN)/python -m support.devcluster down

.PHONY: test-deep
test-deep: setup  ## Long property runs
	$(PYTEST) -n $(WORKERS) --dist loadgroup -m deep --timeout=3600 --durations=15

.PHONY: test-gpu
test-gpu: setup  ## Tests that need a CUDA device
	$(PYTEST) -m gpu --durations=15

.PHONY: format
format: setup  ## Format the code and apply safe fixes
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.PHONY: docs
docs: setup  ## Write the generated pages under docs/ anew
	$(BIN)/python scripts/docs.py
	$(BIN)/python scripts/dashboard.py

.PHONY: crds
crds: setup  ## Write the CustomResourceDefinitions anew
	$(BIN)/python scripts/crds.py

.PHONY: protos
protos: setup  ## Write the generated gRPC code anew
	$(BIN)/python scripts/protos.py

.PHONY: pins
pins: setup  ## Write constraints.txt anew after a change of dependencies
	$(BIN)/uv pip compile -q pyproject.toml --extra engine --extra test --python-version 3.11 \
	    --python-platform x86_64-manylinux_2_28 --no-header --no-annotate --output-file constraints.txt

.PHONY: clean
clean:  ## Remove the virtual environment and everything that was built
	rm -rf .venv .setup.lock dist build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find $(PACKAGES) tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +
