/* Ranges of a card's addresses: growing ones by the driver's virtual memory management, else blocks
 * of cudaMalloc.
 *
 * Invariants: the pieces of a range are in the order of their addresses and do not overlap. Memory
 * is unmapped in exactly the pieces in which it was mapped, as the driver requires. */
#include <stdlib.h>
#include <string.h>

#include "device/switches.h"
#include "memory/range.h"
/* The driver's cuda.h; the bare name would find device/cuda.h. */
#include <../include/cuda.h>

/* The most that a piece has. A larger piece would be harder to unmap, since a single small tensor
 * in it prevents that. */
#define PIECE_BYTES ((int64_t)64 << 20)

/* The driver's functions, which the runtime looks up: nothing here links to libcuda. */
static struct {
  CUresult (*address_reserve)(CUdeviceptr *, size_t, size_t, CUdeviceptr, unsigned long long);
  CUresult (*address_free)(CUdeviceptr, size_t);
  CUresult (*create)(CUmemGenericAllocationHandle *, size_t, const CUmemAllocationProp *,
                     unsigned long long);
  CUresult (*release)(CUmemGenericAllocationHandle);
  CUresult (*map)(CUdeviceptr, size_t, size_t, CUmemGenericAllocationHandle, unsigned long long);
  CUresult (*unmap)(CUdeviceptr, size_t);
  CUresult (*set_access)(CUdeviceptr, size_t, const CUmemAccessDesc *, size_t);
} driver;
static int8_t usable[CRK_MAX_CARDS]; /* 1: growing ranges work; -1: they do not; 0: not tried yet */

static bool find(const char *name, void **function) {
  cudaDriverEntryPointQueryResult result;
  cudaError_t e =
      cudaGetDriverEntryPointByVersion(name, function, 12000, cudaEnableDefault, &result);
  return e == cudaSuccess && result == cudaDriverEntryPointSuccess && *function;
}

static bool find_driver(void) {
  return find("cuMemAddressReserve", (void **)&driver.address_reserve) &&
         find("cuMemAddressFree", (void **)&driver.address_free) &&
         find("cuMemCreate", (void **)&driver.create) &&
         find("cuMemRelease", (void **)&driver.release) && find("cuMemMap", (void **)&driver.map) &&
         find("cuMemUnmap", (void **)&driver.unmap) &&
         find("cuMemSetAccess", (void **)&driver.set_access);
}

static CUmemLocation location_of(const crk_device *d) {
  CUmemLocation l = {};
  l.type = CU_MEM_LOCATION_TYPE_DEVICE;
  l.id = d->card;
  return l;
}

static bool reserve(crk_range *r, int64_t bytes) {
  CUdeviceptr base = 0;
  if (driver.address_reserve(&base, (size_t)bytes, 0, 0, 0) != CUDA_SUCCESS) return false;
  memset(r, 0, sizeof *r);
  r->base = (char *)(uintptr_t)base;
  r->bytes = bytes;
  r->growing = true;
  return true;
}

/* CR_CUDA_MALLOC=1 disables growing ranges, as on a driver without them. Otherwise they are tried
 * once for real, since a driver may have the functions and yet refuse them. */
static bool try_out(crk_device *d) {
  if (crk_switch_value(CRK_SWITCH_CUDA_MALLOC) == 1) return false;
  crk_range r;
  if (!find_driver() || !reserve(&r, CRK_PAGE_BYTES)) return false;
  bool ok = crk_range_map(&r, d, 0, CRK_PAGE_BYTES) == cudaSuccess;
  return crk_range_free(&r) && ok;
}

int crk_range_reserve(crk_range *r, crk_device *d, int64_t bytes) {
  int8_t *is = &usable[d->card];
  if (!*is) {
    *is = try_out(d) ? 1 : -1;
    cudaGetLastError();
  }
  return *is > 0 && reserve(r, bytes) ? CR_OK : CR_EUNSUPPORTED;
}

