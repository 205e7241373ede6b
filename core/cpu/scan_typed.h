/* Cumulative sums and products of rows of n elements in one type. sort.c includes this file once
 * per type with these macros:
 *
 *   TYPE     double or int64_t
 *   F(name)  name_f64 or name_i64 */

static void F(scan)(const cr__view *to, const cr__view *from, int64_t rows, int64_t n,
                    int32_t product) {
#pragma omp parallel for schedule(static) num_threads(cr__threads_for(rows *n))
  for (int64_t r = 0; r < rows; r++) {
    TYPE so_far = product ? 1 : 0, in[CR__CHUNK], sums[CR__CHUNK];
    for (int64_t first = 0; first < n; first += CR__CHUNK) {
      int64_t count = n - first < CR__CHUNK ? n - first : CR__CHUNK;
      const TYPE *x = F(cr__load)(from, r * n + first, count, in);
      for (int64_t i = 0; i < count; i++) sums[i] = so_far = F(next)(so_far, x[i], product);
      TYPE *target = F(cr__target)(to, r * n + first, sums);
      if (target != sums) memcpy(target, sums, (size_t)count * sizeof *sums);
      F(cr__store)(to, r * n + first, count, target);
    }
  }
}

#undef TYPE
#undef F
