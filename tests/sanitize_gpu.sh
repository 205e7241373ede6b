#!/bin/sh
# Runs the tests of our own kernels under compute-sanitizer: tests/sanitize_gpu.sh [TOOL...]
# (default: memcheck racecheck initcheck). TESTS names other files, JOBS the number that run at
# once, LIMIT the seconds per file. PARTS=N splits each file into N parts that run in parallel (more
# than about 30 at once do not start). All of racecheck needs about PARTS=15 JOBS=9 LIMIT=400 and
# ten minutes, the other two tools JOBS=12 and four minutes. Findings in libraries' kernels do not
# count. Prints one line per file and tool. The exit status is 1 unless all are clean; a file can
# also be stopped early, or not be run for lack of time.
set -u
program=${CRESCENT:-build/crescent}
limit=${LIMIT:-120}

# Name parts of libraries' kernels.
libraries='cublas cudnn cutlass xmma gemm gemv splitK nvjet'

# sanitize_gpu.sh --one TOOL FILE PART is how the rest of this script calls itself.
if [ "${1:-}" = --one ]; then
  log=$(mktemp) || exit 1
  trap 'rm -f "$log"' EXIT
  export CR_PART="$4"
  one=$2 file=$3
  # initcheck must also watch libraries' kernels: they write what ours read.
  set -- --tool "$one"
  [ "$one" = initcheck ] || for library in $libraries; do set -- "$@" --kernel-name-exclude "kns=$library"; done
  case $CR_PART in */1) name=$file ;; *) name="$file, part $CR_PART" ;; esac
  # racecheck cannot run libraries' Hopper kernels, and initcheck does not see their bulk stores, so
  # whatever reads a library's result would be reported.
  case $one in racecheck | initcheck) export CR_LIBRARIES=0 ;; esac
  # No host backtrace: the tool ends the program at the first frame without unwind tables, such as
  # compiled Lua. Child processes are not followed: one of them faults on purpose.
  timeout -k 5 "$limit" "$SANITIZER" "$@" --target-processes application-only --report-api-errors no \
    --show-backtrace no --error-exitcode 86 --print-limit 10000 "$program" "$file" >"$log" 2>&1
  rc=$?
  summary=$(grep 'SUMMARY' "$log" | sed 's/^=* *//' | tail -1)
  ran=$(grep -c '^ok ' "$log")
  # Where a library must run nevertheless, initcheck reports copies of its results (the tests
  # compare those copies); only findings in our own kernels count. The same holds for our own
  # convolutions, which also use bulk stores: if the result is a view, move_kernel copies it.
  case $file in *cuda_conv_hopper*) libraries="$libraries move_kernel" ;; esac
  ours=$(grep -E '^=+ +at ' "$log" | grep -vEc "$(echo "$libraries" | tr ' ' '|')")
  if [ "$one" = initcheck ] && [ $rc = 86 ] && [ "$ours" = 0 ] && ! grep -q '^not ok' "$log"; then
    summary="$summary, all of them in what was stored in bulk or read by libraries"
    rc=0
  fi
  case $rc in
    86) echo "FOUND    $one $name: $summary"; grep -v '^ok ' "$log" | head -40 ;;
    124 | 137) echo "NOT RUN  $one $name: takes more than $limit s" ;;
    *) if [ -z "$summary" ]; then
         echo "NOT RUN  $one $name: status $rc, $(tail -1 "$log")"
       elif grep -q '^1\.\.[0-9]' "$log"; then
         echo "clean    $one $name: $summary; $ran tests passed, status $rc"
         grep '^not ok' "$log"
       else
         # Nothing was found before the program ended, which says nothing about the rest.
         echo "STOPPED  $one $name: $summary, but status $rc after $ran tests"
         grep -v '^ok ' "$log" | tail -12
       fi ;;
  esac
  exit 0
fi

cd "$(dirname "$0")/.." || exit 1
SANITIZER=$(command -v compute-sanitizer || ls "${CUDA_HOME:-/usr/local/cuda}/bin/compute-sanitizer" 2>/dev/null)
[ -n "$SANITIZER" ] || { echo 'compute-sanitizer is missing: it comes with the CUDA toolkit' >&2; exit 1; }
# Otherwise the program would restart itself to set this variable, and the tool does not follow
# child processes.
export SANITIZER GOMP_SPINCOUNT=5000
[ $# -gt 0 ] || set -- memcheck racecheck initcheck
# Networks are omitted: they run the same operations, for a long time.
files=${TESTS:-$(ls tests/cuda_*_test.lua | grep -v 'cuda_models_test\|cuda_guidance_test')}
all=$(mktemp) || exit 1
trap 'rm -f "$all"' EXIT
for tool in "$@"; do
  for file in $files; do
    for part in $(seq "${PARTS:-1}"); do echo "--one $tool $file $part/${PARTS:-1}"; done
  done
done | xargs -P "${JOBS:-1}" -L 1 tests/sanitize_gpu.sh | tee "$all"
! grep -qE '^(FOUND|STOPPED|NOT RUN)' "$all"
