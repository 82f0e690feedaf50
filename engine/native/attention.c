// Attention over the resident KV, for CPUs, called by XLA as a custom call.
//
// Writes the new keys and values into their slots, then attends; both in place, with no copy of the KV. The layout is
// [slots, K, S, H], so that one head's keys are one contiguous run. `xla_attention` in model/attention.py is the oracle.
//
// Few queries (decode, verification): each key is read once and met by every query of its group, so the memory is the
// limit. Many queries (prefill): panels of 64 queries, which are transposed once, meet one block of keys after the other;
// both products run on register tiles, as in a matrix multiplication, and softmax is computed online (Milakov &
// Gimelshein 2018), a query a lane. No more than one panel's scores of one block are ever held.
//
// Block-sparse prefill: each panel meets only some blocks. They are chosen by scores as XAttention's (Xu et al. 2025): of
// every STRIDE queries and STRIDE keys, the mean of the products on one antidiagonal; softmax over the keys; summed up by
// block. A run of STRIDE keys is contiguous, so it is one long dot product. `block_sparse.py` is the oracle.

#include "native.h"

#define BLOCK 64    // keys per block, and queries that share a choice of blocks
#define LANE_MOST 64  // queries per panel
#define WIDE 24     // queries from which panels pay
#define STRIDE 16   // queries, and keys, that share an antidiagonal
#define HIDDEN -1e30f  // score of a key that a query does not see

#if defined(__AVX512F__)
#define SIDE 4  // rows and columns of a tile of dot products
#else
#define SIDE 2
#endif

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
  // Of block-sparse prefill of one row; num_kept 0: dense.
  int64_t num_kept, num_sinks, num_local;  // blocks per choice; of them the first ones, and those before the query's own
  int64_t count, focus_start, focus_end;   // real queries; positions around the cut and the cursor
  uint8_t *kept;                   // [K, Q, B]: which blocks of keys (B) a block of queries (Q) met
  float *reports;                  // [units, REPORT]
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
        vec acc[64 / LANES] = {0};
        for (int64_t s = 0; s < length; s++) {
          const vec weight = splat(p[s]);
#pragma GCC unroll 16
          for (int j = 0; j < 64 / LANES; j++) acc[j] += weight * *(const vec *)(v + s * 64 + j * LANES);
        }
#pragma GCC unroll 16
        for (int j = 0; j < 64 / LANES; j++) *(vec *)(out + j * LANES) = acc[j];
      } else {
        for (int64_t s = 0; s < length; s++)
          for (int64_t h = 0; h < H; h += LANES) *(vec *)(out + h) += splat(p[s]) * *(const vec *)(v + s * H + h);
      }
      const vec inverse = splat(1.0f / norm);
      for (int64_t h = 0; h < H; h += LANES) *(vec *)(out + h) *= inverse;
    }
  }
}

// `keys` x (`vecs` * LANES) scores: st[s][lane] = k[s] . q[lane], queries transposed.
INLINE void score_tile(const float *k, const float *qt, int64_t H, float *st, const int keys, const int vecs) {
  outer_tile(k, H, 1, qt, LANE_MOST, H, st, LANE_MOST, keys, vecs, 0);
}

INLINE void score_columns(const float *k, const float *qt, int64_t H, float *st, int64_t keys, const int vecs) {
  int64_t s = 0;
  for (; s + TILE <= keys; s += TILE) score_tile(k + s * H, qt, H, st + s * LANE_MOST, TILE, vecs);
  for (; s + 4 <= keys; s += 4) score_tile(k + s * H, qt, H, st + s * LANE_MOST, 4, vecs);
  for (; s < keys; s++) score_tile(k + s * H, qt, H, st + s * LANE_MOST, 1, vecs);
}

static void score_block(const float *k, const float *qt, int64_t H, float *st, int64_t keys, int vecs) {
  int j = 0;
  for (; j + VECS <= vecs; j += VECS) score_columns(k, qt + j * LANES, H, st + j * LANES, keys, VECS);
  for (; j < vecs; j++) score_columns(k, qt + j * LANES, H, st + j * LANES, keys, 1);
}

// `rows` queries' sums of values, `vecs` vectors wide: out[i] += sum over s of st[s][i] * v[s].
INLINE void value_tile(const float *st, const float *v, int64_t H, int64_t keys, float *out, const int rows, const int vecs) {
  outer_tile(st, 1, LANE_MOST, v, H, keys, out, H, rows, vecs, 1);
}

