# `make demo` and `make test` work from a fresh clone with Python and make alone.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
IMAGE ?=
OUT ?= outputs/demo

NANO := outputs/nano
# Small images want one thread a process, and kernels that are kept for every size of image.
NANO_ENV := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 ONEDNN_PRIMITIVE_CACHE_CAPACITY=65536 TOKENIZERS_PARALLELISM=false \
	MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=17179869184 MALLOC_TOP_PAD_=268435456 \
	GLIBC_TUNABLES=glibc.malloc.hugetlb=1

.PHONY: demo test nano lint types check wheel test-torchvision test-lmms clean

demo: $(VENV)/.demo
	$(BIN)/depthvlm predict $(if $(IMAGE),"$(IMAGE)",depthvlm/assets/room.jpg depthvlm/assets/street.jpg) \
		--prompt "Given this image, estimate the metric depth (in meters, rounded to two decimal places) for every pixel of the image." \
		--out "$(OUT)" --overwrite

test: $(VENV)/.dev
	$(BIN)/python -m pytest

check: test lint types

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The folders lie at the top and are one package when installed; the type checker sees them as installed.
types: $(VENV)/.dev
	rm -rf build/types && mkdir -p build/types
	cp -r depthvlm build/types/depthvlm
	cp -r modeling_depthvlm processing training benchmark hub_cards build/types/depthvlm/
	$(BIN)/mypy build/types/depthvlm

# The bundled model again, from nothing, on two cores. Interrupted, it goes on where it was when called again.
nano: $(NANO)/stage2/model.safetensors

$(NANO)/init/model.safetensors: scripts/init_nano.py | $(VENV)/.dev
	$(NANO_ENV) $(BIN)/python scripts/init_nano.py $(NANO)/init

$(NANO)/stage0/model.safetensors: $(NANO)/init/model.safetensors
$(NANO)/stage1/model.safetensors: $(NANO)/stage0/model.safetensors
$(NANO)/stage2/model.safetensors: $(NANO)/stage1/model.safetensors
$(NANO)/stage%/model.safetensors: training/recipes/nano_stage%.yaml
	$(NANO_ENV) $(BIN)/depthvlm sft --config $< --resume_from_checkpoint latest

wheel: $(VENV)/.dev
	$(BIN)/python -m build --wheel --outdir dist .

# torch is installed first, alone: what depends on it then keeps this build.
$(VENV)/.torch: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -q "$$(grep '^torch==' constraints.txt)"
	touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	$(PIP) install -q -c constraints.txt -e .
	touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(PIP) install -q -c constraints.txt -e ".[dev]"
	touch $@

# torchvision from the package index brings its own build of torch: an environment apart.
test-torchvision:
	$(PYTHON) -m venv .venv-torchvision
	.venv-torchvision/bin/python -m pip install -q torch==2.15.0 torchvision==0.29.2
	grep -v '^torch==' constraints.txt > build-constraints.txt
	.venv-torchvision/bin/python -m pip install -q -c build-constraints.txt -e ".[dev,video]"
	rm build-constraints.txt
	.venv-torchvision/bin/python -m pytest tests/test_image_processing.py tests/test_processor.py tests/test_camera.py \
		tests/test_depth_maps.py tests/test_post_processing.py tests/test_predictors_transformers.py

# lmms-eval brings torchvision, and with it a CUDA build of torch (5 GB); it runs on a CPU.
test-lmms:
	$(PYTHON) -m venv .venv-lmms
	.venv-lmms/bin/python -m pip install -q torch==2.15.0 torchvision==0.29.2
	.venv-lmms/bin/python -m pip install -q lmms-eval==0.7.3
	.venv-lmms/bin/python -m pip install -q -e ".[bench]" pytest
	.venv-lmms/bin/python -m pytest tests_lmms

clean:
	rm -rf $(VENV) .venv-torchvision .venv-lmms build dist *.egg-info outputs
