# Everything a developer does here. `make` or `make help` lists the targets.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory

PYTHON := .venv/bin/python
PYTEST := $(PYTHON) -m pytest
# Tests mostly wait for servers, so more tests run at once than the machine has cores. JOBS=0: one after the other.
JOBS ?= 3
PARALLEL := -n $(JOBS) --dist loadfile --no-loadscope-reorder
# Further options: `make unit ARGS="-k window -x"`.
ARGS ?=
# The duration of `make fuzz` and `make soak`, and the first seed. Default: a random seed.
MINUTES ?= 60
SEED ?=
# The rows of `make faults` (default: all), and the minimum number of events for each row.
ROWS ?=
EVENTS ?= 20000
# The number of random examples of `make test-long`, and pytest's option for the pages of `make coverage` (empty: none).
EXAMPLES ?= 60
HTML ?= --cov-report=html:.cache/coverage
# KEEP=1: `make demo` leaves everything running with its dashboard until Ctrl-C.
KEEP ?=

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z][a-z0-9-]*:.*## / {printf "  \033[1m%-16s\033[0m %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: ## Install missing system packages, the virtual environment and Kafka's jars (nothing if all are installed)
	@hack/setup.sh

.PHONY: check
check: setup ## Check lint, formatting, types, layers, generated files and imports of tests
	$(PYTHON) -m ruff check
	$(PYTHON) -m ruff format --check
	$(PYTHON) -m mypy
	.venv/bin/lint-imports
	hack/generate.sh --check
	$(PYTEST) --collect-only --quiet -m "" >.cache/collected.txt || { grep -v :: .cache/collected.txt; exit 1; }

.PHONY: format
format: setup ## Format the code, and apply automatic fixes
	$(PYTHON) -m ruff check --fix
	$(PYTHON) -m ruff format

.PHONY: generate
generate: setup ## Write the files that are generated from the models (CRD, reference page)
	hack/generate.sh

.PHONY: lock
lock: setup ## Write the requirement files with hashes (ARGS=--upgrade: the newest versions)
	$(PYTHON) hack/lock.py $(ARGS)

.PHONY: test
test: setup ## Unit, golden and integration tests, on real Kafka, Postgres, Redis
	$(PYTEST) $(PARALLEL) -m "not e2e and not load and not exhaustive and not comparison and not matrix" $(ARGS)

.PHONY: unit
unit: setup ## Tests that need no server
	$(PYTEST) $(PARALLEL) -m "not integration and not kubernetes and not comparison" $(ARGS)

.PHONY: integration
integration: setup ## Tests on real Kafka, Postgres and Redis, which the test session starts
	$(PYTEST) $(PARALLEL) -m "integration and not load and not matrix" $(ARGS)

.PHONY: test-load
test-load: setup ## Scaling under ten times the load on real servers (minutes; the figures depend on the machine)
	$(PYTEST) -m load -s $(ARGS)

.PHONY: kube
kube: setup ## Build Kubernetes' programs and helm (ten minutes the first time; needs Go)
	PYTHONPATH=hack $(PYTHON) -m kube.build

.PHONY: test-k8s
test-k8s: kube ## Tests on a real Kubernetes API server
	$(PYTEST) -m "kubernetes and not e2e" $(ARGS)

.PHONY: faults-k8s
faults-k8s: kube ## Named faults in a cluster: expected and actual reports, and seconds to report and recover (ARGS="-k frozen")
	FAULT_MATRIX=build/faults-k8s.md $(PYTEST) tests/kubernetes tests/e2e -m fault $(ARGS)

.PHONY: e2e
e2e: setup ## The whole platform in a cluster: charts, examples, rollouts, upgrades, removal (KEEP=1: keep the cluster; LONG=1: longer tests too)
	KEEP=$(KEEP) $(PYTEST) tests/e2e -m "e2e and not load$(if $(LONG),, and not matrix)" $(ARGS)

.PHONY: test-long
test-long: setup ## Long fault tests on real servers, and property tests with more random examples (EXAMPLES=60)
	$(PYTEST) $(PARALLEL) -m "matrix and not kubernetes" $(ARGS)
	EXAMPLES=$(EXAMPLES) $(PYTEST) $(PARALLEL) -m integration -k "naive_model or any_finite_values or exact_or_null" \
		--deselect tests/integration/processor/test_fuzz.py $(ARGS)

.PHONY: coverage
coverage: setup ## `make test` and the exhaustive tests, with coverage of every process; fails under 85 % (HTML=: no pages)
	@rm -f .coverage .coverage.*
	$(PYTEST) $(PARALLEL) --cov --cov-report=term:skip-covered $(HTML) --cov-fail-under=85 $(ARGS)

.PHONY: crash-points
crash-points: setup ## Crash a processor before each SQL statement in turn (`make coverage`: before every tenth)
	CRASH_EVERY=1 $(PYTEST) tests/integration/processor/test_crash_points.py $(ARGS)

.PHONY: test-comparison
test-comparison: setup ## Check that no tried setting of KEDA's or Flink's formula serves simulated loads as well for less
	$(PYTEST) -m comparison $(ARGS)

.PHONY: fuzz
fuzz: setup ## Random pipelines, events, edits, kills and replays against a naive model (MINUTES=60 SEED=first seed)
	MINUTES=$(MINUTES) SEED=$(SEED) $(PYTEST) tests/integration/processor/test_fuzz.py -m exhaustive -q -s $(ARGS)

