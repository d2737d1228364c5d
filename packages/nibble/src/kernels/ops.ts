/**
 * The instruction set of the flat program, as one table. `scripts/generate-ops.mjs` writes the same
 * numbers as `assembly/ops.ts` and `native/src/ops.h`, so the three executors cannot drift apart.
 *
 * A program is an Int32Array: header, weight descriptors, instructions. An instruction is
 * `[opcode, words, ...operands]`, `words` counts all of them. Operand kinds, by the suffix of their name:
 *   `…At`   place in the arena, in lines of 64 bytes; -1 = absent where the op allows it
 *   `…Reg`  number of a register (i32 at arena byte 4 * number) read when the program runs
 *   `…F`    an f32, stored as its bits
 *   `…W`    index of a weight descriptor
 *   else    a plain integer
 * Semantics and the exact order of floating-point operations of every op: `docs/engine.md`.
 */

/** Operand names of each op, in order. Position in this object + 1 is the opcode. */
export const OPS = {
  /** dst[m] = row tokens[m] of the table, f32. */
  embed: ["rowsReg", "dstAt", "ldDst", "tokensAt", "tableW"],
  /** dst = x / rms(x) * gain. */
  rmsnorm: ["rowsReg", "srcAt", "ldSrc", "dstAt", "ldDst", "width", "gainAt", "epsilonF"],
  /** f32 rows -> integer codes, scale, sum (and zero) per token and group. */
  quantize: [
    "rowsReg",
    "srcAt",
    "ldSrc",
    "width",
    "codesAt",
    "ldCodes",
    "scaleAt",
    "sumAt",
    "zeroAt",
    "bits",
    "symmetric",
    "groupSize",
    "clipF",
  ],
  /** rmsnorm into scratch, then quantize: one pass over each row. */
  rmsnormQuantize: [
    "rowsReg",
    "srcAt",
    "ldSrc",
    "width",
    "codesAt",
    "ldCodes",
    "scaleAt",
    "sumAt",
    "zeroAt",
    "bits",
    "symmetric",
    "groupSize",
    "clipF",
    "gainAt",
    "epsilonF",
  ],
  /** hadamard into scratch, then quantize: one pass over each row. */
  hadamardQuantize: [
    "rowsReg",
    "srcAt",
    "ldSrc",
    "width",
    "codesAt",
    "ldCodes",
    "scaleAt",
    "sumAt",
    "zeroAt",
    "bits",
    "symmetric",
    "groupSize",
    "clipF",
    "blocks",
    "orderK",
    "orderM",
    "inner",
    "matrixAt",
    "transpose",
    "preSignAt",
    "postSignAt",
    "normF",
  ],
  /** dst = blockDiagonal(kron(A_k, S_m) (x) I_inner) src * norm; A_k is i8 [k, k] of +-1 at matrixAt (k = 1: absent). */
  hadamard: [
    "rowsReg",
    "srcAt",
    "ldSrc",
    "dstAt",
    "ldDst",
    "blocks",
    "orderK",
    "orderM",
    "inner",
    "matrixAt",
    "transpose",
    "preSignAt",
    "postSignAt",
    "normF",
  ],
  /** dst[h] = sum_j M[h, j] src[j] over `count` heads of `inner` channels; M f32 [count, count]. */
  mixHeads: ["rowsReg", "srcAt", "ldSrc", "dstAt", "ldDst", "count", "inner", "matrixAt"],
  /** dst[m, k] = src[m, perm[k]] (perm i32), then * scale[k] (f32); either may be absent. */
  columns: ["rowsReg", "srcAt", "ldSrc", "dstAt", "ldDst", "width", "permAt", "scaleAt"],
  /** Q1: integer GEMM/GEMV on codes. epilogue: 0 store, 1 dst += y, 2 swiglu (gate/up interleaved weight). */
  linearInt: [
    "rowsReg",
    "codesAt",
    "ldCodes",
    "scaleAt",
    "sumAt",
    "zeroAt",
    "activationGroups",
    "weightW",
    "dstAt",
    "ldDst",
    "epilogue",
  ],
  /** F1: f32 activations with any weight descriptor. Epilogues as linearInt. */
  linearFloat: ["rowsReg", "srcAt", "ldSrc", "weightW", "dstAt", "ldDst", "epilogue"],
  /** dst = silu(gate) * up, where the two are separate buffers. */
  siluMul: ["rowsReg", "gateAt", "ldGate", "upAt", "ldUp", "dstAt", "ldDst", "width"],
  /** dst += alpha * src. */
  add: ["rowsReg", "srcAt", "ldSrc", "dstAt", "ldDst", "width", "alphaF"],
  /** QK-norm, RoPE, head Hadamard, query quantization; append of K and V to the packed pages. */
  appendKv: [
    "rowsReg",
    "qkvAt",
    "ldQkv",
    "positionsAt",
    "sequencesAt",
    "cosAt",
    "sinAt",
    "heads",
    "kvHeads",
    "headDim",
    "queryGainAt",
    "keyGainAt",
    "epsilonF",
    "cacheC",
    "layer",
    "queryAt",
    "queryScaleAt",
    "querySumAt",
  ],
  /** Softmax attention straight over the packed pages. */
  attention: [
    "rowsReg",
    "positionsAt",
    "sequencesAt",
    "heads",
    "kvHeads",
    "headDim",
    "cacheC",
    "layer",
    "queryAt",
    "queryScaleAt",
    "querySumAt",
    "dstAt",
    "ldDst",
    "softmaxScaleF",
    "slidingWindow",
    "partsAt",
    "partsLines",
  ],
  /** dst[i] = src[rows[i]]. */
  gatherRows: ["rowsReg", "srcAt", "ldSrc", "dstAt", "ldDst", "width", "indexAt"],
  /** dst[rows[i]] += weight[i] * src[i] (weight absent: 1). */
  scatterAddRows: ["rowsReg", "srcAt", "ldSrc", "dstAt", "ldDst", "width", "indexAt", "weightAt"],
  /** MoE router: softmax, top-k, renormalize; row lists per expert, counts to registers. */
  route: [
    "rowsReg",
    "logitsAt",
    "ldLogits",
    "experts",
    "topK",
    "indexAt",
    "weightAt",
    "ldLists",
    "countReg",
  ],
  /** Per row: [argmax as i32, max, log-sum-exp, logit of target] as 4 words at dst. */
  logitStats: ["rowsReg", "logitsAt", "ldLogits", "width", "targetsAt", "dstAt"],
  /** Per row: [KL(reference || model) in nats, 1 if both have the same argmax] as 2 f32 at dst. */
  klDivergence: ["rowsReg", "referenceAt", "ldReference", "logitsAt", "ldLogits", "width", "dstAt"],
  /** y[m, n] += sum val * x[m, col] (CSR side-car; row pointers u32, columns u32, values f32). */
  csr: [
    "rowsReg",
    "srcAt",
    "ldSrc",
    "rowPointersAt",
    "columnsAt",
    "valuesAt",
    "outputs",
    "dstAt",
    "ldDst",
  ],
  /** Gram matrix: G f64 [width, width], upper triangle, += X^T X. */
  gram: ["rowsReg", "srcAt", "ldSrc", "width", "gramAt"],
  /** sumAbs f64 [width] += |x|, maxAbs f32 [width] = max(maxAbs, |x|). */
  absStats: ["rowsReg", "srcAt", "ldSrc", "width", "sumAbsAt", "maxAbsAt"],
  /** C [rows, cols] = beta C + alpha A B, f32 row-major; transA: A is stored [inner, rows]; transB: B is [cols, inner]. */
  gemm: [
    "rowsReg",
    "cols",
    "inner",
    "aAt",
    "aSkip",
    "lda",
    "transA",
    "bAt",
    "bSkip",
    "ldb",
    "transB",
    "cAt",
    "cSkip",
    "ldc",
    "alphaF",
    "betaF",
  ],
  /** Upper U f32 [n, n] with inverse(H) = U^T U, from H f64 [n, n] (upper read, destroyed); status i32: 0 or 1 + failing column. */
  inverseFactor: ["size", "hessianAt", "factorAt", "statusAt"],
  /** f32 values of quantized activations: dst = scale * (code - zero). For quantized activations in front of a dense weight. */
  dequantize: [
    "rowsReg",
    "codesAt",
    "ldCodes",
    "width",
    "scaleAt",
    "zeroAt",
    "groupSize",
    "dstAt",
    "ldDst",
  ],
  /**
   * f32 queries over one decoded tile of keys and values [kvHeads, slots, headDim], into a running softmax: maximum, sum
   * and accumulated values [rows, heads, headDim + 2] at state. ranges [rows, kvHeads, 2]: first slot and end that a row sees.
   */
  attendTile: [
    "rowsReg",
    "queryAt",
    "ldQuery",
    "heads",
    "kvHeads",
    "headDim",
    "slots",
    "keysAt",
    "valuesAt",
    "rangesAt",
    "stateAt",
    "logitsAt",
    "softmaxScaleF",
  ],
  /**
   * Rows as small floats would hold them: scale = max |x| / largest, x / scale rounded to `mantissa` bits (exponents from
   * minExponent, saturated at `largest`) and multiplied back. src = dst is allowed.
   */
  roundFloat: [
    "rowsReg",
    "srcAt",
    "ldSrc",
    "width",
    "mantissa",
    "minExponent",
    "largestF",
    "dstAt",
    "ldDst",
  ],
} as const;

