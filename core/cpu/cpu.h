/* The CPU's entries in the table of operations (base/backend.h).
 *
 * The list below declares each entry with the type that the table gives it: a definition with
 * another type does not compile, and a missing definition does not link. */
#ifndef CR_CPU_CPU_H
#define CR_CPU_CPU_H

#include "base/backend.h"

#define CR_CPU_ENTRIES(ENTRY)                                                                      \
  ENTRY(copy)                                                                                      \
  ENTRY(fill)                                                                                      \
  ENTRY(arange)                                                                                    \
  ENTRY(cat)                                                                                       \
  ENTRY(gather)                                                                                    \
  ENTRY(scatter)                                                                                   \
  ENTRY(nonzero)                                                                                   \
  ENTRY(pad)                                                                                       \
  ENTRY(unary)                                                                                     \
  ENTRY(binary)                                                                                    \
  ENTRY(binary_scalar)                                                                             \
  ENTRY(clamp)                                                                                     \
  ENTRY(lincomb)                                                                                   \
  ENTRY(where)                                                                                     \
  ENTRY(reduce)                                                                                    \
  ENTRY(scan)                                                                                      \
  ENTRY(sort)                                                                                      \
  ENTRY(topk)                                                                                      \
  ENTRY(matmul)                                                                                    \
  ENTRY(linear)                                                                                    \
  ENTRY(attention)                                                                                 \
  ENTRY(geglu)                                                                                     \
  ENTRY(linear_geglu)                                                                              \
  ENTRY(softmax)                                                                                   \
  ENTRY(conv2d)                                                                                    \
  ENTRY(max_pool2d)                                                                                \
  ENTRY(group_norm)                                                                                \
  ENTRY(layer_norm)                                                                                \
  ENTRY(timestep_embedding)                                                                        \
  ENTRY(posterior_sample)                                                                          \
  ENTRY(pixel_shuffle)                                                                             \
  ENTRY(resize)                                                                                    \
  ENTRY(warp_affine)                                                                               \
  ENTRY(warp_bicubic)                                                                              \
  ENTRY(grid_sample)                                                                               \
  ENTRY(erode)                                                                                     \
  ENTRY(gaussian_blur)                                                                             \
  ENTRY(blend)                                                                                     \
  ENTRY(warp_fixed)                                                                                \
  ENTRY(cut_square)                                                                                \
  ENTRY(yuv_to_rgb)                                                                                \
  ENTRY(rgb_to_yuv)                                                                                \
  ENTRY(randn)                                                                                     \
  ENTRY(rand)                                                                                      \
  ENTRY(quantize)                                                                                  \
  ENTRY(dequantize)                                                                                \
  ENTRY(quant_layer_norm)                                                                          \
  ENTRY(quant_group_norm)                                                                          \
  ENTRY(quant_linear)                                                                              \
  ENTRY(quant_conv2d)

#define CR_CPU_DECLARE(name) __typeof__(*((cr__backend *)0)->name) cr__cpu_##name;
CR_CPU_ENTRIES(CR_CPU_DECLARE)
#undef CR_CPU_DECLARE

#endif
