#!/bin/sh
# Runs the given test files (default: all) under prove, or one after another if prove is missing. It
# then prints "N passed, N failed, N skipped", counted over all TAP lines. The exit status is 1 if
# anything failed.
# CRESCENT names the program (build/crescent), JOBS the number of files that run at a time (1).
set -u
cd "$(dirname "$0")/.." || exit 1
program=${CRESCENT:-build/crescent}
[ $# -gt 0 ] || set -- tests/*_test.lua
# Only sanitized builds read these options. With interception on, the leak checker crashes in
# programs that load a library with thread-local data while OpenMP threads run.
export ASAN_OPTIONS="${ASAN_OPTIONS:-intercept_tls_get_addr=0}"
export LSAN_OPTIONS="${LSAN_OPTIONS:-suppressions=$PWD/tests/support/lsan.supp:print_suppressions=0}"
log=$(mktemp) || exit 1
trap 'rm -f "$log" "$log.rc" "$log.one"' EXIT
# The thread sanitizer does not understand OpenMP's own synchronization, so operations run on one
# thread.
case $program in *sanitize-thread*) export CR_THREADS="${CR_THREADS:-1}" TSAN_OPTIONS="${TSAN_OPTIONS:-exitcode=66}" ;; esac
# Imitates prove's output, from which the totals below are counted.
plainly() {
  status=0
  for file in "$@"; do
    echo "$file .."
    { "$program" "$file" 2>&1; echo "# exit status $?"; } | tee "$log.one"
    grep -q '^1\.\.[0-9]' "$log.one" || { echo "  Parse errors: $file has no plan"; status=1; }
    grep -q '^# exit status 0$' "$log.one" || status=1
  done
  return $status
}
under=plainly
if command -v prove >/dev/null; then under="prove -v --timer -j ${JOBS:-1} -e $program"; fi
{ $under "$@" 2>&1; echo $? >"$log.rc"; } |
  tee "$log" | grep -vE '^ok |^1\.\.[0-9]+$|^$'
awk -v rc="$(cat "$log.rc")" '
  # prove itself prints "ok   123 ms" after each file.
  /^ok [0-9]+ .*# [Ss][Kk][Ii][Pp]/ { skipped++; next }
  /^ok [0-9]+ - / { passed++ }
  /^not ok [0-9]+/ { failed++ }
  # A file that ended before its plan has failed, whatever it counted.
  /^(Result: FAIL|  Non-zero exit status|  Parse errors)/ { broken = 1 }
  END {
    if ((broken || rc != 0) && !failed) failed = 1
    printf "%d passed, %d failed, %d skipped\n", passed, failed, skipped
    exit failed > 0
  }' "$log"
