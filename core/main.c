/* The program `crescent`: LuaJIT with the paths of its Lua files and with handlers for Ctrl-C.
 * Everything else, from the command line to error messages, is in lua/cr/tools/program.lua.
 *
 * Invariants: Ctrl-C first sets the core's flag, then a Lua hook that raises "interrupted" at the
 * next instruction. It does not raise while the registry's cr_hold is true: the event loop and the
 * prompt then check the flag themselves. The exit status is 128 + signal whenever a signal ended
 * the run. */
#include <errno.h>
#include <fcntl.h>
#include <lauxlib.h>
#include <limits.h>
#include <lua.h>
#include <lualib.h>
#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/internal.h"

enum { PATH_BYTES = PATH_MAX + 64, GRACE_MS = 500 };

static lua_State *volatile state; /* NULL once it is closed */
static struct sigaction core_action;
static volatile sig_atomic_t last_signal;
static int again; /* restart the program at its end */

static void raise_interrupted(lua_State *L, lua_Debug *unused) {
  (void)unused;
  lua_sethook(L, NULL, 0, 0);
  lua_getfield(L, LUA_REGISTRYINDEX, "cr_hold");
  int hold = lua_toboolean(L, -1);
  lua_pop(L, 1);
  if (hold || !cr_interrupted()) return;
  lua_pushliteral(L, "interrupted");
  lua_error(L);
}

static void on_signal(int number) {
  last_signal = number;
  core_action.sa_handler(number);
  lua_State *L = state;
  if (L) lua_sethook(L, raise_interrupted, LUA_MASKCALL | LUA_MASKRET | LUA_MASKCOUNT, 1);
}

static int forget_state(lua_State *unused) {
  (void)unused;
  state = NULL;
  return 0;
}

/* Creates the state that signals interrupt. The object created first is finalized last, whether
 * main or a script's os.exit closes the state, so a signal after that finds no state. */
static lua_State *open_state(void) {
  lua_State *L = luaL_newstate();
  if (!L) return NULL;
  lua_newuserdata(L, 1);
  lua_createtable(L, 0, 1);
  lua_pushcfunction(L, forget_state);
  lua_setfield(L, -2, "__gc");
  lua_setmetatable(L, -2);
  lua_setfield(L, LUA_REGISTRYINDEX, "cr_state");
  luaL_openlibs(L);
  return state = L;
}

static void leave_to_write(int number) { (void)number; }

static int set_handlers(int32_t grace_ms) {
  cr__interrupt_message("crescent: interrupted\n");
  if (cr_interrupt_install(grace_ms) < 0) return -1;
  struct sigaction action;
  if (sigaction(SIGINT, NULL, &core_action) != 0) return -1;
  action = core_action;
  action.sa_handler = on_signal;
  if (sigaction(SIGINT, &action, NULL) != 0 || sigaction(SIGTERM, &action, NULL) != 0) return -1;
  /* nohup starts the program with SIGHUP ignored, and it stays ignored. */
  struct sigaction hangup;
  if (sigaction(SIGHUP, NULL, &hangup) != 0) return -1;
  if (hangup.sa_handler != SIG_IGN && sigaction(SIGHUP, &action, NULL) != 0) return -1;
  /* A closed pipe and a file that may not grow are reported as errors of the write. Programs that a
   * script starts do not inherit a handler, but they would inherit SIG_IGN. */
  struct sigaction failed_write;
  memset(&failed_write, 0, sizeof failed_write);
  failed_write.sa_handler = leave_to_write;
  failed_write.sa_flags = SA_RESTART;
  sigemptyset(&failed_write.sa_mask);
  if (sigaction(SIGPIPE, &failed_write, NULL) != 0) return -1;
  return sigaction(SIGXFSZ, &failed_write, NULL) == 0 ? 0 : -1;
}

/* A signal during the installation waits until all handlers are installed, since the core's handler
 * alone would not store its number. */
static int catch_signals(int32_t grace_ms) {
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_BLOCK, &all, &before);
  int rc = set_handlers(grace_ms);
  int kept = errno;
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  errno = kept;
  return rc;
}

/* Some libraries crash when memory runs out. Half-written files are deleted, and a message is
 * printed. */
static void on_fault(int number) {
  static const char text[] =
      "crescent: ended by a fault in the program or a library: not enough memory, or a bug\n";
  cr__cleanup_files();
  if (write(STDERR_FILENO, text, sizeof text - 1) < 0) last_signal = number;
  raise(number); /* the default action now ends the process */
}

