# make run     set up .venv, then watch three nodes buy, sell, check and pay for inference
# make test    set up .venv with the tools of the tests, then run the whole suite
# make chain   start a chain of your own, to try money on; needs Node with npm
# make contracts  compile the Solidity contracts anew and run forge's tests of them; needs Node with npm
# make slither    look for known mistakes in them, with slither in an environment of its own
# make format  put the code into its one format
# make lock    resolve the dependencies again after a change of pyproject.toml
#
# ARGS is handed on: make test ARGS="-k sampler", make run ARGS="--once --json", make lock ARGS=--upgrade.
# PYTHON chooses the interpreter: make test PYTHON=python3.12.

recent = -c 'import sys; sys.exit(sys.version_info < (3, 11))'
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python $(recent) 2>/dev/null && echo $$python && break; done)

.PHONY: run test format lock chain contracts slither setup setup-dev python

run: setup
	@.venv/bin/idlemesh demo $(ARGS)

# Hundreds of processes of the tests load the same modules: where bytecode is not kept, each compiles them all anew.
test: setup-dev
	@PYTHONDONTWRITEBYTECODE= .venv/bin/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder $(ARGS)

format: setup-dev
	.venv/bin/ruff check --fix-only --quiet
	.venv/bin/ruff format

chain: setup
	@.venv/bin/python -m tools.chain $(ARGS)

contracts: python
	@"$(PYTHON)" -m tools.contracts $(ARGS)

slither: python
	@"$(PYTHON)" -m tools.contracts --slither

setup: python
	@"$(PYTHON)" -m tools.set_up

setup-dev: python
	@"$(PYTHON)" -m tools.set_up --dev

python:
	@test -n "$(PYTHON)" && "$(PYTHON)" $(recent) || { printf '%s\n' \
		'idlemesh needs Python 3.11 or newer$(if $(PYTHON),, and found none on the PATH).' \
		'Debian, Ubuntu: apt install python3 python3-venv; Fedora: dnf install python3; macOS: brew install python.' \
		'One that is elsewhere can be named: make PYTHON=/path/to/python3'; exit 1; }

# uv resolves for all platforms at once and writes the hash of every file; it is the tool of this rule alone.
# The other two locks are held to the versions of the widest, so that all three install side by side.
UV = build/lock/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-header --no-emit-index-url --no-emit-find-links $(ARGS)

lock: python
	"$(PYTHON)" -m venv build/lock
	build/lock/bin/pip install --quiet --disable-pip-version-check uv==0.13.8
	$(UV) pyproject.toml --all-extras --group dev --group build --output-file requirements-dev.lock
	$(UV) pyproject.toml --constraint requirements-dev.lock --output-file requirements.lock
	$(UV) --group build --constraint requirements-dev.lock --output-file requirements-build.lock
	echo 'slither-analyzer>=0.11' | $(UV) - --output-file contracts/slither.lock
