#include "validate.h"
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include "kernels.h"
#include <string.h>
#include "pages.h"

#define MAX_HEAD_DIM 512
#define MAX_ORDER 512

typedef struct {
  const int32_t *words;
  int64_t count, limit; /* bytes of the arena the program may touch */
  int64_t scratch;      /* bytes of scratch a thread has */
  const int32_t *at;    /* instruction or descriptor under inspection */
  const char *what;
  int64_t word;
  char *message;
  size_t size;
  int failed;
} check;

static const char *const names[] = NIBBLE_OP_NAMES;
static const int lengths[] = NIBBLE_OP_WORDS;

static __attribute__((format(printf, 2, 3))) void refuse(check *c, const char *format, ...) {
  if (c->failed) return;
  c->failed = 1;
  c->word = c->at - c->words;
  const int n = snprintf(c->message, c->size, "word %lld (%s): ", (long long)c->word, c->what);
  va_list args;
  va_start(args, format);
  vsnprintf(c->message + n, c->size - (size_t)n, format, args);
  va_end(args);
}

#define REQUIRE(condition, ...)              \
  do {                                       \
    if (!(condition)) refuse(c, __VA_ARGS__); \
  } while (0)

/* Products and sums that stay at the top instead of wrapping. */
static int64_t times(int64_t a, int64_t b) {
  int64_t r;
  return a < 0 || b < 0 || __builtin_mul_overflow(a, b, &r) ? INT64_MAX : r;
}
static int64_t plus(int64_t a, int64_t b) {
  int64_t r;
  return __builtin_add_overflow(a, b, &r) ? INT64_MAX : r;
}

/* `bytes` at a line of the arena, behind the control area. */
static void place(check *c, const char *name, int32_t line, int64_t bytes) {
  REQUIRE((int64_t)line * LINE >= CONTROL_BYTES, "%s is line %d, which is not in the arena", name, line);
  REQUIRE(plus((int64_t)line * LINE, bytes) <= c->limit, "%s ends beyond the arena (line %d, %lld bytes)", name, line,
          (long long)bytes);
}
static void optional(check *c, const char *name, int32_t line, int64_t bytes) {
  if (line != -1) place(c, name, line, bytes);
}

/* Rows of `width` elements of `bytes` each, `ld` apart. Rows that are written may not overlap. */
static void matrix(check *c, const char *name, int32_t line, int64_t ld, int64_t rows, int64_t width, int64_t bytes,
                   int written) {
  REQUIRE(ld >= 0 && width >= 0, "%s has a negative size", name);
  REQUIRE(!written || rows <= 1 || ld >= width, "rows of %s overlap (%lld apart, %lld wide)", name, (long long)ld,
          (long long)width);
  place(c, name, line, times(plus(times(rows > 0 ? rows - 1 : 0, ld), width), bytes));
}

static void needs_scratch(check *c, int64_t bytes) {
  REQUIRE(bytes <= c->scratch, "needs %lld bytes of scratch a thread, the program has %lld", (long long)bytes,
          (long long)c->scratch);
}

static int64_t limit_of(check *c, int32_t reg) {
  REQUIRE(reg >= 0 && reg < REGISTERS, "register %d", reg);
  return c->words[reg >= 1 && reg <= 15 ? H_MAX_LOGIT_ROWS : H_MAX_ROWS];
}

static void check_weight(check *c) {
  const int32_t *d = c->at;
  const int64_t n = d[W_N], k = d[W_K], panels = d[W_PANELS], groups = d[W_GROUPS], size = d[W_GROUP_SIZE];
  REQUIRE(d[W_KIND] >= KIND_F32 && d[W_KIND] <= KIND_LUT, "kind %d", d[W_KIND]);
  REQUIRE(n > 0 && k > 0 && panels == (n + 31) / 32, "shape %lld x %lld in %lld panels", (long long)n, (long long)k,
          (long long)panels);
  REQUIRE(d[W_INTERLEAVED] == 0 || n % 2 == 0, "interleaved with an odd number of channels");
  if (c->failed) return;
  optional(c, "biasAt", d[W_BIAS_AT], panels * 128);
  if (d[W_KIND] <= KIND_BF16) {
    place(c, "denseAt", d[W_DENSE_AT], times(panels * 32 * k, d[W_KIND] == KIND_F32 ? 4 : 2));
    return;
  }
  const int bits = d[W_BITS];
  REQUIRE(bits >= 1 && bits <= 8, "%d bits", bits);
  REQUIRE(d[W_K_PAD] == nb_round_up(k, 32), "kPad is %d", d[W_K_PAD]);
  REQUIRE(size >= 0 && size % 8 == 0, "groups of %lld columns", (long long)size);
  REQUIRE(groups == (size ? (k + size - 1) / size : 1), "%lld groups", (long long)groups);
  REQUIRE(d[W_SCALE_TYPE] == SCALAR_F32 || d[W_SCALE_TYPE] == SCALAR_F16, "scaleType %d", d[W_SCALE_TYPE]);
  if (c->failed) return;
  static const int segments[4] = {W_SEG8_AT, W_SEG4_AT, W_SEG2_AT, W_SEG1_AT};
  for (int i = 0; i < 4; i++) {
    const int width = 8 >> i;
    if (bits & width) place(c, "a code segment", d[segments[i]], times(panels * 4 * width, d[W_K_PAD]));
  }
  const int64_t entries = times(panels * 32, groups), scalars = times(entries, d[W_SCALE_TYPE] == SCALAR_F16 ? 2 : 4);
  if (d[W_KIND] == KIND_LUT) {
    optional(c, "scaleAt", d[W_SCALE_AT], scalars);
    optional(c, "negativeScaleAt", d[W_NEGATIVE_SCALE_AT], scalars);
    REQUIRE(d[W_TABLE_SCOPE] == 0 || d[W_TABLE_SCOPE] == 1, "tableScope %d", d[W_TABLE_SCOPE]);
    place(c, "tableAt", d[W_TABLE_AT], ((int64_t)4 << bits) * (d[W_TABLE_SCOPE] ? panels * 32 : 1));
    return;
  }
  place(c, "scaleAt", d[W_SCALE_AT], scalars);
  REQUIRE(d[W_ZERO_KIND] >= ZERO_CONST && d[W_ZERO_KIND] <= ZERO_FLOAT, "zeroKind %d", d[W_ZERO_KIND]);
  if (d[W_ZERO_KIND] != ZERO_CONST) place(c, "zeroAt", d[W_ZERO_AT], d[W_ZERO_KIND] == ZERO_INT ? entries : scalars);
  optional(c, "codeSumAt", d[W_CODE_SUM_AT], times(entries, 4));
}