static void catch_faults(void) {
  static char stack[1 << 16]; /* the normal stack may have overflowed */
  static const int faults[] = {SIGSEGV, SIGABRT, SIGBUS, SIGFPE, SIGILL};
  stack_t other = {.ss_sp = stack, .ss_size = sizeof stack};
  if (sigaltstack(&other, NULL) != 0) return;
  struct sigaction action, before;
  memset(&action, 0, sizeof action);
  action.sa_handler = on_fault;
  action.sa_flags = SA_ONSTACK | SA_RESETHAND | SA_NODEFER;
  for (size_t i = 0; i < sizeof faults / sizeof *faults; i++)
    if (sigaction(faults[i], NULL, &before) == 0 && before.sa_handler == SIG_DFL)
      sigaction(faults[i], &action, NULL); /* (sanitizers have handlers of their own) */
}

/* Without this, a file that is opened while a standard stream is closed would get its number, and
 * the program's messages. */
static void open_standard_streams(void) {
  for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
    if (fcntl(fd, F_GETFD) < 0 && errno == EBADF && open("/dev/null", O_RDWR) < 0) return;
}

static int readable(const char *folder, const char *file) {
  char path[PATH_BYTES];
  int n = snprintf(path, sizeof path, "%s/%s", folder, file);
  return n > 0 && n < (int)sizeof path && access(path, R_OK) == 0;
}

/* Finds root (the folder of lua/, models/ and scripts/) and libraries (the folder of the .so
 * files): in the source tree, or in the prefix in which this program is bin/crescent. */
static int find_folders(char *root, char *libraries) {
  char self[PATH_MAX], trial[PATH_BYTES];
  ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
  if (n <= 0) {
    fprintf(stderr, "crescent: cannot tell where the program is: %s\n", strerror(errno));
    return -1;
  }
  self[n] = '\0';
  *strrchr(self, '/') = '\0';
  /* The sanitized build is one folder deeper. */
  static const char *const places[][2] = {
      {"..", "."}, {"../..", "."}, {"../share/crescent", "../lib/crescent"}};
  for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
    snprintf(trial, sizeof trial, "%s/%s", self, places[i][0]);
    if (!readable(trial, "lua/cr/tools/program.lua") || !realpath(trial, root)) continue;
    snprintf(trial, sizeof trial, "%s/%s", self, places[i][1]);
    if (realpath(trial, libraries)) return 0;
  }
  fprintf(stderr,
          "crescent: its Lua files are neither in %s/../lua nor in %s/../share/crescent/lua: "
          "install it again\n",
          self, self);
  return -1;
}

static void prepend_path(lua_State *L, const char *field, const char *text) {
  lua_getglobal(L, "package");
  lua_pushstring(L, text);
  lua_getfield(L, -2, field);
  lua_concat(L, 2);
  lua_setfield(L, -2, field);
  lua_pop(L, 1);
}

static int is_interrupted(lua_State *L) {
  lua_pushboolean(L, cr_interrupted());
  return 1;
}

static int clear_interrupt(lua_State *L) {
  (void)L;
  cr_interrupt_clear();
  return 0;
}

/* The interruption has been reported, so the watchdog, which may still end the process, must not
 * report it again. */
static int interruption_told(lua_State *L) {
  (void)L;
  cr__interrupt_message(NULL);
  return 0;
}

/* Whether a write to standard output has failed. A later flush does not report that. */
static int output_failed(lua_State *L) {
  lua_pushboolean(L, ferror(stdout));
  return 1;
}

/* The last signal: SIGTERM ends the prompt, SIGINT only what the prompt runs. */
static int signal_number(lua_State *L) {
  lua_pushinteger(L, last_signal);
  return 1;
}

/* The prompt waits longer than a script before it gives up the whole session. */
static int set_grace(lua_State *L) {
  catch_signals((int32_t)luaL_checkinteger(L, 1));
  return 0;
}

/* After a fault, a driver may require a new process to use the GPU. */
static int restart(lua_State *L) {
  (void)L;
  again = 1;
  return 0;
}

