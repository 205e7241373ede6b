# Crescent's build. Targets for users: make deps, make, make demo, make test, make lint,
# make install PREFIX=..., make dist, make clean.

# One job per core, unless -j is given. (A make that this one calls shares its jobs.)
ifeq ($(MAKELEVEL)$(filter -j%,$(MAKEFLAGS)),0)
MAKEFLAGS += -j$(shell nproc)
endif

CC       ?= gcc
B        ?= build
PREFIX   ?= /usr/local
SANITIZE ?= 0
OPT      ?= -O3

PKG      := pkg-config
CFLAGS   += -std=c11 -D_GNU_SOURCE $(OPT) -g1 -Wall -Wextra -fPIC -fvisibility=hidden -fopenmp \
            -Werror=implicit-function-declaration \
            -fno-math-errno -fno-trapping-math -ffp-contract=off -Icore
LDFLAGS  += -Wl,-rpath,'$$ORIGIN' -Wl,-rpath,'$$ORIGIN/../lib/crescent' -fopenmp
ifeq ($(SANITIZE),1)
# The first error ends the program. The leak checker is on; tests/run.sh sets its options.
B        := build/sanitize
CFLAGS   += -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -O1
LDFLAGS  += -fsanitize=address,undefined
endif
ifeq ($(SANITIZE),thread)
# Finds data races. It does not understand OpenMP's synchronization, so operations run on one thread (tests/run.sh).
B        := build/sanitize-thread
CFLAGS   += -fsanitize=thread -fno-omit-frame-pointer -O1
LDFLAGS  += -fsanitize=thread
endif

UV_FLAGS   := $(shell $(PKG) --cflags libuv 2>/dev/null)
UV_LIBS    := $(shell $(PKG) --libs libuv 2>/dev/null)
LUA_FLAGS  := $(shell $(PKG) --cflags luajit 2>/dev/null)
LUA_LIBS   := $(shell $(PKG) --libs luajit 2>/dev/null)
AV         := libavformat libavcodec libavfilter libswscale libswresample libavutil
AV_FLAGS   := $(shell $(PKG) --cflags $(AV) 2>/dev/null)
AV_LIBS    := $(shell $(PKG) --libs $(AV) 2>/dev/null)
# Without libcurl, the library for S3, SQS and URLs is not built.
CURL_FLAGS := $(shell $(PKG) --cflags libcurl 2>/dev/null)
CURL_LIBS  := $(shell $(PKG) --libs libcurl 2>/dev/null)

# The HTTP server is built if its libraries are installed (HTTP=0: not built). Debian 12 has llhttp, the parser of Node.js, as C
# files in its package node-llhttp; later releases have it as a library.
LLHTTP     := $(wildcard /usr/share/llhttp/llhttp.c)
HTTP_FLAGS := $(if $(LLHTTP),-isystem /usr/share/include/llhttp)
HTTP_LIBS  := $(if $(LLHTTP),,-lllhttp) -lwslay -lssl -lcrypto
HTTP       ?= $(shell printf '\043include <%s>\n' llhttp.h wslay/wslay.h openssl/ssl.h | \
                $(CC) $(HTTP_FLAGS) -E -o /dev/null -x c - 2>/dev/null && echo 1)

# The CUDA library is built if nvcc is installed (CUDA=0: not built), for the architectures in CUDA_ARCHS. Default: the GPUs of
# this machine, or Hopper without one. `make CUDA_ARCHS="80 86 89 90a 100 120"` builds for all.
NVCC       ?= $(firstword $(wildcard $(CUDA_HOME)/bin/nvcc) $(shell command -v nvcc 2>/dev/null) $(wildcard /usr/local/cuda/bin/nvcc))
CUDA       ?= $(if $(NVCC),1,0)
CUDA_ARCHS ?= $(or $(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | \
                tr -d . | sed 's/^90$$/90a/' | sort -u),90a)
CUDA_ROOT  := $(patsubst %/bin/nvcc,%,$(NVCC))
NVCC_FLAGS := -std=c++17 -O3 -Icore -Ikernels -lineinfo -Xfatbin=-compress-all -Xcompiler -fPIC,-fvisibility=hidden,-Wall,-Wextra,-Wno-missing-field-initializers \
              $(foreach a,$(CUDA_ARCHS),-gencode=arch=compute_$(a),code=sm_$(a))