INLINE void value_columns(const float *st, const float *v, int64_t H, int64_t keys, float *out, int64_t rows, const int vecs) {
  int64_t i = 0;
  for (; i + TILE <= rows; i += TILE) value_tile(st + i, v, H, keys, out + i * H, TILE, vecs);
  for (; i + 4 <= rows; i += 4) value_tile(st + i, v, H, keys, out + i * H, 4, vecs);
  for (; i < rows; i++) value_tile(st + i, v, H, keys, out + i * H, 1, vecs);
}

static void value_block(const float *st, const float *v, int64_t H, int64_t keys, float *out, int64_t rows) {
  int64_t h = 0;
  for (; h + VECS * LANES <= H; h += VECS * LANES) value_columns(st, v + h, H, keys, out + h, rows, VECS);
  for (; h < H; h += LANES) value_columns(st, v + h, H, keys, out + h, rows, 1);
}

// Queries in panels, and what they have gathered so far. Query n counts group-major: n = t * group + g.
typedef struct {
  int64_t queries, first, start, group;  // lanes in use; first query of the row; its position; queries per position
  float *qt, *out, *top, *norm, *st;     // [panels, H, 64], [queries, H], [panels * 64] twice, [BLOCK, 64]
} panels_t;

static int64_t num_panels(int64_t queries) { return (queries + LANE_MOST - 1) / LANE_MOST; }

static int64_t panels_floats(const attention_t *w, int64_t queries) {
  const int64_t lanes = num_panels(queries) * LANE_MOST;
  return lanes * (2 * w->size + 2) + BLOCK * LANE_MOST;
}

static panels_t begin_panels(const attention_t *w, int row, int kv_head, int64_t first, int64_t count, float *scratch) {
  const int64_t H = w->size, group = w->heads / w->kv_heads, queries = count * group;
  const int64_t lanes = num_panels(queries) * LANE_MOST;
  const float scale = 1.0f / sqrtf((float)H);
  panels_t p = {queries, first, w->starts[row] + first, group, scratch, 0, 0, 0, 0};
  p.out = p.qt + lanes * H, p.top = p.out + lanes * H, p.norm = p.top + lanes, p.st = p.norm + lanes;
  memset(p.qt, 0, sizeof(float) * lanes * H * 2);
  for (int64_t n = 0; n < queries; n++) {
    const float *source = w->q + ((row * w->width + first + n / group) * w->heads + kv_head * group + n % group) * H;
    float *target = p.qt + n / LANE_MOST * LANE_MOST * H + n % LANE_MOST;
    for (int64_t h = 0; h < H; h++) target[h * LANE_MOST] = source[h] * scale;
  }
  for (int64_t n = 0; n < lanes; n++) p.top[n] = HIDDEN, p.norm[n] = 0;
  return p;
}

// Take in the scores of one block in softmax's running maximum and sum; scores become weights. `lanes` queries from
// lane 0 on, `at_edge` if some query does not see all the keys, which begin at position s0.
INLINE void soften(const attention_t *w, const panels_t *p, int64_t n0, int64_t s0, int64_t keys, int vecs, const int at_edge) {
  const int64_t H = w->size;
  for (int j = 0; j < vecs; j++) {
    float *column = p->st + j * LANES, *out = p->out + (n0 + j * LANES) * H;
    vec *top = (vec *)(p->top + n0 + j * LANES), *norm = (vec *)(p->norm + n0 + j * LANES);
    vec peak = *top;
    if (at_edge) {
      ivec last, oldest;  // of the positions that each lane sees, counted from s0
      for (int i = 0; i < LANES; i++) {
        const int64_t own = p->start + (n0 + j * LANES + i) / p->group - s0;
        last[i] = (int32_t)own;
        oldest[i] = w->window > own ? 0 : (int32_t)(own - w->window + 1);
      }
      for (int64_t s = 0; s < keys; s++) {
        const ivec at = (ivec){0} + (int32_t)s, seen = (at <= last) & (at >= oldest);
        vec *x = (vec *)(column + s * LANE_MOST);
        *x = (vec)(((ivec)*x & seen) | ((ivec)splat(HIDDEN) & ~seen));
        peak = max_vec(peak, *x);
      }
    } else {
      for (int64_t s = 0; s < keys; s++) peak = max_vec(peak, *(vec *)(column + s * LANE_MOST));
    }
    const vec fade = exp_vec(*top - peak);
    vec total = {0};
    for (int64_t s = 0; s < keys; s++) {
      vec *x = (vec *)(column + s * LANE_MOST);
      *x = exp_vec(*x - peak);
      total += *x;
    }
    *top = peak, *norm = *norm * fade + total;
    const ivec moved = fade != splat(1);
    int is_moved = 0;
    for (int i = 0; i < LANES; i++) is_moved |= moved[i];
    if (is_moved)
      for (int i = 0; i < LANES; i++)
        for (int64_t h = 0; h < H; h += LANES) *(vec *)(out + i * H + h) *= splat(fade[i]);
  }
}

