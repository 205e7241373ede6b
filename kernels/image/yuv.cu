/* Decoded planes to RGB in libswscale's fixed point (cr_yuv_to_rgb), and back (cr_rgb_to_yuv).
 *
 * Invariants: those of image.h, here for integers: chroma is filtered along rows to 15 bits, then
 * along columns; sums are 32-bit and, on the way to RGB, may wrap where there is no real colour. */
#include "base/yuv_levels.h"
#include "image/image.h"
#include "memory/transfer.h"

typedef struct chroma_axis {
  const int64_t *first;
  const int32_t *weight;
  int taps;
} chroma_axis;

__device__ __forceinline__ uint8_t level(uint32_t wrapped) {
  int32_t v = (int32_t)wrapped;
  return v < 0 ? 0 : v >> 22 > 255 ? 255 : (uint8_t)(v >> 22);
}

/* u and v at one pixel, with 2^9 for each level, around 0. There are 4 taps along an axis that is
 * stretched, and 1 along others: a pixel reads up to 4 x 4 numbers of each plane, which its
 * neighbours share in L1. */
template <int ACROSS, int DOWN>
__device__ __forceinline__ void chroma_at(int32_t *u, int32_t *v, const uint8_t *plane,
                                          int64_t width, int64_t size, const int32_t *across,
                                          const int32_t *down) {
  int32_t sums[2] = {(1 << 9) - (128 << 19), (1 << 9) - (128 << 19)};
#pragma unroll
  for (int p = 0; p < 2; p++)
#pragma unroll
    for (int j = 0; j < DOWN; j++) {
      const uint8_t *row = plane + p * size + j * width;
      int32_t sum = 0;
#pragma unroll
      for (int k = 0; k < ACROSS; k++) sum += across[k] * row[k];
      sum >>= 7;
      sums[p] += down[j] * (sum < 32767 ? sum : 32767);
    }
  *u = sums[0] >> 10;
  *v = sums[1] >> 10;
}

/* One thread for each column of image.h's tile, a pixel at a time: Y [height width], then U and V
 * [h w], into [height width 3]. It does some 20 integer operations for each byte, and all reads hit
 * the cache, so instructions bound it: 20 microseconds for 1920 x 1080. */
template <int ACROSS, int DOWN>
__global__ void yuv_kernel(uint8_t *__restrict__ out, const uint8_t *__restrict__ luma,
                           int64_t height, int64_t width, int64_t h, int64_t w, chroma_axis across,
                           chroma_axis down, cr__yuv_matrix m) {
  int64_t x = (int64_t)blockIdx.x * CRK_TILE_X + threadIdx.x;
  if (x >= width) return;
  const uint8_t *chroma = luma + width * height + across.first[x];
  int32_t weights[ACROSS];
#pragma unroll
  for (int k = 0; k < ACROSS; k++) weights[k] = across.weight[x * ACROSS + k];
  CRK_EACH_ROW(y, height) {
    int32_t column[DOWN], u, v;
#pragma unroll
    for (int k = 0; k < DOWN; k++) column[k] = down.weight[y * DOWN + k];
    chroma_at<ACROSS, DOWN>(&u, &v, chroma + down.first[y] * w, w, h * w, weights, column);
    uint32_t grey = (uint32_t)((luma[y * width + x] * 512 - m.offset) * m.gain) + (1u << 21);
    uint8_t *to = out + (y * width + x) * 3;
    to[0] = level(grey + (uint32_t)(v * m.vr));
    to[1] = level(grey + (uint32_t)(v * m.vg) + (uint32_t)(u * m.ug));
    to[2] = level(grey + (uint32_t)(u * m.ub));
  }
}

/* The axes of the last image in a direction: a film's images are alike, and computing the axes
 * takes half a millisecond. Only the thread that runs Lua uses them. */
typedef struct known_axes {
  cr_yuv format;
  cr__axis across, down;
} known_axes;
static known_axes forth, back;