CUDA_SRC   := $(wildcard kernels/*.cu kernels/*/*.cu)
CUDA_OBJ   := $(CUDA_SRC:%.cu=$(B)/%.o)

MEDIA_SRC  := $(wildcard core/media/*.c)
HTTP_SRC   := $(wildcard core/http/*.c)
REMOTE_SRC := $(wildcard core/remote/*.c)
CORE_SRC   := $(filter-out $(MEDIA_SRC) $(HTTP_SRC) $(REMOTE_SRC),$(wildcard core/*/*.c))
CORE_OBJ   := $(CORE_SRC:%.c=$(B)/%.o)
MEDIA_OBJ  := $(MEDIA_SRC:%.c=$(B)/%.o)
HTTP_OBJ   := $(HTTP_SRC:%.c=$(B)/%.o) $(if $(LLHTTP),$(addprefix $(B)/llhttp/,llhttp.o api.o http.o))
REMOTE_OBJ := $(REMOTE_SRC:%.c=$(B)/%.o)
MAIN_OBJ   := $(B)/core/main.o $(B)/core/allocations.o

.PHONY: all deps models demo live-demo docs test test-slow test-gpu bench-gpu valgrind lint format install dist clean
all: $(B)/libcrescent.so $(B)/crescent_media.so $(if $(CURL_LIBS),$(B)/crescent_remote.so) $(B)/crescent $(if $(filter 1,$(HTTP)),$(B)/crescent_http.so) $(if $(filter 1,$(CUDA)),$(B)/crescent_cuda.so)

$(B)/libcrescent.so: $(CORE_OBJ)
	$(CC) -shared -Wl,-z,nodelete -o $@ $^ $(LDFLAGS) $(UV_LIBS) -lz -lm -ldl -lpthread

$(B)/crescent_media.so: $(MEDIA_OBJ) $(B)/libcrescent.so
	$(CC) -shared -Wl,-z,nodelete,--no-undefined -o $@ $(MEDIA_OBJ) $(LDFLAGS) -L$(B) -lcrescent $(AV_LIBS) -lm -lpthread

$(B)/crescent_http.so: $(HTTP_OBJ) $(B)/libcrescent.so
	$(CC) -shared -Wl,-z,nodelete,--no-undefined -o $@ $(HTTP_OBJ) $(LDFLAGS) -L$(B) -lcrescent $(HTTP_LIBS)

$(B)/crescent_remote.so: $(REMOTE_OBJ) $(B)/libcrescent.so
	$(CC) -shared -Wl,-z,nodelete,--no-undefined -o $@ $(REMOTE_OBJ) $(LDFLAGS) -L$(B) -lcrescent $(CURL_LIBS) -lpthread

# An undefined symbol is an error at build time, not on a user's machine. core/base/cuda_load.c finds and loads cuBLASLt and cuDNN first.
$(B)/crescent_cuda.so: $(CUDA_OBJ) $(B)/libcrescent.so
	$(NVCC) -shared -o $@ $(CUDA_OBJ) -cudart static -Xlinker -z,nodelete,--no-undefined -Xlinker -rpath,'$$ORIGIN' \
	  -L$(B) -lcrescent -L$(CUDA_ROOT)/lib64 -lcublasLt -lcudnn

$(B)/kernels/%.o: kernels/%.cu
	@mkdir -p $(@D)
	$(NVCC) $(NVCC_FLAGS) -MMD -MP -c -o $@ $<

$(B)/crescent: $(MAIN_OBJ) $(B)/libcrescent.so
	$(CC) -o $@ $(MAIN_OBJ) $(LDFLAGS) -rdynamic -L$(B) -lcrescent $(LUA_LIBS) $(UV_LIBS) -ldl

$(B)/core/media/%.o: core/media/%.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(AV_FLAGS) $(UV_FLAGS) -MMD -MP -c -o $@ $<

$(B)/core/http/%.o: core/http/%.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(HTTP_FLAGS) -MMD -MP -c -o $@ $<

