/* OpenCV's linear filters of bytes in its fixed-point arithmetic: the value of a result from the
 * four pixels around it. Tables of base/filters.h give the pixels' positions and weights. (OpenCV
 * 4; version 5 rounds warps differently.) */
#ifndef CR_OPENCV_H
#define CR_OPENCV_H

#include <stdint.h>

#include "base/host_device.h"

/* Resizing: `top` and `bottom` are the two rows; x and y are entries of cr__linear_taps_new. */
CR_HOST_DEVICE uint8_t cr__linear_byte(const uint8_t *top, const uint8_t *bottom, const int32_t *x,
                                       const int32_t *y, int channels, int c) {
  int32_t i = x[0] * channels + c, j = x[1] * channels + c;
  int32_t a = (top[i] * x[2] + top[j] * x[3]) >> 4;
  int32_t b = (bottom[i] * x[2] + bottom[j] * x[3]) >> 4;
  return (uint8_t)((((y[2] * a) >> 16) + ((y[3] * b) >> 16) + 2) >> 2);
}

CR_HOST_DEVICE int32_t cr__byte_or_0(const uint8_t *data, int64_t height, int64_t width,
                                     int channels, int32_t x, int32_t y, int c) {
  if (x < 0 || y < 0 || x >= width || y >= height) return 0;
  return data[(y * width + x) * channels + c];
}

/* Warping: `column` and `row` are entries of cr__warp_positions_new. */
CR_HOST_DEVICE void cr__warp_bytes(uint8_t *out, const uint8_t *data, int64_t height, int64_t width,
                                   int channels, const int32_t *column, const int32_t *row) {
  int32_t u = (column[0] + row[0]) >> 5, v = (column[1] + row[1]) >> 5;
  int32_t x = u >> 5, y = v >> 5, fx = u & 31, fy = v & 31;
  for (int c = 0; c < channels; c++) {
    int32_t sum = (32 - fx) * (32 - fy) * cr__byte_or_0(data, height, width, channels, x, y, c) +
                  fx * (32 - fy) * cr__byte_or_0(data, height, width, channels, x + 1, y, c) +
                  (32 - fx) * fy * cr__byte_or_0(data, height, width, channels, x, y + 1, c) +
                  fx * fy * cr__byte_or_0(data, height, width, channels, x + 1, y + 1, c);
    out[c] = (uint8_t)((sum + 512) >> 10);
  }
}

#endif