// Let all panels meet the keys from position s0 on, at most BLOCK of them. A query sees at least one key by the end.
static void meet_block(const attention_t *w, const panels_t *p, int row, int kv_head, int64_t s0, int64_t keys) {
  const int64_t H = w->size;
  const int64_t base = ((int64_t)w->slots[row] * w->kv_heads + kv_head) * w->capacity * H + s0 * H;
  const float *k = w->k + base, *v = w->v + base;
  for (int64_t n0 = 0; n0 < p->queries; n0 += LANE_MOST) {
    const int64_t lanes = p->queries - n0 < LANE_MOST ? p->queries - n0 : LANE_MOST;
    const int64_t lowest = p->start + n0 / p->group, highest = p->start + (n0 + lanes - 1) / p->group;
    if (s0 > highest || (w->window <= lowest && s0 + keys - 1 <= lowest - w->window)) continue;  // nobody sees any
    const int vecs = (int)((lanes + LANES - 1) / LANES);
    score_block(k, p->qt + n0 * H, H, p->st, keys, vecs);
    if (s0 + keys - 1 > lowest || w->window <= highest - s0) soften(w, p, n0, s0, keys, vecs, 1);
    else soften(w, p, n0, s0, keys, vecs, 0);
    value_block(p->st, v, H, keys, p->out + n0 * H, lanes);
  }
}

static void end_panels(const attention_t *w, const panels_t *p, int row, int kv_head) {
  const int64_t H = w->size, group = p->group;
  for (int64_t n = 0; n < p->queries; n++) {
    float *target = w->out + ((row * w->width + p->first + n / group) * w->heads + kv_head * group + n % group) * H;
    const vec inverse = splat(1.0f / p->norm[n]);
    for (int64_t h = 0; h < H; h += LANES) *(vec *)(target + h) = *(vec *)(p->out + n * H + h) * inverse;
  }
}

static void attend_many(const attention_t *w, int row, int kv_head, int first, int count, float *scratch) {
  const panels_t p = begin_panels(w, row, kv_head, first, count, scratch);
  const int64_t end = p.start + count, oldest = p.start + 1 - w->window;  // the first position that any query sees
  for (int64_t s0 = oldest > 0 ? oldest : 0; s0 < end; s0 += BLOCK)
    meet_block(w, &p, row, kv_head, s0, end - s0 < BLOCK ? end - s0 : BLOCK);
  end_panels(w, &p, row, kv_head);
}

// --- block-sparse ---------------------------------------------------------------------------------------------------

#define REPORT 5  // blocks kept, blocks visible, mass kept, choices, choices whose scores were all equal

