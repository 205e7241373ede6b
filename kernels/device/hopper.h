/* Hopper's own instructions (sm_90a): wgmma (a matrix product by a warpgroup, four warps, with
 * operands in shared memory), mbarriers in shared memory, and TMA (bulk copies of tiles of a
 * tensor). PTX ISA 9, section 9.7.
 *
 * These functions compile to nothing for other cards. A kernel that uses them must enclose its body
 * in __CUDA_ARCH_FEAT_SM90_ALL, and its launcher must ask `compiled` first. */
#ifndef CRK_HOPPER_H
#define CRK_HOPPER_H

#include <../include/cuda.h> /* the toolkit's cuda.h, not device/cuda.h */

#include <type_traits>

#include "device/tensor_core.h"

namespace hopper {

/* ---- wgmma: fence, issue, commit, wait ---- */

/* Call it before the first wgmma of a group: it orders earlier writes of the registers. */
__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
/* Makes a group of all wgmma issued since the last commit. */
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
/* Waits until at most N committed groups are still running. */
template <int N> __device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}
/* Commits, and waits for everything. */
__device__ __forceinline__ void wgmma_commit_and_wait() {
  asm volatile("wgmma.commit_group.sync.aligned;\n"
               "wgmma.wait_group.sync.aligned 0;" ::
                   : "memory");
}
/* Keeps the compiler from moving reads and writes of an accumulator across a wait. */
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

/* The first registers of an accumulator c[][4] as operands of an asm statement, and as its text. */
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

/* c (64 x 8 n) = a b', or += if `accumulate` is not 0: one wgmma over 32 bytes of K, which are 16
 * f16 or bf16, or 32 int8 or E4M3. Both operands are K-major in shared memory and given by
 * descriptors (descriptor_128b). The operand type is a tag: int8_t is int8 and is summed as int32
 * (exact), uint8_t is E4M3, of whose sums the tensor cores keep only some 14 bits.
 *
 * Fragment layout: thread t of the warpgroup holds of c[j] row t / 32 * 16 + t % 32 / 4 (elements 0
 * and 1) and the row 8 below (2 and 3), columns 8 j + t % 4 * 2 and the next. */
#define CRK_WGMMA(operand, sum, io, types, flags, n, columns, regs, ra, rb, rp)                    \
  __device__ __forceinline__ void wgmma_issue(operand, sum(&c)[n][4], uint64_t a, uint64_t b,      \
                                              int accumulate) {                                    \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" rp ", 0;\n"                                  \
                 "wgmma.mma_async.sync.aligned.m64n" columns types " {" TEXT_##regs                \
                 "}, %" ra ", %" rb ", p" flags ";\n}"                                             \
                 : FIRST_##regs(io)                                                                \
                 : "l"(a), "l"(b), "r"(accumulate));                                               \
  }
#define CRK_WGMMA_F16(...)                                                                         \
  CRK_WGMMA(__half, float, INOUT, "k16.f32.f16.f16", ", 1, 1, 0, 0", __VA_ARGS__)                  \
  CRK_WGMMA(__nv_bfloat16, float, INOUT, "k16.f32.bf16.bf16", ", 1, 1, 0, 0", __VA_ARGS__)
#define CRK_WGMMA_8BIT(...)                                                                        \
  CRK_WGMMA(uint8_t, float, INOUT, "k32.f32.e4m3.e4m3", ", 1, 1", __VA_ARGS__)                     \
  CRK_WGMMA(int8_t, int, INOUT_INT, "k32.s32.s8.s8", "", __VA_ARGS__)
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
CRK_WGMMA_F16(12, "96", 48, "48", "49", "50")
CRK_WGMMA_F16(16, "128", 64, "64", "65", "66")
CRK_WGMMA_F16(20, "160", 80, "80", "81", "82")
CRK_WGMMA_F16(24, "192", 96, "96", "97", "98")
CRK_WGMMA_F16(32, "256", 128, "128", "129", "130")
CRK_WGMMA_8BIT(8, "64", 32, "32", "33", "34")
CRK_WGMMA_8BIT(16, "128", 64, "64", "65", "66")
CRK_WGMMA_8BIT(20, "160", 80, "80", "81", "82")
CRK_WGMMA_8BIT(32, "256", 128, "128", "129", "130")
#endif
#undef CRK_WGMMA
#undef CRK_WGMMA_F16
#undef CRK_WGMMA_8BIT