/* Both planes are kivi or none is; the ring of exact rows holds the residual and all rows of a run. */
static void check_tail(check *c) {
  const int32_t *d = c->at;
  const int64_t head_dim = d[C_HEAD_DIM], residual = d[C_RESIDUAL], tokens = d[C_TAIL_TOKENS];
  const int kivi = nb_codec_is_kivi(d[C_KEY_CODEC]);
  REQUIRE(kivi == nb_codec_is_kivi(d[C_VALUE_CODEC]), "kivi keys and values go together");
  if (c->failed) return;
  if (!kivi) {
    REQUIRE(residual == 0 && tokens == 0 && d[C_TAIL_AT] == -1, "only kivi codecs have exact rows");
    return;
  }
  REQUIRE(head_dim % 32 == 0, "kivi groups are 32 wide, headDim is %lld", (long long)head_dim);
  REQUIRE(!d[C_KEY_ZERO_INT] && !d[C_VALUE_ZERO_INT], "kivi stores minima, no zero points");
  REQUIRE(residual > 0 && residual % PAGE_TOKENS == 0 && residual <= 1 << 20, "residual %lld", (long long)residual);
  REQUIRE(tokens % ATTENTION_CHUNK == 0 && tokens >= residual + c->words[H_MAX_ROWS] && tokens <= 1 << 22,
          "tailTokens %lld", (long long)tokens);
  if (c->failed) return;
  const int64_t rings = times(times(d[C_SLOTS], d[C_LAYERS]), d[C_KV_HEADS]);
  place(c, "tailAt", d[C_TAIL_AT], times(rings, times(2 * tokens, head_dim * 4)));
}

static void check_cache(check *c) {
  const int32_t *d = c->at;
  const int64_t head_dim = d[C_HEAD_DIM];
  REQUIRE(d[C_KEY_CODEC] >= 0 && d[C_KEY_CODEC] <= CODEC_KIVI2 && d[C_VALUE_CODEC] >= 0 && d[C_VALUE_CODEC] <= CODEC_KIVI2,
          "codecs %d and %d", d[C_KEY_CODEC], d[C_VALUE_CODEC]);
  REQUIRE(head_dim > 0 && head_dim % 2 == 0 && head_dim <= MAX_HEAD_DIM, "headDim %lld", (long long)head_dim);
  REQUIRE(d[C_KV_HEADS] > 0 && d[C_LAYERS] > 0 && d[C_MAX_PAGES] > 0 && d[C_PAGES] > 0 && d[C_SLOTS] > 0,
          "a size is not positive");
  REQUIRE(d[C_QUERY_BITS] == 32 || (d[C_QUERY_BITS] == 8 && nb_codec_is_int(d[C_KEY_CODEC])), "queryBits %d",
          d[C_QUERY_BITS]);
  if (c->failed) return;
  REQUIRE(d[C_KEY_CODEC] != CODEC_INT4 || head_dim % 8 == 0, "int4 keys of %lld dims", (long long)head_dim);
  REQUIRE(d[C_KEY_CODEC] != CODEC_INT8 || head_dim % 4 == 0, "int8 keys of %lld dims", (long long)head_dim);
  REQUIRE(!d[C_HADAMARD] || (head_dim & (head_dim - 1)) == 0, "Hadamard of %lld dims", (long long)head_dim);
  const int64_t parameters = 2 * 2 * PAGE_TOKENS;
  int64_t planes[2];
  for (int i = 0; i < 2; i++) {
    const int codec = d[i ? C_VALUE_CODEC : C_KEY_CODEC];
    planes[i] = nb_round_up(nb_plane_bytes(codec, head_dim), LINE) +
                (nb_codec_is_int(codec) ? parameters : nb_codec_is_kivi(codec) ? 4 * head_dim : 0);
  }
  REQUIRE((int64_t)d[C_KEY_LINES] * LINE >= planes[0], "keyLines %d", d[C_KEY_LINES]);
  REQUIRE(((int64_t)d[C_HEAD_LINES] - d[C_KEY_LINES]) * LINE >= planes[1], "headLines %d", d[C_HEAD_LINES]);
  REQUIRE(d[C_PAGE_LINES] >= times(d[C_KV_HEADS], d[C_HEAD_LINES]), "pageLines %d", d[C_PAGE_LINES]);
  place(c, "poolAt", d[C_POOL_AT], times(times(d[C_PAGES], d[C_PAGE_LINES]), LINE));
  place(c, "tableAt", d[C_TABLE_AT], times(times(times(d[C_SLOTS], d[C_LAYERS]), d[C_MAX_PAGES]), 4));
  check_tail(c);
}

