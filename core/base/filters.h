/* Tables of the image operations that every device computes alike: filter taps of resizing, the
 * Gaussian's weights, the inverse of a map.
 *
 * Their arithmetic decides the last bit of an image, so there is one copy of it, compiled without
 * contraction; devices only look the numbers up. */
#ifndef CR_FILTERS_H
#define CR_FILTERS_H

#include "base/internal.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { CR__FIXED_BITS = 11 };

/* The taps of one axis: for every result index the first source index and a fixed number of
 * weights, all within the image: taps beyond the border have been added to the border's own
 * (OpenCV's replication) or left out and the rest renormalized (torch's antialiasing). The three
 * tables stand one after another in `block`. */
typedef struct cr__axis {
  int64_t in, out;
  int taps;
  int64_t *first; /* [out] */
  float *weight;  /* [out taps] */
  int32_t *fixed; /* [out taps] rounded to CR__FIXED_BITS one by one; NULL unless asked for */
  void *block;
  int64_t bytes;
} cr__axis;

/* The table of a filtering method; freed by cr__axis_free, also after a failure. */
int cr__axis_new(cr__axis *a, int64_t in, int64_t out, int32_t method, bool fixed);
void cr__axis_free(cr__axis *a);

/* OpenCV's linear resizing of bytes along one axis, [out 4]: two source indices and their weights
 * of CR__FIXED_BITS, each rounded by itself. Beyond the border an index is the border's; across, a
 * result there is that pixel alone, down, both weights stay. NULL (message set) if there is no
 * memory. The caller frees them. */
int32_t *cr__linear_new(int64_t in, int64_t out, bool across);

/* Where OpenCV's warp of bytes samples: (x, y) of a column, [width 2], and behind them of a row,
 * [height 2]; their sum is the place of a result, in 2^-10 pixels of x. Freed as above. */
int32_t *cr__places_new(const double *m, int64_t height, int64_t width);

/* The tables by which libswscale brings chroma of a format to every pixel, cubic taps (a = -0.6),
 * or back from every pixel to each sample, 8 taps in the middle of its two pixels; one tap along an
 * axis of equal sizes. The taps, in `fixed`, sum to 2^14 across and 2^12 down. */
int cr__chroma_axes_new(cr__axis *across, cr__axis *down, const cr_yuv *format, bool back);

/* libswscale's fixed point from Y, U and V (of 2^9 a level, U and V about 0) to red, green and blue
 * of 2^22 a level: r = (y - offset) gain + 2^21 + v vr, and so on. The sums may wrap. */
typedef struct cr__yuv_matrix {
  int32_t offset, gain, vr, ub, ug, vg;
} cr__yuv_matrix;
cr__yuv_matrix cr__yuv_matrix_of(const cr_yuv *format);

/* The way back: rows of Y, U and V, a level of red, green and blue being 2^15, for the limited
 * range. Of 2^7 a level, filtered chroma included, the full range then is
 *   Y  (min(y, 30189) 19077 - 39057361) / 2^14    U, V  (min(u, 30775) 4663 - 9289992) / 2^12 */
typedef struct cr__rgb_matrix {
  int32_t share[3][3];
  bool full_range;
} cr__rgb_matrix;
cr__rgb_matrix cr__rgb_matrix_of(const cr_yuv *format);

/* An RGB image on its way to planes that may be larger. */
typedef struct cr__rgb_source {
  const uint8_t *rgb;
  int64_t height, width; /* its own; what lies beyond is its last row and column */
  cr__rgb_matrix matrix;
} cr__rgb_source;

/* The 2 half + 1 weights of a Gaussian, of sum 1; NULL (message set) if there is no memory. The
 * caller frees them. */
float *cr__gaussian_new(int64_t half, double sigma);

/* How cr_cut_square samples. points: one pixel of x a sample, upright; else bilinear. Sample (i, j)
 * of samples x size a side, in x's pixels:
 *   points    floor(left + (i + 0.5) step), floor(top + (j + 0.5) step)
 *   bilinear  (x, y) + u (cosine, sine) + v (-sine, cosine) - 0.5 with u = i + 0.5 - n / 2 */
typedef struct cr__cut {
  bool points;
  int samples;
  double x, y, left, top, step;
  double cosine, sine; /* a step to the right */
  double factor;       /* of a pixel's sum */
} cr__cut;
cr__cut cr__cut_of(const double *square, int32_t size, double scale);

/* The inverse of a 2x3 affine matrix. */
void cr__affine_inverse(double *inverse, const double *m);

#ifdef __cplusplus
}
#endif

#endif