/* The type that products of operands of type A are summed in. */
template <typename A> struct accumulator_of { typedef float type; };
template <> struct accumulator_of<int8_t> { typedef int type; };
/* wgmma_issue for operands of type A. */
template <typename A, int N>
__device__ __forceinline__ void wgmma(typename accumulator_of<A>::type (&c)[N][4], uint64_t a,
                                      uint64_t b, int accumulate) {
  wgmma_issue(A(), c, a, b, accumulate);
}

/* The same with `a` (64 x 16 of f16 or bf16) in registers, in the fragment layout that a packed
 * accumulator has. Defines function(operand(), c, a, b). `accumulate` is "0" (c = a b') or "1"
 * (c += a b'); `n_major` is "1" if b is N-major, "0" if it is K-major. */
#define A4 "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3])
#define CRK_WGMMA_RS(function, operand, name, io, accumulate, n_major, n, columns, regs, r0, r1,   \
                     r2, r3, r4)                                                                   \
  __device__ __forceinline__ void function(operand, float(&c)[n][4], const uint32_t(&a)[4],        \
                                           uint64_t b) {                                           \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " accumulate ", 0;\n"                           \
                 "wgmma.mma_async.sync.aligned.m64n" columns "k16.f32." name "." name              \
                 " {" TEXT_##regs "}, {%" r0 ",%" r1 ",%" r2 ",%" r3 "}, %" r4                     \
                                  ", p, 1, 1, " n_major ";\n}"                                     \
                 : FIRST_##regs(io)                                                                \
                 : A4, "l"(b));                                                                    \
  }

/* The descriptor of a K-major operand in shared memory with the 128-byte swizzle: rows of 128
 * bytes, in groups of 8 rows (1024 bytes, aligned to that), where the 16-byte unit u of row r
 * stands at u ^ r, as TMA with CU_TENSOR_MAP_SWIZZLE_128B writes it. Add 2 to move on by 32 bytes
 * of K. */
__device__ __forceinline__ uint64_t descriptor_128b(uint32_t at) {
  return (uint64_t)1 << 62 | (uint64_t)(1024 / 16) << 32 | (uint64_t)1 << 16 | (at >> 4 & 0x3fff);
}

/* ---- mbarriers: `count` arrivals complete a phase; phases are numbered from 0 ---- */

__device__ __forceinline__ void mbarrier_init(uint32_t at, int count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(at), "r"(count) : "memory");
}
__device__ __forceinline__ void mbarrier_arrive(uint32_t at) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(at) : "memory");
}
/* Waits until the phase is complete. It must be the current phase or the one before it, since only
 * its parity is compared. */
__device__ __forceinline__ void mbarrier_wait(uint32_t at, int phase) {
  asm volatile("{\n.reg .pred p;\n"
               "again:\n"
               "mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
               "@!p bra again;\n}" ::"r"(at),
               "r"(phase & 1)
               : "memory");
}
/* Arrives, and makes the phase wait for `bytes` that TMA loads will bring. */
__device__ __forceinline__ void mbarrier_expect(uint32_t at, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(at), "r"(bytes)
               : "memory");
}
/* Makes initialized mbarriers visible to TMA. A barrier of all their users must follow. */
__device__ __forceinline__ void fence_mbarrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

/* ---- the pipeline from a producer to consumer warps ---- */

/* Initializes, by one thread, the mbarriers of a pipeline: `full` of each stage takes one arrival
 * of the producer's thread, `empty` one of each of the `readers` warps. */
template <int STAGES>
__device__ __forceinline__ void pipeline_init(uint32_t full, uint32_t empty, int readers = 8) {
  for (int i = 0; i < STAGES; i++) {
    mbarrier_init(full + i * 8, 1);
    mbarrier_init(empty + i * 8, readers);
  }
}
/* A position in a pipeline: the stage, and how often all stages have been used. */
template <int STAGES> struct pipeline_state {
  uint32_t stage = 0, phase = 0;
  /* For the producer: waits until the consumers have released the stage. */
  __device__ __forceinline__ void wait_empty(uint32_t empty) const {
    if (phase > 0) mbarrier_wait(empty + stage * 8, (int)phase - 1);
  }
  __device__ __forceinline__ void advance() {
    if (++stage == STAGES) stage = 0, phase++;
  }
};
/* The tiles that a persistent block computes, one after another, so that blocks which run at the
 * same time have neighbouring tiles. `row` and `column` count tiles, of s.row_tiles x
 * s.column_tiles. The order is grouped for the L2 cache: GROUP rows of tiles take all columns
 * before the next rows begin. */
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
/* Named barrier `name` (1 to 15) for `threads` threads of the block. */
__device__ __forceinline__ void named_barrier_sync(int name, int threads) {
  __syncwarp();
  asm volatile("bar.sync %0, %1;" ::"r"(name), "r"(threads) : "memory");
}