// `rows` x `cols` dot products of `depth` floats.
INLINE void dots(const float *a, const float *b, int64_t depth, float *out, int64_t out_stride, const int rows, const int cols) {
  vec acc[SIDE][SIDE];
#pragma GCC unroll 4
  for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
    for (int j = 0; j < cols; j++) acc[i][j] = splat(0);
  for (int64_t d = 0; d < depth; d += LANES) {
    vec x[SIDE];
#pragma GCC unroll 4
    for (int j = 0; j < cols; j++) x[j] = *(const vec *)(b + j * depth + d);
#pragma GCC unroll 4
    for (int i = 0; i < rows; i++) {
      const vec y = *(const vec *)(a + i * depth + d);
#pragma GCC unroll 4
      for (int j = 0; j < cols; j++) acc[i][j] += y * x[j];
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
    for (int j = 0; j < cols; j++) out[i * out_stride + j] = sum_lanes(acc[i][j]);
}

static int64_t score_floats(const attention_t *w) {
  const int64_t rows = BLOCK / STRIDE * (w->heads / w->kv_heads), cols = w->capacity / STRIDE, blocks = w->capacity / BLOCK;
  return rows * STRIDE * w->size + rows * cols + 2 * blocks;
}

// Score the blocks that a block of queries sees, [blocks]: the share of its attention that each would get. `count` of its
// queries are real; those after them weigh nothing, unless they share a stride with a real one.
static void score_blocks(const attention_t *w, int kv_head, int64_t first, int64_t count, int64_t blocks, float *scratch,
                         float *scores) {
  const int64_t H = w->size, group = w->heads / w->kv_heads, depth = STRIDE * H;
  const int64_t strides = (count + STRIDE - 1) / STRIDE, rows = strides * group, cols = blocks * (BLOCK / STRIDE);
  const float *k = w->k + ((int64_t)w->slots[0] * w->kv_heads + kv_head) * w->capacity * H;
  float *q = scratch, *dot = q + BLOCK / STRIDE * group * depth;
  const vec scale = splat(1.0f / (sqrtf((float)H) * STRIDE));
  memset(q, 0, sizeof(float) * rows * depth);
  for (int64_t t = 0; t < strides * STRIDE && first + t < w->width; t++)
    for (int64_t g = 0; g < group; g++) {
      const float *source = w->q + ((first + t) * w->heads + kv_head * group + g) * H;
      float *target = q + (t / STRIDE * group + g) * depth + (STRIDE - 1 - t % STRIDE) * H;
      for (int64_t h = 0; h < H; h += LANES) *(vec *)(target + h) = *(const vec *)(source + h) * scale;
    }
  for (int64_t r = 0; r < rows; r += SIDE)
    for (int64_t c = 0; c < cols; c += SIDE) {  // cols is a multiple of 4
      if (rows - r >= SIDE) dots(q + r * depth, k + c * depth, depth, dot + r * cols + c, cols, SIDE, SIDE);
      else
        for (int64_t i = r; i < rows; i++) dots(q + i * depth, k + c * depth, depth, dot + i * cols + c, cols, 1, SIDE);
    }
  for (int64_t b = 0; b < blocks; b++) scores[b] = 0;
  for (int64_t r = 0; r < rows; r++) {
    float *x = dot + r * cols, top = -INFINITY, total = 0;
    const int64_t to = (r / group + 1) * STRIDE < count ? (r / group + 1) * STRIDE : count;
    const int64_t seen = (w->starts[0] + first + to - 1) / STRIDE + 1;  // up to the stride's last real query
    for (int64_t c = 0; c < seen; c++) top = x[c] > top ? x[c] : top;
    for (int64_t c = 0; c < cols; c++) x[c] = c < seen ? x[c] - top : HIDDEN;
    for (int64_t c = 0; c < cols; c += 4)
      for (int64_t i = 0; i < 4; i++) x[c + i] = x[c + i] > -80 ? expf(x[c + i]) : 0, total += x[c + i];
    const float share = 1.0f / (total * (float)rows);
    for (int64_t c = 0; c < seen; c++) scores[c / (BLOCK / STRIDE)] += x[c] * share;
  }
}

// Mark the blocks that a block of queries keeps.
static void choose_blocks(const attention_t *w, int kv_head, int64_t first, int64_t count, float *scratch, uint8_t *kept,
                          float *report) {
  const int64_t start = w->starts[0] + first, own = start / BLOCK, blocks = (start + count - 1) / BLOCK + 1;
  float *scores = scratch + score_floats(w) - 2 * (w->capacity / BLOCK), *rank = scores + w->capacity / BLOCK;
  report[1] += (float)blocks, report[3] += 1;
  if (blocks <= w->num_kept) {
    memset(kept, 1, blocks);
    report[0] += (float)blocks, report[2] += 1;
    return;
  }
  score_blocks(w, kv_head, first, count, blocks, scratch, scores);
  float least = INFINITY, most = 0, total = 0;
  for (int64_t b = 0; b < blocks; b++) total += scores[b];
  for (int64_t b = 0; b < own; b++) least = scores[b] < least ? scores[b] : least, most = scores[b] > most ? scores[b] : most;
  if (most - least <= 1e-5f * most) {
    memset(kept, 1, blocks);
    report[0] += (float)blocks, report[2] += 1, report[4] += 1;
    return;
  }
  for (int64_t b = 0; b < blocks; b++) {
    rank[b] = scores[b];
    if (b >= own) rank[b] += 4;
    else if (b >= own - w->num_local || b < w->num_sinks) rank[b] += 3;
    else if (b * BLOCK < w->focus_end && (b + 1) * BLOCK > w->focus_start) rank[b] += 2;
  }
  float mass = 0;
  for (int64_t n = 0; n < w->num_kept; n++) {
    int64_t best = 0;
    for (int64_t b = 1; b < blocks; b++) best = rank[b] > rank[best] ? b : best;
    kept[best] = 1, rank[best] = -1, mass += scores[best];
  }
  report[0] += (float)w->num_kept, report[2] += mass / total;
}

static void attend_sparsely(const attention_t *w, int kv_head, int64_t first, int64_t count, float *scratch, float *report) {
  const int64_t H = w->size, group = w->heads / w->kv_heads, blocks = w->capacity / BLOCK;
  uint8_t *kept = w->kept + (kv_head * ((w->width + BLOCK - 1) / BLOCK) + first / BLOCK) * blocks;
  if (first >= w->count) {  // nothing but padding
    for (int64_t t = first; t < first + count; t++)
      memset(w->out + (t * w->heads + kv_head * group) * H, 0, sizeof(float) * H * group);
    return;
  }
  choose_blocks(w, kv_head, first, w->count - first < count ? w->count - first : count, scratch, kept, report);
  const panels_t p = begin_panels(w, 0, kv_head, first, count, scratch);
  const int64_t end = p.start + count;
  for (int64_t b = 0; b * BLOCK < end; b++)
    if (kept[b] || (b + 1) * BLOCK > w->starts[0] + w->count)  // what padding alone sees
      meet_block(w, &p, 0, kv_head, b * BLOCK, end - b * BLOCK < BLOCK ? end - b * BLOCK : BLOCK);
  end_panels(w, &p, 0, kv_head);
}

// --- the calls ------------------------------------------------------------------------------------------------------

static int64_t part_size(const attention_t *w) { return w->num_kept ? BLOCK : (w->width + w->parts - 1) / w->parts; }

static int64_t scratch_floats(const attention_t *w) {
  int64_t most = w->capacity + LANES;
  const int64_t panels = panels_floats(w, part_size(w) * (w->heads / w->kv_heads));
  if (panels > most) most = panels;
  if (w->num_kept && score_floats(w) > most) most = score_floats(w);
  return most;
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
    } else if (count > 0 && w->num_kept) {
      attend_sparsely(w, kv_head, first, count, scratch, w->reports + unit * REPORT);
    } else if (count > 0 && w->width * group >= WIDE) {
      attend_many(w, row, kv_head, (int)first, (int)count, scratch);
    } else if (count > 0) {
      attend_few(w, row, kv_head, (int)first, (int)count, scratch);
    }
  }
  free(scratch);
}

