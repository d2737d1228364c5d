// Rows of bench/weights-table.mjs in the order they are measured: the headline, methods without data (a minute each), methods
// that calibrate, then what is nice to have. `steps` is a recipe; `embeddings: 8` is added unless `bare`.
// `golden`: which row of golden/quarot-smollm2.json it must meet (same protocol: f32 scales, clip search, no embeddings).
const asym = (groupSize, more = {}) => ({ bits: 4, groupSize, sym: false, ...more });
const golden = { scaleType: "f32", clip: "mse" };
const updated = { staleGroups: false };
const short = { samples: 32, seqlen: 512 };
const long = { samples: 128, seqlen: 512 };
const gptaq = {
  ...updated,
  actOrder: true,
  asymmetric: 0.25,
  scaleType: "u8",
  clip: "mse",
  clipNorm: 2,
};

export const ROWS = [
  { id: "original", steps: [], bare: true },
  { id: "rtn-g64", method: "rtn", steps: [{ rtn: asym(64) }] },
  { id: "gptq-g64", method: "gptq", steps: [{ gptq: asym(64) }] },
  {
    id: "quarot-gptq-g64",
    method: "gptq",
    steps: ["quarot", { gptq: asym(64, { ...updated, actOrder: true }) }],
  },
  {
    id: "quarot-gptq-4.5",
    method: "gptq",
    title: "QuaRot, GPTQ in groups of 64, bits allocated under 4.5",
    args: ["--target-bpw", "4.5"],
    steps: ["quarot", { gptq: asym(64, { ...updated, actOrder: true }) }],
  },
  // Groups of 32 with 8-bit scales and zeros: the affine grid of the GGUF file that the model comes from fits into them.
  {
    id: "rtn-g32-u8",
    method: "rtn",
    title: "float zeros; scales and zeros in 8 bits",
    steps: [{ rtn: asym(32, { zero: "float", scaleType: "u8" }) }],
  },
  {
    id: "quarot-gptaq-g32-u8",
    method: "gptq",
    title: "QuaRot, GPTQ asymmetric 0.25, 128 windows, 8-bit scales",
    steps: ["quarot", { gptq: asym(32, gptaq) }],
    calibration: long,
  },
  {
    id: "quarot-gptaq-4.5",
    method: "gptq",
    title: "the same in groups of 64, bits allocated under 4.5",
    args: ["--target-bpw", "4.5"],
    steps: ["quarot", { gptq: asym(64, gptaq) }],
    calibration: long,
  },
  {
    id: "golden-gptq-g128",
    method: "gptq",
    bare: true,
    golden: 31.6832,
    steps: [{ gptq: asym(128, { ...golden, ...updated }) }],
  },
  // Without data.
  { id: "rtn-g128", method: "rtn", steps: [{ rtn: asym(128) }] },
  {
    id: "golden-rtn-g128",
    method: "rtn",
    bare: true,
    golden: 35.4696,
    steps: [{ rtn: asym(128, golden) }],
  },
  { id: "hqq-g64", method: "hqq", steps: [{ hqq: {} }] },
  { id: "nf4-g64", method: "nf4", steps: [{ nf4: {} }] },
  { id: "afpq-nf4-g128", method: "afpq", steps: [{ afpq: {} }] },
  { id: "float-e3m2", method: "float", steps: [{ float: { format: "e3m2" } }] },
  { id: "easyquant", method: "easyquant", steps: [{ easyquant: {} }] },
  { id: "rtn-w8", method: "rtn", steps: [{ rtn: { bits: 8, sym: "narrow" } }] },
  {
    id: "rtn-w8a8",
    method: "smoothquant",
    steps: [{ rtn: { bits: 8, sym: "narrow" } }, { activations: { bits: 8 } }],
  },
  {
    id: "fp8-w8a8",
    method: "float",
    steps: [{ float: { format: "e4m3" } }, { activations: { format: "e4m3" } }],
  },
  { id: "neuzip", method: "neuzip", steps: [{ neuzip: {} }], bare: true },
  // With calibration.
  {
    id: "smoothquant-w8a8",
    method: "smoothquant",
    steps: ["smoothquant", { rtn: { bits: 8, sym: "narrow" } }, { activations: { bits: 8 } }],
  },
  { id: "wanda-2:4", method: "wanda", steps: [{ wanda: { pattern: "2:4" } }] },
  { id: "awq-g128", method: "awq", steps: [{ awq: asym(128) }] },
  // The bits of llama.cpp's Q4_K_S and Q4_K_M files of this model.
  {
    id: "quarot-gptq-5.28",
    method: "gptq",
    title: "QuaRot, GPTQ in groups of 64, bits allocated under 5.277",
    args: ["--target-bpw", "5.277"],
    steps: ["quarot", { gptq: asym(64, { ...updated, actOrder: true }) }],
  },
  { id: "squeezellm-4", method: "squeezellm", steps: [{ squeezellm: {} }] },
  { id: "gptq-g128", method: "gptq", steps: [{ gptq: asym(128) }] },
  { id: "sparsegpt-2:4", method: "sparsegpt", steps: [{ sparsegpt: { pattern: "2:4" } }] },
  {
    id: "quarot-gptq-5.53",
    method: "gptq",
    title: "QuaRot, GPTQ in groups of 64, bits allocated under 5.534",
    args: ["--target-bpw", "5.534"],
    steps: ["quarot", { gptq: asym(64, { ...updated, actOrder: true }) }],
  },
  { id: "awq-g64", method: "awq", steps: [{ awq: asym(64) }] },
  {
    id: "golden-quarot-gptq-g64",
    method: "gptq",
    bare: true,
    golden: 26.4529,
    steps: ["quarot", { gptq: asym(64, { ...golden, ...updated }) }],
  },
  { id: "float-e2m3", method: "float", steps: [{ float: { format: "e2m3" } }] },
  {
    id: "fp4-g64",
    method: "afpq",
    steps: [{ afpq: { table: "fp4", groupSize: 64, twoScale: false } }],
  },
  { id: "nf4-g64-f16", method: "nf4", steps: [{ nf4: { scale: "f16" } }] },
  // Orderings that the specifications expect (docs/weights-checks.md): 3 bits, one scale a row, cut mantissas, pruning.
  { id: "rtn-3-g128", method: "rtn", steps: [{ rtn: { ...asym(128), bits: 3 } }] },
  { id: "gptq-3-g128", method: "gptq", steps: [{ gptq: { ...asym(128), bits: 3 } }] },
  { id: "squeezellm-3", method: "squeezellm", steps: [{ squeezellm: { bits: 3 } }] },
  { id: "awq-3-g128", method: "awq", steps: [{ awq: { ...asym(128), bits: 3 } }] },
  { id: "rtn-3-g64", method: "rtn", steps: [{ rtn: { ...asym(64), bits: 3 } }] },
  { id: "afpq-nf3-g64", method: "afpq", steps: [{ afpq: { table: "nf3", groupSize: 64 } }] },
  { id: "rtn-narrow", method: "easyquant", steps: [{ rtn: { bits: 4, sym: "narrow" } }] },
  { id: "neuzip-3", method: "neuzip", steps: [{ neuzip: { precision: 3 } }] },
  { id: "neuzip-1", method: "neuzip", steps: [{ neuzip: { precision: 1 } }] },
  { id: "gptq-3-g64", method: "gptq", steps: [{ gptq: { ...asym(64), bits: 3 } }] },
  { id: "sparsegpt-50", method: "sparsegpt", steps: [{ sparsegpt: {} }] },
  { id: "wanda-50", method: "wanda", steps: [{ wanda: {} }] },
  {
    id: "squeezellm-3-dense",
    method: "squeezellm",
    steps: [{ squeezellm: { bits: 3, sensitivity: 0, outliers: 0 } }],
  },
  {
    id: "squeezellm-3-kmeans",
    method: "squeezellm",
    steps: [{ squeezellm: { bits: 3, sensitivity: 0, outliers: 0, fisher: "none" } }],
  },
  { id: "rtn-3-channel", method: "rtn", steps: [{ rtn: { ...asym("channel"), bits: 3 } }] },
  { id: "hqq-3-g64", method: "hqq", steps: [{ hqq: { bits: 3 } }] },
  { id: "neuzip-0", method: "neuzip", steps: [{ neuzip: { precision: 0 } }] },
  {
    id: "magnitude-2:4",
    method: "wanda",
    steps: [{ wanda: { pattern: "2:4", score: "magnitude" } }],
  },
  {
    id: "smoothquant-w4a4",
    method: "smoothquant",
    steps: ["smoothquant", { rtn: { bits: 4, sym: "narrow" } }, { activations: { bits: 4 } }],
  },
  {
    id: "quarot-rtn-w4a4",
    method: "quarot",
    steps: ["quarot", { rtn: { bits: 4, sym: "narrow" } }, { activations: { bits: 4 } }],
  },
  // What rounding does to a checkpoint that was not trained ternary: ruin. The encoding is for checkpoints that were, and
  // storing those loses nothing (methods/ternary.test.ts), so there is no other row of it.
  { id: "ternary", method: "ternary", steps: [{ ternary: {} }] },
].map((row) => ({ calibration: short, ...row }));
