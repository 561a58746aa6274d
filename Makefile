# One target per thing a person does here. Everything runs in .venv; `make PYTHON=python3.12 ...` picks another interpreter.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Most of what the packages hold is never imported. Compiling all of it takes two minutes; what is imported is compiled then, and kept,
# which some environments forbid: that would cost every start of a process seconds.
PIP_INSTALL := $(BIN)/python -m pip install --quiet --no-compile -c constraints.txt
export PYTHONDONTWRITEBYTECODE =
# One thread per process: the tests start several processes, and a sum's order must not depend on the number of cores.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
# A process per core, at most 8: each loads torch, DeepSpeed and the oracles, which takes most of a gigabyte.
PARALLEL := -n logical --maxprocesses 8 --dist worksteal

QUICKSTART := configs/pretrain/fashion_mnist_vit.yaml
SWEEP := configs/sweeps/fashion_resolution.yaml
RAW := shards/raw/fashion-mnist
PACKED := shards/fashion-mnist

.DEFAULT_GOAL := help
.PHONY: help venv quickstart test check chaos

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(VENV)/dev.stamp  ## create .venv and install vitscale into it, with what the tests need

test: $(VENV)/dev.stamp  ## run the tests that need no GPU and no patience: the default tier, several processes, Ray
	$(PYTEST) $(PARALLEL)
	# By file, so that the tests which share a launch share a process; two at a time, because each starts processes of its own.
	$(PYTEST) -m dist -n 2 --dist loadfile
	$(PYTEST) -m ray

chaos: $(VENV)/dev.stamp  ## run the long tests that kill processes, machines and clusters
	$(PYTEST) -m chaos

check: $(VENV)/dev.stamp  ## lint, formatting, types, architecture
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(PYTEST) tests/test_architecture.py

quickstart: $(PACKED)/test/manifest.json  ## train and evaluate a small ViT on Fashion-MNIST with 2 Ray workers
	$(BIN)/vitscale-launch train $(QUICKSTART) --workers 2
	$(BIN)/vitscale evaluate $(QUICKSTART)
	@printf '%s\n' '' \
		'top1 above is the share of the test images that the model names right; it never saw one of them in training.' \
		'Everything about the run is in runs/fashion_mnist_vit: configuration, plan, curves, checkpoints. Next:' \
		'' \
		'  $(BIN)/tensorboard --logdir runs' \
		'      the curves, and the images as the model saw them' \
		'  $(BIN)/vitscale train $(QUICKSTART) train.num_samples=360000 --allow-change train.num_samples' \
		'      resume from the last checkpoint and train on' \
		'  $(BIN)/vitscale-launch tune $(SWEEP)' \
		'      fine-tune it at several resolutions and compare them' \
		'  $(BIN)/vitscale export runs/fashion_mnist_vit --layout timm' \
		'      a folder that timm.create_model("local-dir:...") loads, and the difference of its logits' \
		'  $(BIN)/vitscale plan $(QUICKSTART) --world-size 4' \
		'      what a run would do on other hardware, and why'

# Both splits appear together when everything is written.
$(PACKED)/test/manifest.json: | $(VENV)/run.stamp
	$(BIN)/vitscale-data fetch $(RAW)
	$(BIN)/vitscale-data pack fashion-mnist $(RAW) $(PACKED)

$(VENV)/run.stamp: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo "vitscale needs Python 3.11, 3.12 or 3.13; name one, for example: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	@echo "installing into $(VENV); torch and Ray are large, so the first time takes minutes"
	$(PYTHON) -m venv $(VENV)
	# torch first and alone: the machine's pip configuration decides which build it is, and nothing later replaces it.
	$(PIP_INSTALL) torch
	$(PIP_INSTALL) -e '.[plot]'
	@touch $@

$(VENV)/dev.stamp: $(VENV)/run.stamp
	$(PIP_INSTALL) -e '.[dev]'
	@touch $@