static const int32_t *weight_of(check *c, int32_t index) {
  REQUIRE(index >= 0 && index < c->words[H_WEIGHTS], "weight %d", index);
  return c->words + c->words[H_WEIGHTS_START] + (c->failed ? 0 : (int64_t)index * WEIGHT_WORDS);
}

/* The cache an attention op names, with the shape the op has. */
static const int32_t *cache_of(check *c, int32_t index, int32_t heads, int32_t kv_heads, int32_t head_dim, int32_t layer) {
  REQUIRE(index >= 0 && index < c->words[H_CACHES], "cache %d", index);
  const int32_t *d = c->words + c->words[H_CACHES_START] + (c->failed ? 0 : (int64_t)index * CACHE_WORDS);
  if (c->failed) return d;
  REQUIRE(d[C_KV_HEADS] == kv_heads && d[C_HEAD_DIM] == head_dim, "cache of %d heads of %d, op of %d heads of %d",
          d[C_KV_HEADS], d[C_HEAD_DIM], kv_heads, head_dim);
  REQUIRE(heads >= kv_heads, "%d query heads", heads);
  REQUIRE(layer >= 0 && layer < d[C_LAYERS], "layer %d", layer);
  return d;
}

static void check_quantize(check *c, int64_t rows) {
  const int32_t *i = c->at;
  const int64_t width = i[QUANTIZE_WIDTH], size = i[QUANTIZE_GROUP_SIZE];
  REQUIRE(width > 0 && size >= 0, "width %lld in groups of %lld", (long long)width, (long long)size);
  REQUIRE(i[QUANTIZE_BITS] >= 2 && i[QUANTIZE_BITS] <= 8, "%d bits", i[QUANTIZE_BITS]);
  REQUIRE(i[QUANTIZE_SYMMETRIC] >= 0 && i[QUANTIZE_SYMMETRIC] <= 3, "symmetric %d", i[QUANTIZE_SYMMETRIC]);
  if (c->failed) return;
  const int64_t groups = size ? (width + size - 1) / size : 1;
  const int64_t scales = times(times(rows, i[QUANTIZE_SYMMETRIC] & 2 ? 1 : groups), 4);
  matrix(c, "srcAt", i[QUANTIZE_SRC_AT], i[QUANTIZE_LD_SRC], rows, width, 4, 0);
  matrix(c, "codesAt", i[QUANTIZE_CODES_AT], i[QUANTIZE_LD_CODES], rows, nb_round_up(width, 32), 1, 1);
  place(c, "scaleAt", i[QUANTIZE_SCALE_AT], scales);
  place(c, "sumAt", i[QUANTIZE_SUM_AT], times(times(rows, groups), 4));
  if (!(i[QUANTIZE_SYMMETRIC] & 1)) place(c, "zeroAt", i[QUANTIZE_ZERO_AT], scales);
}

/* `f` points so that HADAMARD_… indices of blocks and what follows fit. Returns the width. */
static int64_t check_hadamard(check *c, const int32_t *f) {
  const int64_t k = f[HADAMARD_ORDER_K], m = f[HADAMARD_ORDER_M];
  REQUIRE(f[HADAMARD_BLOCKS] > 0 && f[HADAMARD_INNER] > 0, "an empty block");
  REQUIRE(k >= 1 && k <= MAX_ORDER, "orderK %lld", (long long)k);
  REQUIRE(m >= 1 && (m & (m - 1)) == 0, "orderM %lld", (long long)m);
  if (c->failed) return 0;
  const int64_t width = times(times(f[HADAMARD_BLOCKS], f[HADAMARD_INNER]), k * m);
  if (k > 1) place(c, "matrixAt", f[HADAMARD_MATRIX_AT], k * k);
  optional(c, "preSignAt", f[HADAMARD_PRE_SIGN_AT], times(width, 4));
  optional(c, "postSignAt", f[HADAMARD_POST_SIGN_AT], times(width, 4));
  return width;
}

static void check_linear_output(check *c, const int32_t *w, int64_t rows, int32_t at, int32_t ld, int32_t epilogue) {
  REQUIRE(epilogue >= EPILOGUE_STORE && epilogue <= EPILOGUE_SWIGLU, "epilogue %d", epilogue);
  REQUIRE((epilogue == EPILOGUE_SWIGLU) == (w[W_INTERLEAVED] != 0), "swiglu goes with interleaved weights only");
  matrix(c, "dstAt", at, ld, rows, epilogue == EPILOGUE_SWIGLU ? w[W_N] / 2 : w[W_N], 4, 1);
}

