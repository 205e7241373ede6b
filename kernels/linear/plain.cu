/* GEMMs and their epilogue by our own kernels: for what the library does not take (any steps, odd
 * alignments), and for activations that its epilogues lack.
 *
 * Invariants: sums are f32 (f64 for f64 operands) and are rounded once when they are stored; any
 * steps, any batch. */
#include "linear/linear.h"

template <typename T> struct plain_types { typedef float sum; };
template <> struct plain_types<double> { typedef double sum; };

template <typename T> __device__ __forceinline__ typename plain_types<T>::sum widen(T x) {
  return crk_float(x);
}
template <> __device__ __forceinline__ double widen(double x) { return x; }
template <typename T> __device__ __forceinline__ T narrow(float x) { return crk_from<T>(x); }
template <typename T> __device__ __forceinline__ T narrow(double x) { return (T)x; }

/* ---- the GEMM ---- */

enum { TILE = 64, DEPTH = 16, SIDE = 16, EACH = TILE / SIDE, PITCH = TILE + 1 };

template <typename T> struct plain_args {
  const T *a, *b;
  T *out;
  crk_matrix sa, sb, so; /* steps; p unused */
  int64_t m, n, k, batch;
};

/* out = a b. A block of 16 x 16 threads computes a tile of 64 x 64, 4 x 4 elements a thread, which
 * lie 16 apart so that neighbouring threads store neighbours. Slices of 16 elements of K pass
 * through shared memory, padded by one against bank conflicts. Grid: (tiles of rows, tiles of
 * columns, batch); the rows are in x, whose limit no tensor can reach. The tile suits no size in
 * particular: this kernel is the fallback. */
template <typename T> __global__ void __launch_bounds__(256) gemm_kernel(plain_args<T> p) {
  typedef typename plain_types<T>::sum S;
  __shared__ S slice_a[DEPTH][PITCH], slice_b[DEPTH][PITCH];
  int x = threadIdx.x % SIDE, y = threadIdx.x / SIDE;
  int64_t row0 = (int64_t)blockIdx.x * TILE;
  for (int64_t column0 = (int64_t)blockIdx.y * TILE; column0 < p.n;
       column0 += (int64_t)gridDim.y * TILE)
    for (int64_t i = blockIdx.z; i < p.batch; i += gridDim.z) {
      const T *a = p.a + i * p.sa.batch_step, *b = p.b + i * p.sb.batch_step;
      S sum[EACH][EACH] = {};
      for (int64_t k0 = 0; k0 < p.k; k0 += DEPTH) {
        for (int e = threadIdx.x; e < TILE * DEPTH; e += 256) {
          int64_t r = row0 + e / DEPTH, k = k0 + e % DEPTH;
          slice_a[e % DEPTH][e / DEPTH] =
              r < p.m && k < p.k ? widen(a[r * p.sa.row_step + k * p.sa.column_step]) : S(0);
          int64_t c = column0 + e % TILE;
          k = k0 + e / TILE;
          slice_b[e / TILE][e % TILE] =
              c < p.n && k < p.k ? widen(b[k * p.sb.row_step + c * p.sb.column_step]) : S(0);
        }
        __syncthreads();
#pragma unroll
        for (int k = 0; k < DEPTH; k++)
#pragma unroll
          for (int r = 0; r < EACH; r++)
#pragma unroll
            for (int c = 0; c < EACH; c++)
              sum[r][c] += slice_a[k][y + SIDE * r] * slice_b[k][x + SIDE * c];
        __syncthreads();
      }
      T *out = p.out + i * p.so.batch_step;
#pragma unroll
      for (int r = 0; r < EACH; r++)
#pragma unroll
        for (int c = 0; c < EACH; c++) {
          int64_t row = row0 + y + SIDE * r, column = column0 + x + SIDE * c;
          if (row < p.m && column < p.n)
            out[row * p.so.row_step + column * p.so.column_step] = narrow<T>(sum[r][c]);
        }
    }
}

template <typename T> static void launch_gemm(crk_device *d, const crk_gemm *p) {
  plain_args<T> args = {
      (const T *)p->a.p, (const T *)p->b.p, (T *)p->out.p, p->a, p->b, p->out, p->m, p->n, p->k,
      p->batch};
  int64_t columns = crk_ceil_div(p->n, TILE);
  dim3 grid((unsigned)crk_ceil_div(p->m, TILE), (unsigned)(columns < 65535 ? columns : 65535),
            (unsigned)(p->batch < 65535 ? p->batch : 65535));
  gemm_kernel<T><<<grid, 256, 0, d->stream>>>(args);
}

