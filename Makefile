# Two commands: `make demo` runs the whole chain, `make test` checks everything. Each makes its own virtual environment.
PYTHON ?= python3.11

.PHONY: demo test lint clean

demo: .venv/demo/installed
	.venv/demo/bin/minicarlo demo -o minicarlo-demo

test: .venv/test/installed
	.venv/test/bin/ruff check .
	.venv/test/bin/ruff format --check .
	.venv/test/bin/mypy
	.venv/test/bin/lint-imports
	OMP_NUM_THREADS=1 .venv/test/bin/pytest -n auto --dist loadfile

.venv/demo/installed: pyproject.toml
	$(PYTHON) -m venv .venv/demo
	.venv/demo/bin/pip install --quiet --upgrade pip
	.venv/demo/bin/pip install --progress-bar on .
	touch $@

.venv/test/installed: pyproject.toml
	$(PYTHON) -m venv .venv/test
	.venv/test/bin/pip install --quiet --upgrade pip
	.venv/test/bin/pip install --editable ".[train,geant4,dev]"
	.venv/test/bin/pip install --no-deps jetnet==0.2.5  # wasserstein, which it wants, needs NumPy 1; its FPD and KPD do not
	touch $@

clean:
	rm -rf .venv minicarlo-demo
