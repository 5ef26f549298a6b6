# Two commands do everything on a fresh machine: `make demo` and `make test`.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TASK ?= digits
DRIFT ?= contrast=0.3
FLEET ?=
export OMP_NUM_THREADS ?= 1
export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1

.PHONY: help venv demo test unit slow lint types contracts bench bench-smoke format clean

help: ## Show this list.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

venv: $(STAMP) ## Create .venv with everything in it.

$(STAMP): pyproject.toml quantization/_expand.c
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Python 3.11 or newer is needed; set PYTHON=/path/to/python3.11" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) (a few minutes the first time)..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $(STAMP)

demo: venv ## Show a fleet of digit readers a world of little contrast, tune it back through Flower, write out/demo/report.html.
	$(BIN)/quantfleet-sim run --task $(TASK) --drift $(DRIFT) --check-pooled --out out/demo

.PHONY: fleet
fleet: venv ## Show a whole fleet on this machine: server, agents, SuperNodes, Prometheus; a tuned generation and a bad one.
	@command -v prometheus >/dev/null || { \
	  echo "Installing prometheus (it scrapes the fleet)..."; \
	  SUDO=; [ "$$(id -u)" = 0 ] || SUDO="sudo -n"; \
	  { $$SUDO apt-get update -qq && $$SUDO env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends prometheus >/dev/null; } \
	  || echo "prometheus could not be installed; the fleet goes without" >&2; }
	$(BIN)/quantfleet-sim fleet --out out/fleet $$(command -v prometheus >/dev/null || echo --no-prometheus) $(FLEET)

test: unit slow ## Run every test.

unit: venv services ## Run the fast tests.
	$(BIN)/python -m pytest -q -m "not slow" -n 2 --dist loadfile --durations=5

slow: venv chromium services ## Run the end-to-end tests.
	$(BIN)/python -m pytest -q -m slow -n 2 --dist loadfile --durations=5

.PHONY: chromium
chromium: # The report is tested in a real browser; installed only where there is none and we may.
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null || { \
	  echo "Installing chromium (the report is tested in a real browser)..."; \
	  SUDO=; [ "$$(id -u)" = 0 ] || SUDO="sudo -n"; \
	  { $$SUDO apt-get update -qq && $$SUDO apt-get install -y -qq --no-install-recommends chromium >/dev/null; } \
	  || echo "chromium could not be installed; its tests will be skipped" >&2; }

.PHONY: services
services: # What is tested against the real thing: alerts and metrics, and the registry on PostgreSQL.
	@missing=; command -v promtool >/dev/null || missing="prometheus"; \
	ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || command -v initdb >/dev/null || missing="$$missing postgresql"; \
	[ -z "$$missing" ] || { \
	  echo "Installing$${missing:+ }$$missing (tests run against real ones)..."; \
	  SUDO=; [ "$$(id -u)" = 0 ] || SUDO="sudo -n"; \
	  { $$SUDO apt-get update -qq && $$SUDO env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; } \
	  || echo "$$missing could not be installed; their tests will be skipped" >&2; }

lint: venv ## Check style and formatting.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: venv ## Format the code.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: venv ## Check types (mypy, strict).
	$(BIN)/mypy

contracts: venv ## Check that imports point the right way.
	$(BIN)/lint-imports

bench: venv ## Run every benchmark in full (see benchmarks/README.md).
	@set -e; for b in benchmarks/bench_*.py; do echo "== $$b"; $(BIN)/python $$b; done

bench-smoke: venv ## Run every benchmark on a small input, to see that it works.
	@set -e; for b in benchmarks/bench_*.py; do echo "== $$b"; $(BIN)/python $$b --smoke; done

clean: ## Remove what was built.
	rm -rf $(VENV) build *.egg-info out .mypy_cache .ruff_cache .pytest_cache