static void check_append(check *c, int64_t rows) {
  const int32_t *i = c->at;
  const int64_t heads = i[APPEND_KV_HEADS], dim = i[APPEND_KV_HEAD_DIM];
  const int32_t *d = cache_of(c, i[APPEND_KV_CACHE_C], i[APPEND_KV_HEADS], i[APPEND_KV_KV_HEADS], i[APPEND_KV_HEAD_DIM],
                              i[APPEND_KV_LAYER]);
  if (c->failed) return;
  const int64_t table = times(times((int64_t)d[C_MAX_PAGES] * PAGE_TOKENS, dim / 2), 4), queries = times(rows, heads);
  matrix(c, "qkvAt", i[APPEND_KV_QKV_AT], i[APPEND_KV_LD_QKV], rows, times(heads + 2 * (int64_t)i[APPEND_KV_KV_HEADS], dim),
         4, 0);
  place(c, "positionsAt", i[APPEND_KV_POSITIONS_AT], rows * 4);
  place(c, "sequencesAt", i[APPEND_KV_SEQUENCES_AT], rows * 4);
  place(c, "cosAt", i[APPEND_KV_COS_AT], table);
  place(c, "sinAt", i[APPEND_KV_SIN_AT], table);
  optional(c, "queryGainAt", i[APPEND_KV_QUERY_GAIN_AT], dim * 4);
  optional(c, "keyGainAt", i[APPEND_KV_KEY_GAIN_AT], dim * 4);
  place(c, "queryAt", i[APPEND_KV_QUERY_AT], times(times(queries, dim), d[C_QUERY_BITS] == 8 ? 1 : 4));
  if (d[C_QUERY_BITS] == 8) {
    place(c, "queryScaleAt", i[APPEND_KV_QUERY_SCALE_AT], times(queries, 4));
    place(c, "querySumAt", i[APPEND_KV_QUERY_SUM_AT], times(queries, 4));
  }
}

static void check_attention(check *c, int64_t rows) {
  const int32_t *i = c->at;
  const int64_t heads = i[ATTENTION_HEADS], dim = i[ATTENTION_HEAD_DIM];
  const int32_t *d = cache_of(c, i[ATTENTION_CACHE_C], i[ATTENTION_HEADS], i[ATTENTION_KV_HEADS], i[ATTENTION_HEAD_DIM],
                              i[ATTENTION_LAYER]);
  if (c->failed) return;
  const int64_t queries = times(rows, heads), padded = nb_round_up(dim, 32);
  place(c, "positionsAt", i[ATTENTION_POSITIONS_AT], rows * 4);
  place(c, "sequencesAt", i[ATTENTION_SEQUENCES_AT], rows * 4);
  place(c, "queryAt", i[ATTENTION_QUERY_AT], times(times(queries, dim), d[C_QUERY_BITS] == 8 ? 1 : 4));
  if (d[C_QUERY_BITS] == 8) {
    place(c, "queryScaleAt", i[ATTENTION_QUERY_SCALE_AT], times(queries, 4));
    place(c, "querySumAt", i[ATTENTION_QUERY_SUM_AT], times(queries, 4));
  }
  matrix(c, "dstAt", i[ATTENTION_DST_AT], i[ATTENTION_LD_DST], rows, times(heads, dim), 4, 1);
  REQUIRE(i[ATTENTION_SLIDING_WINDOW] >= 0, "slidingWindow %d", i[ATTENTION_SLIDING_WINDOW]);
  REQUIRE(i[ATTENTION_PARTS_AT] == -1 || i[ATTENTION_PARTS_LINES] >= 0, "partsLines %d", i[ATTENTION_PARTS_LINES]);
  optional(c, "partsAt", i[ATTENTION_PARTS_AT], times(i[ATTENTION_PARTS_LINES], LINE));
  needs_scratch(c, 4 * (48 * 128 + 128 * padded + (dim > 256 ? 24 : 48) * 3 * padded));
}

static void check_attend_tile(check *c, int64_t rows) {
  const int32_t *i = c->at;
  const int64_t heads = i[ATTEND_TILE_HEADS], kv_heads = i[ATTEND_TILE_KV_HEADS], dim = i[ATTEND_TILE_HEAD_DIM];
  const int64_t slots = i[ATTEND_TILE_SLOTS];
  REQUIRE(heads > 0 && kv_heads > 0 && dim > 0 && slots > 0, "a size is not positive");
  if (c->failed) return;
  REQUIRE(heads % kv_heads == 0, "%lld heads do not share %lld KV heads", (long long)heads, (long long)kv_heads);
  const int64_t tile = times(times(times(kv_heads, slots), dim), 4), queries = times(rows, heads);
  matrix(c, "queryAt", i[ATTEND_TILE_QUERY_AT], i[ATTEND_TILE_LD_QUERY], rows, times(heads, dim), 4, 0);
  place(c, "keysAt", i[ATTEND_TILE_KEYS_AT], tile);
  place(c, "valuesAt", i[ATTEND_TILE_VALUES_AT], tile);
  place(c, "rangesAt", i[ATTEND_TILE_RANGES_AT], times(times(rows, kv_heads), 8));
  place(c, "stateAt", i[ATTEND_TILE_STATE_AT], times(queries, times(dim + 2, 4)));
  optional(c, "logitsAt", i[ATTEND_TILE_LOGITS_AT], times(queries, times(slots, 4)));
}

