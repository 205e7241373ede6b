/* The loops of the elementwise operations in one type. elementwise.c includes this file once per
 * type with these macros:
 *   TYPE                   float, double or int64_t
 *   F(name)                name_f32, name_f64 or name_i64
 *   FORM(KINDS, MACRO, ..) MACRO(..) if operations of these kinds have a form in this type
 *   CLONES                 CR_CLONES, or nothing */

/* ---- one operand ---- */

typedef void F(unary_loop)(TYPE *out, const TYPE *in, int64_t n);

#define LOOP(NAME)                                                                                 \
  CLONES static void F(NAME##_of)(TYPE * out, const TYPE *in, int64_t n) {                         \
    _Pragma("omp simd") for (int64_t i = 0; i < n; i++) out[i] = F(cr__##NAME)(in[i]);             \
  }
#define DEFINE(OP, NAME, KINDS) FORM(KINDS, LOOP, NAME)
CR_UNARY_TABLE(DEFINE)
#undef LOOP
#undef DEFINE

#define ROW(OP, NAME) [OP] = F(NAME##_of),
#define DEFINE(OP, NAME, KINDS) FORM(KINDS, ROW, OP, NAME)
static F(unary_loop) *const F(unary_loops)[CR_UNARY_OPS] = {CR_UNARY_TABLE(DEFINE)};
#undef ROW
#undef DEFINE

static void F(unary)(const cr__view *to, const cr__view *from, int64_t total,
                     F(unary_loop) * loop) {
#pragma omp parallel for schedule(static) num_threads(cr__threads_for(total))
  for (int64_t start = 0; start < total; start += CR__CHUNK) {
    int64_t n = total - start < CR__CHUNK ? total - start : CR__CHUNK;
    TYPE a[CR__CHUNK], b[CR__CHUNK];
    TYPE *r = F(cr__target)(to, start, b);
    loop(r, F(cr__load)(from, start, n, a), n);
    F(cr__store)(to, start, n, r);
  }
}

/* ---- two operands ---- */

typedef void F(binary_loop)(TYPE *out, const TYPE *x, const TYPE *y, int64_t n);

/* Comparisons give 0 or 1 in the loop's own type, so that all loops have the same signature. */
#define LOOP(NAME)                                                                                 \
  CLONES static void F(NAME##_of_two)(TYPE * out, const TYPE *x, const TYPE *y, int64_t n) {       \
    _Pragma("omp simd") for (int64_t i = 0; i < n; i++) out[i] = F(cr__##NAME)(x[i], y[i]);        \
  }
#define DEFINE(OP, NAME, KINDS, RESULT) FORM(KINDS, LOOP, NAME)
CR_BINARY_TABLE(DEFINE)
#undef LOOP
#undef DEFINE

#define ROW(OP, NAME) [OP] = F(NAME##_of_two),
#define DEFINE(OP, NAME, KINDS, RESULT) FORM(KINDS, ROW, OP, NAME)
static F(binary_loop) *const F(binary_loops)[CR_BINARY_OPS] = {CR_BINARY_TABLE(DEFINE)};
#undef ROW
#undef DEFINE

/* An operand that repeats after a few elements (a number, a bias over channels) is loaded once per
 * thread. */
static void F(binary)(const cr__view *to, const cr__view *x, const cr__view *y, int64_t total,
                      F(binary_loop) * loop) {
  int64_t px = period(x), py = period(y);
  if (px > 1 && py > 1) px = 0; /* chunks can consist of whole periods of only one operand */
  int64_t p = px > py ? px : py;
  int64_t chunk = p > 1 ? CR__CHUNK / p * p : CR__CHUNK;
#pragma omp parallel num_threads(cr__threads_for(total))
  {
    TYPE a[CR__CHUNK], b[CR__CHUNK], c[CR__CHUNK];
    int64_t most = total < chunk ? total : chunk;
    if (px) F(cr__load)(x, 0, most, a);
    if (py) F(cr__load)(y, 0, most, b);
#pragma omp for schedule(static)
    for (int64_t start = 0; start < total; start += chunk) {
      int64_t n = total - start < chunk ? total - start : chunk;
      TYPE *r = F(cr__target)(to, start, c);
      loop(r, px ? a : F(cr__load)(x, start, n, a), py ? b : F(cr__load)(y, start, n, b), n);
      F(cr__store)(to, start, n, r);
    }
  }
}

/* ---- clamp and where ---- */

CLONES static void F(limit)(TYPE *out, const TYPE *in, int64_t n, TYPE low, TYPE high) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) {
    TYPE x = in[i] < low ? low : in[i];
    out[i] = x > high ? high : x;
  }
}

static void F(clamp)(const cr__view *to, const cr__view *from, int64_t total, TYPE low, TYPE high) {
#pragma omp parallel for schedule(static) num_threads(cr__threads_for(total))
  for (int64_t start = 0; start < total; start += CR__CHUNK) {
    int64_t n = total - start < CR__CHUNK ? total - start : CR__CHUNK;
    TYPE a[CR__CHUNK], b[CR__CHUNK];
    TYPE *r = F(cr__target)(to, start, b);
    F(limit)(r, F(cr__load)(from, start, n, a), n, low, high);
    F(cr__store)(to, start, n, r);
  }
}

static void F(where)(const cr__view *to, const cr__view *condition, const cr__view *x,
                     const cr__view *y, int64_t total) {
#pragma omp parallel for schedule(static) num_threads(cr__threads_for(total))
  for (int64_t start = 0; start < total; start += CR__CHUNK) {
    int64_t n = total - start < CR__CHUNK ? total - start : CR__CHUNK;
    float c[CR__CHUNK];
    TYPE a[CR__CHUNK], b[CR__CHUNK], r[CR__CHUNK];
    const float *which = cr__load_f32(condition, start, n, c);
    const TYPE *u = F(cr__load)(x, start, n, a), *v = F(cr__load)(y, start, n, b);
    for (int64_t i = 0; i < n; i++) r[i] = which[i] != 0.0f ? u[i] : v[i];
    F(cr__store)(to, start, n, r);
  }
}
