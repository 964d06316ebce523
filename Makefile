.PHONY: install test check

install:  ## install clbench with everything that developing it needs
	python -m pip install --quiet -e ".[dev]"

test:  ## run the tests
	python -m pytest

check:  ## lint and type-check
	python -m ruff check .
	python -m mypy