# llhttp in its strict mode, without warnings, because the code is not ours.
$(B)/llhttp/%.o: /usr/share/llhttp/%.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -w -DLLHTTP_STRICT_MODE=1 $(HTTP_FLAGS) -c -o $@ $<

$(B)/core/remote/%.o: core/remote/%.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(CURL_FLAGS) -MMD -MP -c -o $@ $<

$(B)/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(UV_FLAGS) $(LUA_FLAGS) -MMD -MP -c -o $@ $<

-include $(CUDA_OBJ:.o=.d) $(CORE_OBJ:.o=.d) $(MEDIA_OBJ:.o=.d) $(REMOTE_OBJ:.o=.d) $(HTTP_OBJ:.o=.d) $(MAIN_OBJ:.o=.d)

# ---- setting up -----------------------------------------------------------------------------

PACKAGES := gcc make pkg-config luajit libluajit-5.1-dev libuv1-dev lua-luv lua-cjson lua-yaml \
            lua-argparse lua-filesystem libdnnl-dev libreadline8 libsixel1 libcairo2 zlib1g-dev libssl3 ffmpeg libavformat-dev \
            libavcodec-dev libavfilter-dev libswscale-dev libswresample-dev libavutil-dev \
            node-llhttp libwslay-dev libssl-dev lua-dbi-sqlite3 libcurl4-openssl-dev libhiredis0.14 \
            python3-pip lua-check clang-format clang-tidy libomp-dev perl tmux patchelf xz-utils fonts-dejavu-core

# Debian's packages; apt-get runs only if one is missing.
deps:
	@missing=; for p in $(PACKAGES); do \
	  dpkg-query -W -f='$${db:Status-Abbrev}' $$p 2>/dev/null | grep -q '^ii' || missing="$$missing $$p"; \
	done; \
	if [ -n "$$missing" ]; then \
	  as_root=; [ "$$(id -u)" = 0 ] || as_root=sudo; \
	  $$as_root apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive $$as_root apt-get install -y -qq --no-install-recommends $$missing; \
	fi

# Third-party weights, downloaded once by version and hash into models/fetched.
models: all
	@$(B)/crescent scripts/fetch.lua

LIVE_PORT ?= 7860

demo: deps
	@$(MAKE) --no-print-directory models
	@$(B)/crescent demo

# A page on which the small model's face says the typed text, spoken by espeak-ng or flite. The idle clip needs a closed mouth,
# so it is generated from silence.
$(B)/live-demo/idle.mp4: | models
	@mkdir -p $(@D)
	@ffmpeg -v error -y -f lavfi -i anullsrc=r=16000:cl=mono -t 5 $(@D)/silence.wav
	@$(B)/crescent lipsync --video models/mini/demo.mp4 --audio $(@D)/silence.wav --checkpoint models/mini --duration 3 --out $@

live-demo: models $(B)/live-demo/idle.mp4
	@voice=$$(command -v espeak-ng || command -v flite) || { echo 'make live-demo: install espeak-ng or flite'; exit 1; }; \
	echo 'Open http://127.0.0.1:$(LIVE_PORT)/live.html, begin, and type. Ctrl-C ends it.'; \
	$(B)/crescent serve --checkpoint models/mini --idle $(B)/live-demo/idle.mp4 --say "$${voice##*/}" --data $(B)/live-demo --port $(LIVE_PORT)

# Tables in the documentation that are generated from declarations, such as the options of lipsync.
docs: all
	@$(B)/crescent -e "require 'tests.support.docs'.write()"

# ---- checking -------------------------------------------------------------------------------

TESTS ?=
# Number of test files that run in parallel: the number of cores, at most four. With a GPU it is one, since some tests measure
# the whole GPU.
TEST_JOBS ?= $(if $(wildcard /dev/nvidia0),1,$(shell n=$$(nproc); [ $$n -le 4 ] && echo $$n || echo 4))
test: models lint
	@JOBS=$(TEST_JOBS) CRESCENT=$(B)/crescent tests/run.sh $(TESTS)

# Slow tests: full-size networks, and many more random and damaged inputs.
test-slow: models
	@CR_SLOW=1 CR_FUZZ=20000 CRESCENT=$(B)/crescent tests/run.sh $(TESTS)

