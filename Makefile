# smoothlab: every target first makes .venv with the versions pinned in constraints.txt, once.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

# Two workers and the dozens of processes that tests start share compiled modules, whatever the shell says.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test check slow docs mutants bench lint

help:
	@echo "make demo    Fig. 1a, 1b and 3, the estimators and the rates on the built-in model and data, into out/demo/ (open index.html); about 4 minutes"
	@echo "make test    tests, ruff, mypy, import-linter; about 4 minutes"
	@echo "make check   what takes longer, as CI runs it after make test: long tests, code of the docs, examples, wheel, records"
	@echo "make slow    every test, those of minutes too"
	@echo "make docs    the documentation as pages, into out/docs (open index.html)"
	@echo "make mutants tests against a sample of 240 mutants of the instrument's modules; about 20 minutes"
	@echo "make bench   speed against other Hessian tools and against a literal zeroth-order loop; about 20 minutes"
	@echo "make lint    ruff, mypy, import-linter only"
	@echo "The first of them makes .venv (Python 3.11 or newer; a few minutes). Another Python: make test PYTHON=python3.12"

$(STAMP): pyproject.toml constraints.txt tests/references.txt
	@command -v $(PYTHON) >/dev/null || { echo "smoothlab needs Python 3.11 or newer, and there is no '$(PYTHON)' here: install one, or name it: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "smoothlab needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) -V 2>&1). Name a newer one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@echo "Setting up .venv with $$($(PYTHON) -V) and the versions in constraints.txt (once; a few minutes) ..."
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[test,docs]'
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps -r tests/references.txt
	@touch $@

demo: $(STAMP)
	@$(BIN)/smoothlab demo --out out/demo

# Every check runs even if one fails; pytest is the last, so that its summary closes the output.
define LINT
	status=0; \
	echo "== ruff";          $(BIN)/ruff check --quiet . || status=1; \
	echo "== ruff format";   $(BIN)/ruff format --check --quiet . || { echo "run: $(BIN)/ruff format ."; status=1; }; \
	echo "== mypy";          $(BIN)/mypy || status=1; \
	echo "== import-linter"; $(BIN)/lint-imports --no-logo >.venv/lint-imports.log 2>&1 || { cat .venv/lint-imports.log; status=1; };
endef

lint: $(STAMP)
	@$(LINT) exit $$status

test: $(STAMP)
	@$(LINT) \
	echo "== pytest"; $(BIN)/python -m pytest -n auto --maxprocesses 2 --dist worksteal || status=1; \
	if [ $$status != 0 ]; then echo "make test: FAILED (see above)" >&2; fi; exit $$status

check: $(STAMP)
	@$(BIN)/python -m pytest -n auto --maxprocesses 2 --dist worksteal -m "check and not slow and not gpu and not network"

slow: $(STAMP)
	@$(BIN)/python -m pytest -n auto --maxprocesses 2 --dist worksteal -m "not gpu and not network"

# mkdocs-material announces on every build that it is maintained until 2027 only; its version is pinned.
docs: $(STAMP)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet && echo "out/docs/index.html"

mutants: $(STAMP)
	@$(BIN)/python -m tests.mutation_runs

bench: $(STAMP)
	@$(BIN)/python -m pytest benchmarks -m "" -s
