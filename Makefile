.PHONY: install test check docs docs-pages

install:  ## install clbench with everything that developing it needs
	python -m pip install --quiet -e ".[dev]"

test:  ## run the tests
	python -m pytest

check:  ## lint and type-check
	python -m ruff check .
	python -m mypy

docs-pages:  ## write the pages of docs/ that are made from the code: commands, methods
	python docs/pages.py

docs:  ## build the documentation into build/docs
	python -m sphinx -W --keep-going -q -b html docs build/docs
