#!/bin/sh
# Runs the program under valgrind (`make valgrind`). Any finding makes the exit status 99.
#
# Leaks are checked by the sanitized build, which needs no list of exceptions. GOMP_SPINCOUNT
# prevents the program from restarting itself (see core/main.c). valgrind runs one thread at a time,
# so a second thread would only wait.
export GOMP_SPINCOUNT=0 CR_THREADS="${CR_THREADS:-1}"
command -v valgrind >/dev/null || { echo "valgrind is missing: apt-get install valgrind" >&2; exit 1; }
exec valgrind -q --error-exitcode=99 --leak-check=no --suppressions=tests/support/valgrind.supp \
  "${PROGRAM:-build/crescent}" "$@"
