# Two commands: `make demo` (install, then one evaluation) and `make test` (install, then every check).

VENV := .venv
BIN := $(VENV)/bin
# The first interpreter that is new enough; `make PYTHON=/path/to/python` overrides.
PYTHON ?= $(shell for candidate in python3.11 python3.12 python3.13 python3.14 python3 python; do \
	$$candidate -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$candidate && break; done)

# Without `ensurepip` (Debian's python3-venv) an environment is made by half: the next call must not take it for whole.
.DELETE_ON_ERROR:
.PHONY: demo test lint types slow test-recipes clean

demo: $(VENV)/.installed
	$(BIN)/robench evaluate mini-resnet-gelu-adv mini-pgd-linf

# Tests are shared among the cores, at most four; `make test PROCESSES=0` runs them in one process. Each has one thread: with
# more, they would wait for one another.
PROCESSES ?= auto
test: export OMP_NUM_THREADS := 1
test: export OMP_WAIT_POLICY := PASSIVE

test: $(VENV)/.installed-test $(VENV)/.browser lint types
	$(BIN)/python -m pytest --numprocesses $(PROCESSES) --maxprocesses 4 --dist worksteal

lint: $(VENV)/.installed-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.installed-test
	$(BIN)/mypy

# Tests that take minutes: more kills, longer runs.
slow: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m slow

# Every recipe for photographs takes two steps of its optimizer on generated images (about an hour on two cores).
test-recipes: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m "slow or not slow" tests/training/test_every_recipe.py

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "robench needs Python 3.11 or newer; none was found. Try: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml
	@echo "Installing robench and torch; the first time this takes some minutes."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/.installed-test: $(VENV)/bin/python pyproject.toml
	@echo "Installing robench, torch and the tools of its tests; the first time this takes some minutes."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	@touch $@ $(VENV)/.installed

# The tests of the page need Debian's Chromium, those of foreign code bubblewrap. They are installed once, where apt may and
# can; wherever it cannot (no root, no apt, no network) those tests are skipped and say so.
$(VENV)/.browser: | $(VENV)/bin/python
	@{ command -v chromium || command -v chromium-browser; } >/dev/null && command -v bwrap >/dev/null || \
	test "$$(id -u)" != 0 || ! command -v apt-get >/dev/null || { \
		echo "Installing Chromium for the tests of the page, and bubblewrap for those of foreign code."; \
		export DEBIAN_FRONTEND=noninteractive; \
		timeout 60 apt-get --quiet=2 update >/dev/null 2>&1; \
		timeout 600 apt-get --quiet=2 --yes --no-install-recommends install chromium bubblewrap >/dev/null 2>&1; \
	} || echo "They cannot be installed; those tests will be skipped."
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