static void check_gemm(check *c, int64_t rows) {
  const int32_t *i = c->at;
  const int64_t cols = i[GEMM_COLS], inner = i[GEMM_INNER];
  REQUIRE(cols > 0 && inner > 0, "product of %lld columns over %lld", (long long)cols, (long long)inner);
  REQUIRE(i[GEMM_A_SKIP] >= 0 && i[GEMM_B_SKIP] >= 0 && i[GEMM_C_SKIP] >= 0, "a negative skip");
  REQUIRE(i[GEMM_LDA] >= 0 && i[GEMM_LDB] >= 0 && i[GEMM_LDC] >= (rows > 1 ? cols : 0), "leading dimensions %d, %d, %d",
          i[GEMM_LDA], i[GEMM_LDB], i[GEMM_LDC]);
  if (c->failed) return;
#define EXTENT(skip, ld, high, wide) times(plus(skip, plus(times(high - 1, ld), wide)), 4)
  place(c, "aAt", i[GEMM_A_AT],
        i[GEMM_TRANS_A] ? EXTENT(i[GEMM_A_SKIP], i[GEMM_LDA], inner, rows) : EXTENT(i[GEMM_A_SKIP], i[GEMM_LDA], rows, inner));
  place(c, "bAt", i[GEMM_B_AT],
        i[GEMM_TRANS_B] ? EXTENT(i[GEMM_B_SKIP], i[GEMM_LDB], cols, inner) : EXTENT(i[GEMM_B_SKIP], i[GEMM_LDB], inner, cols));
  place(c, "cAt", i[GEMM_C_AT], EXTENT(i[GEMM_C_SKIP], i[GEMM_LDC], rows, cols));
#undef EXTENT
  needs_scratch(c, times(inner, 128));
}

