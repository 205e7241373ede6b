/* Prepares luv before it is opened: the core's loop, the function that calls its callbacks, and the
 * constructor of the Lua states of its threads. By default luv ends the process at the first error
 * in a callback or a thread.
 *
 * The functions of Lua are looked up in the running program, so the library does not link Lua and
 * serves `crescent` and `luajit` alike.
 *
 * Invariants: call_back runs on the thread that runs Lua, and passes errors to the function that
 * lua/cr/loop/luv.lua left in the registry. Errors on other threads, and out-of-memory errors, are
 * kept as text until cr__luv_failure takes it. */
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <uv.h>

#include "base/internal.h"

/* Called only by lua/cr/loop/luv.lua, which declares them itself. */
int cr_luaopen_loop(void *L);
int32_t cr__luv_failure(char *out, int32_t bytes);

enum {
  REGISTRY = -10000,
  GLOBALS = -10002,
  PATH_TEXT = 8192,
  FAILURE_TEXT = 2048
}; /* as in lua.h */

typedef int call_function(void *L, int arguments, int results, int flags);

/* The functions of lua.h and lauxlib.h that are used here. */
#define LUA_FUNCTIONS(F)                                                                           \
  F(const char *, lua_tolstring, (void *, int, size_t *))                                          \
  F(void, lua_pushstring, (void *, const char *))                                                  \
  F(void, lua_getfield, (void *, int, const char *))                                               \
  F(void, lua_setfield, (void *, int, const char *))                                               \
  F(void, lua_insert, (void *, int))                                                               \
  F(int, lua_gettop, (void *))                                                                     \
  F(void, lua_settop, (void *, int))                                                               \
  F(int, lua_pcall, (void *, int, int, int))                                                       \
  F(void *, luaL_newstate, (void))                                                                 \
  F(void, luaL_openlibs, (void *))                                                                 \
  F(void, lua_close, (void *))
#define DECLARE(type, name, arguments) type(*name) arguments;
static struct { LUA_FUNCTIONS(DECLARE) } lua;

static struct {
  void (*luv_set_loop)(void *L, uv_loop_t *loop);
  void (*luv_set_callback)(void *L, call_function *call);
  void (*luv_set_thread)(void *L, call_function *call);
  void (*luv_set_thread_cb)(void *(*acquire)(void), void (*release)(void *L));
  int (*luaopen_luv)(void *L);
} luv;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char failure[FAILURE_TEXT];
static char thread_path[PATH_TEXT], thread_cpath[PATH_TEXT];

/* Appends the error on top of the stack to `failure`, for the thread that runs Lua. */
static void note_failure(void *L) {
  const char *text = lua.lua_tolstring(L, -1, NULL);
  pthread_mutex_lock(&lock);
  size_t used = strlen(failure);
  snprintf(failure + used, sizeof failure - used, "%s%s", used ? "; " : "",
           text ? text : "an error value that is not a string");
  pthread_mutex_unlock(&lock);
  cr__loop_wake();
}

/* Takes the text of errors outside the thread that runs Lua. Returns its length; 0 if there is
 * none. */
CR_EXPORT int32_t cr__luv_failure(char *out, int32_t bytes) {
  pthread_mutex_lock(&lock);
  snprintf(out, (size_t)bytes, "%s", failure);
  failure[0] = '\0';
  pthread_mutex_unlock(&lock);
  return (int32_t)strlen(out);
}

/* Calls the function below `arguments` values and leaves `results` of its results (-1: all).
 * Returns their number, or the negative code of lua_pcall. */
static int call_noting(void *L, int arguments, int results, int flags) {
  (void)flags;
  int base = lua.lua_gettop(L) - arguments - 1;
  int code = lua.lua_pcall(L, arguments, results, 0);
  if (code == 0) return lua.lua_gettop(L) - base;
  note_failure(L);
  lua.lua_settop(L, base);
  return -code;
}

static int call_back(void *L, int arguments, int results, int flags) {
  lua.lua_getfield(L, REGISTRY, "cr_callback");
  lua.lua_insert(L, -arguments - 2);
  return call_noting(L, arguments + 1, results, flags);
}

/* Creates the Lua state of a thread. It has luv, and does not search the current folder for
 * modules. */
static void *make_state(void) {
  void *L = lua.luaL_newstate();
  if (!L) return NULL;
  lua.luaL_openlibs(L);
  luv.luv_set_thread(L, call_noting);
  lua.lua_getfield(L, GLOBALS, "package");
  lua.lua_pushstring(L, thread_path);
  lua.lua_setfield(L, 1, "path");
  lua.lua_pushstring(L, thread_cpath);
  lua.lua_setfield(L, 1, "cpath");
  lua.lua_getfield(L, 1, "loaded");
  luv.luaopen_luv(L);
  lua.lua_setfield(L, 2, "luv");
  lua.lua_settop(L, 0);
  return L;
}

static const char *open_luv(const char *path) {
  void *library = path ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : NULL;
  if (!library) {
    const char *problem = path ? dlerror() : NULL;
    return problem ? problem : "it cannot be opened";
  }
#define FIND(name)                                                                                 \
  *(void **)&luv.name = dlsym(library, #name);                                                     \
  if (!luv.name) return "it lacks " #name;
  FIND(luv_set_loop)
  FIND(luv_set_callback)
  FIND(luv_set_thread)
  FIND(luv_set_thread_cb)
  FIND(luaopen_luv)
  return cr_loop() ? NULL : cr_last_error();
}

/* A Lua C function for package.loadlib. Arguments: the path of luv.so, and package.path and
 * package.cpath for threads. It returns nothing, or an error message. luv must be opened after this
 * call. */
CR_EXPORT int cr_luaopen_loop(void *L) {
#define LOOK_UP(type, name, arguments)                                                             \
  *(void **)&lua.name = dlsym(RTLD_DEFAULT, #name);                                                \
  if (!lua.name) return 0;
  LUA_FUNCTIONS(LOOK_UP)
  const char *path = lua.lua_tolstring(L, 2, NULL), *cpath = lua.lua_tolstring(L, 3, NULL);
  const char *problem = open_luv(lua.lua_tolstring(L, 1, NULL));
  if (problem) {
    lua.lua_pushstring(L, problem);
    return 1;
  }
  snprintf(thread_path, sizeof thread_path, "%s", path ? path : "");
  snprintf(thread_cpath, sizeof thread_cpath, "%s", cpath ? cpath : "");
  luv.luv_set_loop(L, cr_loop());
  luv.luv_set_callback(L, call_back);
  luv.luv_set_thread_cb(make_state, lua.lua_close);
  return 0;
}
