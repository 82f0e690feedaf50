// What the kernels share: vectors as wide as the processor's, work shared over XLA's own threads, and the plumbing of its custom calls.
//
// GCC's and Clang's vector extensions are compiled for whatever the processor has (AVX-512, AVX2, NEON, ...).

#include <math.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "xla/ffi/api/c_api.h"

// A wider vector than the processor has would live in memory, not in registers: 100 times slower.
#if defined(__AVX512F__)
#define LANES 16
#define VECS 4  // vectors per register tile: 6 x 4 sums in 32 registers
#define LONE_VECS 4  // of a tile of one row: a whole line of a panel, or as much of it as registers hold
#elif defined(__AVX2__)
#define LANES 8
#define VECS 2  // 6 x 2 sums in 16 registers
#define LONE_VECS 8
#elif defined(__aarch64__)
#define LANES 4
#define VECS 4
#define LONE_VECS 8
#else
#define LANES 4
#define VECS 2
#define LONE_VECS 8
#endif

typedef float vec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

static inline vec splat(float x) { return x - (vec){0}; }

static inline float sum_lanes(vec x) {
  float s = 0;
  for (int i = 0; i < LANES; i++) s += x[i];
  return s;
}

static inline vec max_vec(vec a, vec b) {
  ivec m = a > b;
  return (vec)(((ivec)a & m) | ((ivec)b & ~m));
}

#define INLINE static inline __attribute__((always_inline))
#define TILE 6  // rows of a register tile

// Sums of products, `rows` by `vecs` vectors, both constants where this is inlined: out[i][j] = sum over k of
// a[i * a_row + k * a_step] * b[k][j], in the order of k; `adds`: to what out holds. Each b is loaded once per tile.
INLINE void outer_tile(const float *a, int64_t a_row, int64_t a_step, const float *b, int64_t b_stride, int64_t depth, float *out,
                       int64_t out_stride, const int rows, const int vecs, const int adds) {
  vec acc[TILE][LONE_VECS];
#pragma GCC unroll 6
  for (int i = 0; i < rows; i++)
#pragma GCC unroll 8
    for (int j = 0; j < vecs; j++) acc[i][j] = adds ? *(const vec *)(out + i * out_stride + j * LANES) : splat(0);
  for (int64_t k = 0; k < depth; k++) {
    vec y[LONE_VECS];
#pragma GCC unroll 8
    for (int j = 0; j < vecs; j++) y[j] = *(const vec *)(b + k * b_stride + j * LANES);
#pragma GCC unroll 6
    for (int i = 0; i < rows; i++) {
      const vec x = splat(a[i * a_row + k * a_step]);
#pragma GCC unroll 8
      for (int j = 0; j < vecs; j++) acc[i][j] += x * y[j];
    }
  }
#pragma GCC unroll 6
  for (int i = 0; i < rows; i++)
#pragma GCC unroll 8
    for (int j = 0; j < vecs; j++) *(vec *)(out + i * out_stride + j * LANES) = acc[i][j];
}

// Wait a moment: for a helper that is about to end, or, when it has lost its core to another process, without one's own.
static inline void pause_core(int spins) {
  if (spins > 4096) {
    sched_yield();
    return;
  }
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// A piece of work cut into units that threads take one by one. `run` must not touch anything of another unit.
typedef struct work {
  void (*run)(const void *context, int first, int last);
  char context[256];
  int total, stride;
  atomic_int next, done, users;
} work_t;

static void take_units(work_t *w) {
  for (int unit; (unit = atomic_fetch_add(&w->next, w->stride)) < w->total;) {
    const int last = unit + w->stride < w->total ? unit + w->stride : w->total;
    w->run(w->context, unit, last);
    atomic_fetch_add(&w->done, last - unit);
  }
}

static void release(work_t *w) {
  if (atomic_fetch_sub(&w->users, 1) == 1) free(w);
}

static void run_task(void *data) {
  take_units(data);
  release(data);
}

// Return how many threads XLA has for such work.
static int64_t num_threads(XLA_FFI_CallFrame *call) {
  int64_t threads = 0;
  XLA_FFI_ThreadPool_NumThreads_Args count = {XLA_FFI_ThreadPool_NumThreads_Args_STRUCT_SIZE, NULL, call->ctx, &threads};
  XLA_FFI_Error *error = call->api->XLA_FFI_ThreadPool_NumThreads(&count);
  if (!error) return threads;
  XLA_FFI_Error_Destroy_Args destroy = {XLA_FFI_Error_Destroy_Args_STRUCT_SIZE, NULL, error};
  call->api->XLA_FFI_Error_Destroy(&destroy);
  return 0;
}

// Run units 0..total-1, `stride` at a time, on this thread and, if `is_large`, on XLA's others too. A helper that wakes late finds no
// unit left and drops its reference: this thread never waits for one that has not begun.
static void run_units(XLA_FFI_CallFrame *call, void (*run)(const void *, int, int), const void *context, size_t size, int total,
                      int stride, int is_large) {
  if (!is_large || total <= stride) {
    run(context, 0, total);
    return;
  }
  work_t *w = calloc(1, sizeof(work_t));
  w->run = run, w->total = total, w->stride = stride;
  memcpy(w->context, context, size);
  atomic_init(&w->users, 1);
  const int64_t threads = num_threads(call);
  for (int64_t i = 1; i < threads && i * stride < total; i++) {
    atomic_fetch_add(&w->users, 1);
    XLA_FFI_ThreadPool_Schedule_Args task = {XLA_FFI_ThreadPool_Schedule_Args_STRUCT_SIZE, NULL, call->ctx, run_task, w};
    if (call->api->XLA_FFI_ThreadPool_Schedule(&task)) release(w);
  }
  take_units(w);
  for (int spins = 0; atomic_load(&w->done) < total; spins++) pause_core(spins);
  release(w);
}

static XLA_FFI_Error *fail(const XLA_FFI_Api *api, const char *message) {
  XLA_FFI_Error_Create_Args args = {XLA_FFI_Error_Create_Args_STRUCT_SIZE, NULL, message, XLA_FFI_Error_Code_INVALID_ARGUMENT};
  return api->XLA_FFI_Error_Create(&args);
}

// XLA asks each handler once which version of the interface it speaks. Returns 1 if this call was that question.
static int is_metadata_call(XLA_FFI_CallFrame *call) {
  if (!call->extension_start || call->extension_start->type != XLA_FFI_Extension_Metadata) return 0;
  XLA_FFI_Metadata *metadata = ((XLA_FFI_Metadata_Extension *)call->extension_start)->metadata;
  metadata->api_version.major_version = XLA_FFI_API_MAJOR;
  metadata->api_version.minor_version = XLA_FFI_API_MINOR;
  metadata->traits = 0;
  return 1;
}
