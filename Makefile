# setup: .venv from requirements.lock.  demo: the whole DAG on this machine, no download, no GPU.
# test: unit tests first, then the demo DAG.  check: lint, types, workflow.
PYTHON ?= python3
CORES ?= $(shell nproc)
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export OMP_NUM_THREADS ?= 1

.PHONY: setup demo test check bench

setup: .venv/ready

.venv/ready: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --progress-bar off --requirement requirements.lock
	.venv/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

demo: setup
	snakemake results/demo/demo.csv results/demo/demo_samples.png results/demo/demo_token_maps.png \
		--cores $(CORES) --quiet rules
	mirai summary demo --scale demo

test: setup
	pytest -m "not workflow and not slurm and not gpu"
	pytest -m workflow

check: setup
	ruff format --check .
	ruff check .
	mypy
	snakefmt --check --diff Snakefile workflow
	snakemake --lint

bench: setup
	python benchmarks/run.py
