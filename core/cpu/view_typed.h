/* Loading and storing elements of any dtype in one type. view.c includes this file once per type
 * with these macros:
 *
 *   TYPE           float, double or int64_t
 *   DTYPE          CR_F32, CR_F64 or CR_I64
 *   F(name)        name_f32, name_f64 or name_i64
 *   BY_WAY_OF_F32  defined if 16-bit floats are converted to f32 first */

/* ---- runs: n elements with one stride ---- */

#ifdef BY_WAY_OF_F32
static void F(load_halves)(TYPE *out, const char *x, int32_t dtype, int64_t stride, int64_t n) {
  float piece[PIECE];
  for (int64_t i = 0; i < n; i += PIECE) {
    int64_t m = n - i < PIECE ? n - i : PIECE;
    load_halves_f32(piece, x + i * stride * 2, dtype, stride, m);
    for (int64_t j = 0; j < m; j++) {
      float e = piece[j];
      out[i + j] = F(float_to)(e);
    }
  }
}

static void F(store_halves)(char *out, const TYPE *x, int32_t dtype, int64_t stride, int64_t n) {
  float piece[PIECE];
  for (int64_t i = 0; i < n; i += PIECE) {
    int64_t m = n - i < PIECE ? n - i : PIECE;
    for (int64_t j = 0; j < m; j++) piece[j] = cr__round_to_odd((double)x[i + j]);
    store_halves_f32(out + i * stride * 2, piece, dtype, stride, m);
  }
}
#endif

CR_CLONES static void F(run_to)(TYPE *out, const char *x, int32_t dtype, int64_t stride,
                                int64_t n) {
  switch (dtype) {
    LOADS(LOAD_CASE)
  default:
    F(load_halves)(out, x, dtype, stride, n);
    break;
  }
}

CR_CLONES static void F(run_from)(char *out, const TYPE *x, int32_t dtype, int64_t stride,
                                  int64_t n) {
  switch (dtype) {
    STORES(STORE_CASE)
  default:
    F(store_halves)(out, x, dtype, stride, n);
    break;
  }
}

/* ---- chunks: runs of the last dimension, one after another ---- */

const TYPE *F(cr__load)(const cr__view *v, int64_t start, int64_t n, TYPE *buffer) {
  if (v->dense && v->dtype == DTYPE) return (const TYPE *)v->base + start;
  if (n <= 0) return buffer;
  int64_t index[CR_MAX_RANK], offset = first_run(v, start, index), stride = v->stride[v->rank - 1];
  for (int64_t done = 0, count; done < n; done += count) {
    count = run_length(v, index, n - done);
    F(run_to)(buffer + done, v->base + offset * v->size, v->dtype, stride, count);
    offset = next_run(v, index, offset);
  }
  return buffer;
}

TYPE *F(cr__target)(const cr__view *v, int64_t start, TYPE *buffer) {
  return v->dense && v->dtype == DTYPE ? (TYPE *)v->base + start : buffer;
}

void F(cr__store)(const cr__view *v, int64_t start, int64_t n, const TYPE *x) {
  if (v->dense && v->dtype == DTYPE && (const TYPE *)v->base + start == x) return;
  if (n <= 0) return;
  int64_t index[CR_MAX_RANK], offset = first_run(v, start, index), stride = v->stride[v->rank - 1];
  for (int64_t done = 0, count; done < n; done += count) {
    count = run_length(v, index, n - done);
    F(run_from)(v->base + offset * v->size, x + done, v->dtype, stride, count);
    offset = next_run(v, index, offset);
  }
}

#undef TYPE
#undef DTYPE
#undef F
