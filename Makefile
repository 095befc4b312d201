# One file of tasks; `make help` lists them. CI calls the same targets.
SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What is expensive to make lives outside of the checkout, so that a fresh clone starts warm: compiled Rust, PostgreSQL installations.
# As root it must be a place that the unprivileged user of the test servers can read.
export PAGESERVER_CACHE ?= $(if $(filter 0,$(shell id -u)),/var/cache/pageserver,$(HOME)/.cache/pageserver)
export CARGO_TARGET_DIR ?= $(PAGESERVER_CACHE)/target

.PHONY: help
help: ## list the tasks
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

$(VENV)/.installed: requirements.lock
	@echo "== virtual environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV) || { echo "python3-venv is missing: apt-get install python3-venv"; exit 1; }
	@$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	@touch $@

.PHONY: venv
venv: $(VENV)/.installed

.PHONY: build
build: venv ## compile the engine and install the commands .venv/bin/pageserver and .venv/bin/pagectl
	@echo "== compiling the engine (Rust, optimised; the first time takes some minutes)"
	@mkdir -p $(PAGESERVER_CACHE)
	@PIP_QUIET=1 VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/maturin develop --release --quiet
	@$(MAKE) --no-print-directory walredo

.PHONY: walredo
walredo: venv ## build the WAL redo extension for every PostgreSQL whose headers are there (15, 16, 18)
	@echo "== building the WAL redo extension"
	@$(BIN)/python pgext/build.py

.PHONY: postgres
postgres: venv ## fetch PostgreSQL 14 to 18 for tests and demo into the cache (nothing is done when they are there)
	@$(BIN)/python tests/postgres/provision.py

.PHONY: stores
stores: venv ## fetch or build the object store servers of the tests (S3: versitygw, Azure: azurite) into the cache
	@$(BIN)/python tests/stores/provision.py

.PHONY: test-minio
test-minio: build postgres ## the tests of object stores with MinIO as the S3 server (built first, some ten minutes)
	@$(BIN)/python tests/stores/provision.py minio
	@TEST_S3=minio $(BIN)/python -m pytest tests/stores

.PHONY: demo
demo: build ## show the main job: follow a PostgreSQL under load, read its past, start it in the past
	@$(BIN)/python demo/demo.py

.PHONY: test
test: build postgres stores ## set up everything and pass all tests
	@echo "== tests of the engine (Rust)"
	@cargo test --workspace --exclude pagecore-py --quiet
	@echo "== tests of everything (Python)"
	@$(BIN)/python -m pytest

SURVIVAL_SEEDS ?= 50
.PHONY: steps
steps: build postgres ## crash at every step of every operation, and at every step of each start after that
	@PAGESERVER_STEPS=all $(BIN)/python -m pytest tests/steps

.PHONY: bootstrap
bootstrap: build postgres ## make clusters with initdb of every major version, and start what is restored of them
	@PAGESERVER_MAJORS=all $(BIN)/python -m pytest tests/integration/test_bootstrap.py

.PHONY: survival
survival: build postgres stores ## lose machines, split brains, failing stores, full disks: SURVIVAL_SEEDS=50 of each (hours)
	@for suite in "lose-machine --seeds $(SURVIVAL_SEEDS) --store s3 --deep" \
		"lose-machine --seeds 5 --store azure" "lose-machine --seeds 5 --store gcs" "lose-machine --seeds 5 --store local --deep" \
		"split-brain --seeds $(SURVIVAL_SEEDS)" "split-brain-servers --seeds 5 --store s3" \
		"faulty-store --trouble first-two --seeds 5 --store s3" "faulty-store --trouble one-in-ten --seeds 5 --store s3" \
		"faulty-store --trouble proxy --seeds 5 --store s3" "faulty-store --trouble proxy --seeds 5 --store azure" \
		"full-disk --seeds 5 --store local --deep" \
		"many-hands --seeds 10 --store s3" "many-hands --seeds 5 --store azure --seconds 30"; do \
		echo "== $$suite"; $(BIN)/python -m tests.survival $$suite || exit 1; done

.PHONY: check
check: build ## formatting, lint and types of Python, Rust and C; the stub of the compiled module
	@echo "== ruff"; $(BIN)/ruff check . && $(BIN)/ruff format --check .
	@echo "== mypy"; $(BIN)/mypy
	@echo "== rustfmt, clippy"; cargo fmt --check && cargo clippy --workspace --all-targets --quiet -- -D warnings

.PHONY: bench
bench: build ## run every benchmark: JSON lines, each with its ceiling or peer measured in the same run
	@$(BIN)/python -m bench

SEARCH_EXAMPLES ?= 300
.PHONY: api-search
api-search: build postgres ## search for HTTP requests that the server cannot stand, SEARCH_EXAMPLES=300 made up for each route
	@$(BIN)/python -m tests.api_search --examples $(SEARCH_EXAMPLES)

FUZZ_SECONDS ?= 1800
.PHONY: fuzz
fuzz: ## search for records that redo does not survive, FUZZ_SECONDS=1800 long (needs: cargo install cargo-fuzz)
	@cd crates/pagecore/fuzz && cargo run --quiet --release --example seeds -- unpack seeds.zst $(PAGESERVER_CACHE)/fuzz/seeds
	@mkdir -p $(PAGESERVER_CACHE)/fuzz/corpus $(PAGESERVER_CACHE)/fuzz/found
	@cd crates/pagecore && cargo fuzz run --sanitizer none redo $(PAGESERVER_CACHE)/fuzz/corpus $(PAGESERVER_CACHE)/fuzz/seeds -- \
		-max_total_time=$(FUZZ_SECONDS) -timeout=10 -max_len=32768 -artifact_prefix=$(PAGESERVER_CACHE)/fuzz/found/

.PHONY: lock
lock: ## pin what is installed in the virtual environment
	$(BIN)/pip freeze --exclude pageserver > requirements.lock

.PHONY: clean
clean: ## remove what the tasks made in this checkout (not the cache)
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis src/pageserver/*.so src/pageserver/postgres/walredo
