// Products of rows with weights, y = x W (+ bias), for CPUs, called by XLA as custom calls.
//
// The weights lie in panels of 64 outputs, [O/64, I, 64], so that a thread reads one stream. A tile of a few rows by a
// panel is summed in registers: each weight is loaded once per tile. Every output is one sum over the inputs in their
// order, whatever the tile: a row's numbers do not depend on which rows it is computed with, nor on how many.
//
// int8: weights are symmetric per output, rows are quantised here, each by its own largest value, and the sum is exact
// in 32 bits. AVX-512 VNNI multiplies unsigned with signed bytes, so a row's bytes carry an offset of 128, which
// `sums`, the weights' own sums per output, take out again. Panels hold 4 inputs side by side: [O/64, I/4, 64, 4].
// `model/matrix.py` packs the panels and holds the obvious versions.

#include "native.h"

#if defined(__AVX512VNNI__) && defined(__AVX512F__)
#include <immintrin.h>
#define HAS_VNNI 1
#elif defined(__AVX2__) && !defined(__AVX512F__)
#include <immintrin.h>
#define HAS_SIGN 1
#elif defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#define HAS_SDOT 1
#endif
#if defined(HAS_SIGN) || defined(HAS_SDOT)
#define IS_SIGNED 1  // signed bytes are multiplied: the offset is taken out before
#else
#define IS_SIGNED 0
#endif

#define PANEL 64  // outputs per panel
#define ROWS 96   // rows that meet a panel before the next one is read: they stay in the second-level cache

typedef struct {
  const float *x;                  // [R, I]
  const void *panels;              // float [P, I, 64] or int8 [P, I/4, 64, 4]
  const float *bias, *scales;      // [O] or NULL; [P * 64]
  const int32_t *sums;             // [P * 64]
  float *y;                        // [R, O]
  uint8_t *quantised;              // [R, I], offset by 128
  float *row_scales;               // [R]
  int64_t rows, in, out, panels_count, blocks;
} product_t;

// What a tile has summed, [rows][PANEL] from `from` on, becomes `rows` rows of y. Not inlined: once per tile is cheap.
static __attribute__((noinline)) void write_rows(const product_t *p, int64_t row, int64_t from, int rows, int width,
                                                 const float *sums) {
  const int64_t count = p->out - from < width ? p->out - from : width;
  for (int i = 0; i < rows; i++) {
    float *y = p->y + (row + i) * p->out + from;
    for (int64_t o = 0; o < count; o++) y[o] = sums[i * PANEL + o] + (p->bias ? p->bias[from + o] : 0.0f);
  }
}

static __attribute__((noinline)) void write_scaled_rows(const product_t *p, int64_t row, int64_t from, int rows, int width,
                                                        const int32_t *sums) {
  float scaled[TILE * PANEL];
  for (int i = 0; i < rows; i++)
    for (int o = 0; o < width; o += LANES) {
      ivec exact = *(const ivec *)(sums + i * PANEL + o);
      if (!IS_SIGNED) exact -= *(const ivec *)(p->sums + from + o) << 7;
      *(vec *)(scaled + i * PANEL + o) =
          __builtin_convertvector(exact, vec) * *(const vec *)(p->scales + from + o) * splat(p->row_scales[row + i]);
    }
  write_rows(p, row, from, rows, width, scaled);
}

// `rows` rows by `vecs` vectors of one panel.
INLINE void float_tile(const product_t *p, int64_t row, int64_t panel, int column, const int rows, const int vecs) {
  const float *w = (const float *)p->panels + panel * p->in * PANEL + column;
  float sums[TILE * PANEL];
  outer_tile(p->x + row * p->in, p->in, 1, w, PANEL, p->in, sums, PANEL, rows, vecs, 0);
  write_rows(p, row, panel * PANEL + column, rows, vecs * LANES, sums);
}

// Four products of bytes per lane, added up: `a` is one row's four inputs, the same in every lane.
INLINE ivec add_products(ivec sum, const uint8_t *a, const int8_t *w) {
#if defined(HAS_VNNI)
  int32_t four;
  memcpy(&four, a, 4);
  return (ivec)_mm512_dpbusd_epi32((__m512i)sum, _mm512_set1_epi32(four), _mm512_loadu_si512(w));
#elif defined(HAS_SDOT)
  int32_t four;
  memcpy(&four, a, 4);
  const int8x16_t signed_four = vreinterpretq_s8_u32(vdupq_n_u32((uint32_t)four ^ 0x80808080u));
  int32x4_t parts[LANES / 4];
  memcpy(parts, &sum, sizeof(sum));
  for (int i = 0; i < LANES / 4; i++) parts[i] = vdotq_s32(parts[i], vld1q_s8(w + 16 * i), signed_four);
  memcpy(&sum, parts, sizeof(sum));
  return sum;
#elif defined(HAS_SIGN)
  // |a| * (w with a's sign): two products of at most 127 x 127 fit 16 bits, so nothing saturates.
  int32_t four;
  memcpy(&four, a, 4);
  const __m256i signed_four = _mm256_set1_epi32((int32_t)((uint32_t)four ^ 0x80808080u));
  const __m256i turned = _mm256_sign_epi8(_mm256_loadu_si256((const __m256i *)w), signed_four);
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(signed_four), turned);
  return sum + (ivec)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
