# `make help` lists what can be made. Everything is installed into .venv, nothing outside of this directory,
# but for `make proxies`, which installs the distribution's packages.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

VENV := .venv
PY := $(VENV)/bin/python
INSTALL := $(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# Tests wait more than they compute, so there are more workers than cores of the smallest machine.
TEST_WORKERS := 4
# A stamp says what is installed, so that nothing is installed twice.
RUN_STAMP := $(VENV)/.installed-run
DEV_STAMP := $(VENV)/.installed-dev
PROMETHEUS := $(VENV)/bin/prometheus
PROVIDER := tests/support/oidc
PROVIDER_STAMP := $(PROVIDER)/node_modules/.installed
BENCH_STAMP := $(VENV)/.installed-bench
WHEELHOUSE := dist/wheelhouse/.made
ROOTFS := dist/rootfs.tar

.PHONY: help demo test test-engines lint bench soak docs screenshots proto proxies provider prometheus chromium wheelhouse deb clean

help: ## list what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

demo: $(RUN_STAMP) ## two gateways on this machine, real proxies, real data
	$(VENV)/bin/s2uc demo

test: $(DEV_STAMP) proxies provider prometheus chromium ## the whole test suite but the long runs
	$(PY) -m pytest -m "not soak and not engines" -n $(TEST_WORKERS) --dist loadscope --no-loadscope-reorder

test-engines: $(DEV_STAMP) proxies $(WHEELHOUSE) $(if $(shell command -v dockerd),$(ROOTFS)) ## what needs a booted systemd or another engine; skips what is not there
	$(PY) -m pytest -m engines --timeout 600 tests/engines tests/contract

lint: $(DEV_STAMP) ## style and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

bench: $(BENCH_STAMP) proxies ## all benchmarks in about twenty minutes, into docs/benchmarks.md
	@deploy/install-rivals.sh || echo "going on without what could not be installed"
	$(PY) -m bench --plots

soak: $(DEV_STAMP) proxies provider prometheus ## the long runs
	$(PY) -m pytest -m "soak and not engines" --timeout 0

docs: $(DEV_STAMP) ## the documentation site, into site/
	$(PY) -m scistream.diagram
	$(PY) -m tools.troubleshooting
	$(VENV)/bin/mkdocs build --strict

screenshots: $(DEV_STAMP) proxies chromium ## the pictures of the gateway's page in the docs
	SCISTREAM_SCREENSHOTS=docs/img $(PY) -m pytest -k screenshots tests/live/test_web.py

proto: $(DEV_STAMP) ## the code generated from the .proto files, and the page from scistream.proto
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(PY) -m grpc_tools.protoc -I. --python_out=. --grpc_python_out=. \
		--mypy_out=. --mypy_grpc_out=. scistream/proto/scistream.proto s2cs/s2ds/remote/s2ds.proto
	$(PY) -m scistream.diagram

proxies: ## Stunnel, HAProxy and Nginx from the distribution, where missing
	@deploy/install-proxies.sh

chromium: ## the browser that tests look at the gateway's page with, where it can be installed
	@deploy/install-chromium.sh || echo "there is no Chromium: the tests that need it are skipped, and say so"

prometheus: $(if $(shell command -v apt-get),$(PROMETHEUS)) ## the monitoring that tests load the alerts into, where apt is there

provider: $(if $(shell command -v npm),$(PROVIDER_STAMP)) ## the OpenID Connect provider that tests use, where node is there
	@command -v npm >/dev/null || echo "there is no npm here: tests that need an OpenID Connect provider are skipped"

wheelhouse: $(WHEELHOUSE) ## what deploy/setup.sh needs to install without network, into dist/wheelhouse

deb: $(RUN_STAMP) ## a Debian package of this tree, into dist
	@deploy/deb/build.sh

clean: ## remove what was made here
	rm -rf $(VENV) $(PROVIDER)/node_modules build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(PY):
	@deploy/make-venv.sh $(VENV)

$(RUN_STAMP): pyproject.toml constraints.txt | $(PY)
	@echo "installing into $(VENV)"
	@$(INSTALL) --editable '.[embedded]'
	@touch $@

$(DEV_STAMP): pyproject.toml constraints.txt | $(PY)
	@echo "installing into $(VENV), with what development needs"
	@$(INSTALL) --editable '.[dev,docs,embedded,etcd,keyring]'
	@touch $@ $(RUN_STAMP)

$(PROVIDER_STAMP): $(PROVIDER)/package.json $(PROVIDER)/package-lock.json
	@echo "installing the tests' OpenID Connect provider"
	@if npm --prefix $(PROVIDER) ci --no-progress --loglevel=error; then touch $@; \
	else echo "it could not be installed; the tests that need it are skipped, and say so"; fi

# Unpacked, not installed: no test is to make a service run on this machine.
$(PROMETHEUS): | $(PY)
	@echo "fetching Prometheus into $(VENV)"
	@mkdir -p $(VENV)/deb && cd $(VENV)/deb && if apt-get download -qq prometheus 2>/dev/null; \
	then dpkg-deb -x prometheus_*.deb . && mv usr/bin/promtool usr/bin/prometheus ../bin/; \
	else echo "it could not be fetched; the tests that need it are skipped, and say so"; fi
	@rm -rf $(VENV)/deb

$(BENCH_STAMP): pyproject.toml constraints.txt | $(PY)
	@echo "installing into $(VENV), with what the benchmarks compare with"
	@$(INSTALL) --editable '.[dev,docs,embedded,etcd,keyring,bench]'
	@touch $@ $(DEV_STAMP) $(RUN_STAMP)

# What the image of the tests is built on: they pull none.
$(ROOTFS): deploy/docker/base.sh
	@deploy/docker/base.sh || echo "tests that need an image of containers are skipped, and say so"

# Of the tree itself only what it depends on: setup.sh builds the tree.
$(WHEELHOUSE): pyproject.toml constraints.txt | $(PY)
	@echo "filling dist/wheelhouse"
	@rm -rf dist/wheelhouse
	@$(PY) -m pip wheel --quiet --disable-pip-version-check --constraint constraints.txt \
		--wheel-dir dist/wheelhouse '.[etcd]' hatchling
	@rm -f dist/wheelhouse/scistream-*.whl
	@touch $@