/* The argument of program.lua: what only the program knows. */
static void push_host(lua_State *L, int argc, char **argv, const char *root,
                      const char *libraries) {
  lua_newtable(L);
  lua_createtable(L, argc, 1);
  for (int i = 0; i < argc; i++) {
    lua_pushstring(L, argv[i]);
    lua_rawseti(L, -2, i);
  }
  lua_setfield(L, -2, "argv");
  lua_pushstring(L, root);
  lua_setfield(L, -2, "root");
  lua_pushstring(L, libraries);
  lua_setfield(L, -2, "libraries");
  lua_pushboolean(L, isatty(STDIN_FILENO));
  lua_setfield(L, -2, "interactive");
  static const luaL_Reg functions[] = {
      {"interrupted", is_interrupted},
      {"clear_interrupt", clear_interrupt},
      {"interruption_told", interruption_told},
      {"output_failed", output_failed},
      {"signal", signal_number},
      {"set_grace", set_grace},
      {"restart", restart},
  };
  for (size_t i = 0; i < sizeof functions / sizeof *functions; i++) {
    lua_pushcfunction(L, functions[i].func);
    lua_setfield(L, -2, functions[i].name);
  }
}

/* By default a waiting OpenMP thread spins for milliseconds, which makes small operations many
 * times slower on a busy machine. libgomp reads its environment when it is loaded, before main. So
 * the program executes itself again with a shorter spin, which still covers the gap between two
 * operations of a network. */
static void shorten_spinning(char **argv) {
  if (getenv("GOMP_SPINCOUNT") || getenv("OMP_WAIT_POLICY")) return;
  if (setenv("GOMP_SPINCOUNT", "5000", 1) == 0) execv("/proc/self/exe", argv);
  /* If that fails, the run continues unchanged. */
}

/* Many threads allocate and free frames. With an arena for each thread and a growing mmap
 * threshold, freed frames would stay scattered over the heap, and memory would grow with the length
 * of a video. */
static void limit_heap_arenas(void) {
  mallopt(M_ARENA_MAX, 2);
  mallopt(M_MMAP_THRESHOLD, 1 << 20);
}

int main(int argc, char **argv) {
  open_standard_streams();
  shorten_spinning(argv);
  limit_heap_arenas();
  catch_faults();
  char root[PATH_MAX], libraries[PATH_MAX], text[4 * PATH_BYTES + 64];
  if (find_folders(root, libraries) < 0) return 1;
  lua_State *L = open_state();
  if (!L) {
    fprintf(stderr, "crescent: out of memory while starting Lua\n");
    return 1;
  }
  if (catch_signals(GRACE_MS) < 0) {
    fprintf(stderr, "crescent: cannot catch Ctrl-C: %s\n", strerror(errno));
    return 1;
  }
  snprintf(text, sizeof text, "%s/lua/?.lua;%s/lua/?/init.lua;%s/?.lua;%s/?/init.lua;", root, root,
           root, root);
  prepend_path(L, "path", text);
  snprintf(text, sizeof text, "%s/?.so;", libraries);
  prepend_path(L, "cpath", text);

  snprintf(text, sizeof text, "%s/lua/cr/tools/program.lua", root);
  int failed = luaL_loadfile(L, text);
  if (!failed) {
    push_host(L, argc, argv, root, libraries);
    failed = lua_pcall(L, 1, 1, 0);
  }
  int status = 1;
  if (!failed) {
    status = (int)lua_tointeger(L, -1);
  } else if (cr_interrupted()) { /* before program.lua could handle it */
    cr__interrupt_message(NULL);
    fputs("crescent: interrupted\n", stderr);
    status = 128 + SIGINT;
  } else {
    fprintf(stderr, "crescent: %s\n", lua_isstring(L, -1) ? lua_tostring(L, -1) : "failed");
  }
  if (status == 128 + SIGINT && last_signal) status = 128 + last_signal;
  lua_close(L);
  /* Files that no closing function has handled. */
  if (status > 128) cr__cleanup_files();
  if ((fflush(stdout) != 0 || ferror(stdout)) && status == 0) {
    fprintf(stderr, "crescent: cannot write to standard output: %s\n", strerror(errno));
    status = 1;
  }
  if (again && status == 0) {
    close_range(STDERR_FILENO + 1, ~0U,
                CLOSE_RANGE_CLOEXEC); /* among them those of the GPU's driver */
    execv("/proc/self/exe", argv);
    fprintf(stderr, "crescent: cannot restart: %s\n", strerror(errno));
    status = 1;
  }
  return status;
}