#else
  for (int i = 0; i < LANES; i++)
    sum[i] += a[0] * w[4 * i] + a[1] * w[4 * i + 1] + a[2] * w[4 * i + 2] + a[3] * w[4 * i + 3];
  return sum;
#endif
}

INLINE void int8_tile(const product_t *p, int64_t row, int64_t panel, int column, const int rows, const int vecs) {
  const uint8_t *x = p->quantised + row * p->in;
  const int8_t *w = (const int8_t *)p->panels + panel * p->in * PANEL + column * 4;
  const int64_t in = p->in;
  ivec acc[TILE][LONE_VECS];
#pragma GCC unroll 6
  for (int i = 0; i < rows; i++)
#pragma GCC unroll 8
    for (int j = 0; j < vecs; j++) acc[i][j] = (ivec){0};
  for (int64_t k = 0; k < in; k += 4)
#pragma GCC unroll 6
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 8
      for (int j = 0; j < vecs; j++)
        acc[i][j] = add_products(acc[i][j], x + i * in + k, w + k * PANEL + j * LANES * 4);
  int32_t sums[TILE * PANEL];
#pragma GCC unroll 6
  for (int i = 0; i < rows; i++)
#pragma GCC unroll 8
    for (int j = 0; j < vecs; j++) *(ivec *)(sums + i * PANEL + j * LANES) = acc[i][j];
  write_scaled_rows(p, row, panel * PANEL + column, rows, vecs * LANES, sums);
}

#define TILES_OF(name, tile)                                                                                     \
  static void name(const void *context, int unit, int last) {                                                    \
    const product_t *p = context;                                                                                \
    for (; unit < last; unit++) {                                                                                \
      const int64_t panel = unit % p->panels_count, first = unit / p->panels_count * ROWS;                       \
      const int64_t end = first + ROWS < p->rows ? first + ROWS : p->rows;                                       \
      const int64_t tiles = (end - first + TILE - 1) / TILE;                                                     \
      for (int64_t t = 0, row = first; t < tiles; t++) {                                                         \
        const int rows = (int)((end - row + tiles - t - 1) / (tiles - t));                                       \
        const int vecs = rows == 1 ? LONE_VECS : rows == 2 ? 4 : VECS;                                           \
        for (int column = 0; column < PANEL; column += vecs * LANES) switch (rows) {                             \
            case 1: tile(p, row, panel, column, 1, LONE_VECS); break;                                            \
            case 2: tile(p, row, panel, column, 2, 4); break;                                                    \
            case 3: tile(p, row, panel, column, 3, VECS); break;                                                 \
            case 4: tile(p, row, panel, column, 4, VECS); break;                                                 \
            case 5: tile(p, row, panel, column, 5, VECS); break;                                                 \
            default: tile(p, row, panel, column, 6, VECS);                                                       \
          }                                                                                                      \
        row += rows;                                                                                             \
      }                                                                                                          \
    }                                                                                                            \
  }

TILES_OF(float_units, float_tile)
TILES_OF(int8_units, int8_tile)

// Row r becomes round(x / scale) + 128 with scale = max|x| / 127. A row that holds a NaN or an infinity has a NaN scale;
// one too small to be divided by is taken for zeros.
static void quantise_rows(const void *context, int row, int last) {
  const product_t *p = context;
  for (; row < last; row++) {
    const float *x = p->x + row * p->in;
    uint8_t *q = p->quantised + row * p->in;
    vec tops = {0}, poisons = {0};  // x * 0 is NaN for a NaN and for an infinity, and 0 for all else
    int64_t k = 0;
    for (; k + LANES <= p->in; k += LANES) {
      const vec v = *(const vec *)(x + k);
      tops = max_vec(tops, max_vec(v, -v));
      poisons += v * splat(0);
    }
    float top = 0, poison = sum_lanes(poisons);
    for (int j = 0; j < LANES; j++) top = fmaxf(top, tops[j]);
    for (; k < p->in; k++) top = fmaxf(top, fabsf(x[k])), poison += x[k] * 0.0f;
    p->row_scales[row] = top / 127.0f + poison;
    if (poison != 0 || top < 1e-30f) {
      memset(q, 128, p->in);
      continue;
    }
    const float inverse = 127.0f / top;
    for (k = 0; k < p->in; k++) q[k] = (uint8_t)((int32_t)rintf(x[k] * inverse) + 128);
  }
}

