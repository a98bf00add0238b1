# `make demo` and `make test` do their own set-up, in .venv. VENV=/elsewhere is shared between clones: each that is another
# than the one before it installs itself there, which takes seconds.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
STAMP := $(VENV)/.aligntok-$(shell { pwd; cat pyproject.toml plugins/*/pyproject.toml constraints/*.txt; } | cksum | cut -d' ' -f1)
PLUGINS := $(wildcard plugins/aligntok-*)
export HF_HUB_OFFLINE ?= 1

SEED ?= 0
EACH ?= 8

.PHONY: help demo demo-t2i demo-t2i-measure test suite test-slow test-release mutants check golden docs install clean

help:
	@echo "make demo      install, train a tokenizer on real photographs, then a generator, write samples"
	@echo "make test      install, then everything CI runs: lint, types, layers, tests, docs"
	@echo "make test-slow what \`make test\` leaves out for its length: every fault, every model"
	@echo "make test-release the source archive into empty environments, 8 GB each in turn: see tests/wheels/release.py"
	@echo "make mutants   break the code in EACH places a file, drawn from SEED, and see whether a test fails"
	@echo "make demo-t2i  install, train text to image on emoji and their names, draw names never seen, measure them"
	@echo "make check     the quick part of it: lint, types, layers"
	@echo "make golden    compute anew what must not change by itself: tests/golden/golden.json"
	@echo "make docs      build the documentation into docs/_build/html"

install: $(STAMP)

$(STAMP): pyproject.toml $(wildcard plugins/*/pyproject.toml constraints/*.txt)
	tools/make_environment.sh $(PYTHON) $(VENV) $(PLUGINS)
	rm -f $(VENV)/.aligntok-*
	touch $@

demo: $(STAMP)
	tools/demo.sh $(BIN)

demo-t2i: $(STAMP)
	tools/demo_t2i.sh $(BIN)

demo-t2i-measure: demo-t2i
	tools/demo_t2i_measure.sh $(BIN)

test: $(STAMP)
	$(MAKE) --jobs=2 check suite

suite: $(STAMP)
	@# It builds the documentation, too. A file's tests run in one process, which makes once what they share.
	$(BIN)/python -m pytest -n auto --dist loadfile

test-slow: $(STAMP)
	$(BIN)/python -m pytest -n auto -m nightly

test-release: $(STAMP)
	$(BIN)/python tests/wheels/release.py

mutants: $(STAMP)
	nice -n 10 $(BIN)/python tests/mutation/run.py --seed $(SEED) --each $(EACH)

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PATH="$(abspath $(BIN)):$$PATH" lint-imports

golden: $(STAMP)
	$(BIN)/python tests/golden/make.py

docs: $(STAMP)
	$(BIN)/python docs/generate.py
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

clean:
	rm -rf docs/_build docs/api/generated docs/components.md docs/configuration_keys.md work_dirs/demo work_dirs/demo_t2i
