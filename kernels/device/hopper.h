/* Hopper's own instructions (sm_90a): products by a group of four warps with operands in shared
 * memory (wgmma), barriers in shared memory, bulk copies of boxes of a matrix (TMA). PTX ISA
 * 9, 9.7.
 *
 * What a kernel of these compiles to on other cards is nothing: enclose its body in
 * __CUDA_ARCH_FEAT_SM90_ALL and ask `compiled` before a launch. */
#ifndef CRK_HOPPER_H
#define CRK_HOPPER_H

#include <../include/cuda.h> /* CUDA's, not ours */

#include <type_traits>

#include "device/tensor_core.h"

namespace hopper {

/* ---- products: begin, hand in, wait ---- */

__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void wgmma_commit_and_wait() {
  asm volatile("wgmma.commit_group.sync.aligned;\n"
               "wgmma.wait_group.sync.aligned 0;" ::
                   : "memory");
}
/* What has been handed in so far is one lot; waits until at most N lots are still worked on. */
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int N> __device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}
/* Keeps the compiler from moving uses of accumulators over wgmma_commit_and_wait. */
template <int N> __device__ __forceinline__ void fence_accumulators(float (&c)[N][4]) {
#pragma unroll
  for (int i = 0; i < N; i++)
    asm volatile("" : "+f"(c[i][0]), "+f"(c[i][1]), "+f"(c[i][2]), "+f"(c[i][3])::"memory");
}
template <int N> __device__ __forceinline__ void fence_accumulators(int (&c)[N][4]) {
#pragma unroll
  for (int i = 0; i < N; i++)
    asm volatile("" : "+r"(c[i][0]), "+r"(c[i][1]), "+r"(c[i][2]), "+r"(c[i][3])::"memory");
}

/* An accumulator's registers as operands, and as text. */
#define C4(io, i) io(c[i][0]), io(c[i][1]), io(c[i][2]), io(c[i][3])
#define OUT(x) "=f"(x)
#define INOUT(x) "+f"(x)
#define INOUT_INT(x) "+r"(x)
#define TEXT_20 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19"
#define TEXT_24 TEXT_20 ",%20,%21,%22,%23"
#define TEXT_32 TEXT_24 ",%24,%25,%26,%27,%28,%29,%30,%31"
#define TEXT_36 TEXT_32 ",%32,%33,%34,%35"
#define TEXT_44 TEXT_36 ",%36,%37,%38,%39,%40,%41,%42,%43"
#define TEXT_48 TEXT_44 ",%44,%45,%46,%47"
#define TEXT_64                                                                                    \
  TEXT_44 ",%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define TEXT_80 TEXT_64 ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79"
#define TEXT_96 TEXT_80 ",%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95"
#define TEXT_128                                                                                   \
  TEXT_80 ",%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95,%96,%97,%98,%99,%100," \
          "%101,%102,%103,%104,"                                                                   \
          "%105,%106,%107,%108,%109,%110,%111,%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,"  \
          "%122,%123,%124,%125,%126,%127"
#define FIRST_24(io) C4(io, 0), C4(io, 1), C4(io, 2), C4(io, 3), C4(io, 4), C4(io, 5)
#define FIRST_32(io) FIRST_24(io), C4(io, 6), C4(io, 7)
#define FIRST_36(io) FIRST_32(io), C4(io, 8)
#define FIRST_44(io) FIRST_36(io), C4(io, 9), C4(io, 10)
#define FIRST_48(io) FIRST_44(io), C4(io, 11)
#define FIRST_64(io) FIRST_44(io), C4(io, 11), C4(io, 12), C4(io, 13), C4(io, 14), C4(io, 15)
#define C4X4(io, i) C4(io, i), C4(io, i + 1), C4(io, i + 2), C4(io, i + 3)
#define FIRST_80(io) FIRST_64(io), C4X4(io, 16)
#define FIRST_96(io) FIRST_80(io), C4X4(io, 20)
#define FIRST_128(io) FIRST_80(io), C4X4(io, 20), C4X4(io, 24), C4X4(io, 28)

