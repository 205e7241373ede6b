/* Tables of the image operations that every device must compute alike: filter taps of resizing, the
 * Gaussian's weights, the inverse of an affine map.
 *
 * Their arithmetic decides the last bit of an image, so there is one implementation, compiled
 * without contraction to FMA. Devices only look the numbers up. */
#ifndef CR_FILTERS_H
#define CR_FILTERS_H

#include "base/internal.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { CR__FIXED_BITS = 11 };

/* The taps of one axis: for every result index, the first source index and the same number of
 * weights, all inside the image. Taps beyond the border have been added to the border's tap
 * (OpenCV's replication), or dropped and the rest renormalized (torch's antialiasing). The three
 * tables lie one after another in `block`. */
typedef struct cr__axis {
  int64_t in, out;
  int taps;
  int64_t *first; /* [out] */
  float *weight;  /* [out taps] */
  int32_t *fixed; /* [out taps], each rounded to CR__FIXED_BITS by itself; NULL unless requested */
  void *block;
  int64_t bytes;
} cr__axis;

/* Makes the table of a resizing method. Free it with cr__axis_free, even after a failure. */
int cr__axis_new(cr__axis *a, int64_t in, int64_t out, int32_t method, bool fixed);
void cr__axis_free(cr__axis *a);

/* OpenCV's linear resizing of bytes along one axis, [out 4]: two source indices and their weights
 * with CR__FIXED_BITS, each rounded by itself. Indices beyond the border are clamped. There, a
 * result has the border pixel's full weight along the horizontal axis (`across`), while both
 * weights stay along the vertical one. NULL with the message set if there is no memory. The caller
 * frees the table. */
int32_t *cr__linear_taps_new(int64_t in, int64_t out, bool across);

/* The sample positions of OpenCV's fixed-point warp: (x, y) for each column, [width 2], then for
 * each row, [height 2]. The position of a result pixel is the sum of its column's and its row's, in
 * 2^-10 pixels of x. Failure and freeing are as above. */
int32_t *cr__warp_positions_new(const double *m, int64_t height, int64_t width);

/* libswscale's taps for the chroma of a format, horizontal (across) and vertical (down). If `back`
 * is false, they upsample chroma to every pixel with a cubic kernel (a = -0.6). If it is true, they
 * downsample with 8 taps, centred between the two pixels of a chroma sample. An axis on which both
 * sizes are equal has one tap. The taps, in `fixed`, sum to 2^14 across and 2^12 down. */
int cr__chroma_axes_new(cr__axis *across, cr__axis *down, const cr_yuv *format, bool back);

/* libswscale's fixed-point conversion of Y, U and V (in units of 2^-9 levels, U and V around 0) to
 * red, green and blue in units of 2^-22 levels: r = (y - offset) gain + 2^21 + v vr, and so on. The
 * sums may wrap around. */
typedef struct cr__yuv_matrix {
  int32_t offset, gain, vr, ub, ug, vg;
} cr__yuv_matrix;
cr__yuv_matrix cr__yuv_matrix_of(const cr_yuv *format);

/* The inverse, for the limited range: a row of coefficients for each of Y, U and V, applied to red,
 * green and blue in units of 2^-15 levels. For the full range, its results in units of 2^-7 levels,
 * after the chroma filter, become
 *   Y  (min(y, 30189) 19077 - 39057361) / 2^14    U, V  (min(u, 30775) 4663 - 9289992) / 2^12 */
typedef struct cr__rgb_matrix {
  int32_t coefficient[3][3];
  bool full_range;
} cr__rgb_matrix;
cr__rgb_matrix cr__rgb_matrix_of(const cr_yuv *format);

/* An RGB image that is converted to planes, which may be larger. */
typedef struct cr__rgb_source {
  const uint8_t *rgb;
  int64_t height, width; /* of the image; its last row and column are repeated beyond it */
  cr__rgb_matrix matrix;
} cr__rgb_source;

/* Returns the 2 half + 1 weights of a Gaussian, normalized to the sum 1; NULL with the message set
 * if there is no memory. The caller frees them. */
float *cr__gaussian_new(int64_t half, double sigma);

/* How cr_cut_square samples: single pixels if `points` is set (upright squares only), else
 * bilinearly. Sample (i, j), with n = samples * size samples along a side, lies in x's pixels at
 *   points    floor(left + (i + 0.5) step), floor(top + (j + 0.5) step)
 *   bilinear  (x, y) + u (cosine, sine) + v (-sine, cosine) - 0.5 with u = i + 0.5 - n / 2 */
typedef struct cr__cut {
  bool points;
  int samples;
  double x, y, left, top, step;
  double cosine, sine; /* the step from a sample to the one on its right */
  double factor;       /* multiplies the sum of a pixel's samples */
} cr__cut;
cr__cut cr__cut_of(const double *square, int32_t size, double scale);

/* Inverts a 2x3 affine matrix. */
void cr__affine_inverse(double *inverse, const double *m);

#ifdef __cplusplus
}
#endif

#endif