.PHONY: fuzz-resources
fuzz-resources: setup ## Random valid and invalid edits of a resource, on servers in memory (MINUTES=60 SEED=first seed)
	FUZZ_RESOURCES=1 MINUTES=$(MINUTES) SEED=$(SEED) $(PYTEST) tests/unit/operator/passes/test_resource_fuzz.py -k drawn -q -s $(ARGS)

.PHONY: fuzz-resources-k8s
fuzz-resources-k8s: kube ## The same on a real API server, with an operator process (MINUTES=60 SEED=first seed)
	FUZZ_RESOURCES=1 MINUTES=$(MINUTES) SEED=$(SEED) $(PYTEST) tests/kubernetes/pipelines/test_drawn_edits.py -m matrix -q -s $(ARGS)

.PHONY: demo
demo: setup ## A year of departures through the whole platform, compared with a batch recomputation (KEEP=1: keep it running)
	PYTHONPATH=hack $(PYTHON) -m demo $(if $(KEEP),--keep) $(ARGS)

.PHONY: demo-chaos
demo-chaos: setup ## The same while processors are killed, frozen, scaled and their consumer group is reset
	PYTHONPATH=hack $(PYTHON) -m demo --chaos $(ARGS)

.PHONY: demo-k8s
demo-k8s: setup ## The demo in a real Kubernetes cluster: images, charts, kubectl apply (KEEP=1: keep it running)
	PYTHONPATH=hack $(PYTHON) -m demo.kubernetes $(if $(KEEP),--keep) $(ARGS)

.PHONY: faults
faults: setup ## Named faults with three brokers: reports, seconds to report and recover, lost events (ROWS=a,b EVENTS=20000)
	PYTHONPATH=hack $(PYTHON) -m faults --rows "$(ROWS)" --events $(EVENTS) $(ARGS)

.PHONY: soak
soak: setup ## The same with random faults (MINUTES=20 SEED=printed seed)
	PYTHONPATH=hack $(PYTHON) -m faults --events $(EVENTS) --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) $(ARGS)

.PHONY: compose-check
compose-check: setup ## Run docker-compose.yaml without containers: health, exact demo, Prometheus targets, panels (ARGS="--events 20000")
	PYTHONPATH=hack $(PYTHON) -m compose $(ARGS)

.PHONY: images
images: setup ## Build all images (hack/images/build --help for more)
	hack/images/build --dev $(ARGS)

.PHONY: connect-image
connect-image: setup ## Build the image of Kafka Connect workers with plugins, for the chart's connect.image (jars from Maven Central)
	hack/images/build --only connect $(ARGS)

.PHONY: cluster
cluster: setup ## A Kubernetes cluster on this machine: kind where it can run, else Kubernetes' own programs (as root)
	@hack/cluster up $(ARGS)

.PHONY: cluster-down
cluster-down: setup ## Remove the cluster with its programs, mounts, network and files
	@hack/cluster down

.PHONY: bench-processor
bench-processor: setup ## Events per CPU-second of the processor, beside the windows of Quix Streams
	$(PYTHON) tests/bench/bench_peers.py --engines tidemill,tidemill-quiet,quix --no-follow --output build/bench-processor $(ARGS)

.PHONY: bench-peers
bench-peers: setup ## The same beside Bytewax, Kafka Streams and Flink too; latencies and recovery (20 minutes)
	$(PYTHON) tests/bench/bench_peers.py $(ARGS)

.PHONY: bench-formats
bench-formats: setup ## Events per CPU-second by format: JSON, decimals, Avro, Protobuf, CSV, arrays, lookups, Python; beside Flink SQL (ARGS=--help)
	PYTHONPATH=tests/support $(PYTHON) tests/bench/bench_formats.py $(ARGS)

.PHONY: bench-decoding
bench-decoding: setup ## The cost of decoding an event, by format, time format, headers and envelope (one process, no servers)
	POLARS_MAX_THREADS=1 $(PYTHON) tests/bench/bench_decoding.py $(ARGS)

.PHONY: bench-latency
bench-latency: setup ## Milliseconds from acknowledged event to queryable row at 50,000 events a second
	$(PYTHON) tests/bench/bench_latency.py $(ARGS)

.PHONY: bench-scale
bench-scale: setup ## The processor's cost by replicas, keys, partitions, aggregations, functions, detectors (ARGS="--parts keys")
	$(PYTHON) tests/bench/bench_scale.py $(ARGS)

.PHONY: bench-ingest
bench-ingest: setup ## Events per second that ingest acknowledges
	$(PYTHON) tests/bench/bench_ingest.py $(ARGS)

.PHONY: bench-api
bench-api: setup ## Cached queries per second and latencies of the API
	$(PYTHON) tests/bench/bench_api.py $(ARGS)

.PHONY: bench-operator
bench-operator: kube ## 200 pipelines on one operator: time until ready, requests, writes and memory at rest
	PYTHONPATH=hack $(PYTHON) tests/bench/bench_operator.py $(ARGS)

.PHONY: bench-nab
bench-nab: setup ## Every anomaly detector on the Numenta Anomaly Benchmark (NAB_DIR=…: its series)
	PYTHONPATH=hack $(PYTHON) tests/bench/bench_nab.py $(ARGS)

.PHONY: sim-scaling
sim-scaling: setup ## Simulate scaling on load shapes, beside KEDA's and Flink's formulas (NAB_DIR=…: recorded loads too)
	PYTHONPATH=hack $(PYTHON) -m sim $(ARGS)

.PHONY: clean
clean: ## Remove the virtual environment, caches and local data (stop `tidemill up` first)
	rm -rf .venv .cache .tidemill .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .coverage .coverage.*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