/* c = a b', or (if `more` is not 0) c += a b': 64 rows, 8 N columns, over 16 of the inner
 * dimension. Both come from shared memory, in rows, by the descriptors of `swizzled`. Thread t of
 * the group has of c[n] rows t / 32 * 16 + t % 32 / 4 (+ 8: elements 2 and 3), columns 8 n + t % 4
 * * 2 (+ 1). */
template <typename T, int N>
__device__ __forceinline__ void wgmma_half(float (&c)[N][4], uint64_t a, uint64_t b, int more);
#define CRK_WGMMA(type, name, n, columns, regs, ra, rb, rp)                                        \
  template <>                                                                                      \
  __device__ __forceinline__ void wgmma_half<type, n>(float(&c)[n][4], uint64_t a, uint64_t b,     \
                                                      int more) {                                  \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" rp ", 0;\n"                                  \
                 "wgmma.mma_async.sync.aligned.m64n" columns "k16.f32." name "." name              \
                 " {" TEXT_##regs "}, %" ra ", %" rb ", p, 1, 1, 0, 0;\n}"                         \
                 : FIRST_##regs(INOUT)                                                             \
                 : "l"(a), "l"(b), "r"(more));                                                     \
  }
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
CRK_WGMMA(__half, "f16", 12, "96", 48, "48", "49", "50")
CRK_WGMMA(__nv_bfloat16, "bf16", 12, "96", 48, "48", "49", "50")
CRK_WGMMA(__half, "f16", 24, "192", 96, "96", "97", "98")
CRK_WGMMA(__nv_bfloat16, "bf16", 24, "192", 96, "96", "97", "98")
CRK_WGMMA(__half, "f16", 16, "128", 64, "64", "65", "66")
CRK_WGMMA(__nv_bfloat16, "bf16", 16, "128", 64, "64", "65", "66")
CRK_WGMMA(__half, "f16", 20, "160", 80, "80", "81", "82")
CRK_WGMMA(__nv_bfloat16, "bf16", 20, "160", 80, "80", "81", "82")
CRK_WGMMA(__half, "f16", 32, "256", 128, "128", "129", "130")
CRK_WGMMA(__nv_bfloat16, "bf16", 32, "256", 128, "128", "129", "130")
#endif

/* The same of E4M3 codes, over 32 of the inner dimension: 32 bytes again. The tensor cores' own
 * sums have some 14 bits. */
template <int N>
__device__ __forceinline__ void wgmma_e4m3(float (&c)[N][4], uint64_t a, uint64_t b, int more);
#define CRK_E4M3(n, columns, regs, ra, rb, rp)                                                     \
  template <>                                                                                      \
  __device__ __forceinline__ void wgmma_e4m3<n>(float(&c)[n][4], uint64_t a, uint64_t b,           \
                                                int more) {                                        \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" rp ", 0;\n"                                  \
                 "wgmma.mma_async.sync.aligned.m64n" columns "k32.f32.e4m3.e4m3"                   \
                 " {" TEXT_##regs "}, %" ra ", %" rb ", p, 1, 1;\n}"                               \
                 : FIRST_##regs(INOUT)                                                             \
                 : "l"(a), "l"(b), "r"(more));                                                     \
  }
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
CRK_E4M3(8, "64", 32, "32", "33", "34")
CRK_E4M3(16, "128", 64, "64", "65", "66")
CRK_E4M3(32, "256", 128, "128", "129", "130")
CRK_E4M3(20, "160", 80, "80", "81", "82")
#endif

