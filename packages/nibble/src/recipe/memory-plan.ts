/**
 * How much memory `compress` takes, phase by phase: what the pipeline holds at once while it writes calibration text,
 * embeds it, works on a block, on a table, and saves. Twice: as it runs when nobody sets a limit, and with everything on
 * disk that need not be in memory (hidden states, solved tensors). Upper estimates: garbage that the collector has not
 * reached yet is counted.
 */

import { formatBytes } from "../core/memory.js";
import type { SolverMethod } from "../methods/contract.js";
import type { ModelConfig } from "../model/config.js";
import { siteWidth } from "../model/place-model.js";
import { type ParameterSpec, SITES } from "../model/roles.js";
import { BAND_ELEMENTS } from "../model/row-bands.js";
import { MAX_ROWS } from "../observers/block-runner.js";
import { storedBits } from "./stored-bits.js";

/** One parameter and what becomes of it. */
export interface PlannedParameter {
  spec: ParameterSpec;
  assignment: { method: SolverMethod<unknown>; options: unknown } | undefined;
}

export interface MemoryFacts {
  config: ModelConfig;
  parameters: readonly PlannedParameter[];
  /** Steps that only rescale ask for statistics of every block. */
  scales: { calibration: boolean; hessian: boolean };
  /** Calibration windows and their length; none when no step needs any. */
  calibration: { samples: number; seqlen: number; written: boolean } | null;
  /** Sensitivities are measured on the whole model first. */
  measures: boolean;
}

export interface PhaseMemory {
  /** What a person would call it. */
  name: string;
  bytes: number;
}

export interface MemoryPlan {
  /** Largest phase of a run without a limit. */
  peak: PhaseMemory;
  /** Largest phase with everything on disk that can be. */
  smallest: PhaseMemory;
  /** What that puts on disk, and how many bytes of it. */
  spilled: { what: string; bytes: number }[];
}

const MB = 2 ** 20;
/** Node, code, kernels, a tokenizer, and what its heap does not give back. */
const PROCESS_BYTES = 135 * MB;
/** f32 copies of a row run's widest buffer that a block's program has (allocateBuffers). */
const ROW_BUFFERS = 13;
/** A placed model over its values: padding, buffers, a tensor on its way. */
const PLACED = 1.06;
/** Sequences that write calibration text side by side, and rows of their program. */
const WRITERS = 32;

export function planMemory(facts: MemoryFacts): MemoryPlan {
  const { config, parameters, calibration } = facts;
  const floats = sum(parameters.map(({ spec }) => elements(spec))) * 4;
  const linears = parameters.filter(({ spec }) => spec.layer !== null);
  const tables = parameters.filter(({ spec }) => spec.layer === null);
  const base = PROCESS_BYTES;

  const rows = calibration ? calibration.samples * calibration.seqlen : 0;
  // Of the original model too, when a solver asks how far its inputs have drifted.
  const hidden = rows * config.hiddenSize * 4 * (asksForDrift(facts) ? 2 : 1);
  const solvedBlocks = sum(linears.map(heldBytes));
  const solvedTables = sum(tables.map(heldBytes));
  const block = blockWork(facts);
  const largest = Math.max(0, ...parameters.map(heldBytes));
  const phases = (lean: boolean): PhaseMemory[] => {
    const solved = lean ? solvedBlocks / Math.max(1, config.numHiddenLayers) : solvedBlocks;
    return [
      {
        name: "solving the blocks",
        bytes: base + solved + (lean ? 0 : hidden) + (lean ? block.lean : block.usual),
      },
      {
        name: "embedding and head",
        bytes: base + (lean ? 0 : solvedBlocks) + tableWork(tables),
      },
      {
        name: "saving",
        bytes: base + (lean ? 2 * largest : solvedBlocks + solvedTables + largest),
      },
      ...wholeModel(facts, floats).map(({ name, bytes }) => ({ name, bytes: base + bytes })),
    ];
  };
  const top = (all: PhaseMemory[]) => all.reduce((a, b) => (b.bytes > a.bytes ? b : a));
  return {
    peak: top(phases(false)),
    smallest: top(phases(true)),
    spilled: [
      { what: "hidden states of the calibration text", bytes: hidden },
      { what: "solved tensors", bytes: storedBytes(parameters.filter((p) => p.assignment)) },
    ].filter(({ bytes }) => bytes > 0),
  };
}

/** "hidden states of the calibration text (36 MiB), solved tensors (70 MiB)" */
export function spilledText({ spilled }: MemoryPlan): string {
  return (
    spilled.map(({ what, bytes }) => `${what} (${formatBytes(bytes)})`).join(", ") || "nothing"
  );
}

function asksForDrift({ parameters }: MemoryFacts): boolean {
  return parameters.some(({ assignment: a }) => a?.method.needs(a.options).drift);
}

