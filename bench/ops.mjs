// Single linears of random weights on any backend, outside of a model: what GEMM and GEMV benches run.
import { nibbleModule } from "./source.mjs";

const { selectBackend } = await nibbleModule("kernels/select");
const ops = await nibbleModule("kernels/ops");
const { CONTROL_BYTES, EPILOGUE, LINE, WEIGHT_KIND, ZERO_KIND } = ops;
const { NO_WEIGHT, ProgramBuilder } = await nibbleModule("kernels/program");
const { requiredScratchLines } = await nibbleModule("kernels/scratch");

/** Bytes that a GEMV has to walk through before it comes back: more than caches hold. */
const COLD_BYTES = 128 * 2 ** 20;
/** Bytes of one run: short enough to fall between the interruptions of a busy machine. */
const SLICE_BYTES = 12 * 2 ** 20;

/** Copies of a weight that leave the caches together, at most `most`. */
export const coldCopies = (n, k, bits, most = 4096) =>
  Math.min(most, Math.ceil((COLD_BYTES * 8) / (n * k * bits)));

/** Codes of a weight, without scales. */
const codeBytes = ({ n, k, bits }) => Math.ceil(n / 32) * 32 * Math.ceil(k / 32) * 32 * (bits / 8);

class Place {
  #next = CONTROL_BYTES;
  #state = 1;
  constructor(memory) {
    this.memory = memory;
  }
  get used() {
    return Math.ceil(this.#next / LINE);
  }
  alloc(bytes) {
    const at = this.#next;
    this.#next += Math.ceil(bytes / LINE) * LINE;
    return at / LINE;
  }
  random(bytes) {
    const at = this.alloc(bytes);
    const view = new Int32Array(this.memory, at * LINE, Math.ceil(bytes / 4));
    for (let i = 0; i < view.length; i++) {
      this.#state = (Math.imul(this.#state, 1664525) + 1013904223) | 0;
      view[i] = this.#state ^ (this.#state >>> 15);
    }
    return at;
  }
  floats(count, value) {
    const at = this.alloc(count * 4);
    new Float32Array(this.memory, at * LINE, count).fill(value);
    return at;
  }
}

/**
 * linearInt of `rows` rows of 8-bit activations with a weight [n, k] of `bits` bits (groupSize 0: one scale a row).
 * `copies` of the weight take turns (default for one row: as many as leave the caches).
 * @returns { run: () => seconds of one product, operations, bytes, close }
 */
export async function openLinear({
  backend = "auto",
  threads,
  rows,
  n,
  k,
  bits = 4,
  groupSize = 0,
  copies = rows === 1 ? coldCopies(n, k, bits) : 1,
}) {
  const groups = groupSize ? Math.ceil(k / groupSize) : 1;
  const panels = Math.ceil(n / 32);
  const ldCodes = (Math.ceil(k / LINE) | 1) * LINE;
  const parameters = panels * groups * 128;
  const arenaBytes =
    copies * codeBytes({ n, k, bits }) +
    parameters +
    rows * (ldCodes + 4 * n + 8 * groups) +
    threads * 2 ** 22 +
    2 ** 22;
  const chosen = await selectBackend(backend, () => {});
  const engine = await chosen.createEngine({ arenaBytes, threads });
  const place = new Place(engine.memory);
  const all = new ProgramBuilder();
  const scaleAt = place.floats(panels * 32 * groups, 0.01);
  const operands = {
    rowsReg: 0,
    codesAt: place.random(rows * ldCodes),
    ldCodes,
    scaleAt: place.floats(rows, 0.01),
    sumAt: place.alloc(4 * rows * groups),
    zeroAt: -1,
    activationGroups: 1,
    dstAt: place.alloc(4 * rows * n),
    ldDst: n,
    epilogue: EPILOGUE.store,
  };
  for (let i = 0; i < copies; i++) {
    const codesAt = place.random(codeBytes({ n, k, bits }));
    const weight = {
      ...NO_WEIGHT,
      kind: WEIGHT_KIND.gint,
      n,
      k,
      panels,
      kPad: Math.ceil(k / 32) * 32,
      bits,
      [`seg${bits}At`]: codesAt,
      groupSize,
      groups,
      scaleAt,
      zeroKind: ZERO_KIND.const,
      zeroConstF: 2 ** (bits - 1),
    };
    all.weight(weight);
  }
  const perRun = Math.max(1, Math.min(copies, Math.round(SLICE_BYTES / codeBytes({ n, k, bits }))));
  const builders = [];
  for (let i = 0; i + perRun <= copies; i += perRun) {
    const builder = all.fork();
    for (let w = i; w < i + perRun; w++) builder.emit("linearInt", { ...operands, weightW: w });
    builders.push(builder);
  }
  const limits = { scratchAt: place.used, scratchLines: 0, maxRows: rows, arenaLines: place.used };
  const scratchLines = requiredScratchLines(builders[0].build(limits));
  const arenaLines = limits.scratchAt + threads * scratchLines;
  const programs = builders.map((builder) =>
    engine.load(builder.build({ ...limits, scratchLines, arenaLines })),
  );
  let turn = 0;
  new Int32Array(engine.memory)[0] = rows;
  return {
    operations: 2 * rows * n * k,
    bytes: (n * k * bits) / 8,
    engine,
    /** Seconds of one product. Blocks, as a bench of single products may. */
    run() {
      const program = programs[turn++ % programs.length];
      const started = performance.now();
      engine.runSync(program);
      return (performance.now() - started) / 1000 / perRun;
    },
    close: () => engine.dispose(),
  };
}

/** f32 product of size^3 (F1). */
export async function openGemm({ backend = "auto", threads, size }) {
  const chosen = await selectBackend(backend, () => {});
  const engine = await chosen.createEngine({ arenaBytes: 12 * size * size + 2 ** 25, threads });
  const place = new Place(engine.memory);
  const matrix = () => place.floats(size * size, 0.5);
  const skip = { aSkip: 0, bSkip: 0, cSkip: 0, lda: size, ldb: size, ldc: size };
  const places = { aAt: matrix(), bAt: matrix(), cAt: matrix(), transA: 0, transB: 0 };
  const sizes = { rowsReg: 0, cols: size, inner: size, alphaF: 1, betaF: 0 };
  const builder = new ProgramBuilder().emit("gemm", { ...sizes, ...skip, ...places });
  const limits = { scratchAt: place.used, scratchLines: 0, maxRows: size, arenaLines: place.used };
  const scratchLines = requiredScratchLines(builder.build(limits));
  const arenaLines = limits.scratchAt + threads * scratchLines;
  const program = engine.load(builder.build({ ...limits, scratchLines, arenaLines }));
  new Int32Array(engine.memory)[0] = size;
  return {
    operations: 2 * size ** 3,
    engine,
    run() {
      const started = performance.now();
      engine.runSync(program);
      return (performance.now() - started) / 1000;
    },
    close: () => engine.dispose(),
  };
}

/** Best rate of several runs, at least `seconds` long: slices fall between the interruptions of a busy machine. */
export function bestRate(linear, amount, seconds = 0.3) {
  let best = Number.POSITIVE_INFINITY;
  const end = performance.now() + seconds * 1000;
  do best = Math.min(best, linear.run());
  while (performance.now() < end);
  return amount / best / 1e9;
}