export type OpName = keyof typeof OPS;
export const OP_NAMES = Object.keys(OPS) as OpName[];
/** Opcode of each op; 0 ends the program. */
export const OPCODE = Object.fromEntries(OP_NAMES.map((name, i) => [name, i + 1])) as Record<
  OpName,
  number
>;

/** Program header, words. */
export const HEADER = [
  "magic",
  "version",
  "totalWords",
  "weights", // number of weight descriptors
  "weightsStart", // word of the first
  "caches", // number of cache descriptors
  "cachesStart",
  "codeStart",
  "scratchAt", // thread t owns lines [scratchAt + t * scratchLines, …)
  "scratchLines",
  "maxRows",
  "arenaLines", // the program touches no line at or beyond this one
  "maxLogitRows", // row limit of registers 1..15 (rows that reach the head); maxRows limits the others
] as const;
export const PROGRAM_MAGIC = 0x6c62696e; // "nibl"
export const PROGRAM_VERSION = 1;

/** Weight descriptor, words. Layouts: docs/engine.md, "Panel 32". */
export const WEIGHT = [
  "kind", // WEIGHT_KIND
  "n", // output channels
  "k", // input channels
  "panels", // ceil(n / 32)
  "kPad", // k rounded up to 32 (gint, lut); k (dense)
  "bits",
  "seg8At", // P32 segments; -1 = absent
  "seg4At",
  "seg2At",
  "seg1At",
  "groupSize", // 0 = one scale a row
  "groups", // G >= 1
  "scaleAt", // [panels, G, 32]
  "scaleType", // SCALAR_TYPE
  "zeroKind", // ZERO_KIND
  "zeroConstF",
  "zeroAt", // int: u8 [panels, G, 32]; float: scaleType [panels, G, 32]
  "codeSumAt", // i32 [panels, G, 32] or -1; needed for asymmetric activations
  "biasAt", // f32 [panels * 32] or -1
  "interleaved", // 1: each panel is 16 gate + 16 up channels
  "denseAt", // dense kinds: [panels, k, 32]
  "tableAt", // lut: f32 tables [tables, 2^bits]
  "tableScope", // lut: 0 one table, 1 one a row ([panels, 2^bits, 32])
  "negativeScaleAt", // lut: scale of negative entries [panels, G, 32] or -1
] as const;
export const WEIGHT_KIND = { f32: 1, f16: 2, bf16: 3, gint: 4, lut: 5 } as const;
export const SCALAR_TYPE = { f32: 0, f16: 1 } as const;
export const ZERO_KIND = { const: 0, int: 1, float: 2 } as const;
export const EPILOGUE = { store: 0, add: 1, swiglu: 2 } as const;