/** Weights, statistics, solver and engine while one block is worked on. */
function blockWork(facts: MemoryFacts): { usual: number; lean: number } {
  const { config, parameters, scales, calibration } = facts;
  const layers = new Map<number, number>();
  let [solver, weight, staging] = [0, 0, 0];
  let { hessian } = scales;
  for (const { spec, assignment } of parameters) {
    if (spec.layer === null) continue;
    const count = elements(spec) * 4;
    layers.set(spec.layer, (layers.get(spec.layer) ?? 0) + count);
    if (!assignment) continue;
    const [n = 1, k = 1] = spec.shape;
    const { method, options } = assignment;
    solver = Math.max(solver, count + method.estimate({ n, k }, options).peakBytes);
    weight = Math.max(weight, count);
    const needs = method.needs(options);
    if (!needs.hessian) continue;
    hessian = true;
    // Operands of the engine's inverse factor and products (createKernelLinalg).
    staging = Math.max(staging, 12 * k * k, 4 * (n * k + 128 * (n + k)));
  }
  const floats = Math.max(0, ...layers.values());
  if (!calibration) return { usual: solver + weight + 2 * floats, lean: 2 * (solver + weight) };
  const { experts } = config;
  let [grams, wide, pairs, drifts] = [0, 0, 0, 0];
  const drift = asksForDrift(facts);
  for (const site of SITES) {
    const width = siteWidth(config, site);
    const copies = experts && site.startsWith("mlp") ? experts.count : 1;
    if (hessian) grams += copies * width * width * 8;
    wide = Math.max(wide, width, config.hiddenSize);
    if (!drift || copies > 1) continue;
    // Inputs of both models side by side and their Gram matrix; what is made of it.
    pairs += 2 * width * (MAX_ROWS * 4 + 2 * width * 8);
    drifts += width * width * 8;
  }
  const { seqlen, samples } = calibration;
  const batch = Math.max(1, Math.min(samples, Math.floor(MAX_ROWS / seqlen)));
  const rows = Math.min(MAX_ROWS, seqlen * batch);
  const cache = seqlen * batch * config.numKeyValueHeads * config.headDim * 8;
  const buffers = rows * wide * 4 * ROW_BUFFERS + cache * (drift ? 2 : 1);
  const arena = floats + grams + pairs + buffers;
  // Statistics are copied out of the arena, or solved from where they are; tensors on their way into it.
  return {
    usual: arena + grams + drifts + solver + staging + 2 * floats,
    lean: arena + drifts + solver + staging + floats,
  };
}

/** Embedding and head: in bands of rows where their method allows it, whole otherwise. */
function tableWork(tables: readonly PlannedParameter[]): number {
  let [done, most] = [0, 0];
  for (const { spec, assignment } of tables) {
    if (!assignment) continue;
    const [n = 1, k = 1] = spec.shape;
    const { method, options } = assignment;
    const rows = method.byRows?.(options)
      ? Math.min(n, Math.max(1, Math.floor(BAND_ELEMENTS / k)))
      : n;
    const own = heldBytes({ spec, assignment });
    const work = rows * k * 4 + method.estimate({ n: rows, k }, options).peakBytes;
    // Bands beside the tensor they are put together to, its parts on their way to disk.
    most = Math.max(most, done + Math.max(work * (rows < n ? 2 : 1) + own, rows < n ? 2 * own : 0));
    done += own;
  }
  return most;
}

/** Phases that open the model as it is, in f32. Nothing of them can be put on disk. */
function wholeModel({ config, calibration, measures }: MemoryFacts, floats: number): PhaseMemory[] {
  const token = config.numHiddenLayers * config.numKeyValueHeads * config.headDim * 8;
  const phases: PhaseMemory[] = [];
  if (calibration?.written) {
    const writers = Math.min(WRITERS, calibration.samples);
    phases.push({
      name: "writing calibration text (give one with --calibration)",
      bytes: PLACED * floats + writers * (calibration.seqlen * token + config.vocabSize * 4),
    });
  }
  if (measures) {
    phases.push({
      name: "measuring sensitivities (give them with --sensitivity)",
      bytes: PLACED * floats + 2 * MAX_ROWS * config.vocabSize * 4 + MAX_ROWS * token,
    });
  }
  return phases;
}

/** A tensor in memory: scales and tables are f32 there, and dense values are whatever is stored of them. */
function heldBytes({ spec, assignment }: PlannedParameter): number {
  if (!assignment) return 0;
  const stored = storedBits(spec, assignment) / 8;
  const produced = assignment.method.produces(assignment.options);
  if (produced.encoding !== "dense") return stored * 1.1;
  // What a codec makes of the values is not known before they are read: at most all bits of the widest type.
  const coded = produced.codec ? elements(spec) * (produced.type === "f32" ? 4 : 2) : 0;
  return elements(spec) * 4 + Math.max(stored, coded);
}

function storedBytes(parameters: readonly PlannedParameter[]): number {
  return sum(parameters.map(({ spec, assignment }) => storedBits(spec, assignment) / 8));
}

function elements(spec: ParameterSpec): number {
  return spec.shape.reduce((product, size) => product * size, 1);
}

function sum(values: readonly number[]): number {
  return values.reduce((a, b) => a + b, 0);
}
