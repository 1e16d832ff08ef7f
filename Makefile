# `make` alone lists what there is.
PYTHON ?= python3
BIN := .venv/bin
# For pip. Where there is no GPU, `make install PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"`
# spares the download of CUDA: it takes the CPU build of torch.
PIP_ARGS ?=
# For the training command: make train ARGS="seed=1 logger=tensorboard"
ARGS ?=
TEST_ARGS ?=
# A process of pytest for each core and one more, up to four; make test TEST_PROCESSES= has it all in one. The tests of
# a file stay together, because they share what they make.
TEST_PROCESSES ?= -n auto --maxprocesses=4 --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help install train smoke test test-slow test-all test-base slurm test-slurm golden lint structure clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# The stamp is as new as the last complete installation; a changed list of packages makes it old.
$(BIN)/.installed: setup.cfg pyproject.toml
	@command -v $(PYTHON) > /dev/null || { echo "$(PYTHON) is not there; name a Python 3.11 or later: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is $$($(PYTHON) -V 2>&1), but 3.11 or later is needed: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --no-compile $(PIP_ARGS) -e '.[dev]'
	@$(BIN)/python -m compileall -qq -j 0 .venv/lib || true # as pip does, but by all cores; some files are templates
	@touch $@

install: $(BIN)/.installed ## create .venv with the project and its tools in it

train: install ## train VTA-SAM on the embedded world (ARGS="seed=1 ..." for settings)
	$(BIN)/python experiments/train.py +exp=vta_sam $(ARGS)

smoke: install ## the same with everything tiny, from nothing, in a minute or two
	rm -rf out/smoke
	$(BIN)/python experiments/train.py +exp=vta_sam size=smoke runs=out/smoke/runs data.root=out/smoke/data $(ARGS)

test: install ## the quick tests
	$(BIN)/python -m pytest -m "not slow and not slurm and not base" $(TEST_PROCESSES) $(TEST_ARGS)

test-slow: install ## the tests that take longer
	$(BIN)/python -m pytest -m slow $(TEST_PROCESSES) $(TEST_ARGS)

test-all: install ## both, which share what they make
	$(BIN)/python -m pytest -m "not slurm and not base" $(TEST_PROCESSES) $(TEST_ARGS)

test-base: install ## train three steps of each stage of size=base, stopped and resumed (minutes, 15 GB of memory and disk)
	$(BIN)/python -m pytest -m base -s $(TEST_ARGS)

# Daemons that only root may start; SLURM itself comes from the system's packages
slurm: ## install SLURM for its tests (root, Debian's apt; nothing elsewhere)
	@if [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null && ! command -v slurmctld > /dev/null; then \
		{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
			slurm-wlm munge > /dev/null; } || echo "SLURM could not be installed" >&2; fi

test-slurm: install slurm ## start SLURM on this machine and run its tests (skipped where it is not installed)
	$(BIN)/python -m pytest -m slurm -rs $(TEST_ARGS)

golden: install ## record anew what configs, shards, losses and sounds are (tests/golden); git diff shows what changed
	$(BIN)/python tests/golden/record.py

lint: install ## style and types
	$(BIN)/python -m flake8 vta_sam data_prep experiments benchmarks tests conf
	$(BIN)/python -m mypy

schemas: install ## write docs/settings.md and conf/schema, with which editors check conf/, anew from vta_sam/settings
	$(BIN)/python conf/schema/write.py

structure: ## rooms, floors, arrows, circles and sizes of the package, counted from its imports
	@$(PYTHON) benchmarks/structure.py

clean: ## remove what tools leave behind; data/ and runs/ are kept
	rm -rf build dist out/smoke *.egg-info .pytest_cache .mypy_cache
	find vta_sam data_prep experiments benchmarks tests -name __pycache__ -type d -prune -exec rm -rf {} +
