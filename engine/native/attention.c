// Attention over the resident KV, for CPUs, called by XLA as a custom call.
//
// Writes the new keys and values into their slots, then attends; both in place, with no copy of the KV. The layout is
// [slots, K, S, H], so that one head's keys are one contiguous run. `xla_attention` in model/attention.py is the oracle.
//
// Two paths. Few queries (decode, verification): each key is read once and met by every query of its group, so the
// memory is the limit. Many queries (prefill): keys are transposed block by block into a small buffer and both
// products run on register tiles, as in a matrix multiplication; softmax is computed online (Milakov & Gimelshein 2018).

#include "native.h"

#define BLOCK 64   // keys per block
#define TILE 6     // queries per register tile
#define WIDE 24    // queries from which the tiled path pays

// exp for x <= 0, relative error about 2e-7: 2^n * polynomial (Cephes' coefficients for the range +-ln2/2).
static inline vec exp_vec(vec x) {
  x = max_vec(x, splat(-87.0f));
  vec n = x * splat(1.44269504f);
  ivec k = __builtin_convertvector(n - splat(0.5f), ivec);  // truncation of a negative number: rounds to nearest
  vec kf = __builtin_convertvector(k, vec);
  vec r = x - kf * splat(0.693359375f) + kf * splat(2.12194440e-4f);
  vec p = splat(1.9875691500e-4f);
  p = p * r + splat(1.3981999507e-3f);
  p = p * r + splat(8.3334519073e-3f);
  p = p * r + splat(4.1665795894e-2f);
  p = p * r + splat(1.6666665459e-1f);
  p = p * r + splat(5.0000001201e-1f);
  p = p * r * r + r + splat(1.0f);
  return p * (vec)((k + 127) << 23);
}

typedef struct {
  const float *q, *k_new, *v_new;  // [R*W, N, H], [R*W, K, H]
  const int32_t *slots, *starts;   // [R]: slot, and position of the first query; a negative slot is an empty row
  float *out, *k, *v;              // [R*W, N, H], [slots, K, S, H]
  int64_t rows, width, heads, kv_heads, size, capacity;
  int64_t parts;                   // query parts per (row, kv head)
  int64_t window;                  // how many positions a query sees, its own among them
} attention_t;

// Few queries: one pass over the keys, a running maximum per query.
static void attend_few(const attention_t *w, int row, int kv_head, int first, int count, float *scratch) {
  const int64_t H = w->size, group = w->heads / w->kv_heads, S = w->capacity;
  const int64_t base = ((int64_t)w->slots[row] * w->kv_heads + kv_head) * S * H;
  const float scale = 1.0f / sqrtf((float)H);
  for (int t = first; t < first + count; t++) {
    const int64_t end = (int64_t)w->starts[row] + t + 1, length = end < w->window ? end : w->window;
    const float *k = w->k + base + (end - length) * H, *v = w->v + base + (end - length) * H;
    for (int64_t g = 0; g < group; g++) {
      const int64_t head = kv_head * group + g;
      const float *q = w->q + ((row * w->width + t) * w->heads + head) * H;
      float *out = w->out + ((row * w->width + t) * w->heads + head) * H;
      float *p = scratch;
      float top = -INFINITY;
      for (int64_t s = 0; s < length; s++) {
        vec acc = *(const vec *)q * *(const vec *)(k + s * H);
        for (int64_t h = LANES; h < H; h += LANES) acc += *(const vec *)(q + h) * *(const vec *)(k + s * H + h);
        p[s] = sum_lanes(acc) * scale;
        if (p[s] > top) top = p[s];
      }
      for (int64_t s = length; s % LANES; s++) p[s] = -INFINITY;
      vec total = {0};
      for (int64_t s = 0; s < length; s += LANES) {
        vec e = exp_vec(*(vec *)(p + s) - splat(top));
        *(vec *)(p + s) = e;
        total += e;
      }
      // Lanes past the end hold exp(-87): remove them exactly instead of trusting that they vanish.
      float norm = sum_lanes(total);
      for (int64_t s = length; s % LANES; s++) norm -= p[s];
      for (int64_t h = 0; h < H; h += LANES) *(vec *)(out + h) = splat(0);
      if (H == 64) {
        vec a0 = {0}, a1 = {0}, a2 = {0}, a3 = {0};
        for (int64_t s = 0; s < length; s++) {
          const vec weight = splat(p[s]);
          const float *value = v + s * 64;
          a0 += weight * *(const vec *)value;
          a1 += weight * *(const vec *)(value + 16);
          a2 += weight * *(const vec *)(value + 32);
          a3 += weight * *(const vec *)(value + 48);
        }
        *(vec *)out = a0, *(vec *)(out + 16) = a1, *(vec *)(out + 32) = a2, *(vec *)(out + 48) = a3;
      } else {
        for (int64_t s = 0; s < length; s++)
          for (int64_t h = 0; h < H; h += LANES) *(vec *)(out + h) += splat(p[s]) * *(const vec *)(v + s * H + h);
      }
      const vec inverse = splat(1.0f / norm);
      for (int64_t h = 0; h < H; h += LANES) *(vec *)(out + h) *= inverse;
    }
  }
}

