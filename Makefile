# Crescent's build. The commands people use: make deps, make, make demo, make test, make lint,
# make install PREFIX=..., make dist, make clean.

CC       ?= gcc
B        ?= build
PREFIX   ?= /usr/local
SANITIZE ?= 0
OPT      ?= -O3

PKG      := pkg-config
CFLAGS   += -std=c11 -D_GNU_SOURCE $(OPT) -g1 -Wall -Wextra -fPIC -fvisibility=hidden -fopenmp \
            -fno-math-errno -fno-trapping-math -ffp-contract=off -Icore
LDFLAGS  += -Wl,-rpath,'$$ORIGIN' -Wl,-rpath,'$$ORIGIN/../lib/crescent' -fopenmp
ifeq ($(SANITIZE),1)
B        := build/sanitize
CFLAGS   += -fsanitize=address,undefined -fno-omit-frame-pointer -O1
LDFLAGS  += -fsanitize=address,undefined
endif

UV_FLAGS   := $(shell $(PKG) --cflags libuv 2>/dev/null)
UV_LIBS    := $(shell $(PKG) --libs libuv 2>/dev/null)
LUA_FLAGS  := $(shell $(PKG) --cflags luajit 2>/dev/null)
LUA_LIBS   := $(shell $(PKG) --libs luajit 2>/dev/null)
AV         := libavformat libavcodec libavfilter libswscale libswresample libavutil
AV_FLAGS   := $(shell $(PKG) --cflags $(AV) 2>/dev/null)
AV_LIBS    := $(shell $(PKG) --libs $(AV) 2>/dev/null)

CORE_SRC   := $(filter-out core/main.c,$(wildcard core/*.c core/cpu/*.c))
MEDIA_SRC  := $(wildcard core/media/*.c)
CORE_OBJ   := $(CORE_SRC:%.c=$(B)/%.o)
MEDIA_OBJ  := $(MEDIA_SRC:%.c=$(B)/%.o)
MAIN_OBJ   := $(B)/core/main.o

.PHONY: all deps models demo test lint format install dist clean
all: $(B)/libcrescent.so $(B)/crescent_media.so $(B)/crescent

$(B)/libcrescent.so: $(CORE_OBJ)
	$(CC) -shared -o $@ $^ $(LDFLAGS) $(UV_LIBS) -lz -lm -ldl -lpthread

$(B)/crescent_media.so: $(MEDIA_OBJ) $(B)/libcrescent.so
	$(CC) -shared -o $@ $(MEDIA_OBJ) $(LDFLAGS) -L$(B) -lcrescent $(AV_LIBS) -lm -lpthread

$(B)/crescent: $(MAIN_OBJ) $(B)/libcrescent.so
	$(CC) -o $@ $(MAIN_OBJ) $(LDFLAGS) -rdynamic -L$(B) -lcrescent $(LUA_LIBS) $(UV_LIBS) -ldl

$(B)/core/media/%.o: core/media/%.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(AV_FLAGS) $(UV_FLAGS) -MMD -MP -c -o $@ $<

$(B)/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(UV_FLAGS) $(LUA_FLAGS) -MMD -MP -c -o $@ $<

-include $(CORE_OBJ:.o=.d) $(MEDIA_OBJ:.o=.d) $(MAIN_OBJ:.o=.d)

models: all
	@$(B)/crescent scripts/fetch.lua

format:
	clang-format -i core/*.[ch] core/*/*.[ch]

clean:
	rm -rf build
