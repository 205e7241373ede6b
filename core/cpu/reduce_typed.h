/* The two loop orders of reductions (reduce.c), in one type. reduce.c includes this file once per
 * type with these macros:
 *
 *   TYPE     double or int64_t
 *   F(name)  name_f64 or name_i64 */

/* Computes one result after another. If there are few, threads share the elements of each. */
static int F(by_rows)(const plan *p, const cr__view *out) {
  int64_t pieces = (p->count + CR__CHUNK - 1) / CR__CHUNK;
  int threads = cr__threads_for(p->results * p->count);
  bool split = p->results < threads && pieces > 1;
  F(state) *part = NULL;
  if (split) {
    part = malloc((size_t)pieces * sizeof *part);
    if (!part) return cr__fail(CR_ENOMEM, "reduce: out of memory");
  }
#pragma omp parallel for schedule(static) num_threads(split ? 1 : threads)
  for (int64_t r = 0; r < p->results; r++) {
    cr__view v = p->reduced;
    v.base += offset_of(&p->kept, r) * v.size;
    F(state) start = F(start)(p, r), sum = start;
#pragma omp parallel for schedule(static) num_threads(split ? threads : 1)
    for (int64_t k = 0; k < pieces; k++) {
      TYPE buffer[CR__CHUNK];
      int64_t first = k * CR__CHUNK;
      int64_t n = p->count - first < CR__CHUNK ? p->count - first : CR__CHUNK;
      const TYPE *x = F(cr__load)(&v, first, n, buffer);
      if (split) part[k] = start;
      F(row)(p->op, split ? &part[k] : &sum, x, n, first);
    }
    if (split) {
      for (int64_t k = 0; k < pieces; k++) F(join)(p->op, &sum, &part[k]);
    }
    F(finish)(p, out, r, 1, &sum);
  }
  free(part);
  return CR_OK;
}

/* Computes a block of results at a time. */
static int F(by_columns)(const plan *p, const cr__view *out) {
#pragma omp parallel for schedule(static) num_threads(cr__threads_for(p->results * p->count))
  for (int64_t r = 0; r < p->results; r += BLOCK) {
    int64_t n = p->results - r < BLOCK ? p->results - r : BLOCK;
    F(state) sums[BLOCK];
    TYPE buffer[BLOCK];
    for (int64_t i = 0; i < n; i++) sums[i] = F(start)(p, r + i);
    cr__view v = p->kept;
    for (int64_t k = 0; k < p->count; k++) {
      v.base = p->kept.base + offset_of(&p->reduced, k) * v.size;
      const TYPE *x = F(cr__load)(&v, r, n, buffer);
      for (int64_t i = 0; i < n; i++) F(update)(p->op, &sums[i], x[i], k);
    }
    F(finish)(p, out, r, n, sums);
  }
  return CR_OK;
}

#undef TYPE
#undef F