// TILE rows of a [TILE, depth] by a [depth, 64-wide] product, accumulated in registers.
static inline void tile_product(const float *a, int64_t a_stride, int rows, int64_t depth, const float *b, int64_t b_stride,
                                float *c, int64_t c_stride, int add) {
  vec acc[TILE][4];
  for (int i = 0; i < TILE; i++)
    for (int j = 0; j < 4; j++) acc[i][j] = add && i < rows ? *(vec *)(c + i * c_stride + j * LANES) : splat(0);
  if (rows == TILE) {
    for (int64_t d = 0; d < depth; d++) {
      const vec b0 = *(const vec *)(b + d * b_stride), b1 = *(const vec *)(b + d * b_stride + 16);
      const vec b2 = *(const vec *)(b + d * b_stride + 32), b3 = *(const vec *)(b + d * b_stride + 48);
#pragma GCC unroll 6
      for (int i = 0; i < TILE; i++) {
        const vec x = splat(a[i * a_stride + d]);
        acc[i][0] += x * b0, acc[i][1] += x * b1, acc[i][2] += x * b2, acc[i][3] += x * b3;
      }
    }
  } else {
    for (int i = 0; i < rows; i++)
      for (int64_t d = 0; d < depth; d++)
        for (int j = 0; j < 4; j++) acc[i][j] += splat(a[i * a_stride + d]) * *(const vec *)(b + d * b_stride + j * LANES);
  }
  for (int i = 0; i < rows; i++)
    for (int j = 0; j < 4; j++) *(vec *)(c + i * c_stride + j * LANES) = acc[i][j];
}

