// Rows of bench/weights-table.mjs, the most important first. `steps` is a recipe; `embeddings: 8` is added unless `bare`.
// `golden`: which row of golden/quarot-smollm2.json it must meet (same protocol: f32 scales, clip search, no embeddings).
const asym = (groupSize, more = {}) => ({ bits: 4, groupSize, sym: false, ...more });
const golden = { scaleType: "f32", clip: "mse" };
const updated = { staleGroups: false };
const short = { samples: 32, seqlen: 512 };

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
    calibration: { samples: 96, seqlen: 512 },
    steps: ["quarot", { gptq: asym(64, { ...updated, actOrder: true }) }],
  },
  {
    id: "golden-gptq-g128",
    method: "gptq",
    bare: true,
    golden: 31.6832,
    steps: [{ gptq: asym(128, { ...golden, ...updated }) }],
  },
  {
    id: "golden-rtn-g128",
    method: "rtn",
    bare: true,
    golden: 35.4696,
    steps: [{ rtn: asym(128, golden) }],
  },
  { id: "awq-g64", method: "awq", steps: [{ awq: asym(64) }] },
  { id: "awq-g128", method: "awq", steps: [{ awq: asym(128) }] },
  { id: "rtn-g128", method: "rtn", steps: [{ rtn: asym(128) }] },
  { id: "gptq-g128", method: "gptq", steps: [{ gptq: asym(128) }] },
  {
    id: "golden-quarot-gptq-g64",
    method: "gptq",
    bare: true,
    golden: 26.4529,
    steps: ["quarot", { gptq: asym(64, { ...golden, ...updated }) }],
  },
  { id: "float-e3m2", method: "float", steps: [{ float: { format: "e3m2" } }] },
  { id: "nf4-g64", method: "nf4", steps: [{ nf4: {} }] },
  { id: "afpq-nf4-g64", method: "afpq", steps: [{ afpq: {} }] },
  { id: "hqq-g64", method: "hqq", steps: [{ hqq: {} }] },
  { id: "easyquant", method: "easyquant", steps: [{ easyquant: {} }] },
  { id: "squeezellm-4", method: "squeezellm", steps: [{ squeezellm: {} }] },
  { id: "neuzip", method: "neuzip", steps: [{ neuzip: {} }], bare: true },
  { id: "sparsegpt-50", method: "sparsegpt", steps: [{ sparsegpt: {} }] },
  { id: "wanda-50", method: "wanda", steps: [{ wanda: {} }] },
  { id: "rtn-3-g64", method: "rtn", steps: [{ rtn: { ...asym(64), bits: 3 } }] },
  { id: "gptq-3-g64", method: "gptq", steps: [{ gptq: { ...asym(64), bits: 3 } }] },
  {
    id: "smoothquant-w8a8",
    method: "smoothquant",
    steps: ["smoothquant", { rtn: { bits: 8, sym: "narrow" } }, { activations: { bits: 8 } }],
  },
  {
    id: "rtn-w8a8",
    method: "smoothquant",
    steps: [{ rtn: { bits: 8, sym: "narrow" } }, { activations: { bits: 8 } }],
  },
  { id: "float-e4m3", method: "float", steps: [{ float: { format: "e4m3" } }] },
  { id: "ternary", method: "ternary", steps: [{ ternary: {} }] },
].map((row) => ({ calibration: short, ...row }));