/* The same of signed bytes, over 32 of the inner dimension, summed as int32: exact. */
template <int N>
__device__ __forceinline__ void wgmma_int8(int (&c)[N][4], uint64_t a, uint64_t b, int more);
#define CRK_BYTES(n, columns, regs, ra, rb, rp)                                                    \
  template <>                                                                                      \
  __device__ __forceinline__ void wgmma_int8<n>(int(&c)[n][4], uint64_t a, uint64_t b, int more) { \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" rp ", 0;\n"                                  \
                 "wgmma.mma_async.sync.aligned.m64n" columns "k32.s32.s8.s8"                       \
                 " {" TEXT_##regs "}, %" ra ", %" rb ", p;\n}"                                     \
                 : FIRST_##regs(INOUT_INT)                                                         \
                 : "l"(a), "l"(b), "r"(more));                                                     \
  }
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
CRK_BYTES(8, "64", 32, "32", "33", "34")
CRK_BYTES(16, "128", 64, "64", "65", "66")
CRK_BYTES(20, "160", 80, "80", "81", "82")
CRK_BYTES(32, "256", 128, "128", "129", "130")
#endif

/* What products of operands of a type are summed in, and one product of any of them over 32 bytes
 * of the inner dimension; codes of 8 bits are int8_t (int8) and uint8_t (E4M3). */
template <typename A> struct accumulator_of { typedef float type; };
template <> struct accumulator_of<int8_t> { typedef int type; };
template <typename A, int N>
__device__ __forceinline__ void wgmma(typename accumulator_of<A>::type (&c)[N][4], uint64_t a,
                                      uint64_t b, int more) {
  if constexpr (std::is_same<A, int8_t>::value)
    wgmma_int8(c, a, b, more);
  else if constexpr (std::is_same<A, uint8_t>::value)
    wgmma_e4m3(c, a, b, more);
  else
    wgmma_half<A>(c, a, b, more);
}

/* The descriptor of rows of 128 bytes in shared memory, 8 of which (1024 bytes, at a multiple of
 * that) have their 16-byte units exchanged as bulk copies with CU_TENSOR_MAP_SWIZZLE_128B do it:
 * unit u of row r stands at u ^ r. 16 columns further are 2 more. */
__device__ __forceinline__ uint64_t descriptor_128b(uint32_t at) {
  return (uint64_t)1 << 62 | (uint64_t)(1024 / 16) << 32 | (uint64_t)1 << 16 | (at >> 4 & 0x3fff);
}

/* ---- barriers in shared memory: `count` arrivals end a phase; phases are numbered from 0 ---- */

__device__ __forceinline__ void mbarrier_init(uint32_t at, int count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(at), "r"(count) : "memory");
}
__device__ __forceinline__ void mbarrier_arrive(uint32_t at) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(at) : "memory");
}
/* Until the phase has ended; it must be the current one or the one before. */
__device__ __forceinline__ void mbarrier_wait(uint32_t at, int phase) {
  asm volatile("{\n.reg .pred p;\n"
               "again:\n"
               "mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
               "@!p bra again;\n}" ::"r"(at),
               "r"(phase & 1)
               : "memory");
}
/* Arrives, and lets the phase end only once bulk copies have brought `bytes` too. */
__device__ __forceinline__ void mbarrier_expect(uint32_t at, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(at), "r"(bytes)
               : "memory");
}
/* New barriers are seen by bulk copies. Then let all meet. */
__device__ __forceinline__ void fence_mbarrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
/* By one thread: the barriers of a ring of STAGES boxes, `full` for the one thread that fetches,
 * and `empty` for the warps that read a box, of two groups or of one. */
template <int STAGES>
__device__ __forceinline__ void pipeline_init(uint32_t full, uint32_t empty, int readers = 8) {
  for (int i = 0; i < STAGES; i++) {
    mbarrier_init(full + i * 8, 1);
    mbarrier_init(empty + i * 8, readers);
  }
}
/* Counts through a ring: a stage, and how often the ring has been gone through. */
template <int STAGES> struct pipeline_state {
  uint32_t stage = 0, phase = 0;
  /* The producer's: until the readers are done with the stage. */
  __device__ __forceinline__ void wait_empty(uint32_t empty) const {
    if (phase > 0) mbarrier_wait(empty + stage * 8, (int)phase - 1);
  }
  __device__ __forceinline__ void advance() {
    if (++stage == STAGES) stage = 0, phase++;
  }
};
/* A block's tiles, one after another, as blocks beside each other take neighbours: row and column
 * of each in units of tiles, of s.row_tiles by s.column_tiles. GROUP row tiles take all columns
 * before the next ones begin. */
