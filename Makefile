# Everything runs in .venv, made once and made again when pyproject.toml or constraints.txt changes.

PYTHON ?= python3
# The index of another torch build, in addition to the default index; empty for the default build.
TORCH_INDEX ?=
# Anything else for pip install.
PIP_FLAGS ?=

BIN := .venv/bin
READY := .venv/ready

.DEFAULT_GOAL := help
.PHONY: help demo test check docs clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-6s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo 'PYTHON=python3.12    the interpreter of the environment, 3.11 or newer'
	@echo 'TORCH_INDEX=URL      also look for torch there, for a CPU-only build for example'
	@echo 'PIP_FLAGS=...        more options for pip install'

demo: $(READY)  ## run the demonstration experiment with the bundled network
	$(BIN)/ptq-diffusion experiment=demo

test: check  ## lint, check types, run the tests, as many at a time as there are cores
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist worksteal

check: $(READY)  ## lint and check types
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(READY)  ## build the documentation site in site/, without the network
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build -q

clean:  ## remove caches and build output; .venv and outputs stay
	rm -rf build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find ptq_diffusion tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  found=$$($(PYTHON) --version 2>/dev/null || echo "no such command"); \
	  echo "expected Python 3.11 or newer as '$(PYTHON)', got $$found; name another: make PYTHON=python3.12 ..." >&2; \
	  exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	@echo "installing into .venv (PyTorch is a large download; the first time takes minutes)"
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-input $(PIP_FLAGS) \
	  $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -c constraints.txt -e '.[test,data,docs,efficientnet,text,parallel,slurm,tensorboard,onnx,openvino]'
	@touch $@