static void check_rows_op(check *c, int64_t rows) {
  const int32_t *i = c->at;
  const int32_t *w;
  int64_t width;
  switch (i[0]) {
    case OP_EMBED:
      w = weight_of(c, i[EMBED_TABLE_W]);
      if (c->failed) return;
      REQUIRE(w[W_KIND] != KIND_LUT && !w[W_INTERLEAVED], "a table of this kind");
      place(c, "tokensAt", i[EMBED_TOKENS_AT], rows * 4);
      matrix(c, "dstAt", i[EMBED_DST_AT], i[EMBED_LD_DST], rows, w[W_K], 4, 1);
      return;
    case OP_RMSNORM:
      width = i[RMSNORM_WIDTH];
      REQUIRE(width > 0, "width %lld", (long long)width);
      matrix(c, "srcAt", i[RMSNORM_SRC_AT], i[RMSNORM_LD_SRC], rows, width, 4, 0);
      matrix(c, "dstAt", i[RMSNORM_DST_AT], i[RMSNORM_LD_DST], rows, width, 4, 1);
      optional(c, "gainAt", i[RMSNORM_GAIN_AT], times(width, 4));
      return;
    case OP_QUANTIZE:
      check_quantize(c, rows);
      return;
    case OP_RMSNORM_QUANTIZE:
      check_quantize(c, rows);
      optional(c, "gainAt", i[RMSNORM_QUANTIZE_GAIN_AT], times(i[QUANTIZE_WIDTH], 4));
      needs_scratch(c, times(i[QUANTIZE_WIDTH], 4));
      return;
    case OP_HADAMARD_QUANTIZE: {
      check_quantize(c, rows);
      width = check_hadamard(c, i + HADAMARD_QUANTIZE_BLOCKS - HADAMARD_BLOCKS);
      REQUIRE(width == i[QUANTIZE_WIDTH], "width %d, transform of %lld", i[QUANTIZE_WIDTH], (long long)width);
      const int64_t k = i[HADAMARD_QUANTIZE_ORDER_K];
      needs_scratch(c, plus(times(width, 4), 64 + k * k * 4));
      return;
    }
    case OP_HADAMARD:
      width = check_hadamard(c, i);
      matrix(c, "srcAt", i[HADAMARD_SRC_AT], i[HADAMARD_LD_SRC], rows, width, 4, 0);
      matrix(c, "dstAt", i[HADAMARD_DST_AT], i[HADAMARD_LD_DST], rows, width, 4, 1);
      needs_scratch(c, (int64_t)i[HADAMARD_ORDER_K] * i[HADAMARD_ORDER_K] * 4);
      return;
    case OP_MIX_HEADS:
      REQUIRE(i[MIX_HEADS_COUNT] > 0 && i[MIX_HEADS_COUNT] <= MAX_ORDER && i[MIX_HEADS_INNER] > 0, "%d heads of %d",
              i[MIX_HEADS_COUNT], i[MIX_HEADS_INNER]);
      width = times(i[MIX_HEADS_COUNT], i[MIX_HEADS_INNER]);
      matrix(c, "srcAt", i[MIX_HEADS_SRC_AT], i[MIX_HEADS_LD_SRC], rows, width, 4, 0);
      matrix(c, "dstAt", i[MIX_HEADS_DST_AT], i[MIX_HEADS_LD_DST], rows, width, 4, 1);
      place(c, "matrixAt", i[MIX_HEADS_MATRIX_AT], times(times(i[MIX_HEADS_COUNT], i[MIX_HEADS_COUNT]), 4));
      return;
    case OP_COLUMNS:
      width = i[COLUMNS_WIDTH];
      matrix(c, "srcAt", i[COLUMNS_SRC_AT], i[COLUMNS_LD_SRC], rows, width, 4, 0);
      matrix(c, "dstAt", i[COLUMNS_DST_AT], i[COLUMNS_LD_DST], rows, width, 4, 1);
      optional(c, "permAt", i[COLUMNS_PERM_AT], times(width, 4));
      optional(c, "scaleAt", i[COLUMNS_SCALE_AT], times(width, 4));
      return;
    case OP_LINEAR_INT: {
      w = weight_of(c, i[LINEAR_INT_WEIGHT_W]);
      if (c->failed) return;
      const int64_t groups = w[W_GROUPS], entries = i[LINEAR_INT_ACTIVATION_GROUPS];
      REQUIRE(w[W_KIND] == KIND_GINT, "a weight of kind %d", w[W_KIND]);
      REQUIRE(groups == 1 || w[W_GROUP_SIZE] % 32 == 0, "groups of %d columns", w[W_GROUP_SIZE]);
      REQUIRE(entries == 1 || entries == groups, "%lld activation groups, %lld weight groups", (long long)entries,
              (long long)groups);
      REQUIRE(i[LINEAR_INT_ZERO_AT] == -1 || w[W_CODE_SUM_AT] >= 0, "asymmetric activations need code sums");
      matrix(c, "codesAt", i[LINEAR_INT_CODES_AT], i[LINEAR_INT_LD_CODES], rows, w[W_K_PAD], 1, 0);
      place(c, "scaleAt", i[LINEAR_INT_SCALE_AT], times(times(rows, entries), 4));
      place(c, "sumAt", i[LINEAR_INT_SUM_AT], times(times(rows, groups), 4));
      optional(c, "zeroAt", i[LINEAR_INT_ZERO_AT], times(times(rows, entries), 4));
      REQUIRE(i[LINEAR_INT_LD_CODES] > 0, "ldCodes %d", i[LINEAR_INT_LD_CODES]);
      check_linear_output(c, w, rows, i[LINEAR_INT_DST_AT], i[LINEAR_INT_LD_DST], i[LINEAR_INT_EPILOGUE]);
      needs_scratch(c, (int64_t)w[W_K_PAD] * 32);
      return;
    }
    case OP_LINEAR_FLOAT:
      w = weight_of(c, i[LINEAR_FLOAT_WEIGHT_W]);
      if (c->failed) return;
      matrix(c, "srcAt", i[LINEAR_FLOAT_SRC_AT], i[LINEAR_FLOAT_LD_SRC], rows, w[W_K], 4, 0);
      check_linear_output(c, w, rows, i[LINEAR_FLOAT_DST_AT], i[LINEAR_FLOAT_LD_DST], i[LINEAR_FLOAT_EPILOGUE]);
      needs_scratch(c, nb_max(16384, (int64_t)w[W_K] * 128));
      return;
    case OP_SILU_MUL:
      width = i[SILU_MUL_WIDTH];
      matrix(c, "gateAt", i[SILU_MUL_GATE_AT], i[SILU_MUL_LD_GATE], rows, width, 4, 0);
      matrix(c, "upAt", i[SILU_MUL_UP_AT], i[SILU_MUL_LD_UP], rows, width, 4, 0);
      matrix(c, "dstAt", i[SILU_MUL_DST_AT], i[SILU_MUL_LD_DST], rows, width, 4, 1);
      return;
    case OP_ADD:
      matrix(c, "srcAt", i[ADD_SRC_AT], i[ADD_LD_SRC], rows, i[ADD_WIDTH], 4, 0);
      matrix(c, "dstAt", i[ADD_DST_AT], i[ADD_LD_DST], rows, i[ADD_WIDTH], 4, 1);
      return;
    case OP_APPEND_KV:
      check_append(c, rows);
      return;
    case OP_ATTENTION:
      check_attention(c, rows);
      return;
    case OP_GATHER_ROWS: /* indices run to maxRows */
      width = i[GATHER_ROWS_WIDTH];
      matrix(c, "srcAt", i[GATHER_ROWS_SRC_AT], i[GATHER_ROWS_LD_SRC], c->words[H_MAX_ROWS], width, 4, 0);
      matrix(c, "dstAt", i[GATHER_ROWS_DST_AT], i[GATHER_ROWS_LD_DST], rows, width, 4, 1);
      place(c, "indexAt", i[GATHER_ROWS_INDEX_AT], rows * 4);
      return;
    case OP_SCATTER_ADD_ROWS:
      width = i[SCATTER_ADD_ROWS_WIDTH];
      matrix(c, "srcAt", i[SCATTER_ADD_ROWS_SRC_AT], i[SCATTER_ADD_ROWS_LD_SRC], rows, width, 4, 0);
      matrix(c, "dstAt", i[SCATTER_ADD_ROWS_DST_AT], i[SCATTER_ADD_ROWS_LD_DST], c->words[H_MAX_ROWS], width, 4, 1);
      place(c, "indexAt", i[SCATTER_ADD_ROWS_INDEX_AT], rows * 4);
      optional(c, "weightAt", i[SCATTER_ADD_ROWS_WEIGHT_AT], rows * 4);
      return;
    case OP_ROUTE: {
      const int64_t experts = i[ROUTE_EXPERTS];
      REQUIRE(experts > 0 && i[ROUTE_COUNT_REG] >= 0 && i[ROUTE_COUNT_REG] + experts <= REGISTERS,
              "%lld experts with counts from register %d", (long long)experts, i[ROUTE_COUNT_REG]);
      REQUIRE(i[ROUTE_TOP_K] > 0 && i[ROUTE_TOP_K] <= experts, "topK %d", i[ROUTE_TOP_K]);
      REQUIRE(i[ROUTE_LD_LISTS] >= rows, "lists of %d for %lld rows", i[ROUTE_LD_LISTS], (long long)rows);
      matrix(c, "logitsAt", i[ROUTE_LOGITS_AT], i[ROUTE_LD_LOGITS], rows, experts, 4, 0);
      place(c, "indexAt", i[ROUTE_INDEX_AT], times(times(experts, i[ROUTE_LD_LISTS]), 4));
      place(c, "weightAt", i[ROUTE_WEIGHT_AT], times(times(experts, i[ROUTE_LD_LISTS]), 4));
      return;
    }
    case OP_LOGIT_STATS:
      width = i[LOGIT_STATS_WIDTH];
      REQUIRE(width > 0, "width %lld", (long long)width);
      matrix(c, "logitsAt", i[LOGIT_STATS_LOGITS_AT], i[LOGIT_STATS_LD_LOGITS], rows, width, 4, 0);
      optional(c, "targetsAt", i[LOGIT_STATS_TARGETS_AT], rows * 4);
      place(c, "dstAt", i[LOGIT_STATS_DST_AT], rows * 16);
      return;
    case OP_KL_DIVERGENCE:
      width = i[KL_DIVERGENCE_WIDTH];
      REQUIRE(width > 0, "width %lld", (long long)width);
      matrix(c, "referenceAt", i[KL_DIVERGENCE_REFERENCE_AT], i[KL_DIVERGENCE_LD_REFERENCE], rows, width, 4, 0);
      matrix(c, "logitsAt", i[KL_DIVERGENCE_LOGITS_AT], i[KL_DIVERGENCE_LD_LOGITS], rows, width, 4, 0);
      place(c, "dstAt", i[KL_DIVERGENCE_DST_AT], rows * 8);
      return;
    case OP_CSR:
      matrix(c, "srcAt", i[CSR_SRC_AT], i[CSR_LD_SRC], rows, i[CSR_LD_SRC], 4, 0);
      matrix(c, "dstAt", i[CSR_DST_AT], i[CSR_LD_DST], rows, i[CSR_OUTPUTS], 4, 1);
      place(c, "rowPointersAt", i[CSR_ROW_POINTERS_AT], ((int64_t)i[CSR_OUTPUTS] + 1) * 4);
      place(c, "columnsAt", i[CSR_COLUMNS_AT], 0);
      place(c, "valuesAt", i[CSR_VALUES_AT], 0);
      return;
    case OP_GRAM:
      width = i[GRAM_WIDTH];
      matrix(c, "srcAt", i[GRAM_SRC_AT], i[GRAM_LD_SRC], rows, width, 4, 0);
      place(c, "gramAt", i[GRAM_GRAM_AT], times(times(width, width), 8));
      needs_scratch(c, 512 * (32 + 96) * 4);
      return;
    case OP_ABS_STATS:
      width = i[ABS_STATS_WIDTH];
      matrix(c, "srcAt", i[ABS_STATS_SRC_AT], i[ABS_STATS_LD_SRC], rows, width, 4, 0);
      place(c, "sumAbsAt", i[ABS_STATS_SUM_ABS_AT], times(width, 8));
      place(c, "maxAbsAt", i[ABS_STATS_MAX_ABS_AT], times(width, 4));
      return;
    case OP_GEMM:
      check_gemm(c, rows);
      return;
    case OP_ATTEND_TILE:
      check_attend_tile(c, rows);
      return;
    case OP_ROUND_FLOAT: {
      float largest;
      memcpy(&largest, &i[ROUND_FLOAT_LARGEST_F], 4);
      REQUIRE(i[ROUND_FLOAT_MANTISSA] >= 0 && i[ROUND_FLOAT_MANTISSA] <= 10 && i[ROUND_FLOAT_MIN_EXPONENT] >= -30 &&
                  i[ROUND_FLOAT_MIN_EXPONENT] <= 0 && largest >= 1 && largest <= 65504,
              "floats of %d mantissa bits, exponents from %d", i[ROUND_FLOAT_MANTISSA], i[ROUND_FLOAT_MIN_EXPONENT]);
      width = i[ROUND_FLOAT_WIDTH];
      matrix(c, "srcAt", i[ROUND_FLOAT_SRC_AT], i[ROUND_FLOAT_LD_SRC], rows, width, 4, 0);
      matrix(c, "dstAt", i[ROUND_FLOAT_DST_AT], i[ROUND_FLOAT_LD_DST], rows, width, 4, 1);
      return;
    }
    case OP_DEQUANTIZE: {
      width = i[DEQUANTIZE_WIDTH];
      const int64_t size = i[DEQUANTIZE_GROUP_SIZE];
      REQUIRE(width > 0 && size >= 0, "width %lld in groups of %lld", (long long)width, (long long)size);
      if (c->failed) return;
      const int64_t entries = times(times(rows, size ? (width + size - 1) / size : 1), 4);
      matrix(c, "codesAt", i[DEQUANTIZE_CODES_AT], i[DEQUANTIZE_LD_CODES], rows, width, 1, 0);
      matrix(c, "dstAt", i[DEQUANTIZE_DST_AT], i[DEQUANTIZE_LD_DST], rows, width, 4, 1);
      place(c, "scaleAt", i[DEQUANTIZE_SCALE_AT], entries);
      optional(c, "zeroAt", i[DEQUANTIZE_ZERO_AT], entries);
      return;
    }
  }
}

