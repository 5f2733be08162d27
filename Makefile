# make serve | test | check: each works on a fresh machine, in a virtual environment of its own.
PYTHON ?= python3
VENV ?= .venv
DEVICE ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo cuda || echo cpu)
PORT ?= 8000
TEST_WORKERS ?= 2
BIN := $(VENV)/bin
TORCH_CPU := torch==2.13.0

export HF_HUB_OFFLINE ?= 1
export VLLM_NO_USAGE_STATS ?= 1
ifeq ($(DEVICE),cpu)
export VLLM_CPU_KVCACHE_SPACE ?= 1
endif

.PHONY: serve install-ray serve-ray dashboard test test-ray check test-next-vllm bench-quick lint install clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
ifeq ($(DEVICE),cuda)
	$(BIN)/pip install --quiet -e '.[cuda,dev,bench]'
else
	$(BIN)/pip install --quiet $(TORCH_CPU)
	$(BIN)/pip install --quiet -e '.[cpu,dev,bench]'
	# Built for CUDA, they break imports beside a CPU build of torch; docs/deploying.md has where others are.
	for name in torchvision torchaudio torchcodec; do \
	  $(BIN)/python -c "import $$name" 2>/dev/null || $(BIN)/pip uninstall --quiet --yes $$name; \
	done
	$(BIN)/vllm-smart setup-cpu
endif
	touch $@

# The shipped pair, made larger once, to a size that pays here; then `vllm-smart demo` asks it.
serve: install
	$(BIN)/vllm-smart serve-demo --port $(PORT)

# Prometheus and Grafana in containers, for a server on port 8000: http://localhost:3000
dashboard:
	docker compose -f monitoring/compose.yaml up

install-ray: $(VENV)/.installed-ray

$(VENV)/.installed-ray: $(VENV)/.installed
	$(BIN)/pip install --quiet -e '.[ray]'
	touch $@

# Two replicas of the demonstration's pair behind one endpoint, by Ray Serve (docs/ray.md).
serve-ray: install-ray
	$(BIN)/python examples/ray_serve.py --port $(PORT)

# What needs Ray, without any network but loopback: Ray listens on every interface.
test-ray: install-ray
	HOME=$$(mktemp -d) OMP_NUM_THREADS=1 RAY_USAGE_STATS_ENABLED=0 RAY_AUTH_MODE=disabled \
	  unshare --map-root-user --net --pid --fork --mount-proc --kill-child sh -c \
	  'ip link set lo up && exec $(abspath $(BIN))/python -m pytest -m ray tests/ray'

# A file's tests share engines, so they stay with one worker. Long files first: see tests/conftest.py.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(TEST_WORKERS) \
  --dist loadfile --no-loadscope-reorder

# Everything that runs on this machine.
test: install lint
	$(PYTEST)

# The fast part: no engine is started.
check: install lint
	$(PYTEST) -m "not vllm and not slow and not gpu"

# The adapter's tests on the next vLLM's Python, over the compiled parts of the installed one
# (docs/versions.md). Downloads 340 MB the first time.
test-next-vllm: install
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.next_vllm --numprocesses $(TEST_WORKERS) --dist loadfile tests/adapter

# Our arms against plain decoding, compared with the last stored result; needs a quiet machine.
bench-quick: install
	$(BIN)/vllm-smart bench benchmarks/suites/quick.yaml --out runs/quick \
	  --against benchmarks/quick-baseline.json

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) build dist *.egg-info
