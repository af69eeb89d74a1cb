# setup: .venv from requirements.lock.  demo: the whole DAG on this machine, no download, no GPU.
# pilot: demo grid and Table 1 with five seeds on one GPU, no download (docs/pilot.md).
# test: unit tests first, then what takes seconds each (real sizes, processes), the DAG, and a real SLURM, where tests/slurm/install.sh put one
# (else these are skipped, and say so).  check: lint, types, workflow.
PYTHON ?= python3
CORES ?= $(shell nproc)
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export OMP_NUM_THREADS ?= 1

.PHONY: setup demo pilot test check bench

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

pilot: setup
	snakemake results/pilot/demo.csv results/pilot/table1.csv results/pilot/demo_samples.png results/pilot/demo_token_maps.png --cores $(CORES) --quiet rules

test: setup
	pytest -m "not full and not workflow and not slurm and not gpu"
	pytest -m full
	pytest -m workflow
	pytest -m slurm -rs

check: setup
	ruff format --check .
	ruff check .
	mypy
	snakefmt --check --diff Snakefile workflow
	snakemake --lint

bench: setup
	python -m benchmarks.run
