# Every target sets up .venv first, when it is missing or older than the lock files.

# Passed on: make demo ARGS=--once, make test ARGS='-k pool', make lock ARGS=--upgrade
ARGS ?=
BIN := .venv/bin
STAMP := .venv/.installed
LINTED := addon tests

# Names of this or that machine and of package indexes have no place in the project's files.
ADDRESSES := (pypi|crates)[.](org|io)|pythonhosted[.]org|npmjs[.](org|com)|(deb|security)[.]debian[.]org|proxy[.]golang[.]org|(^|[^[:alnum:]_.-])/(root|work)/

.PHONY: help setup demo test truth-table long fuzz bench check-cost docs check lint types layers addresses format lock clean

help:
	@echo 'make setup    .venv from the hashed lock files'
	@echo 'make demo     a look-alike service, the sidecar and a call through it (ARGS=--once: then end)'
	@echo 'make test     all tests (ARGS: for pytest)'
	@echo 'make long     only the tests that have a long form, in that (ARGS: for pytest)'
	@echo 'make fuzz     spoilt bytes and files, guided by coverage, a minute each (SECONDS=, TARGETS=downstream); brings atheris'
	@echo 'make truth-table  addon/TRUTH_TABLE.md from what the tests see of real servers'
	@echo 'make bench    sidecert beside nginx, haproxy, Envoy, caddy, stunnel and mitmdump, in 4 minutes (ARGS=--all:'
	@echo '              everything, up to 40; ARGS=--help, ROUNDS=, SECONDS=); brings caddy, Envoy and matplotlib'
	@echo 'make check-cost  instructions and system calls per call, beside the committed figures'
	@echo 'make docs     the pages that are made from the code: config/errors.md'
	@echo 'make check    lint, format, types, import layers'
	@echo 'make format   lint and format what can be repaired'
	@echo 'make lock     the lock files from pyproject.toml (ARGS=--upgrade: newest versions)'
	@echo 'make clean    remove everything that was made'

setup: $(STAMP)

$(STAMP): pyproject.toml requirements.lock requirements-dev.lock .python-version .ci/setup
	.ci/setup
	@touch $@

demo: $(STAMP)
	$(BIN)/sidecert demo $(ARGS)

# As many at once as there are cores, up to four; ARGS='-n 0' for one process, as a debugger needs it.
test: $(STAMP)
	$(BIN)/python -m pytest -n auto --maxprocesses 4 $(ARGS)

long: $(STAMP)
	SIDECERT_LONG=1 $(BIN)/python -m pytest -m long_form $(ARGS)

truth-table: $(STAMP)
	SIDECERT_WRITE_TRUTH_TABLE=1 $(BIN)/python -m pytest tests/behaviour/test_truth_table_*.py $(ARGS)

# Of load, per proxy and kind of load; more of either makes the figures steadier.
ROUNDS ?= 3
SECONDS ?= 3

bench: $(STAMP)
	.ci/setup bench
	PYTHONPATH=tests $(BIN)/python -m bench --rounds $(ROUNDS) --seconds $(SECONDS) $(ARGS)

# Linux only; what each target finds worth keeping, and what broke, stays in .fuzz.
TARGETS := $(patsubst tests/fuzz/atheris_%.py,%,$(sort $(wildcard tests/fuzz/atheris_*.py)))

fuzz: SECONDS = 60
fuzz: $(STAMP)
	.ci/setup fuzz
	@for target in $(TARGETS); do \
		echo "fuzz: $$target, for $(SECONDS) s"; \
		PYTHONPATH=tests $(BIN)/python tests/fuzz/atheris_$$target.py .fuzz/$$target $(SECONDS) || exit 1; done

# Before a release, by hand; needs valgrind and strace. ARGS=--write takes the figures as the new ones.
check-cost: $(STAMP)
	PYTHONPATH=tests $(BIN)/python -m bench.cost $(ARGS)

docs: $(STAMP)
	$(BIN)/python -m sidecert.errors_page > config/errors.md

# All of them run, so that one finding does not hide another's.
check: $(STAMP)
	@$(MAKE) --no-print-directory -k lint types layers addresses

lint: $(STAMP)
	$(BIN)/ruff check $(LINTED)
	$(BIN)/ruff format --check $(LINTED)

types: $(STAMP)
	$(BIN)/mypy

layers: $(STAMP)
	$(BIN)/lint-imports

addresses:
	@if git grep -nIE '$(ADDRESSES)' -- . ':!Makefile'; then \
		echo 'check: the lines above name a machine or a package index' >&2; exit 1; fi

format: $(STAMP)
	$(BIN)/ruff check --fix $(LINTED)
	$(BIN)/ruff format $(LINTED)

lock:
	.ci/setup lock $(ARGS)

clean:
	rm -rf .venv .tools build dist addon/*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .fuzz .import_linter_cache
	find $(LINTED) -name __pycache__ -type d -prune -exec rm -rf {} +
