# Everything from a fresh clone: `make run` measures, `make test` tests, `make check` lints. Each installs what it needs.
PYTHON ?= python3
SUITE ?= suites/quick.yaml
TESTS ?= tests
# processes that share the tests: none beside this one where there is a GPU, which is for one at a time
WORKERS ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo 0 || echo $$(($$(nproc) < 4 ? $$(nproc) : 4)))
BIN := .venv/bin

.PHONY: run test check format install clean
.DEFAULT_GOAL := run

run: install
	$(BIN)/python -m harness run $(SUITE)

test: install
	$(BIN)/python -m pytest $(TESTS) --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

install: .venv/installed

# torch first: the version decides which of its builds every later requirement has to live with
.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed, $(PYTHON) is " + sys.version.split()[0] + "; use: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 --constraint constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]' --constraint constraints.txt
	@touch $@

clean:
	rm -rf .venv build *.egg-info