// Read arguments and results that both calls have, and write the new keys and values.
static XLA_FFI_Error *begin(XLA_FFI_CallFrame *call, attention_t *w) {
  XLA_FFI_Buffer **args = (XLA_FFI_Buffer **)call->args.args, **rets = (XLA_FFI_Buffer **)call->rets.rets;
  if (args[5]->data != rets[1]->data || args[6]->data != rets[2]->data)
    return fail(call->api, "attention: the KV must be updated in place");
  memset(w, 0, sizeof(*w));
  w->q = args[0]->data, w->k_new = args[1]->data, w->v_new = args[2]->data;
  w->slots = args[3]->data, w->starts = args[4]->data;
  w->out = rets[0]->data, w->k = rets[1]->data, w->v = rets[2]->data;
  w->rows = args[3]->dims[0], w->width = args[0]->dims[0] / w->rows, w->heads = args[0]->dims[1], w->size = args[0]->dims[2];
  w->kv_heads = args[5]->dims[1], w->capacity = args[5]->dims[2], w->window = INT64_MAX, w->parts = 1;
  const int64_t num_slots = args[5]->dims[0], H = w->size;
  for (int64_t r = 0; r < w->rows; r++) {
    if (w->slots[r] < 0) continue;
    if (w->slots[r] >= num_slots || w->starts[r] < 0 || w->starts[r] + w->width > w->capacity) {
      return fail(call->api, "attention: a row lies outside the KV");
    }
    for (int64_t t = 0; t < w->width; t++)
      for (int64_t head = 0; head < w->kv_heads; head++) {
        const int64_t from = ((r * w->width + t) * w->kv_heads + head) * H;
        const int64_t to = (((int64_t)w->slots[r] * w->kv_heads + head) * w->capacity + w->starts[r] + t) * H;
        memcpy(w->k + to, w->k_new + from, sizeof(float) * H);
        memcpy(w->v + to, w->v_new + from, sizeof(float) * H);
      }
  }
  return NULL;
}

