.PHONY: help install test test-slow check test-extras test-all stale docs docs-pages

help:  ## show this
	@sed -n 's/^\([a-z-]*\):  ## /\1: /p' Makefile

install:  ## install clbench with everything that developing it needs
	python -m pip install --quiet -e ".[dev]"

test:  ## run the tests
	python -m pytest

test-slow:  ## run the tests that take long, which test leaves out
	python -m pytest --slow -m slow

check:  ## lint and type-check
	python -m ruff check .
	python -m mypy

test-extras:  ## run the tests that need an extra (Ray, PEFT, trackers, ...) in an environment with all of them
	python -m nox -s extras

test-all:  ## run the tests with every Python that is found, with the lowest versions allowed, test-slow and test-extras
	python -m nox

stale:  ## list the committed records under reports/ that other code gave than is installed
	python benchmarks/stale_reports.py

docs-pages:  ## write what in docs/ is made from code and records: commands, methods, results, the figure of the architecture
	python docs/pages.py
	python docs/schema_pages.py
	python docs/results_pages.py
	python docs/readme_table.py
	python docs/architecture_figure.py

docs:  ## build the documentation, the committed results with it, into build/docs
	python -m sphinx -W --keep-going -q -b html docs build/docs
