/* Philox4x32-10, the counter-based generator (Salmon et al. 2011), and the numbers that are made
 * from its words.
 *
 * It is plain C that also compiles as CUDA, so the CPU and the GPU draw from the same source. A
 * 128-bit counter and a 64-bit key give four 32-bit words; there is no other state. */
#ifndef CR_PHILOX_H
#define CR_PHILOX_H

#include <stdint.h>

#include "base/host_device.h"

typedef struct cr__words {
  uint32_t w[4];
} cr__words;

/* `high` and `low` are the two halves of the counter. */
CR_HOST_DEVICE cr__words cr__philox(uint64_t low, uint64_t high, uint64_t key) {
  uint32_t c0 = (uint32_t)low, c1 = (uint32_t)(low >> 32);
  uint32_t c2 = (uint32_t)high, c3 = (uint32_t)(high >> 32);
  uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
  for (int round = 0; round < 10; round++) {
    uint64_t a = (uint64_t)0xD2511F53u * c0, b = (uint64_t)0xCD9E8D57u * c2;
    uint32_t n0 = (uint32_t)(b >> 32) ^ c1 ^ k0, n2 = (uint32_t)(a >> 32) ^ c3 ^ k1;
    c1 = (uint32_t)b;
    c3 = (uint32_t)a;
    c0 = n0;
    c2 = n2;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  cr__words r = {{c0, c1, c2, c3}};
  return r;
}

/* CR_RNG_PHILOX, Crescent's own generator. Element i of the sequence that a generator draws uses
 * word i % 4 of counter i / 4. A uniform number is the word's upper 24 bits / 2^24 (in f16 its
 * upper 11 bits / 2^11, in bf16 its upper 8 bits / 2^8). Normal numbers come from pairs of words
 * (a, b) by Box-Muller: with u = (a's upper 24 bits + 1) / 2^24 and v = b's upper 24 bits / 2^24,
 * the even element is sqrt(-2 ln u) cos(2 pi v), and the odd one has sin instead of cos. u and v
 * are exact in f32 and every step is well conditioned, so f32 functions with an error of a few ulp
 * agree to 1e-6 between devices. A draw of n elements uses n rounded up to a multiple of 4. */
CR_HOST_DEVICE float cr__philox_uniform(uint32_t word) {
  return (float)(word >> 8) * 5.9604644775390625e-8f;
}

#endif
