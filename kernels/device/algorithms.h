/* The choice of algorithms for GEMMs and convolutions: timed once, and remembered on disk.
 *
 * A choice is a small blob (a library's description of an algorithm) under a key that names
 * everything it depends on but the card: the library and its version, the operation, dtypes,
 * shapes, strides, alignments. Each kind of card has one file in $CR_CACHE, else in
 * $XDG_CACHE_HOME/crescent, else in ~/.cache/crescent. Where that cannot be written, or CR_CACHE is
 * empty, choices live as long as the process. A blob that is found may be old, or damaged beyond
 * what a checksum detects, so ask the library about it before use. The functions are called by the
 * thread that runs Lua. */
#ifndef CRK_ALGORITHMS_H
#define CRK_ALGORITHMS_H

#include "device/cuda.h"

enum { CRK_ALGORITHM_KEY = 400, CRK_ALGORITHM_BYTES = 1024 }; /* longest key and blob */

/* 1 and the blob if `key` is known with a blob of exactly `bytes` bytes, else 0. Never fails. */
int crk_algorithm_find(crk_device *d, const char *key, void *blob, int bytes);
/* Remembers a blob under `key`, and replaces the old one. The key is printable ASCII without tabs.
 * The blob reaches the disk within a second of work, or when the process ends. Never fails. */
void crk_algorithm_remember(crk_device *d, const char *key, const void *blob, int bytes);

/* Runs candidate i of a search once: queues it on the card's stream. Negative if it does not work;
 * a message that it sets is dropped. */
typedef int (*crk_candidate)(void *arg, int i);

/* Times run(arg, i) for i < n on the card and returns the index of the fastest, or of the first
 * that works if the time is up; a negative code if none works. Candidates that are clearly slower
 * are run once or twice, the others a few times; after `budget_ms` of wall time no more are tried.
 * Candidates stand in the library's own order, best first, and a tie goes to the earlier one. It
 * waits for the card, so call it only when crk_may_search(d). */
int crk_fastest(const char *name, crk_device *d, int n, crk_candidate run, void *arg,
                double budget_ms);

/* Whether cuBLAS and cuDNN may be used. CR_LIBRARIES=0 leaves everything to our own kernels: for
 * tools that cannot follow the libraries', and to find out whose a wrong number is. */
bool crk_libraries_wanted(void);

/* Whether algorithms may be timed now: the option is on and nothing is being recorded. */
static inline bool crk_may_search(const crk_device *d) { return d->search && !d->capturing; }

#endif