// Many queries: blocks of keys against tiles of queries. Query index n counts group-major: n = t * group + g.
static void attend_many(const attention_t *w, int row, int kv_head, int first, int count, float *scratch) {
  const int64_t H = w->size, group = w->heads / w->kv_heads, S = w->capacity;
  const int64_t padded = (H + 63) / 64 * 64;
  const int64_t base = ((int64_t)w->slots[row] * w->kv_heads + kv_head) * S * H;
  const float scale = 1.0f / sqrtf((float)H);
  const int64_t queries = count * group;
  float *q = scratch, *out = q + queries * H, *top = out + queries * padded, *norm = top + queries;
  float *keys = norm + queries, *values = keys + H * BLOCK, *scores = values + BLOCK * padded;
  for (int64_t n = 0; n < queries; n++) {
    const float *source = w->q + ((row * w->width + first + n / group) * w->heads + kv_head * group + n % group) * H;
    for (int64_t h = 0; h < H; h += LANES) *(vec *)(q + n * H + h) = *(const vec *)(source + h) * splat(scale);
    top[n] = -INFINITY, norm[n] = 0;
  }
  memset(out, 0, sizeof(float) * queries * padded);
  const int64_t start = w->starts[row], last = start + first + count;
  const int64_t oldest = start + first + 1 - w->window;  // the first position that any query sees
  for (int64_t s0 = oldest > 0 ? oldest : 0; s0 < last; s0 += BLOCK) {
    const int64_t keys_here = last - s0 < BLOCK ? last - s0 : BLOCK;
    const float *k = w->k + base + s0 * H, *v = w->v + base + s0 * H;
    for (int64_t s = 0; s < BLOCK; s++)
      for (int64_t h = 0; h < H; h++) keys[h * BLOCK + s] = s < keys_here ? k[s * H + h] : 0;
    const float *block_values = v;
    int64_t value_stride = H;
    if (H % 64 || keys_here < BLOCK) {  // the tile reads 64 wide and BLOCK deep: never past the end of the KV
      memset(values, 0, sizeof(float) * BLOCK * padded);
      for (int64_t s = 0; s < keys_here; s++) memcpy(values + s * padded, v + s * H, sizeof(float) * H);
      block_values = values, value_stride = padded;
    }
    // The first query that sees this block at all, and the first whose window lies past it; other tiles are skipped.
    const int64_t from = s0 > start + first ? (s0 - start - first) * group : 0;
    const int64_t past = s0 + keys_here - 1 - start - first < count - w->window
                             ? (s0 + keys_here - 1 - start - first + w->window) * group
                             : queries;
    for (int64_t n = from / TILE * TILE; n < past; n += TILE) {
      const int rows = (int)(queries - n < TILE ? queries - n : TILE);
      tile_product(q + n * H, H, rows, H, keys, BLOCK, scores, BLOCK, 0);
      for (int i = 0; i < rows; i++) {
        float *p = scores + i * BLOCK;
        const int64_t visible = start + first + (n + i) / group + 1 - s0;  // keys of this block up to the query's own
        const int64_t hidden = visible - w->window;                         // and those of them before its window
        if (visible <= 0 || hidden >= keys_here) {
          memset(p, 0, sizeof(float) * BLOCK);
          continue;
        }
        for (int64_t s = 0; s < hidden; s++) p[s] = -INFINITY;
        for (int64_t s = visible; s < BLOCK; s++) p[s] = -INFINITY;
        vec peak = max_vec(max_vec(*(vec *)p, *(vec *)(p + 16)), max_vec(*(vec *)(p + 32), *(vec *)(p + 48)));
        float block_top = top[n + i];
        for (int j = 0; j < LANES; j++) block_top = peak[j] > block_top ? peak[j] : block_top;
        const float fade = top[n + i] == -INFINITY ? 0 : expf(top[n + i] - block_top);
        vec total = {0};
        for (int j = 0; j < BLOCK; j += LANES) {
          vec x = *(vec *)(p + j);
          ivec kept = x > splat(-INFINITY);
          vec e = (vec)((ivec)exp_vec(x - splat(block_top)) & kept);
          *(vec *)(p + j) = e;
          total += e;
        }
        norm[n + i] = norm[n + i] * fade + sum_lanes(total);
        if (fade != 1.0f)
          for (int64_t h = 0; h < padded; h += LANES) *(vec *)(out + (n + i) * padded + h) *= splat(fade);
        top[n + i] = block_top;
      }
      for (int64_t h = 0; h < padded; h += 64)
        tile_product(scores, BLOCK, rows, BLOCK, block_values + h, value_stride, out + n * padded + h, padded, 1);
    }
  }
  for (int64_t n = 0; n < queries; n++) {
    float *target = w->out + ((row * w->width + first + n / group) * w->heads + kv_head * group + n % group) * H;
    const vec inverse = splat(1.0f / norm[n]);
    for (int64_t h = 0; h < H; h += LANES) *(vec *)(target + h) = *(vec *)(out + n * padded + h) * inverse;
  }
}

static int64_t part_size(const attention_t *w) { return (w->width + w->parts - 1) / w->parts; }

static int64_t scratch_floats(const attention_t *w) {
  const int64_t H = w->size, padded = (H + 63) / 64 * 64, queries = part_size(w) * (w->heads / w->kv_heads);
  const int64_t many = queries * (H + padded + 2) + H * BLOCK + BLOCK * padded + TILE * BLOCK;
  return many > w->capacity + LANES ? many : w->capacity + LANES;
}

