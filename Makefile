# Two commands for a fresh machine with Python, make and a shell: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo test lint clean

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	touch $@

demo: $(VENV)/.installed
	rm -rf demo && mkdir demo
	cd demo && ../$(BIN)/lpss train
	cd demo && ../$(BIN)/lpss sparsify model.pt --p 0.5
	cd demo && ../$(BIN)/lpss report
	cd demo && ../$(BIN)/lpss export
	@echo
	@echo "The results are in demo/:"
	@ls -l demo

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Two worker processes with one thread each: results do not depend on the number of cores.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

clean:
	rm -rf $(VENV) demo build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
