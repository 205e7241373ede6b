#!/bin/sh
# Runs the program under valgrind (`make valgrind`). Any finding makes the exit status 99.
#
# Leaks are left to the sanitized build, which knows them without a list of exceptions. GOMP_SPINCOUNT
# keeps the program from starting itself again (see core/main.c), and since valgrind runs one thread at
# a time, a second one only waits.
export GOMP_SPINCOUNT=0 CR_THREADS="${CR_THREADS:-1}"
command -v valgrind >/dev/null || { echo "valgrind is missing: apt-get install valgrind" >&2; exit 1; }
exec valgrind -q --error-exitcode=99 --leak-check=no --suppressions=tests/support/valgrind.supp \
  "${PROGRAM:-build/crescent}" "$@"
