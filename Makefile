# `make` alone lists the commands. Every one sets up what it needs in .venv first.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test test-long check format proto structure starter loadtest bench chaos clean

help: ## list the commands
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(f"Python 3.11 or newer is needed, {v[0]}.{v[1]} found; set PYTHON=...") if v < (3, 11) else None'
	@echo "installing about 1 GB into .venv, once: a minute or more"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,training,flows,loadtest]'
	@touch $@

demo: $(INSTALLED) ## start a server on the starter model and complete places of real files
	$(BIN)/python -m cloudcomplete.demo

TEST_PROCESSES ?= 2

test: $(INSTALLED) ## run the tests, in TEST_PROCESSES processes
	$(BIN)/python -m pytest --numprocesses $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder

test-long: $(INSTALLED) ## run the tests that take minutes: four processes, a fleet under bursts, a policy retrained
	$(BIN)/python -m pytest -m long

check: $(INSTALLED) ## lint, format, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy cloudcomplete orchestration loadtest server cache engine
	$(BIN)/lint-imports

format: $(INSTALLED) ## put the code into its standard form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

proto: $(INSTALLED) ## generate the gRPC code from its .proto file
	$(BIN)/python -m server.proto

structure: $(INSTALLED) ## write the list of modules in docs/structure.md from their first lines
	$(BIN)/python docs/structure.py

starter: $(INSTALLED) ## gather the corpus and train the starter model (hours on a CPU; can be interrupted and resumed)
	$(BIN)/python -m engine.training all

TRACE ?= ../shared/data/editing-traces/sveltecomponent.json.gz
ARRIVALS ?= ../shared/data/azure-llm-code/trace.csv
USERS ?= 4
SECONDS ?= 300

loadtest: $(INSTALLED) ## five minutes of typing and bursts against a server that is started for it (TRACE, ARRIVALS, USERS, SECONDS)
	$(BIN)/python -m cloudcomplete loadtest mixed --users $(USERS) --seconds $(SECONDS) --trace $(TRACE) --arrivals $(ARRIVALS)

BENCHES ?= ablation rivals bursts

bench: $(INSTALLED) ## run BENCHES and write docs/benchmarks.md from their results (CLOUDCOMPLETE_TRACE, _ARRIVALS, _PEERS)
	mkdir -p docs/benchmarks
	for name in $(BENCHES); do $(BIN)/python -m cloudcomplete bench $$name --json docs/benchmarks/$$name.json || exit 1; done
	$(BIN)/python -m loadtest.bench_page docs/benchmarks docs/benchmarks.md

chaos: $(INSTALLED) ## put a server under every fault and say what was lost and how long it took to be well again
	mkdir -p docs/benchmarks
	$(BIN)/python -m cloudcomplete bench faults --json docs/benchmarks/faults.json
	$(BIN)/python -m loadtest.bench_page docs/benchmarks docs/benchmarks.md

clean: ## remove the environment and what tools left behind
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
