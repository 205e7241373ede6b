/* Transpositions: copies whose two sides are dense along different dimensions.
 *
 * A block moves a tile of SIDE x SIDE elements through shared memory, so that both sides access
 * whole cache lines: the threads of a warp run along the operand's dense dimension when they read,
 * and along the result's when they write. SIDE is 64 for elements of 1 and 2 bytes (lines of 64 and
 * 128 bytes), else 32. Rows of the tile are padded so that a column's elements are in different
 * banks. */
#include "move/move.h"

enum { THREADS = 256, LEAST = 8 };

template <int N> struct element_of;
template <> struct element_of<1> { typedef uint8_t type; };
template <> struct element_of<2> { typedef uint16_t type; };
template <> struct element_of<4> { typedef uint32_t type; };
template <> struct element_of<8> { typedef uint2 type; };
template <> struct element_of<16> { typedef uint4 type; };

typedef struct tiles {
  crk_strided<2> rest; /* all other dimensions, strides in bytes */
  crk_divisor across, down;
  int64_t columns, rows;       /* sizes of the result's and of the operand's dense dimension */
  int64_t to_row, from_column; /* strides in bytes */
} tiles;

/* The tile (x, y) of matrix z of a block, block = (z * down + y) * across + x: its first column and
 * row, and the matrix's offsets in the result and the operand, in bytes. */
__device__ __forceinline__ void find_tile(const tiles &t, int side, int64_t *column, int64_t *row,
                                          int64_t (&at)[2]) {
  uint32_t block = blockIdx.x;
  uint32_t next = crk_divide(block, t.across);
  *column = (int64_t)(block - next * t.across.d) * side;
  block = next;
  next = crk_divide(block, t.down);
  *row = (int64_t)(block - next * t.down.d) * side;
  crk_offsets(t.rest, next, at);
}

template <int SIZE>
__global__ void __launch_bounds__(THREADS) tiles_kernel(const __grid_constant__ tiles t) {
  typedef typename element_of<SIZE>::type U;
  constexpr int SIDE = SIZE <= 2 ? 64 : 32, PAD = SIZE == 1 ? 4 : SIZE == 2 ? 2 : 1;
  constexpr int STEP = THREADS / SIDE;
  __shared__ U tile[SIDE][SIDE + PAD]; /* [column][row] */
  int64_t column0, row0, at[2];
  find_tile(t, SIDE, &column0, &row0, at);
  int lane = threadIdx.x % SIDE, line = threadIdx.x / SIDE;
  const char *from = t.rest.data[1] + at[1];
  if (row0 + lane < t.rows) {
    from += (row0 + lane) * SIZE;
#pragma unroll
    for (int c = 0; c < SIDE; c += STEP)
      if (column0 + c + line < t.columns)
        tile[c + line][lane] = *(const U *)(from + (column0 + c + line) * t.from_column);
  }
  __syncthreads();
  char *to = t.rest.data[0] + at[0];
  if (column0 + lane < t.columns) {
    to += (column0 + lane) * SIZE;
#pragma unroll
    for (int r = 0; r < SIDE; r += STEP)
      if (row0 + r + line < t.rows)
        *(U *)(to + (row0 + r + line) * t.to_row) = tile[lane][r + line];
  }
}

/* The same for elements of 2 bytes that can always be moved in pairs: 64 x 64 of them, read as
 * pairs of rows and written as pairs of columns. */
__global__ void __launch_bounds__(THREADS) pairs_kernel(const __grid_constant__ tiles t) {
  constexpr int SIDE = 64, STEP = THREADS / 32;
  __shared__ uint32_t tile[SIDE][SIDE / 2 + 1]; /* [column][pair of rows] */
  int64_t column0, row0, at[2];
  find_tile(t, SIDE, &column0, &row0, at);
  int lane = threadIdx.x % 32, line = threadIdx.x / 32;
  if (row0 + 2 * lane < t.rows) {
    const char *from = t.rest.data[1] + at[1] + (row0 + 2 * lane) * 2;
#pragma unroll
    for (int c = 0; c < SIDE; c += STEP)
      if (column0 + c + line < t.columns)
        tile[c + line][lane] = *(const uint32_t *)(from + (column0 + c + line) * t.from_column);
  }
  __syncthreads();
  if (column0 + 2 * lane < t.columns) {
    char *to = t.rest.data[0] + at[0] + (column0 + 2 * lane) * 2;
#pragma unroll
    for (int r = 0; r < SIDE / 2; r += STEP) {
      int64_t row = row0 + 2 * (r + line);
      if (row >= t.rows) break;
      uint32_t a = tile[2 * lane][r + line], b = tile[2 * lane + 1][r + line];
      *(uint32_t *)(to + row * t.to_row) = __byte_perm(a, b, 0x5410);
      *(uint32_t *)(to + (row + 1) * t.to_row) = __byte_perm(a, b, 0x7632);
    }
  }
}

/* Whether pairs_kernel can run: everything but the two dense strides is even. */
static bool takes_pairs(const crk_plan *p, int32_t k) {
  if (p->size[0] != 2 || p->shape[0] % 2 || p->shape[k] % 2) return false;
  for (int32_t i = 0; i < 2; i++) {
    if ((uintptr_t)p->data[i] % 4) return false;
    for (int32_t j = 0; j < p->rank; j++)
      if (j != (i == 0 ? 0 : k) && p->stride[i][j] % 2) return false;
  }
  return true;
}

static int32_t operand_dense(const crk_plan *p) {
  for (int32_t k = 1; k < p->rank; k++)
    if (p->stride[1][k] == 1) return k;
  return 0;
}

bool crk_tiles_can(const crk_plan *p) {
  if (p->stride[0][0] != 1 || p->stride[1][0] == 1 || p->stride[1][0] == 0) return false;
  int32_t k = operand_dense(p);
  return k > 0 && p->shape[0] >= LEAST && p->shape[k] >= LEAST;
}

template <int SIZE> static void launch(crk_device *d, const crk_plan *plan) {
  constexpr int SIDE = SIZE <= 2 ? 64 : 32;
  /* With at most 2^31 elements there are at most 2^31 tiles. */
  crk_plan_split(plan, CRK_MAX_ITEMS, [&](const crk_plan &p) {
    int32_t k = operand_dense(&p);
    crk_plan rest = p;
    rest.shape[0] = rest.shape[k] = 1;
    crk_plan_merge(&rest, false);
    tiles t = {};
    t.rest = crk_strided_of<2>(&rest, 1);
    t.columns = p.shape[0];
    t.rows = p.shape[k];
    t.to_row = p.stride[0][k] * SIZE;
    t.from_column = p.stride[1][0] * SIZE;
    int64_t across = crk_ceil_div(t.columns, SIDE), down = crk_ceil_div(t.rows, SIDE);
    t.across = crk_divisor_of(across);
    t.down = crk_divisor_of(down);
    unsigned blocks = (unsigned)(across * down * t.rest.items);
    if (takes_pairs(&p, k))
      pairs_kernel<<<blocks, THREADS, 0, d->stream>>>(t);
    else
      tiles_kernel<SIZE><<<blocks, THREADS, 0, d->stream>>>(t);
    return (int)CR_OK;
  });
}

void crk_tiles(crk_device *d, const crk_plan *p) {
  crk_with_unit(p->size[0], [&](auto unit) { launch<sizeof unit>(d, p); });
}