# Only the GPU's tests. The program is built first if the headers are installed.
GPU_TESTS := $(wildcard tests/cuda_*_test.lua)
test-gpu: $(if $(LUA_LIBS),all)
	@CRESCENT=$(B)/crescent tests/run.sh $(or $(TESTS),$(GPU_TESTS))

# Whole networks in float16; REF=DIR compares them with PyTorch's (tests/bench/torch_networks_cuda.py).
bench-gpu: $(if $(LUA_LIBS),all)
	@$(B)/crescent tests/bench/cuda_networks.lua $(if $(REF),--ref $(REF)) $(BENCH)

# Tests under valgrind, where computations take fifty times as long. The excluded tests either compute for minutes there (the
# tests of operations run the same C code at small sizes) or start programs, which valgrind does not follow; SANITIZE=1 runs all.
NOT_UNDER_VALGRIND := faults process pipeline lipsync mini compare unet quantize guidance guidance_methods examples vae whisper syncnet evaluate cli interrupt prompt session fetch install readme serve page live_page
valgrind: models
	@CRESCENT=tests/support/valgrind.sh PROGRAM=$(B)/crescent tests/run.sh \
	  $(or $(TESTS),$(filter-out $(NOT_UNDER_VALGRIND:%=tests/%_test.lua),$(wildcard tests/*_test.lua)))

C_FILES   := $(wildcard core/*.[ch] core/*/*.[ch] kernels/*/*.h kernels/*.cu kernels/*/*.cu)
C_SOURCES := $(CORE_SRC) $(MEDIA_SRC) $(if $(CURL_LIBS),$(REMOTE_SRC)) $(if $(filter 1,$(HTTP)),$(HTTP_SRC)) core/main.c core/allocations.c

# clang-tidy is slow, so a file is checked again only after it or a header changes.
LINTED    := $(C_SOURCES:%.c=build/lint/%.ok)

lint: $(LINTED)
	@clang-format --dry-run -Werror $(C_FILES)
	@luacheck -q lua models scripts tests
	@luajit tests/layers.lua

build/lint/%.ok: %.c $(filter %.h,$(C_FILES)) .clang-tidy
	@mkdir -p $(@D)
	@clang-tidy --quiet $< -- $(filter-out -fopenmp,$(CFLAGS)) $(UV_FLAGS) $(LUA_FLAGS) $(AV_FLAGS) $(HTTP_FLAGS) 2>build/lint/messages || \
	  { cat build/lint/messages; exit 1; }
	@touch $@

format:
	clang-format -i $(C_FILES)

# ---- installing -----------------------------------------------------------------------------

SHARE := $(DESTDIR)$(PREFIX)/share/crescent

# Includes models/fetched, without the downloaded packages and the files that only tests need.
install: all
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/lib/crescent $(SHARE)/core
	install -m 755 $(B)/crescent $(DESTDIR)$(PREFIX)/bin/
	install -m 755 $(B)/libcrescent.so $(B)/crescent_media.so $(if $(CURL_LIBS),$(B)/crescent_remote.so) $(if $(filter 1,$(HTTP)),$(B)/crescent_http.so) $(if $(filter 1,$(CUDA)),$(B)/crescent_cuda.so) \
	  $(DESTDIR)$(PREFIX)/lib/crescent/
	install -m 644 core/crescent.h $(SHARE)/core/
	install -m 644 LICENSE NOTICE $(SHARE)/
	tar -cf - --exclude=models/fetched/wheels --exclude=models/fetched/tests --exclude=models/mini/train \
	  --exclude=__pycache__ --exclude='*.part' lua models scripts | tar -C $(SHARE) --no-same-owner -xf -
	chmod -R u=rwX,go=rX $(SHARE)

# A tarball that runs on any Linux with glibc 2.36 or newer: build/crescent-VERSION-linux-x86_64.tar.xz.
# MODELS=0 excludes the fetched weights, CUDA=0 the library for GPUs; NVIDIA's libraries are never included.
MODELS ?= 1
dist: all
	@CUDA=$(CUDA) MODELS=$(MODELS) .ci/dist $(B) "$$($(B)/crescent -e 'print(cr.version)')"

clean:
	rm -rf build
