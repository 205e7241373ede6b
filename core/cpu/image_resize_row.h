/* The horizontal pass of resizing for one row. image_resize.c includes this file once per
 * combination of types with these macros:
 *
 *   NAME(suffix)  the function's name with a suffix, which may be empty
 *   INPUT, SUM    types of the row and of its result
 *   WEIGHTS       the member of cr__axis that has the weights */

static inline __attribute__((always_inline)) void NAME(_channels)(SUM *restrict out,
                                                                  const INPUT *restrict in,
                                                                  const axis *a, int taps,
                                                                  int channels) {
  for (int64_t i = 0; i < a->out; i++) {
    const INPUT *from = in + a->first[i] * channels;
    for (int c = 0; c < channels; c++) out[i * channels + c] = 0;
    for (int k = 0; k < taps; k++) {
      SUM w = a->WEIGHTS[i * taps + k];
      for (int c = 0; c < channels; c++) out[i * channels + c] += w * (SUM)from[k * channels + c];
    }
  }
}

/* Common numbers of channels and taps are constants, so that the loops unroll. */
CR_CLONES static void NAME()(SUM *restrict out, const INPUT *restrict in, const axis *a,
                             int channels) {
  if (channels == 3 && a->taps == 8)
    NAME(_channels)(out, in, a, 8, 3);
  else if (channels == 3)
    NAME(_channels)(out, in, a, a->taps, 3);
  else if (channels == 1)
    NAME(_channels)(out, in, a, a->taps, 1);
  else
    NAME(_channels)(out, in, a, a->taps, channels);
}

#undef NAME
#undef INPUT
#undef SUM
#undef WEIGHTS