/* Runs the producer warpgroup of a block of three: it leaves most of its registers to the two
 * consumer warpgroups, and one of its threads runs `load`, which loads tiles of two tensor maps. */
template <typename F>
__device__ __forceinline__ void run_producer(const CUtensorMap *a, const CUtensorMap *b, F load) {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
  if (threadIdx.x == 256) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(a) : "memory");
    asm volatile("prefetch.tensormap [%0];" ::"l"(b) : "memory");
    load();
  }
  __syncwarp();
}

/* ---- TMA: copies of a tile by one thread; (x, y) are the column and row of its corner ---- */

/* Global to shared memory. Elements outside of the tensor become zeros, and count as bytes that the
 * mbarrier expects, too. */
__device__ __forceinline__ void tma_load(uint32_t to, const CUtensorMap *map, int x, int y,
                                         uint32_t barrier) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
               " [%0], [%1, {%2, %3}], [%4];" ::"r"(to),
               "l"(map), "r"(x), "r"(y), "r"(barrier)
               : "memory");
}
/* Shared to global memory; elements outside of the tensor are left out. The threads that wrote the
 * tile must have called fence_async_shared. */
__device__ __forceinline__ void tma_store(const CUtensorMap *map, int x, int y, uint32_t from) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %2}], [%3];\n"
               "cp.async.bulk.commit_group;" ::"l"(map),
               "r"(x), "r"(y), "r"(from)
               : "memory");
}
/* A tile of four dimensions; z and w are the corner's coordinates in the two slower ones. */
__device__ __forceinline__ void tma_load_4d(uint32_t to, const CUtensorMap *map, int x, int y,
                                            int z, int w, uint32_t barrier) {
  asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes"
               " [%0], [%1, {%2, %3, %4, %5}], [%6];" ::"r"(to),
               "l"(map), "r"(x), "r"(y), "r"(z), "r"(w), "r"(barrier)
               : "memory");
}
/* tma_store_commit must follow before tma_store_wait counts it. */
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
/* Waits until the shared memory of all but this thread's last N committed stores has been read, and
 * may be written again. */
template <int N> __device__ __forceinline__ void tma_store_wait() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(N) : "memory");
}

/* stmatrix.x4: stores four 8x8 matrices of 16-bit numbers, whose rows go to the addresses that
 * lanes 0-7, 8-15, ... give. Each lane holds two neighbours of a row of each matrix. */
__device__ __forceinline__ void stmatrix(uint32_t at, const uint32_t (&r)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(at),
               "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
}

/* Makes this thread's writes to shared memory visible to the async proxy: wgmma and TMA. */
__device__ __forceinline__ void fence_async_shared() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/* ---- tensor maps, on the host ---- */

/* The driver's function that encodes tensor maps; NULL where the driver has none. */
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
/* The map of tiles of `high` rows by `wide` columns of p [rows columns], elements of `size` bytes,
 * rows `pitch` bytes apart (p and pitch are multiples of 16 bytes). The tile's rows are swizzled by
 * their length: 128 or 64 bytes. False if the driver refuses. */
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

/* The same for four dimensions, fastest first, of f16, bf16 or 8-bit codes (CR_I8, CR_U8): `size`
 * elements in each, strides of `step` elements in the last three (multiples of 16 bytes), tiles of
 * `box` elements, whose first dimension is 128 or 64 bytes long. */
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

/* Whether a kernel has code for a card. Built for sm_90 without the `a`, or for another card, it is
 * empty, and an empty kernel uses few registers. The answer is kept for each card. */
template <auto KERNEL> bool compiled(const crk_device *d) {
  static int8_t known[CRK_MAX_CARDS]; /* 1: it has, -1: it has not, 0: not asked yet */
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