static void check_instruction(check *c) {
  const int32_t *i = c->at;
  if (i[0] != OP_INVERSE_FACTOR) {
    const int64_t rows = limit_of(c, i[2]);
    if (!c->failed) check_rows_op(c, rows);
    return;
  }
  const int64_t n = i[INVERSE_FACTOR_SIZE];
  REQUIRE(n > 0, "size %lld", (long long)n);
  place(c, "hessianAt", i[INVERSE_FACTOR_HESSIAN_AT], times(times(n, n), 8));
  place(c, "factorAt", i[INVERSE_FACTOR_FACTOR_AT], times(times(n, n), 4));
  place(c, "statusAt", i[INVERSE_FACTOR_STATUS_AT], 4);
  needs_scratch(c, 96 * 96 * 8 + 1024 * (12 + 16) * 8);
}

static void check_header(check *c, int64_t arena_bytes, int threads) {
  const int32_t *w = c->words;
  REQUIRE(c->count >= HEADER_WORDS + 1, "%lld words are not a program", (long long)c->count);
  if (c->failed) return;
  REQUIRE(w[H_MAGIC] == PROGRAM_MAGIC && w[H_VERSION] == PROGRAM_VERSION, "magic %d, version %d", w[H_MAGIC], w[H_VERSION]);
  REQUIRE(w[H_TOTAL_WORDS] == c->count, "totalWords %d, there are %lld", w[H_TOTAL_WORDS], (long long)c->count);
  const int64_t weights_end = w[H_WEIGHTS_START] + times(w[H_WEIGHTS], WEIGHT_WORDS);
  const int64_t caches_end = w[H_CACHES_START] + times(w[H_CACHES], CACHE_WORDS);
  REQUIRE(w[H_WEIGHTS] >= 0 && w[H_WEIGHTS_START] >= HEADER_WORDS && weights_end <= c->count, "weights outside the program");
  REQUIRE(w[H_CACHES] >= 0 && w[H_CACHES_START] >= HEADER_WORDS && caches_end <= c->count, "caches outside the program");
  REQUIRE(w[H_CODE_START] >= HEADER_WORDS && w[H_CODE_START] < c->count, "codeStart %d", w[H_CODE_START]);
  REQUIRE(w[H_MAX_ROWS] > 0 && w[H_MAX_LOGIT_ROWS] > 0, "maxRows %d, maxLogitRows %d", w[H_MAX_ROWS], w[H_MAX_LOGIT_ROWS]);
  c->limit = times(w[H_ARENA_LINES], LINE);
  REQUIRE(c->limit <= arena_bytes, "arenaLines %d, the arena has %lld", w[H_ARENA_LINES], (long long)(arena_bytes / LINE));
  REQUIRE(w[H_SCRATCH_LINES] >= 0, "scratchLines %d", w[H_SCRATCH_LINES]);
  if (c->failed) return;
  c->scratch = (int64_t)w[H_SCRATCH_LINES] * LINE;
  place(c, "scratchAt", w[H_SCRATCH_AT], times(c->scratch, threads));
}