static int axes_of(known_axes *k, const cr_yuv *f) {
  const cr_yuv *g = &k->format;
  if (k->across.block && g->width == f->width && g->height == f->height &&
      g->shift_x == f->shift_x && g->shift_y == f->shift_y)
    return CR_OK;
  cr__axis_free(&k->across);
  cr__axis_free(&k->down);
  int rc = cr__chroma_axes_new(&k->across, &k->down, f, k == &back);
  k->format = *f;
  if (rc < 0) {
    cr__axis_free(&k->across);
    cr__axis_free(&k->down);
  }
  return rc;
}

/* The table that was uploaded to `at`, as the kernel needs it. */
static chroma_axis on_card(const cr__axis *a, char *at) {
  return (chroma_axis){(const int64_t *)at,
                       (const int32_t *)(at + ((char *)a->fixed - (char *)a->block)), a->taps};
}

int crk_yuv_to_rgb(cr_tensor *out, const cr_tensor *x, const cr_yuv *f) {
  CRK_DEVICE(d, "yuv_to_rgb", out);
  cr__image_pair images = {0};
  int64_t width = f->width, height = f->height;
  int64_t w = (width + f->shift_x) >> f->shift_x, h = (height + f->shift_y) >> f->shift_y;
  int rc = axes_of(&forth, f);
  const cr__axis across = forth.across, down = forth.down;
  if (rc >= 0) rc = cr__image_begin(&images, out, CR_U8, x, CR_U8);
  cr_storage *tables = rc >= 0 ? cr__storage_new(across.bytes + 8 + down.bytes, out->device) : NULL;
  if (!tables && rc >= 0) rc = CR_ENOMEM;
  if (tables) {
    char *at = (char *)tables->data, *next = at + (across.bytes + 7) / 8 * 8;
    rc = crk_upload("yuv_to_rgb", d, at, across.block, across.bytes);
    if (rc >= 0) rc = crk_upload("yuv_to_rgb", d, next, down.block, down.bytes);
    if (rc >= 0) {
      dim3 grid = crk_image_grid(width, height), block = crk_image_block();
      chroma_axis a = on_card(&across, at), b = on_card(&down, next);
      uint8_t *p = (uint8_t *)crk_ptr(images.to);
      const uint8_t *q = (const uint8_t *)crk_ptr(images.from);
      cr__yuv_matrix m = cr__yuv_matrix_of(f);
#define CASE(i, j)                                                                                 \
  if (a.taps == i && b.taps == j)                                                                  \
  yuv_kernel<i, j><<<grid, block, 0, d->stream>>>(p, q, height, width, h, w, a, b, m)
      CASE(4, 4);
      CASE(4, 1);
      CASE(1, 4);
      CASE(1, 1);
#undef CASE
      rc = crk_launched("yuv_to_rgb", d);
    }
    cr__release(tables);
  }
  return cr__image_end(&images, rc, out);
}

/* ---- RGB to YUV ------------------------------------------------------------------------------ */

/* One thread for each column of chroma, a row of pixels at a time: the luma of its one or two
 * pixels, and U and V filtered along the row, with 2^7 for each level, into lines [2 height w].
 * Neighbours share the 8 pixels of a filter in L1. */
template <int ACROSS>
__global__ void luma_kernel(uint8_t *__restrict__ luma, int16_t *__restrict__ lines,
                            cr__rgb_source s, int64_t height, int64_t width, int64_t w,
                            chroma_axis across) {
  int64_t x = (int64_t)blockIdx.x * CRK_TILE_X + threadIdx.x;
  if (x >= w) return;
  constexpr int PIXELS = ACROSS == 1 ? 1 : 2;
  int64_t first = across.first[x];
  int32_t weights[ACROSS];
#pragma unroll
  for (int k = 0; k < ACROSS; k++) weights[k] = across.weight[x * ACROSS + k];
  CRK_EACH_ROW(y, height) {
    const uint8_t *row = s.rgb + min(y, s.height - 1) * s.width * 3;
#pragma unroll
    for (int i = 0; i < PIXELS; i++)
      luma[y * width + x * PIXELS + i] =
          cr__luma_level(row + 3 * min(x * PIXELS + i, s.width - 1), &s.matrix);
    int32_t sums[2] = {0, 0};
#pragma unroll
    for (int k = 0; k < ACROSS; k++) {
      const uint8_t *p = row + 3 * min(first + k, s.width - 1);
#pragma unroll
      for (int c = 0; c < 2; c++)
        sums[c] += weights[k] * cr__rgb_mixed(p, s.matrix.coefficient[c + 1], 128);
    }
#pragma unroll
    for (int c = 0; c < 2; c++)
      lines[(c * height + y) * w + x] = (int16_t)cr__chroma_line(sums[c], &s.matrix);
  }
}

