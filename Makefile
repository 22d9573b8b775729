# make demo shows the proxy at work, make test runs all checks, make help lists the other targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
HAPI_JAR := tests/hapi/target/hapi.jar
PORT ?= 8081
DB ?= jdbc:h2:mem:hapi

.DEFAULT_GOAL := help

help: ## list the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST)

$(READY): requirements-dev.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

install: $(READY) ## create .venv from the lock file

demo: $(READY) ## show the main job on the embedded store: make demo ARGS=--serve
	$(BIN)/cgm-proxy demo $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(READY) ## format the code and apply the linter's fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: lint ## run linters, type checks and all tests
	$(BIN)/pytest -n auto --dist loadfile

$(HAPI_JAR): tests/hapi/pom.xml $(wildcard tests/hapi/src/main/java/cgm/*.java tests/hapi/src/main/resources/*)
	mvn -q -B -f tests/hapi/pom.xml package
	@touch $@

hapi: $(HAPI_JAR) ## start a real HAPI: make hapi PORT=8081 DB='jdbc:h2:file:/PATH;WRITE_DELAY=0'
	exec java -Xmx2g -jar $(HAPI_JAR) --port=$(PORT) '--db=$(DB)'

bench: $(READY) ## measure on a real HAPI: make bench STORE=postgresql JSON=FILE LARGE=3
	PYTHONPATH=tests $(BIN)/python -m bench $(if $(STORE),--store $(STORE)) $(if $(JSON),--json '$(JSON)') \
	  $(if $(LARGE),--large $(LARGE)) $(BENCH)

chaos: $(READY) ## kill servers and compare what is stored with what was sent: make chaos SEED=7 KILLS=100 SECONDS=900 STORE=h2 STRIP=1 JSON=FILE
	PYTHONPATH=tests $(BIN)/python -m chaos $(if $(SEED),--seed $(SEED)) $(if $(KILLS),--kills $(KILLS)) \
	  $(if $(SECONDS),--seconds $(SECONDS)) $(if $(STORE),--store $(STORE)) $(if $(STRIP),--strip) $(if $(JSON),--json '$(JSON)')

# .cache/bin/helm and .cache/bin/validate-manifests are built from one module, whose go.sum locks their sources.
GO_BUILD := cd tests/helm && go build -buildvcs=false -trimpath -ldflags '-s -w'

.cache/bin/helm: tests/helm/go.mod tests/helm/go.sum
	$(GO_BUILD) -o ../../$@ helm.sh/helm/v3/cmd/helm

.cache/bin/validate-manifests: tests/helm/main.go tests/helm/go.mod tests/helm/go.sum
	$(GO_BUILD) -o ../../$@ .

chart-tools: .cache/bin/helm .cache/bin/validate-manifests ## build helm and the validator of manifests (needs Go 1.26)

lock: $(READY) ## update the lock files
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile -q --generate-hashes --universal --python-version 3.11 pyproject.toml -o requirements.lock
	$(BIN)/uv pip compile -q --generate-hashes --universal --python-version 3.11 --extra dev -c requirements.lock pyproject.toml -o requirements-dev.lock
	echo hatchling | $(BIN)/uv pip compile -q --generate-hashes --universal --python-version 3.11 -c requirements-dev.lock - --no-header -o requirements-build.lock

.PHONY: help install demo lint format test hapi bench chaos chart-tools lock
