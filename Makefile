# The list of things one can do here. Every target sets the environment up first when it is missing or stale.
# ARGS is passed on: make test ARGS="-k router". PYTHON names the interpreter for a new .venv (else 3.11, then 3.12).

.DEFAULT_GOAL := help
.PHONY: help env demo test test-slow check bench ablation docs test-gpu test-slurm prebuild clean

WORKERS ?= 2

# The environment's programs come first on PATH: torch looks there for ninja when it compiles.
RUN := PATH="$(CURDIR)/.venv/bin:$$PATH" .venv/bin/python

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 20

env:  ## set .venv up from the lock in requirements/, when missing or stale
	@for p in $(PYTHON) python3 python3.11 python3.12 /usr/bin/python3; do \
		if $$p -c 'import sys; sys.exit(sys.version_info < (3, 8))' 2>/dev/null; then \
			PYTHON="$(PYTHON)" exec $$p tools/make_env.py; \
		fi; \
	done; \
	echo "env: no python that runs. Debian 12: sudo apt install python3.11 python3.11-venv python3.11-dev make g++" >&2; \
	exit 2

demo: env  ## the whole pipeline in miniature
	@$(RUN) examples/quickstart/demo.py $(ARGS)

test: env  ## all tests but the slow ones, in WORKERS processes
	@$(RUN) -m pytest -q -n $(WORKERS) --dist loadfile --durations=10 -m "not slow" $(ARGS)

test-slow: env  ## what takes long: runs killed twenty times, benchmarks in small, curves of the docs taken again
	@$(RUN) -m pytest -q -n $(WORKERS) --dist loadfile --durations=10 -m slow $(ARGS)

check: env  ## style, types and the rules of the house
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@$(RUN) -m mypy megatron_most
	@$(RUN) -m pytest -q tests/test_house.py

bench: env  ## ratios to other ways (ARGS="step router": these parts only; --gate: against those kept); augmenting; gates and partitions compared
	@$(RUN) tools/bench.py $(ARGS)
	@$(RUN) bench/augment.py
	@$(RUN) bench/gate_collapse.py
	@$(RUN) bench/partition.py

ablation: env  ## what modalities among experts are worth: models of as many active parameters, three seeds each; see docs/ablation.md
	@$(RUN) bench/ablation.py $(ARGS)

docs: env  ## docs/config.md again, after a field or its meaning has changed
	@$(RUN) tools/train.py --reference > docs/config.md.part && mv docs/config.md.part docs/config.md

prebuild:  ## on a node with the GPUs of the runs: what torch and Triton would compile on every rank, once; see docs/hpc.md
	@bash launch/prebuild.sh $(ARGS)

test-gpu: env  ## the tests that need a GPU
	@$(RUN) -m pytest -q --durations=10 -m gpu $(ARGS)

test-slurm: env  ## the launchers on a real Slurm on this machine; SUBSET=ci: the shorter half. Needs root
	@$(RUN) -m pytest -q -rs -n $(WORKERS) --dist load --durations=20 $(if $(SUBSET),-m $(SUBSET)) tests/slurm $(ARGS)

clean:  ## remove .venv and all caches; keeps runs/
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
