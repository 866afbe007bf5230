# Needs Python >= 3.10 (with its headers), a C++17 compiler and make; everything else goes into $(VENV).
# Another interpreter: make PYTHON=python3.12 VENV=.venvs/312 test. More words for the command: make bench ARGS="--suite resnet50".

VENV ?= .venv
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python3.10; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && echo $$p && break; done)
ARGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
BUILD_TOOLS := 'setuptools>=77' 'pybind11>=3.0'  # as in pyproject.toml
NATIVE := setup.py pyproject.toml $(wildcard csrc/* csrc/*/*)

ifneq ($(wildcard ../shared/data/.),)
export CNNKERN_DATA ?= $(abspath ../shared/data)
endif

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help bench test test-peers test-pool test-sanitize test-rows test-neon arm-tools lint stubs clean distclean

help:
	@echo 'make bench          build, then check and time the kernels (ARGS="--suite resnet50 --threads 1")'
	@echo 'make test           build, then run the tests (ARGS="-k conv2d -x")'
	@echo 'make test-peers     compare with PyTorch, ONNX Runtime and JAX (installs them)'
	@echo 'make test-sanitize  the op tests under AddressSanitizer and UBSan, and test-pool'
	@echo 'make test-pool      a stress of the thread pool under ThreadSanitizer'
	@echo 'make test-neon      every NEON row, compiled for 64-bit Arm, under qemu (ARGS="--only gemm")'
	@echo 'make test-rows      the same of the rows built for this machine, with guards around their scratch memory'
	@echo 'make lint           ruff and mypy'
	@echo 'make stubs          write cnnkern/_cnnkern_core.pyi anew'
	@echo 'make clean          remove what was built; make distclean removes $(VENV) too'

# --- The environment. A stamp stands for a set of extras, and is newer than what the install was made from. ---

$(VENV)/stamp-tools: pyproject.toml
	@test -n '$(PYTHON)' || { echo 'Python 3.10 or newer is needed; name it: make PYTHON=/path/to/python3' >&2; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) || $(PYTHON) -m virtualenv $(VENV) || { rm -rf $(VENV); \
		echo '$(PYTHON) cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv' >&2; exit 1; }
	$(PIP) $(BUILD_TOOLS)
	@touch $@

# Without build isolation, the objects in build/ stay valid: an edit in csrc/ compiles only what includes it.
$(VENV)/stamp-run: $(VENV)/stamp-tools $(NATIVE)
	$(PIP) --no-build-isolation -e .
	@touch $@

$(VENV)/stamp-test: $(VENV)/stamp-tools $(NATIVE)
	$(PIP) --no-build-isolation -e '.[test]'
	@touch $(VENV)/stamp-run $@

$(VENV)/stamp-peers: $(VENV)/stamp-tools $(NATIVE)
	$(PIP) --no-build-isolation -e '.[test,peers]'
	@touch $(VENV)/stamp-run $(VENV)/stamp-test $@

$(VENV)/stamp-dev: $(VENV)/stamp-tools $(NATIVE)
	$(PIP) --no-build-isolation -e '.[dev]'
	@touch $(VENV)/stamp-run $(VENV)/stamp-test $@

# --- What people type. ---

bench: $(VENV)/stamp-run
	$(BIN)/cnnkern bench $(ARGS)

# In two processes: in one they take 370 s on 2 cores, in two 235. Timing belongs to the bench, so none is disturbed.
test: $(VENV)/stamp-test
	$(BIN)/pytest tests --ignore=tests/peers -n 2 $(ARGS)

test-peers: $(VENV)/stamp-peers
	$(BIN)/pytest tests/peers $(ARGS)

lint: $(VENV)/stamp-dev
	$(BIN)/ruff check .
	$(BIN)/mypy
	@for f in $$(git ls-files csrc tests/native | grep -E '\.(inl|h|cpp)$$'); do \
		$(BIN)/clang-format --assume-filename=x.cpp <$$f | cmp -s - $$f || { echo "clang-format would change $$f"; exit 1; }; done
	@echo 'files over 500 lines (a longer one needs a reason):'
	@git ls-files '*.py' '*.cpp' '*.h' '*.inl' '*.cu' '*.cuh' | xargs wc -l | awk '$$1 > 500 && $$2 != "total"'

stubs: $(VENV)/stamp-dev
	$(BIN)/python tools/make_stubs.py

# --- Sanitizers: a second build of everything under build/sanitize, which Python finds before the installed one. ---

SANITIZE := build/sanitize
ASAN_FLAGS := -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=undefined
SANITIZE_TESTS := ops special_values memory properties plan_cache regressions
CXX ?= g++

# The second run proves that the stress notices a broken pool: there a chunk is claimed by a plain store.
test-pool: $(SANITIZE)/pool_stress $(SANITIZE)/pool_stress_plain $(SANITIZE)/pool_stress_broken
	setarch -R $(SANITIZE)/pool_stress
	$(SANITIZE)/pool_stress_plain
	! setarch -R timeout 20 $(SANITIZE)/pool_stress_broken 200 >/dev/null 2>&1

test-sanitize: test-pool $(SANITIZE)/stamp
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 PYTHONMALLOC=malloc PYTHONPATH=$(SANITIZE)/lib \
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
		$(BIN)/pytest $(addprefix tests/test_,$(SANITIZE_TESTS:=.py)) $(ARGS)