// Attend densely on all threads: in parts of many queries, which read the KV less often, if that leaves work for all.
static void attend_all(XLA_FFI_CallFrame *call, attention_t *w) {
  int64_t keys = 0;
  for (int64_t r = 0; r < w->rows; r++) keys += w->slots[r] < 0 ? 0 : (int64_t)w->starts[r] + w->width;
  if (w->width * (w->heads / w->kv_heads) >= WIDE && w->width > 32) {
    const int64_t wanted = 2 * num_threads(call);
    int64_t size = 128;
    while (size > 32 && w->rows * w->kv_heads * ((w->width + size - 1) / size) < wanted) size /= 2;
    w->parts = (w->width + size - 1) / size;
  }
  run_units(call, attend_units, w, sizeof(*w), (int)(w->rows * w->kv_heads * w->parts), 1,
            keys * w->heads * w->size * w->width > 1 << 17);
}

// Arguments: q, k_new, v_new, slots, starts, k, v. Results: out, k, v; the last two alias the arguments. Attribute: window,
// left out where there is none.
XLA_FFI_Error *cloudcomplete_attention(XLA_FFI_CallFrame *call) {
  if (is_metadata_call(call)) return NULL;
  if (call->args.size != 7 || call->rets.size != 3) return fail(call->api, "attention: expected 7 arguments and 3 results");
  attention_t context, *w = &context;
  XLA_FFI_Error *error = begin(call, w);
  if (error) return error;
  if (call->attrs.size) w->window = *(const int64_t *)((XLA_FFI_Scalar *)call->attrs.attrs[0])->value;
  if (w->window < 1) return fail(call->api, "attention: expected a window of at least 1");
  attend_all(call, w);
  return NULL;
}

// The same for one row, and after the arguments: choice, int32 [8], `Selection` in block_sparse.py; after the results: which
// blocks were kept, uint8 [K, Q, B], and the report, float32 [REPORT].
XLA_FFI_Error *cloudcomplete_sparse_attention(XLA_FFI_CallFrame *call) {
  if (is_metadata_call(call)) return NULL;
  if (call->args.size != 8 || call->rets.size != 5)
    return fail(call->api, "sparse attention: expected 8 arguments and 5 results");
  attention_t context, *w = &context;
  XLA_FFI_Error *error = begin(call, w);
  if (error) return error;
  XLA_FFI_Buffer **args = (XLA_FFI_Buffer **)call->args.args, **rets = (XLA_FFI_Buffer **)call->rets.rets;
  const int32_t *choice = args[7]->data;
  float *report = rets[4]->data;
  const int64_t query_blocks = (w->width + BLOCK - 1) / BLOCK, blocks = w->capacity / BLOCK;
  if (w->rows != 1 || w->capacity % BLOCK) return fail(call->api, "sparse attention: expected one row, and whole blocks of KV");
  w->kept = rets[3]->data;
  memset(w->kept, 0, w->kv_heads * query_blocks * blocks);
  memset(report, 0, sizeof(float) * REPORT);
  if (w->slots[0] < 0 || !choice[0]) {
    attend_all(call, w);
    return NULL;
  }
  w->count = choice[1], w->focus_start = choice[2], w->focus_end = choice[3];
  w->num_kept = choice[4], w->num_sinks = choice[5], w->num_local = choice[6];
  if (w->count < 1 || w->count > w->width || w->num_kept < 1)
    return fail(call->api, "sparse attention: expected at least one real query and one block to keep");
  w->parts = query_blocks;
  const int units = (int)(w->kv_heads * w->parts);
  w->reports = calloc(units * REPORT, sizeof(float));
  run_units(call, attend_units, w, sizeof(*w), units, 1, 1);
  for (int u = 0; u < units; u++)
    for (int i = 0; i < REPORT; i++) report[i] += w->reports[u * REPORT + i];
  free(w->reports);
  return NULL;
}
