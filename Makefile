# Everything here works in a fresh clone: each target sets up what it needs.

PYTHON ?= python3
RUN := .venv/bin/python
# Three test processes, each with its own broker.
PARALLEL := -n 3 --dist worksteal

help:  ## list the targets
	@grep -E '^[a-z]+:.*## ' Makefile | sed -E 's/:[^#]*## /\t/' | expand -t 10

demo: setup  ## run every lesson in this terminal, on a temporary broker; LESSON=topic runs one
	@$(RUN) -m tools.demo $(LESSON)

test: setup  ## test scripts and pages, on temporary brokers; ARGS goes to pytest
	@$(RUN) -m pytest $(PARALLEL) -m "not faults" $(ARGS)

faults: setup  ## kill, cut off and flood the scripts for a few minutes, and count what's lost
	@$(RUN) -m pytest $(PARALLEL) --dist load -m faults $(ARGS)

bench: setup  ## benchmark the lessons; ARGS=1 measures one round instead of five
	@$(RUN) -m benchmarks.run $(ARGS)

broker: setup  ## run a broker on localhost:5672 until Ctrl+C
	@$(RUN) -m tools.broker run

lint: .venv/ready  ## check style, formatting and types
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@$(RUN) -m mypy

lock: .venv/ready  ## update the locked versions in tests/requirements.txt
	@UV_PYTHON_DOWNLOADS=never $(RUN) -m uv pip compile --quiet --upgrade --universal \
	  --no-annotate --python-version 3.10 --custom-compile-command "make lock" \
	  tests/requirements.in -o tests/requirements.txt

# Once, before anything runs in parallel: a broker, and the packages for tools and tests.
setup: .venv/ready
	@$(RUN) -m tools.broker install

.venv/ready: requirements.txt tests/requirements.txt
	@$(PYTHON) -m venv .venv
	@echo "Installing tests/requirements.txt into .venv, once."
	@$(RUN) -m pip install -q --disable-pip-version-check -r tests/requirements.txt
	@touch $@

.PHONY: help demo test faults bench broker lint lock setup
