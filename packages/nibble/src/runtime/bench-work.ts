/** What a run of a compiled model has to compute and to read, counted from its program: the basis of rooflines. */
import { decodeProgram } from "../kernels/decode.js";
import { kvBytesRead } from "../kv/size.js";
import type { CompiledModel } from "../model/compile.js";
import { REGISTER } from "../model/lower.js";
import type { KvRecipe } from "../model/model.js";

/** Multiply and add counted apart. */
export interface Work {
  /** Integer products of the linears. */
  intOps: number;
  /** Float products of linears, and attention. */
  floatOps: number;
  /** Weights and cache. */
  bytes: number;
}

/** Linears of one row through the blocks, and of one row of logits. */
function linearOps(compiled: CompiledModel) {
  const { experts } = compiled.config;
  const row = { intOps: 0, floatOps: 0 };
  const head = { intOps: 0, floatOps: 0 };
  const decoded = compiled.programs.map(({ words }) => decodeProgram(words));
  const weights = decoded[0]?.weights ?? [];
  for (const { op, operands } of decoded.flatMap(({ instructions }) => instructions)) {
    if (op !== "linearInt" && op !== "linearFloat") continue;
    const { rowsReg, weightW } = operands;
    const { n, k } = weights[weightW] as { n: number; k: number }; // the engine has checked the program
    // A row goes through some of the experts; each has a register of its own.
    const share = experts && rowsReg >= REGISTER.expertRows ? experts.perToken / experts.count : 1;
    const target = rowsReg === REGISTER.logitRows ? head : row;
    target[op === "linearInt" ? "intOps" : "floatOps"] += 2 * n * k * share;
  }
  return { row, head };
}

/** Counts runs of `compiled` over a cache of kind `kv`. */
export function workCounter(compiled: CompiledModel, kv: KvRecipe) {
  const { config } = compiled;
  const { row, head } = linearOps(compiled);
  /** Keys that a row at `position` sees, all layers. */
  const keysOf = (position: number) => {
    let keys = 0;
    for (let layer = 0; layer < config.numHiddenLayers; layer++) {
      keys += Math.min(position + 1, config.slidingWindow[layer] ?? Number.POSITIVE_INFINITY);
    }
    return keys;
  };
  /** Cache that a row with `keys` visible keys (all layers) reads. */
  const cacheOf = (keys: number) => kvBytesRead(kv, config, keys / config.numHiddenLayers);
  const product = 4 * config.numAttentionHeads * config.headDim;
  return {
    /**
     * One run: `sequences` sequences, each with `rows` rows from position `from` on, `logits` rows of logits. Weights are
     * read once, the cache once a sequence.
     */
    run(from: number, rows: number, sequences: number, logits: number): Work {
      const ends = keysOf(from) + keysOf(from + rows - 1);
      const keys = (sequences * rows * ends) / 2;
      return {
        intOps: rows * sequences * row.intOps + logits * head.intOps,
        floatOps: rows * sequences * row.floatOps + logits * head.floatOps + keys * product,
        bytes: compiled.bytesPerToken + sequences * cacheOf(keysOf(from + rows - 1)),
      };
    },
  };
}