template <int GROUP, typename S> struct tile_scheduler {
  int at, row, column;
  __device__ __forceinline__ tile_scheduler(const S &s) : at((int)blockIdx.x) { locate(s); }
  __device__ __forceinline__ void locate(const S &s) {
    int of_group = GROUP * s.column_tiles, group = at / of_group, i = at - group * of_group;
    int high = min(GROUP, s.row_tiles - group * GROUP);
    column = i / high;
    row = group * GROUP + i - column * high;
  }
  __device__ __forceinline__ bool valid(const S &s) const {
    return at < s.row_tiles * s.column_tiles;
  }
  __device__ __forceinline__ void advance(const S &s) {
    at += (int)gridDim.x;
    if (valid(s)) locate(s);
  }
};
/* Barrier `name` (1 to 15) of `threads` of the block. */
__device__ __forceinline__ void named_barrier_sync(int name, int threads) {
  __syncwarp();
  asm volatile("bar.sync %0, %1;" ::"r"(name), "r"(threads) : "memory");
}

/* The producer of a block of three groups of four warps is the last group, which leaves its
 * registers to the two consumers: one thread of it runs `fetch` over the boxes of two maps. */
template <typename F>
__device__ __forceinline__ void run_producer(const CUtensorMap *a, const CUtensorMap *b, F fetch) {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
  if (threadIdx.x == 256) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(a) : "memory");
    asm volatile("prefetch.tensormap [%0];" ::"l"(b) : "memory");
    fetch();
  }
  __syncwarp();
}

/* ---- bulk copies of a box of a matrix, by one thread; (x, y): column and row of its corner ----
 */

/* To shared memory, zeros for what is outside; their bytes count at the barrier. */
__device__ __forceinline__ void tma_load(uint32_t to, const CUtensorMap *map, int x, int y,
                                         uint32_t barrier) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
               " [%0], [%1, {%2, %3}], [%4];" ::"r"(to),
               "l"(map), "r"(x), "r"(y), "r"(barrier)
               : "memory");
}
/* From shared memory (after fence_async_shared by those who wrote it), less what is outside. */
__device__ __forceinline__ void tma_store(const CUtensorMap *map, int x, int y, uint32_t from) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %2}], [%3];\n"
               "cp.async.bulk.commit_group;" ::"l"(map),
               "r"(x), "r"(y), "r"(from)
               : "memory");
}
/* Boxes of four dimensions; z and w: the two slower ones of the corner. */
__device__ __forceinline__ void tma_load_4d(uint32_t to, const CUtensorMap *map, int x, int y,
                                            int z, int w, uint32_t barrier) {
  asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes"
               " [%0], [%1, {%2, %3, %4, %5}], [%6];" ::"r"(to),
               "l"(map), "r"(x), "r"(y), "r"(z), "r"(w), "r"(barrier)
               : "memory");
}
/* Not yet one of the stores to wait for: tma_store_commit says so of all before it. */
__device__ __forceinline__ void tma_store_4d(const CUtensorMap *map, int x, int y, int z, int w,
                                             uint32_t from) {
  asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.bulk_group"
               " [%0, {%1, %2, %3, %4}], [%5];" ::"l"(map),
               "r"(x), "r"(y), "r"(z), "r"(w), "r"(from)
               : "memory");
}
__device__ __forceinline__ void tma_store_commit() {
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
/* Until shared memory of all but the last N stores of this thread may be written again. */
template <int N> __device__ __forceinline__ void tma_store_wait() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(N) : "memory");
}

/* Four 8x8 matrices of 16-bit numbers to rows at the addresses of lanes 0-7, 8-15, ...: each lane
 * has two neighbours of a row of each. */
__device__ __forceinline__ void stmatrix(uint32_t at, const uint32_t (&r)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(at),
               "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
}