/** KV cache descriptor, words. Layouts: docs/engine.md, "Pages". */
export const CACHE = [
  "keyCodec", // KV_CODEC
  "valueCodec",
  "keyZeroInt", // 1: x = s (c - z), range includes 0; 0: x = s c - zero
  "valueZeroInt",
  "keyClipF",
  "valueClipF",
  "hadamard", // 1: Hadamard of headDim on q and k after RoPE
  "queryBits", // 8 or 32
  "poolAt", // page p at line poolAt + p * pageLines
  "pageLines",
  "headLines", // one KV head inside a page: keys, then values at + keyLines
  "keyLines",
  "tableAt", // i32 [sequence slots, layers, maxPages] page numbers
  "layers",
  "maxPages",
  "kvHeads",
  "headDim",
  "pages", // pages in the pool
  "slots", // sequence slots in the table
  "residual", // kivi codecs: R, a multiple of 32; 0 = the others
  "tailAt", // kivi: f32 rings of exact rows, one a slot, layer and KV head; else -1
  "tailTokens", // kivi: rows of a ring, a multiple of 128, at least residual + maxRows; else 0
] as const;
export const KV_CODEC = { f32: 0, f16: 1, int8: 2, int4: 3, kivi4: 4, kivi2: 5 } as const;

/** Tokens of one page; positions of one softmax chunk. */
export const PAGE_TOKENS = 32;
export const ATTENTION_CHUNK = 128;
/** Bytes at the start of the arena: 256 registers, then 3 KiB that belong to the executor. */
export const CONTROL_BYTES = 4096;
export const LINE = 64;

export type HeaderField = (typeof HEADER)[number];
export type WeightField = (typeof WEIGHT)[number];
export type CacheField = (typeof CACHE)[number];
