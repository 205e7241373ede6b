/* What a card's memory is used for: counters by tag, and the message when it is exhausted.
 *
 * Invariant: the bytes of all tags add up to the total. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "memory/count.h"

int crk_count_tag(crk_count *c) {
  if (!c->tag_count) c->tags[c->tag_count++].name = "";
  const char *name = cr__memory_tag();
  for (int i = 0; i < c->tag_count; i++)
    if (strcmp(c->tags[i].name, name) == 0) return i;
  if (c->tag_count == CRK_TAGS) return 0;
  c->tags[c->tag_count].name = name;
  return c->tag_count++;
}

void crk_count_add(crk_count *c, int tag, int64_t bytes, int storages) {
  cr_memory *m = &c->all;
  m->live_bytes += bytes;
  m->live_count += storages;
  if (m->live_bytes > m->peak_bytes) m->peak_bytes = m->live_bytes;
  if (m->live_bytes > c->high) c->high = m->live_bytes;
  cr_memory_tag *t = &c->tags[tag];
  t->live_bytes += bytes;
  if (t->live_bytes > t->peak_bytes) t->peak_bytes = t->live_bytes;
}

void crk_count_reset_peak(crk_count *c) {
  c->all.peak_bytes = c->all.live_bytes;
  for (int i = 0; i < c->tag_count; i++) c->tags[i].peak_bytes = c->tags[i].live_bytes;
}

static int by_live_bytes(const void *a, const void *b) {
  int64_t x = ((const cr_memory_tag *)a)->live_bytes, y = ((const cr_memory_tag *)b)->live_bytes;
  return x < y ? 1 : x > y ? -1 : 0;
}

int32_t crk_count_tags(const crk_count *c, cr_memory_tag out[CRK_TAGS]) {
  memcpy(out, c->tags, sizeof c->tags);
  qsort(out, (size_t)c->tag_count, sizeof *out, by_live_bytes);
  return c->tag_count;
}

typedef struct size_text {
  char text[32];
} size_text;

static size_text size_of(int64_t bytes) {
  size_text s;
  if (bytes >= (int64_t)1 << 30)
    snprintf(s.text, sizeof s.text, "%.1f GiB", (double)bytes / (1 << 30));
  else if (bytes >= 100 << 10)
    snprintf(s.text, sizeof s.text, "%.1f MiB", (double)bytes / (1 << 20));
  else
    snprintf(s.text, sizeof s.text, "%lld bytes", (long long)bytes);
  return s;
}

int crk_count_exhausted(const crk_count *c, const crk_device *d, int64_t bytes, int64_t limit) {
  enum { NAMED = 5 };
  cr_memory_tag tags[CRK_TAGS];
  int32_t n = crk_count_tags(c, tags);
  char held[240] = "", of[80];
  size_t used = 0;
  for (int i = 0; i < n && i < NAMED && tags[i].live_bytes > 0 && used < sizeof held; i++)
    used += (size_t)snprintf(held + used, sizeof held - used, "%s%s %s", i ? ", " : ": ",
                             tags[i].name[0] ? tags[i].name : "unnamed",
                             size_of(tags[i].live_bytes).text);
  if (limit) {
    snprintf(of, sizeof of, "of the %s it is limited to", size_of(limit).text);
  } else {
    size_t idle = 0, total = 0;
    cudaMemGetInfo(&idle, &total);
    snprintf(of, sizeof of, "and %s free", size_of((int64_t)idle).text);
  }
  return cr__fail(CR_ENOMEM,
                  "out of memory on cuda:%d: %s asked for, %s in use %s%s; a smaller --size, 8-bit "
                  "weights (--quant fp8) or decoding picture by picture (vae.slice = 1) would help",
                  d->card, size_of(bytes).text, size_of(c->all.live_bytes).text, of, held);
}
