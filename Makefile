.PHONY: install test check docs docs-pages

install:  ## install clbench with everything that developing it needs
	python -m pip install --quiet -e ".[dev]"

test:  ## run the tests
	python -m pytest

check:  ## lint and type-check
	python -m ruff check .
	python -m mypy

docs-pages:  ## write what in docs/ is made from code: commands, methods, the figure of the architecture
	python docs/pages.py
	python docs/architecture_figure.py

docs:  ## build the documentation into build/docs
	python -m sphinx -W --keep-going -q -b html docs build/docs
