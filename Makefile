# `make demo` shows it working; `make test` proves it. Both need Python 3.11+; with Node.js 20+ more is compared: Azurite, the JavaScript SDK.
.PHONY: help environment demo reference tutorial azurite chart test-deploy test-rules image dashboard dashboard-picture pictures test-monitoring release-check unit test test-embedded test-faults faults soak foreign azure fuzz lint bench format lock clean
.DEFAULT_GOAL := help

bin := .venv/bin

# Set to 1, as container images often have it, this makes each of the tests' processes compile the whole project anew.
export PYTHONDONTWRITEBYTECODE :=

help:
	@echo "make demo    a real batch through the worker on an embedded Azure, start to end, in half a minute"
	@echo "make unit    tests/unit alone, in about a minute: for while you write"
	@echo "make test    everything that is checked: style, types, imports, tests, the deployment"
	@echo "make test-embedded  the tests of the embedded Azure alone"
	@echo "make test-faults  workers that are killed, stopped and frozen: the short scenarios"
	@echo "make faults  all of them, in about an hour; writes docs/reliability.md"
	@echo "make soak    100,000 jobs under mixed faults: does the worker stay as large as it is? SOAK_JOBS=20000 for fewer"
	@echo "make test-deploy  the chart, the manifests and the Azure side with Helm 4 and 3, az, validators and scanners"
	@echo "make chart   write what is derived from the chart: schema, README, k8s/base, Azure's alerts"
	@echo "make reference  write the tables of commands, settings and metrics in docs/ from the code"
	@echo "make tutorial   run the commands of docs/tutorial.md and write what they print into it"
	@echo "make image   build the container image, scan it, and run it hardened against the embedded Azure (Docker or root)"
	@echo "make release-check  what a release publishes, made in dist/ and tried: versions, wheels, chart"
	@echo "make test-rules         alerts and dashboard with promtool and a parser of PromQL"
	@echo "make pictures           draw the other pictures of docs/ anew"
	@echo "make test-monitoring    the same with a fleet under load: alerts, dashboard and metrics with a real Prometheus"
	@echo "make dashboard          write the chart's dashboard.json anew"
	@echo "make dashboard-picture  draw the dashboard with Grafana's components, light and dark"
	@echo "make azure   find out in your subscription what we assume of Azure and nobody has seen; TARGET=embedded needs none"
	@echo "make foreign clients that we did not write, for Python, JavaScript and plain AMQP, against the embedded Azure, in ten minutes"
	@echo "make fuzz    look for bytes that break the embedded Service Bus or a decoder of the worker, 60 s each (SECONDS=600 for longer)"
	@echo "make lint    style, types and imports only"
	@echo "make bench   the worker's CPU, speed and memory beside a textbook worker's, in about fifteen minutes"
	@echo "make format  put the code into shape"
	@echo "make lock    write requirements/*.txt anew from pyproject.toml"
	@echo "make clean   remove the environment and what the tools left"

environment:
	@scripts/environment

demo: environment
	@$(bin)/python examples/demo.py

reference: environment
	@$(bin)/python -m scripts.reference

tutorial: environment
	@$(bin)/python -m scripts.tutorial

chart:
	@scripts/deploy-environment
	@.venv-deploy/bin/python -m scripts.chart

test-deploy:
	@scripts/deploy-environment
	@scripts/tool-environment azure-cli
	.venv-deploy/bin/python -m pytest -q -n 4 --dist worksteal tests/chart

image: environment
	@scripts/tool-environment image
	@$(bin)/python scripts/image.py

# TAG=v1.2.0 for another version than that of pyproject.toml
release-check: environment
	@scripts/deploy-environment
	@scripts/debian-tools docker-registry
	@$(bin)/python -m scripts.release $${TAG:+"$$TAG"}

dashboard: environment
	@scripts/tool-environment monitoring
	@.venv-monitoring/bin/python -m scripts.dashboard

