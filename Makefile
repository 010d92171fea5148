# `make demo` shows it working; `make test` proves it. Both need Python 3.11+ and nothing else.
.PHONY: help environment demo test lint bench format lock clean
.DEFAULT_GOAL := help

bin := .venv/bin

help:
	@echo "make demo    a real batch through the worker on an embedded Azure, start to end, in half a minute"
	@echo "make test    everything that is checked: style, types, imports, tests"
	@echo "make lint    style, types and imports only"
	@echo "make bench   the worker's CPU, speed and memory beside a textbook worker's, in about ten minutes"
	@echo "make format  put the code into shape"
	@echo "make lock    write requirements/*.txt anew from pyproject.toml"
	@echo "make clean   remove the environment and what the tools left"

environment:
	@scripts/environment

demo: environment
	@$(bin)/python examples/demo.py

lint: environment
	$(bin)/ruff format --check .
	$(bin)/ruff check .
	$(bin)/mypy
	$(bin)/lint-imports

test: lint
	$(bin)/pytest -n 4 --dist worksteal

bench: environment
	$(bin)/python -m benchmarks.run

format: environment
	$(bin)/ruff format .
	$(bin)/ruff check --fix .

lock: environment
	$(bin)/python -m pip install --quiet uv
	$(bin)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
		--no-annotate --no-header pyproject.toml -o requirements/runtime.txt
	$(bin)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
		--no-annotate --no-header pyproject.toml --extra local --group dev -o requirements/dev.txt

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache demo-output
