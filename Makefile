# `make` alone lists what there is. All of it works from a fresh clone: .venv is made on demand.

PYTHON ?= python3
RUN := .venv/bin/python

help:  ## list the targets
	@grep -E '^[a-z]+:.*## ' Makefile | sed -E 's/:[^#]*## /\t/' | expand -t 10

demo: .venv/ready  ## run every lesson, both ends, on a broker of its own; LESSON=topic runs one
	@$(RUN) tools/demo.py $(LESSON)

test: .venv/ready  ## prove every claim, on a broker of its own; ARGS goes to pytest
	@$(RUN) -m pytest -m "not faults" $(ARGS)

faults: .venv/ready  ## kill, cut off and flood both ends for some minutes: what is lost, what comes twice
	@$(RUN) -m pytest -m faults -n 2 --dist load $(ARGS)

bench: .venv/ready  ## measure the lessons beside other ways and other libraries; ARGS=--quick for a minute
	@.venv/bin/pip install -q --disable-pip-version-check -r benchmarks/requirements.txt
	@$(RUN) benchmarks/run.py $(ARGS)

lint: .venv/ready  ## check style and formatting
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .

broker:  ## leave a broker on localhost:5672, for the two-terminal way
	@$(PYTHON) tools/broker.py up

picture: .venv/ready  ## draw the README's picture anew, from a real run
	@$(RUN) tools/picture.py

# Debian keeps venv in a package of its own; as root it can be had, otherwise Python says its name.
.venv/ready: requirements.txt tests/requirements.txt
	@$(PYTHON) -m venv .venv >/dev/null 2>&1 || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
	  && echo "Installing Debian's python3-venv" && apt-get update -qq \
	  && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3-venv >/dev/null; } || true
	@$(PYTHON) -m venv .venv
	@echo "Installing requirements.txt and tests/requirements.txt into .venv"
	@.venv/bin/pip install -q --disable-pip-version-check -r tests/requirements.txt
	@touch $@

.PHONY: help demo test faults bench lint broker picture
