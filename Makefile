# One command each; `make` alone lists them. The environment is made once and remade when its requirements change.
#   PYTHON=python3.13   another interpreter        EXTRA=cuda13   JAX for an accelerator: cuda12, cuda13 or tpu
#   JOBS=4              tests in as many processes; about 2 GB each, with eight CPU devices of its own
# Each choice gets an environment of its own, so that switching back and forth reinstalls nothing; VENV= names one.

PYTHON = python3
EXTRA =
JOBS = 2
ifneq ($(filter-out cuda12 cuda13 tpu,$(EXTRA)),)
$(error EXTRA=$(EXTRA) is unknown; use cuda12, cuda13 or tpu, or leave it out for the CPU)
endif

ifneq ($(PYTHON),python3)
VERSION := $(shell $(PYTHON) -c "import sys; print('-%d.%d' % sys.version_info[:2])")
ifeq ($(VERSION),)
$(error PYTHON=$(PYTHON) does not run; give the name or the path of a Python 3.11 or newer)
endif
endif
OPTIMISED = XLA_FLAGS="--xla_backend_optimization_level=1 $(XLA_FLAGS)"  # tests that run long want faster programs
VENV = .venv$(VERSION)$(EXTRA:%=-%)
PY = $(VENV)/bin/python

.PHONY: help train test check check-rest test-slow test-long soak lint format sizes types lock docs env clean
.DELETE_ON_ERROR:

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 14

train: $(VENV)/.installed  ## pretrain on handwritten digits into runs/digits, evaluate, and write runs/digits/report/report.html
	$(PY) train.py --workdir=runs/digits
	$(PY) eval_linear.py --checkpoint=runs/digits
	$(PY) -m moco_jax report runs/digits

test: $(VENV)/.dev  ## the tests to run while working
	$(PY) -m pytest -n $(JOBS) --dist loadfile -m "not slow and not long"

check: test check-rest  ## everything that must hold before a change lands: tests, lint, types

check-rest: lint types test-slow  ## what `make check` does beyond `make test`

test-slow: $(VENV)/.dev  ## the tests of `make check` that `make test` leaves out
	$(OPTIMISED) $(PY) -m pytest -n $(JOBS) --dist loadfile -m slow

test-long: $(VENV)/.dev  ## the other cases of what slow tests show (half an hour and more)
	$(OPTIMISED) $(PY) -m pytest -n $(JOBS) --dist loadfile -m long

soak: test-long  ## those, and kill -9, signals, damage and stops, many times over (two hours); figures into benchmarks/results
	$(PY) -m benchmarks.kills --store=200 --train=40 --output=benchmarks/results/kills.json
	$(PY) -m benchmarks.flips --flips=2000 --output=benchmarks/results/flips.json
	$(PY) -m benchmarks.resume --output=benchmarks/results/resume.json
	$(PY) -m benchmarks.supervised --minutes=20 --output=benchmarks/results/supervised.json

lint: $(VENV)/.dev  ## formatting and rules (ruff), and versions that fit each other (pip check)
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m pip check
	$(PY) -m tests.sizes

sizes:  ## the longest files and functions: to look at, not a rule
	@$(PYTHON) -m tests.sizes

format: $(VENV)/.dev  ## put both in order
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

types: $(VENV)/.dev  ## type check (mypy)
	$(PY) -m mypy

lock: $(VENV)/.dev  ## the versions of this environment into requirements-lock-X.Y.txt
	$(PY) -m tests.locks

docs:  ## docs/api.md from the docstrings
	$(PYTHON) -m docs.make_api

env: $(VENV)/.dev  ## the environment with development tools, for an editor

clean:  ## remove environments, caches and builds; runs/ stays
	rm -rf .venv .venv-* build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.installed: requirements.txt
	@$(PYTHON) -c "import sys; sys.version_info >= (3, 11) or sys.exit('Python 3.11 or newer is needed, not %d.%d: make ... PYTHON=python3.11' % sys.version_info[:2])"
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --disable-pip-version-check -r requirements.txt $(EXTRA:%="jax[%]")
	@touch $@

$(VENV)/.dev: $(VENV)/.installed pyproject.toml
	$(PY) -m pip install --disable-pip-version-check -e ".[dev]"
	@touch $@