static void attend_units(const void *context, int unit, int last) {
  const attention_t *w = context;
  float *scratch = aligned_alloc(64, (sizeof(float) * scratch_floats(w) + 63) / 64 * 64);
  const int64_t group = w->heads / w->kv_heads;
  for (; unit < last; unit++) {
    const int part = unit % (int)w->parts, kv_head = unit / (int)w->parts % (int)w->kv_heads;
    const int row = unit / (int)(w->parts * w->kv_heads);
    const int64_t first = part * part_size(w);
    const int64_t count = w->width - first < part_size(w) ? w->width - first : part_size(w);
    if (w->slots[row] < 0) {
      for (int64_t t = first; t < first + count; t++)
        memset(w->out + ((row * w->width + t) * w->heads + kv_head * group) * w->size, 0, sizeof(float) * w->size * group);
    } else if (count > 0 && w->width * group >= WIDE) {
      attend_many(w, row, kv_head, (int)first, (int)count, scratch);
    } else if (count > 0) {
      attend_few(w, row, kv_head, (int)first, (int)count, scratch);
    }
  }
  free(scratch);
}

// Arguments: q, k_new, v_new, slots, starts, k, v. Results: out, k, v; the last two alias the arguments. Attribute: window,
// left out where there is none.
XLA_FFI_Error *cloudcomplete_attention(XLA_FFI_CallFrame *call) {
  if (is_metadata_call(call)) return NULL;
  if (call->args.size != 7 || call->rets.size != 3) return fail(call->api, "attention: expected 7 arguments and 3 results");
  XLA_FFI_Buffer **args = (XLA_FFI_Buffer **)call->args.args, **rets = (XLA_FFI_Buffer **)call->rets.rets;
  if (args[5]->data != rets[1]->data || args[6]->data != rets[2]->data)
    return fail(call->api, "attention: the KV must be updated in place");
  attention_t context, *w = &context;
  w->q = args[0]->data, w->k_new = args[1]->data, w->v_new = args[2]->data;
  w->slots = args[3]->data, w->starts = args[4]->data;
  w->out = rets[0]->data, w->k = rets[1]->data, w->v = rets[2]->data;
  w->rows = args[3]->dims[0], w->width = args[0]->dims[0] / w->rows, w->heads = args[0]->dims[1], w->size = args[0]->dims[2];
  w->kv_heads = args[5]->dims[1], w->capacity = args[5]->dims[2];
  w->window = INT64_MAX;
  if (call->attrs.size) w->window = *(const int64_t *)((XLA_FFI_Scalar *)call->attrs.attrs[0])->value;
  if (w->window < 1) return fail(call->api, "attention: expected a window of at least 1");
  const int64_t num_slots = args[5]->dims[0], H = w->size;
  int64_t keys = 0;
  for (int64_t r = 0; r < w->rows; r++) {
    if (w->slots[r] < 0) continue;
    if (w->slots[r] >= num_slots || w->starts[r] < 0 || w->starts[r] + w->width > w->capacity) {
      return fail(call->api, "attention: a row lies outside the KV");
    }
    keys += (int64_t)w->starts[r] + w->width;
    for (int64_t t = 0; t < w->width; t++)
      for (int64_t head = 0; head < w->kv_heads; head++) {
        const int64_t from = ((r * w->width + t) * w->kv_heads + head) * H;
        const int64_t to = (((int64_t)w->slots[r] * w->kv_heads + head) * w->capacity + w->starts[r] + t) * H;
        memcpy(w->k + to, w->k_new + from, sizeof(float) * H);
        memcpy(w->v + to, w->v_new + from, sizeof(float) * H);
      }
  }
  w->parts = 1;
  if (w->width * (w->heads / w->kv_heads) >= WIDE) w->parts = w->width > 64 ? (w->width + 63) / 64 : 1;
  run_units(call, attend_units, w, sizeof(*w), (int)(w->rows * w->kv_heads * w->parts), 1,
            keys * w->heads * w->size * w->width > 1 << 17);
  return NULL;
}
