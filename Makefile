# make run          train examples/01-digits.yaml jointly and say whether it paid off; SPEC=... trains another
# make test         every test
# make cluster-test the same program on the cluster that KUBECONFIG points at; settings: tests/cluster/README.md
# make check        style, types and the arrows of docs/architecture.md
# make benchmark    side by side with plain PyTorch and with independent training; SAVE='--save docs/results/speed.md' keeps it
# make benchmark-balancers   balancing beside TorchJD and a plain sum of losses; SAVE='--save docs/results/balancing-cost.md' keeps it
# make results-balancers     every balancer against independent training and tuned sums, on real data; goes on where it was cut off
# make docs         docs/spec.md from the models, the tables of docs/balancing.md and docs/scale.md from the balancers and the formulas
# make lock         write requirements.lock again; UPGRADE=1 takes the newest versions
# make image        the container image, with docker, podman or buildah
#
# Each installs what it needs into .venv, from requirements.lock. PYTHON=... names the Python to make it with.

SPEC ?= examples/01-digits.yaml
TESTS ?= tests
IMAGE ?= cotrain:dev
BIN := .venv/bin
PIP := DS_BUILD_OPS=0 PYTHONWARNINGS=ignore $(BIN)/python -m pip --disable-pip-version-check
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))

.PHONY: run test cluster-test check benchmark benchmark-balancers results-balancers docs lock image venv
.DELETE_ON_ERROR:

run: .venv/.runtime
	$(BIN)/cotrain run $(SPEC)

test: .venv/.dev
	$(BIN)/python -m pytest -n 2 --dist loadfile $(TESTS)

# by their short names, or as COTRAIN_TEST_... in the environment
CLUSTER_TEST := CODE ROOT STORAGE POD_ENDPOINT ADDRESS NAMESPACE WAIT_S

cluster-test: .venv/.dev
	COTRAIN_CLUSTER_TEST=1 COTRAIN_TEST_IMAGE='$(IMAGE)' $(foreach name,$(CLUSTER_TEST),COTRAIN_TEST_$(name)='$(or $($(name)),$(COTRAIN_TEST_$(name)))') \
	  $(BIN)/python -m pytest tests/cluster -v -ra -p no:randomly

check: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

benchmark: .venv/.runtime
	$(BIN)/python -m benchmarks.loop $(SAVE)
	$(BIN)/python -m benchmarks.joint $(SAVE)
	$(BIN)/python -m benchmarks.pipeline $(SAVE)

benchmark-balancers: .venv/.dev
	$(BIN)/python -m benchmarks.balancers $(SAVE)

results-balancers: .venv/.dev
	@[ -f data/mnist.parquet ] || $(BIN)/cotrain data mnist
	nice -n 5 $(BIN)/python -m benchmarks.results_balancers $(SAVE)

docs: .venv/.runtime
	$(BIN)/python scripts/spec_reference.py
	$(BIN)/python scripts/balancer_table.py
	$(BIN)/python scripts/scale_page.py

lock: .venv/.dev
	$(BIN)/python scripts/lock.py $(if $(UPGRADE),--upgrade)

image:
	@engine=$$(command -v docker || command -v podman || command -v buildah) || { echo "make image needs docker, podman or buildah" >&2; exit 1; }; \
	set -x; $$engine build $(BUILD_ARGS) --build-arg REVISION=$$(git rev-parse HEAD 2>/dev/null || echo unknown) -t $(IMAGE) .

venv: .venv/.dev

# The build tools come first: DeepSpeed is published as sources. They are pure Python here, no compiler is needed.
.venv/.runtime: requirements.lock pyproject.toml
	@python='$(PYTHON)'; \
	for found in $${python:-python3.11 python3 python3.12 python3.13}; do $$found -c '$(NEW_ENOUGH)' 2>/dev/null && break; found=; done; \
	if [ -z "$$found" ]; then \
	  echo "cotrain needs Python 3.11 or newer; $${python:-python3} says: $$($${python:-python3} --version 2>&1)" >&2; \
	  echo "    fix: install one, or name it: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; \
	fi; \
	[ -x $(BIN)/python ] || $$found -m venv .venv
	@echo "installing into .venv what requirements.lock names: about 2 GB, a minute or more"
	@$(PIP) install --quiet -c requirements.lock pip setuptools wheel
	@$(PIP) install --quiet -c requirements.lock --no-build-isolation -e .
	@touch $@

.venv/.dev: .venv/.runtime
	@echo "installing into .venv what the tests need besides"
	@$(PIP) install --quiet -c requirements.lock --no-build-isolation -e '.[dev]'
	@touch $@
