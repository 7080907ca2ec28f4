# make demo: the whole path on this machine. make test: everything that proves the project.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TREE := build/tree

.PHONY: demo test lint unit clean

demo: $(INSTALLED)
	$(BIN)/python examples/01-digits/demo.py --report demo-report

test: lint unit

# The package as it is installed, actors and jobs inside it: what the checkers look at.
lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf $(TREE) && mkdir -p $(TREE) && cp -r meedge_ray $(TREE)/ && cp -r actors jobs $(TREE)/meedge_ray/
	cd $(TREE) && ../../$(BIN)/mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache -p meedge_ray
	cd $(TREE) && ../../$(BIN)/lint-imports --config ../../pyproject.toml --no-cache

unit: $(INSTALLED)
	$(BIN)/pytest -n 2 -m "not ray"
	$(BIN)/pytest -m ray

$(INSTALLED): pyproject.toml constraints.txt $(wildcard meedge_ray/search/*.[ch])
	$(PYTHON) -c 'import sys; sys.exit("meedge-ray needs Python 3.11 or newer; try make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf build $(VENV) demo-report