cudaError_t crk_range_malloc(crk_range *r, int64_t bytes) {
  memset(r, 0, sizeof *r);
  void *base = NULL;
  cudaError_t e = cudaMalloc(&base, (size_t)bytes);
  if (e != cudaSuccess) {
    cudaGetLastError();
    return e;
  }
  r->base = (char *)base;
  r->bytes = bytes;
  return cudaSuccess;
}

static crk_piece *piece_new(crk_range *r, crk_device *d, int64_t offset, int64_t bytes,
                            CUresult *rc) {
  CUmemAllocationProp prop = {};
  prop.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  prop.location = location_of(d);
  crk_piece *p = (crk_piece *)calloc(1, sizeof *p);
  if (!p) {
    *rc = CUDA_ERROR_OUT_OF_MEMORY;
    return NULL;
  }
  CUmemGenericAllocationHandle handle;
  *rc = driver.create(&handle, (size_t)bytes, &prop, 0);
  if (*rc == CUDA_SUCCESS) {
    *rc = driver.map((CUdeviceptr)(uintptr_t)(r->base + offset), (size_t)bytes, 0, handle, 0);
    if (*rc != CUDA_SUCCESS) driver.release(handle);
  }
  if (*rc != CUDA_SUCCESS) {
    free(p);
    return NULL;
  }
  p->offset = offset;
  p->bytes = bytes;
  p->handle = handle;
  return p;
}

static cudaError_t runtime_error(CUresult rc) {
  if (rc == CUDA_SUCCESS) return cudaSuccess;
  /* The runtime has the driver's error numbers. */
  return rc == CUDA_ERROR_OUT_OF_MEMORY ? cudaErrorMemoryAllocation : (cudaError_t)rc;
}

cudaError_t crk_range_map(crk_range *r, crk_device *d, int64_t offset, int64_t bytes) {
  crk_piece **at = &r->pieces;
  while (*at && (*at)->offset < offset) at = &(*at)->next;
  crk_piece **first = at, *after = *at;
  CUresult rc = CUDA_SUCCESS;
  for (int64_t done = 0; done < bytes && rc == CUDA_SUCCESS;) {
    int64_t n = bytes - done < PIECE_BYTES ? bytes - done : PIECE_BYTES;
    crk_piece *p = piece_new(r, d, offset + done, n, &rc);
    if (!p) break;
    p->next = after;
    *at = p;
    at = &p->next;
    done += n;
  }
  if (rc == CUDA_SUCCESS) {
    CUmemAccessDesc access = {};
    access.location = location_of(d);
    access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
    rc = driver.set_access((CUdeviceptr)(uintptr_t)(r->base + offset), (size_t)bytes, &access, 1);
  }
  if (rc != CUDA_SUCCESS)
    for (crk_piece *p = *first; p != after;) p = crk_range_unmap(r, p);
  return runtime_error(rc);
}

static bool drop(crk_range *r, crk_piece *piece) {
  if (driver.unmap((CUdeviceptr)(uintptr_t)(r->base + piece->offset), (size_t)piece->bytes) !=
      CUDA_SUCCESS)
    return false;
  driver.release(piece->handle);
  return true;
}

crk_piece *crk_range_unmap(crk_range *r, crk_piece *piece) {
  crk_piece **at = &r->pieces;
  while (*at != piece) at = &(*at)->next;
  drop(r, piece);
  *at = piece->next;
  free(piece);
  return *at;
}

bool crk_range_free(crk_range *r) {
  if (!r->growing) {
    cudaFree(r->base);
    cudaGetLastError();
    r->base = NULL;
    return true;
  }
  for (crk_piece **at = &r->pieces; *at;) {
    crk_piece *p = *at;
    if (!drop(r, p)) {
      at = &p->next;
      continue;
    }
    *at = p->next;
    free(p);
  }
  if (r->pieces) return false;
  driver.address_free((CUdeviceptr)(uintptr_t)r->base, (size_t)r->bytes);
  r->base = NULL;
  return true;
}