# -O1 takes a quarter of the time; without the other flag GCC does not fuse products and sums.
# With CFLAGS alone setuptools compiles C++ without instruments and the tests pass over everything: hence the nm.
$(SANITIZE)/stamp: $(VENV)/stamp-test $(wildcard cnnkern/*.py cnnkern/*/*.py cnnkern/*/*/*.py)
	CFLAGS='$(ASAN_FLAGS)' CXXFLAGS='$(ASAN_FLAGS)' LDFLAGS='-fsanitize=address,undefined' CNNKERN_REQUIRE_EXT=1 \
	CNNKERN_OPTIMIZE='-O1 -fexpensive-optimizations' $(BIN)/python setup.py --quiet build --build-lib $(SANITIZE)/lib --build-temp $(SANITIZE)/temp
	nm -D $(SANITIZE)/lib/cnnkern/_cnnkern_core*.so | grep -q __asan_report
	cd $(SANITIZE) && PYTHONPATH=lib $(abspath $(BIN))/python -c 'import cnnkern; assert "sanitize/lib" in cnnkern.__file__'
	@touch $@

# setarch -R: the runtime of gcc 12 fails under address space randomisation.
$(SANITIZE)/pool_stress: csrc/cpu/parallel.cpp csrc/cpu/parallel.h csrc/cnnkern.h tests/native/pool_stress.cpp
	@mkdir -p $(@D)
	$(CXX) -std=c++17 -O1 -g -fsanitize=thread -Icsrc csrc/cpu/parallel.cpp tests/native/pool_stress.cpp -o $@ -pthread

$(SANITIZE)/pool_stress_plain: $(SANITIZE)/pool_stress
	$(CXX) -std=c++17 -O2 -Icsrc csrc/cpu/parallel.cpp tests/native/pool_stress.cpp -o $@ -pthread

$(SANITIZE)/pool_stress_broken: $(SANITIZE)/pool_stress
	@mkdir -p $(SANITIZE)/broken/cpu
	sed 's|if (!own.compare_exchange_weak(ticket, ticket - 1.*|own.store(ticket - 1);|' \
		csrc/cpu/parallel.cpp >$(SANITIZE)/broken/cpu/parallel.cpp
	! cmp -s csrc/cpu/parallel.cpp $(SANITIZE)/broken/cpu/parallel.cpp
	cp csrc/*.h $(SANITIZE)/broken && cp csrc/cpu/*.h $(SANITIZE)/broken/cpu
	$(CXX) -std=c++17 -O1 -g -fsanitize=thread -I$(SANITIZE)/broken $(SANITIZE)/broken/cpu/parallel.cpp \
		tests/native/pool_stress.cpp -o $@ -pthread

# --- Rows without Python: tests/native/row_runner.cpp runs them, tools/check_rows.py writes the cases and judges. ---

ROWS := build/rows
ARM_CXX ?= aarch64-linux-gnu-g++
ARM_EMULATOR ?= $(or $(shell command -v qemu-aarch64-static || command -v qemu-aarch64),qemu-aarch64-static)
# These two as in setup.py.
KERNEL_FLAGS := -O3 -fno-math-errno -ffp-contract=fast -fno-trapping-math -fvisibility=hidden
NEON_FLAGS := -fno-schedule-insns
missing = command -v $(1) >/dev/null || { \
	echo 'make test-neon needs $(1), which is not here; on Debian and Ubuntu: apt install $(2)' >&2; exit 1; }

# The bits are compared with those of AVX-512 or AVX2. Without either: make test-neon TWIN=
# On an Arm machine itself: make test-neon TWIN= ARM_EMULATOR= ARM_CXX=g++
TWIN ?= --twin $(ROWS)/here/row_runner
test-neon: arm-tools $(VENV)/stamp-test $(ROWS)/arm/row_runner $(if $(TWIN),$(ROWS)/here/row_runner)
	$(BIN)/python tools/check_rows.py --only '[.]neon[.]' $(TWIN) $(ARGS) $(ARM_EMULATOR) $(ROWS)/arm/row_runner

test-rows: $(VENV)/stamp-test $(ROWS)/here/row_runner
	$(BIN)/python tools/check_rows.py $(ARGS) $(ROWS)/here/row_runner

arm-tools:
	@$(call missing,$(ARM_CXX),g++-aarch64-linux-gnu)
	@$(if $(ARM_EMULATOR),$(call missing,$(firstword $(ARM_EMULATOR)),qemu-user-static))

$(ROWS)/arm/row_runner: $(addprefix $(ROWS)/arm/,row_runner.o isa.o parallel.o target_neon.o target_scalar.o)
	$(ARM_CXX) -static -pthread $^ -o $@

# The scalar target is linked because isa.cpp names it; its rows are not run.
$(ROWS)/arm/target_scalar.o: KERNEL_FLAGS := -O0
$(ROWS)/arm/target_neon.o: KERNEL_FLAGS += $(NEON_FLAGS)
vpath %.cpp csrc/cpu tests/native
$(ROWS)/arm/%.o: %.cpp Makefile
	@mkdir -p $(@D)
	$(ARM_CXX) -std=c++17 -fno-lto -pthread $(KERNEL_FLAGS) -Icsrc -DCNNKERN_HAVE_NEON -MMD -c $< -o $@
-include $(wildcard $(ROWS)/arm/*.d)

# The objects are those of the module. Which interpreter built them is part of their folder's name.
OBJECTS = build/temp.$(shell $(BIN)/python -c \
	'import sys, sysconfig; print(sysconfig.get_platform(), sys.implementation.cache_tag, sep="-")')/csrc/cpu
$(ROWS)/here/row_runner: $(VENV)/stamp-test tests/native/row_runner.cpp
	@mkdir -p $(@D)
	$(CXX) -std=c++17 -O2 -Icsrc tests/native/row_runner.cpp $(OBJECTS)/*.o -o $@ -pthread

clean:
	rm -rf build dist src/*.egg-info cnnkern/_cnnkern_core*.so cnnkern/_build_info.json
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks $(VENV)/stamp-*

distclean: clean
	rm -rf $(VENV)