dashboard-picture: environment
	@scripts/tool-environment monitoring
	@scripts/debian-tools prometheus
	@.venv-monitoring/bin/python -m tests.monitoring.picture

test-monitoring: environment
	@scripts/tool-environment monitoring
	@scripts/debian-tools prometheus
	@.venv-monitoring/bin/python -m pytest -q tests/monitoring

pictures: environment
	@$(bin)/python -m scripts.pictures

lint: environment
	$(bin)/ruff format --check .
	$(bin)/ruff check .
	$(bin)/mypy
	$(bin)/lint-imports

azurite:
	@scripts/azurite

test-rules: environment
	@scripts/tool-environment monitoring
	@if scripts/debian-tools prometheus; then \
		.venv-monitoring/bin/python -m pytest -q tests/monitoring --ignore tests/monitoring/test_live.py; \
	else \
		echo "ALERTS AND DASHBOARD WERE NOT TESTED: promtool comes from Debian's package prometheus." >&2; \
	fi

unit: environment
	$(bin)/pytest -q -n 4 --dist worksteal tests/unit

test: lint azurite test-deploy test-rules
	$(bin)/pytest -n 4 --dist worksteal

test-embedded: environment azurite
	$(bin)/pytest -n 4 --dist worksteal tests/embedded

test-faults: environment
	$(bin)/pytest -q -n 3 --dist worksteal tests/faults

# ONLY="random poison" for the scenarios with one of these words
faults: environment
	@$(bin)/python -m tests.faults $(if $(ONLY),--only $(ONLY))

# SOAK_JOBS=20000 for fewer
soak: environment
	@SOAK_JOBS=$(SOAK_JOBS) $(bin)/python -m tests.faults.soak

SECONDS ?= 60
packages = $(shell $(bin)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
fuzz: environment
	@scripts/tool-environment fuzz
	@mkdir -p .fuzz/service_bus .fuzz/decoders
	for part in service_bus decoders; do \
		PYTHONPATH=.:$(packages) .venv-fuzz/bin/python -m tests.fuzz.$$part \
			-max_total_time=$(SECONDS) -artifact_prefix=.fuzz/$$part/ .fuzz/$$part || exit; \
	done

# ONLY=javascript, ONLY=proton or ONLY=python for one of them
foreign: environment
	$(bin)/python -m tests.foreign.run $(ONLY)

# YES=yes to make resources that cost money, TARGET=embedded for the embedded Azure
TARGET ?= azure
azure: environment
	@$(bin)/python -m tests.azure --target $(TARGET) $(if $(YES),--yes)

# ONLY="memory locks" for some of it, WRITE=yes to put the results into docs/benchmarks.md
bench: environment
	@scripts/tool-environment bench
	@$(if $(filter quota-live,$(ONLY)),scripts/tool-environment peers)
	@PATH="$(CURDIR)/.venv-bench/bin:$$PATH" $(bin)/python -m benchmarks.run $(if $(ONLY),--only $(ONLY)) $(if $(WRITE),--write)

format: environment
	$(bin)/ruff format .
	$(bin)/ruff check --fix .

lock: environment
	$(bin)/python -m pip install --quiet uv
	$(bin)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
		--no-annotate --no-header pyproject.toml -o requirements/runtime.txt
	$(bin)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
		--no-annotate --no-header pyproject.toml --extra local --extra otel --group dev -o requirements/dev.txt
	$(bin)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
		--no-annotate --no-header -c requirements/runtime.txt requirements/deploy.in -o requirements/deploy.txt
	$(bin)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
		--no-annotate --no-header requirements/azure-cli.in -o requirements/azure-cli.txt
	$(bin)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
		--no-annotate --no-header requirements/peers.in -o requirements/peers.txt

clean:
	rm -rf .venv .venv-* .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache demo-output \
		tests/azurite/node_modules tests/foreign/javascript/node_modules .tools .foreign .fuzz image-output dist