/* What this thread has written to shared memory can be seen by the tensor cores' own loads. */
__device__ __forceinline__ void fence_async_shared() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/* The driver's function that describes tensors to bulk copies; NULL where it has none. */
typedef CUresult (*encode_tiled)(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *,
                                 const cuuint64_t *, const cuuint64_t *, const cuuint32_t *,
                                 const cuuint32_t *, CUtensorMapInterleave, CUtensorMapSwizzle,
                                 CUtensorMapL2promotion, CUtensorMapFloatOOBfill);
inline encode_tiled tensor_map_encoder() {
  static encode_tiled found;
  static bool asked;
  if (!asked) {
    void *f = NULL;
    cudaDriverEntryPointQueryResult status;
    if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &f, 12000, cudaEnableDefault,
                                         &status) != cudaSuccess)
      cudaGetLastError();
    else if (status == cudaDriverEntryPointSuccess)
      found = (encode_tiled)f;
    asked = true;
  }
  return found;
}
/* Boxes of `wide` columns by `high` rows of p [rows columns], numbers of `size` bytes, a `pitch` of
 * bytes from row to row (p and pitch at multiples of 16 bytes), their 16-byte units exchanged over
 * rows of `wide` numbers. False where the driver cannot. */
inline bool make_tensor_map(CUtensorMap *map, CUtensorMapDataType type, int size, void *p,
                            int64_t rows, int64_t columns, int64_t pitch, int wide, int high) {
  cuuint64_t whole[2] = {(cuuint64_t)columns, (cuuint64_t)rows}, step[1] = {(cuuint64_t)pitch};
  cuuint32_t box[2] = {(cuuint32_t)wide, (cuuint32_t)high}, each[2] = {1, 1};
  return tensor_map_encoder() &&
         tensor_map_encoder()(
             map, type, 2, p, whole, step, box, each, CU_TENSOR_MAP_INTERLEAVE_NONE,
             wide * size == 128 ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_64B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

/* The same of four dimensions of f16, bf16 or codes of 8 bits (CR_I8, CR_U8), fastest first: `size`
 * numbers in each, `step` numbers from one to the next of the last three (multiples of 16 bytes),
 * boxes of `box`, of which the first is 128 or 64 bytes. */
inline bool make_tensor_map_4d(CUtensorMap *map, int32_t dtype, void *p, const int64_t (&size)[4],
                               const int64_t (&step)[3], const int32_t (&box)[4]) {
  const int bytes = dtype == CR_F16 || dtype == CR_BF16 ? 2 : 1;
  CUtensorMapDataType type = bytes == 1        ? CU_TENSOR_MAP_DATA_TYPE_UINT8
                             : dtype == CR_F16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                               : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  cuuint64_t sizes[4], steps[3];
  cuuint32_t boxes[4], each[4] = {1, 1, 1, 1};
  for (int i = 0; i < 4; i++) {
    sizes[i] = (cuuint64_t)size[i];
    boxes[i] = (cuuint32_t)box[i];
    if (i < 3) steps[i] = (cuuint64_t)(step[i] * bytes);
  }
  return tensor_map_encoder() &&
         tensor_map_encoder()(
             map, type, 4, p, sizes, steps, boxes, each, CU_TENSOR_MAP_INTERLEAVE_NONE,
             box[0] * bytes == 128 ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_64B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

/* Whether a kernel is there for a card: built for sm_90 without the `a`, or for another card, it is
 * empty, and an empty kernel has few registers. Each card is asked once. */
template <auto KERNEL> bool compiled(const crk_device *d) {
  static int8_t known[CRK_MAX_CARDS]; /* 1: it is, -1: it is not, 0: not asked */
  int8_t *is = &known[d->card];
  if (!*is) {
    cudaFuncAttributes attributes;
    bool ok = cudaFuncGetAttributes(&attributes, KERNEL) == cudaSuccess;
    if (!ok) cudaGetLastError();
    *is = ok && attributes.numRegs > 64 ? 1 : -1;
  }
  return *is > 0;
}

} // namespace hopper

#endif
