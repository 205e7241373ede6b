/* Counters of what a card's memory is used for, and the message when there is no more of it. Called
 * with the allocator's lock held. */
#ifndef CRK_MEMORY_COUNT_H
#define CRK_MEMORY_COUNT_H

#include "device/cuda.h"

enum { CRK_TAGS = 32 }; /* most tags; further ones count as unnamed */

typedef struct crk_count {
  cr_memory all;                /* the allocator fills cached_bytes and peak_reserved_bytes */
  int64_t high;                 /* the most live bytes ever */
  cr_memory_tag tags[CRK_TAGS]; /* the first is "" */
  int32_t tag_count;
} crk_count;

/* The index of the tag set by cr_memory_set_tag. */
int crk_count_tag(crk_count *c);
/* Counts new storages of `bytes` in all, or (negative) storages that were freed. */
void crk_count_add(crk_count *c, int tag, int64_t bytes, int storages);
void crk_count_reset_peak(crk_count *c);
/* The tags, most live bytes first; returns how many. */
int32_t crk_count_tags(const crk_count *c, cr_memory_tag out[CRK_TAGS]);
/* Fails with one sentence: what was requested, what there is (limit: 0 if there is none), which
 * tags hold it, and what would help. */
int crk_count_exhausted(const crk_count *c, const crk_device *d, int64_t bytes, int64_t limit);

#endif