int nb_validate(const int32_t *words, int64_t count, int64_t arena_bytes, int threads, int64_t *word, char *message,
                size_t size) {
  check state = {.words = words, .count = count, .at = words, .what = "header", .message = message, .size = size};
  check *c = &state;
  check_header(c, arena_bytes, threads);
  for (int32_t i = 0; !c->failed && i < words[H_WEIGHTS]; i++) {
    c->at = words + words[H_WEIGHTS_START] + (int64_t)i * WEIGHT_WORDS;
    c->what = "weight";
    check_weight(c);
  }
  for (int32_t i = 0; !c->failed && i < words[H_CACHES]; i++) {
    c->at = words + words[H_CACHES_START] + (int64_t)i * CACHE_WORDS;
    c->what = "cache";
    check_cache(c);
  }
  int64_t at = c->failed ? 0 : words[H_CODE_START];
  while (!c->failed) {
    c->at = words + at;
    c->what = "instruction";
    REQUIRE(at < count, "the program has no end mark");
    if (c->failed || words[at] == 0) break;
    REQUIRE(words[at] > 0 && words[at] <= OP_COUNT, "no op has the number %d", words[at]);
    if (c->failed) break;
    c->what = names[words[at]];
    REQUIRE(at + 1 < count && words[at + 1] == lengths[words[at]], "the op has %d words", lengths[words[at]]);
    REQUIRE(at + lengths[words[at]] < count, "the program ends inside the instruction");
    if (!c->failed) check_instruction(c);
    at += lengths[words[at]];
  }
  *word = c->word;
  return !c->failed;
}