/* Filters lines [2 height w] along columns into chroma [2 h w]; the rows of the grid are those of
 * both planes. */
template <int DOWN>
__global__ void chroma_kernel(uint8_t *__restrict__ chroma, const int16_t *__restrict__ lines,
                              int64_t height, int64_t h, int64_t w, chroma_axis down) {
  int64_t x = (int64_t)blockIdx.x * CRK_TILE_X + threadIdx.x;
  if (x >= w) return;
  CRK_EACH_ROW(r, 2 * h) {
    int64_t y = r < h ? r : r - h;
    const int16_t *line = lines + ((r < h ? 0 : height) + down.first[y]) * w + x;
    int32_t sum = 64 << 12;
#pragma unroll
    for (int k = 0; k < DOWN; k++) sum += down.weight[y * DOWN + k] * line[k * w];
    chroma[r * w + x] = cr__level_clipped(sum >> 19);
  }
}

/* Runs both kernels; `lines` holds the data between them. */
static int to_planes(crk_device *d, uint8_t *out, int16_t *lines, cr__rgb_source s, const cr_yuv *f,
                     chroma_axis across, chroma_axis down) {
  int64_t width = f->width, height = f->height, w = width >> f->shift_x, h = height >> f->shift_y;
  dim3 block = crk_image_block(), all = crk_image_grid(w, height);
  dim3 half = crk_image_grid(w, 2 * h);
  uint8_t *chroma = out + width * height;
  if (across.taps == 1)
    luma_kernel<1><<<all, block, 0, d->stream>>>(out, lines, s, height, width, w, across);
  else
    luma_kernel<8><<<all, block, 0, d->stream>>>(out, lines, s, height, width, w, across);
  if (down.taps == 1)
    chroma_kernel<1><<<half, block, 0, d->stream>>>(chroma, lines, height, h, w, down);
  else
    chroma_kernel<8><<<half, block, 0, d->stream>>>(chroma, lines, height, h, w, down);
  return crk_launched("rgb_to_yuv", d);
}

int crk_rgb_to_yuv(cr_tensor *out, const cr_tensor *x, const cr_yuv *f) {
  CRK_DEVICE(d, "rgb_to_yuv", out);
  cr__image_pair images = {0};
  int64_t w = f->width >> f->shift_x;
  int rc = axes_of(&back, f);
  const cr__axis across = back.across, down = back.down;
  if (rc >= 0) rc = cr__image_begin(&images, out, CR_U8, x, CR_U8);
  int64_t first = (across.bytes + 7) / 8 * 8, second = first + (down.bytes + 7) / 8 * 8;
  int64_t space = second + 2 * f->height * w * (int64_t)sizeof(int16_t);
  cr_storage *tables = rc >= 0 ? cr__storage_new(space, out->device) : NULL;
  if (!tables && rc >= 0) rc = CR_ENOMEM;
  if (tables) {
    char *at = (char *)tables->data;
    rc = crk_upload("rgb_to_yuv", d, at, across.block, across.bytes);
    if (rc >= 0) rc = crk_upload("rgb_to_yuv", d, at + first, down.block, down.bytes);
    cr__rgb_source s = {(const uint8_t *)crk_ptr(images.from), x->shape[0], x->shape[1],
                        cr__rgb_matrix_of(f)};
    if (rc >= 0)
      rc = to_planes(d, (uint8_t *)crk_ptr(images.to), (int16_t *)(at + second), s, f,
                     on_card(&across, at), on_card(&down, at + first));
    cr__release(tables);
  }
  return cr__image_end(&images, rc, out);
}