static void run_product(XLA_FFI_CallFrame *call, product_t *p, void (*units)(const void *, int, int)) {
  p->blocks = (p->rows + ROWS - 1) / ROWS;
  run_units(call, units, p, sizeof(*p), (int)(p->blocks * p->panels_count), 1, p->rows * p->in * p->out > 1 << 16);
}

static int has_shape(const XLA_FFI_Buffer *b, XLA_FFI_DataType type, int64_t rank) { return b->dtype == type && b->rank == rank; }

// Arguments: x [R, I], panels [P, I, 64], and a bias [O] or none. Result: y [R, O].
XLA_FFI_Error *cloudcomplete_product(XLA_FFI_CallFrame *call) {
  if (is_metadata_call(call)) return NULL;
  const int64_t n = call->args.size;
  if (n < 2 || n > 3 || call->rets.size != 1) return fail(call->api, "product: expected 2 or 3 arguments and 1 result");
  XLA_FFI_Buffer **args = (XLA_FFI_Buffer **)call->args.args, **rets = (XLA_FFI_Buffer **)call->rets.rets;
  if (!has_shape(args[0], XLA_FFI_DataType_F32, 2) || !has_shape(args[1], XLA_FFI_DataType_F32, 3) ||
      !has_shape(rets[0], XLA_FFI_DataType_F32, 2) || (n == 3 && !has_shape(args[2], XLA_FFI_DataType_F32, 1)))
    return fail(call->api, "product: expected float32 rows, panels and bias");
  product_t p = {.x = args[0]->data, .panels = args[1]->data, .bias = n == 3 ? args[2]->data : NULL, .y = rets[0]->data};
  p.rows = args[0]->dims[0], p.in = args[0]->dims[1], p.out = rets[0]->dims[1], p.panels_count = args[1]->dims[0];
  if (args[1]->dims[1] != p.in || args[1]->dims[2] != PANEL || p.out > p.panels_count * PANEL || rets[0]->dims[0] != p.rows ||
      (n == 3 && args[2]->dims[0] != p.out))
    return fail(call->api, "product: rows, panels and bias do not fit together");
  run_product(call, &p, float_units);
  return NULL;
}

// Arguments: x [R, I], panels [P, I/4, 64, 4], scales [P * 64], sums [P * 64], and a bias [O] or none.
// Results: y [R, O], and room to work in: bytes [R, I], floats [R].
XLA_FFI_Error *cloudcomplete_int8_product(XLA_FFI_CallFrame *call) {
  if (is_metadata_call(call)) return NULL;
  const int64_t n = call->args.size;
  if (n < 4 || n > 5 || call->rets.size != 3) return fail(call->api, "int8 product: expected 4 or 5 arguments and 3 results");
  XLA_FFI_Buffer **args = (XLA_FFI_Buffer **)call->args.args, **rets = (XLA_FFI_Buffer **)call->rets.rets;
  if (!has_shape(args[0], XLA_FFI_DataType_F32, 2) || !has_shape(args[1], XLA_FFI_DataType_S8, 4) ||
      !has_shape(args[2], XLA_FFI_DataType_F32, 1) || !has_shape(args[3], XLA_FFI_DataType_S32, 1) ||
      (n == 5 && !has_shape(args[4], XLA_FFI_DataType_F32, 1)) || !has_shape(rets[0], XLA_FFI_DataType_F32, 2) ||
      !has_shape(rets[1], XLA_FFI_DataType_U8, 2) || !has_shape(rets[2], XLA_FFI_DataType_F32, 1))
    return fail(call->api, "int8 product: expected float32 rows, int8 panels, float32 scales, int32 sums, float32 bias");
  product_t p = {.x = args[0]->data, .panels = args[1]->data, .scales = args[2]->data, .sums = args[3]->data};
  p.bias = n == 5 ? args[4]->data : NULL;
  p.y = rets[0]->data, p.quantised = rets[1]->data, p.row_scales = rets[2]->data;
  p.rows = args[0]->dims[0], p.in = args[0]->dims[1], p.out = rets[0]->dims[1], p.panels_count = args[1]->dims[0];
  const int64_t padded = p.panels_count * PANEL;
  if (args[1]->dims[1] * 4 != p.in || args[1]->dims[2] != PANEL || args[1]->dims[3] != 4 || p.out > padded ||
      args[2]->dims[0] != padded || args[3]->dims[0] != padded || (n == 5 && args[4]->dims[0] != p.out) ||
      rets[0]->dims[0] != p.rows || rets[1]->dims[0] != p.rows || rets[1]->dims[1] != p.in || rets[2]->dims[0] != p.rows)
    return fail(call->api, "int8 product: rows, panels, scales, sums and bias do not fit together");
  run_units(call, quantise_rows, &p, sizeof(p), (int)p.rows, 4, p.rows * p.in > 1 << 15);
  run_product(call, &p, int8_units);
  return NULL;
}
