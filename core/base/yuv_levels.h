/* The conversion of a pixel's red, green and blue to rounded 8-bit values (levels) of Y, U and V in
 * libswscale's fixed-point arithmetic (cr__rgb_matrix, filters.h). It decides the last bit, so the
 * CPU and the GPU share it. */
#ifndef CR_YUV_LEVELS_H
#define CR_YUV_LEVELS_H

#include "base/filters.h"
#include "base/host_device.h"

/* One of Y, U and V of a pixel, in units of 2^-6 levels, with 0 at the level `zero`. */
CR_HOST_DEVICE int32_t cr__rgb_mixed(const uint8_t *p, const int32_t *coefficient, int32_t zero) {
  return (coefficient[0] * p[0] + coefficient[1] * p[1] + coefficient[2] * p[2] + (zero << 15) +
          (1 << 8)) >>
         9;
}

CR_HOST_DEVICE uint8_t cr__level_clipped(int32_t v) {
  return v < 0 ? 0 : v > 255 ? 255 : (uint8_t)v;
}

CR_HOST_DEVICE int32_t cr__level_most(int32_t v, int32_t most) { return v < most ? v : most; }

/* Returns a pixel's level of Y. */
CR_HOST_DEVICE uint8_t cr__luma_level(const uint8_t *p, const cr__rgb_matrix *m) {
  int32_t v = cr__level_most(2 * cr__rgb_mixed(p, m->coefficient[0], 16), 32767);
  if (m->full_range) v = (cr__level_most(v, 30189) * 19077 - 39057361) >> 14;
  return cr__level_clipped((v + 64) >> 7);
}

/* Returns U or V after the filter along a row, in units of 2^-7 levels. `sum` is the sum of values
 * times weights, whose unit is 2^-14. */
CR_HOST_DEVICE int32_t cr__chroma_line(int32_t sum, const cr__rgb_matrix *m) {
  int32_t v = cr__level_most(sum >> 13, 32767);
  return m->full_range ? (cr__level_most(v, 30775) * 4663 - 9289992) >> 12 : v;
}

#endif