int crk_gemm_plain(crk_device *d, const crk_gemm *p) {
  if (p->dtype == CR_F64) {
    launch_gemm<double>(d, p);
    return crk_launched(p->name, d);
  }
  CRK_FLOAT_TYPES(p->name, p->dtype, launch_gemm<T>(d, p));
  return crk_launched(p->name, d);
}

/* ---- bias, activation, residual ---- */

template <typename T> struct epilogue_args {
  T *out;
  const T *y, *bias, *residual;
  crk_matrix so, sy, sr; /* steps; p unused */
  int64_t rows, packs, total;
  int32_t act;
};

/* out = act(y + bias) + residual, N neighbouring columns a thread (column steps are 1 if N > 1).
 * Thread i of the grid handles pack i % packs of row i / packs, where the rows of all matrices
 * follow one another, so that a warp accesses whole sectors. Memory-bound: reads y and residual,
 * writes out. */
template <typename T, int N> __global__ void epilogue_kernel(epilogue_args<T> p) {
  typedef typename plain_types<T>::sum S;
  typedef crk_pack<T, N> pack;
  int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= p.total) return;
  int64_t row = i / p.packs, column = (i - row * p.packs) * N;
  int64_t matrix = row / p.rows;
  row -= matrix * p.rows;
  pack y = *(const pack *)(p.y + matrix * p.sy.batch_step + row * p.sy.row_step +
                           column * p.sy.column_step);
  pack bias = {}, residual = {};
  if (p.bias) bias = *(const pack *)(p.bias + column);
  if (p.residual)
    residual = *(const pack *)(p.residual + matrix * p.sr.batch_step + row * p.sr.row_step +
                               column * p.sr.column_step);
  pack out;
#pragma unroll
  for (int e = 0; e < N; e++) {
    S x = widen(y.v[e]);
    if (p.bias) x += widen(bias.v[e]);
    x = crk_act(x, p.act, 0);
    if (p.residual) x += widen(residual.v[e]);
    out.v[e] = narrow<T>(x);
  }
  *(pack *)(p.out + matrix * p.so.batch_step + row * p.so.row_step + column * p.so.column_step) =
      out;
}

/* Whether every row of every matrix can be read in packs of `bytes`. */
static bool packs_fit(const crk_matrix *x, int size, int bytes) {
  const int64_t steps[2] = {x->row_step, x->batch_step};
  return x->column_step == 1 && crk_aligned(x->p, 2, steps, size, bytes);
}

template <typename T>
static void launch_epilogue(crk_device *d, const crk_gemm *p, const crk_matrix *y) {
  enum { N = 16 / sizeof(T) };
  epilogue_args<T> args = {(T *)p->out.p,
                           (const T *)y->p,
                           (const T *)p->bias,
                           (const T *)p->residual.p,
                           p->out,
                           *y,
                           p->residual,
                           p->m,
                           p->n,
                           p->batch * p->m * p->n,
                           p->act};
  bool wide = p->n % N == 0 && packs_fit(&p->out, sizeof(T), 16) && packs_fit(y, sizeof(T), 16) &&
              (!p->residual.p || packs_fit(&p->residual, sizeof(T), 16)) &&
              (uintptr_t)p->bias % 16 == 0;
  if (wide) {
    args.packs /= N;
    args.total /= N;
  }
  unsigned blocks = (unsigned)crk_ceil_div(args.total, 256);
  if (wide)
    epilogue_kernel<T, N><<<blocks, 256, 0, d->stream>>>(args);
  else
    epilogue_kernel<T, 1><<<blocks, 256, 0, d->stream>>>(args);
}

int crk_gemm_epilogue(crk_device *d, const crk_gemm *p, const crk_matrix *y) {
  if (p->dtype == CR_F64) {
    launch_epilogue<double>(d, p, y);
    return crk_launched(p->name, d);
  }
  CRK_FLOAT_TYPES(p->name, p->dtype, launch_epilogue<T>(d, p, y));
  return crk_launched(p->name, d);
}
