/**
 * Runs weight solvers over a model, block by block. Statistics come from one BlockRunner pass a block, shared by all
 * linears of a site; a solved block is saved at once, so a killed run continues where it stopped with the same bytes.
 */
import { InterruptedError } from "../core/errors.js";
import { dropGarbage } from "../core/memory.js";
import type { OnProgress } from "../core/progress.js";
import { Philox } from "../core/rng.js";
import { stackRows } from "../encodings/stack-rows.js";
import type { QuantTensor } from "../encodings/types.js";
import type { EngineLinalg } from "../linalg/engine-linalg.js";
import {
  createMemo,
  type Method,
  type Needs,
  NO_NEEDS,
  type ScalingMethod,
  type Schedule,
  type SolveContext,
  type SolverMethod,
} from "../methods/contract.js";
import { type Model, type Parameter, parameter } from "../model/model.js";
import { type LinearRole, SITE_OF } from "../model/roles.js";
import { rowBands } from "../model/row-bands.js";
import { type BlockRunner, type BlockStats, statsKey } from "../observers/block-runner.js";
import {
  InputScales,
  restoreScales,
  type SavedScale,
  type Scaling,
  type ScalingPlan,
  scaleSites,
} from "./site-scales.js";

/** Which solver quantizes a parameter. */
export interface Assignment {
  method: SolverMethod<unknown>;
  options: unknown;
}

/** A step that rescales the inputs of every block. */
export interface ScalingStep {
  method: ScalingMethod<unknown>;
  options: unknown;
}

/** What solving one parameter gave; goes into report.json. */
export interface SolveRecord {
  path: string;
  method: string;
  /** The solver's own estimate of the output error, if it has one. */
  loss?: number;
  notes: string[];
}

/** Solved blocks on disk (or in memory). `unit` is "embeddings" or "layer-<i>". */
export interface SolveState {
  load(unit: string): Promise<SolvedUnit | null>;
  save(unit: string, solved: SolvedUnit): Promise<void>;
  /** One tensor of a saved unit, where units are kept outside of memory. */
  tensor?(unit: string, path: string): Promise<QuantTensor>;
}

export interface SolvedUnit {
  tensors: Map<string, QuantTensor>;
  records: SolveRecord[];
  /** Input scales that were folded into norms and neighbours. */
  scales: SavedScale[];
}

export interface QuantizeOptions {
  /** Role path -> solver. */
  assignments: ReadonlyMap<string, Assignment>;
  /** Steps that only rescale inputs, in order; they run on every block before its solvers. */
  scalings?: readonly ScalingStep[];
  seed: number;
  linalg: EngineLinalg;
  /** Made when the first layer needs statistics; `keepOriginal` when a solver asks for the drift. */
  createRunner: (keepOriginal: boolean) => Promise<BlockRunner>;
  state: SolveState;
  /**
   * Hold as little as possible: solved tensors are read from `state` whenever somebody asks for them, Gram matrices are
   * not copied. The result is the same.
   */
  lean?: boolean;
  onProgress: OnProgress;
  signal?: AbortSignal;
}

const SCHEDULE: Schedule = { propagate: "quantized", trueSequential: false };
/** Linears that see the same input are solved together; with trueSequential each stage sees the ones before it quantized. */
const STAGES: LinearRole[][] = [["q", "k", "v"], ["o"], ["gate", "up"], ["down"]];

/** Changes the parameters of `model` to what the solvers return. */
export async function quantizeModel(
  model: Model,
  options: QuantizeOptions,
): Promise<SolveRecord[]> {
  const { assignments, onProgress, signal } = options;
  const scalings = options.scalings ?? [];
  const records: SolveRecord[] = [];
  const layers = model.config.numHiddenLayers;
  const byLayer = new Map<number, Parameter[]>();
  const tables: Parameter[] = [];
  for (const path of assignments.keys()) {
    const target = parameter(model, path);
    const { layer } = target.spec;
    if (layer === null) tables.push(target);
    else byLayer.set(layer, [...(byLayer.get(layer) ?? []), target]);
  }
  const needsRunner = (targets: Parameter[]) =>
    targets.some((t) => needsOf(assignments.get(t.spec.path))?.calibration);
  const lastCalibrated = Math.max(
    scalings.length > 0 ? layers - 1 : -1,
    ...[...byLayer].filter(([, t]) => needsRunner(t)).map(([i]) => i),
  );
  const drift = [...assignments.values()].some((a) => needsOf(a).drift);
  const context = (log: (line: string) => void) => ({ options, memo: createMemo(), log });

  let runner: BlockRunner | null = null;
  try {
    for (let layer = 0; layer < layers; layer++) {
      const targets = byLayer.get(layer) ?? [];
      if (targets.length === 0 && layer > lastCalibrated) continue;
      checkSignal(signal);
      const unit = `layer-${layer}`;
      const saved = await options.state.load(unit);
      const solved = saved?.tensors ?? new Map<string, QuantTensor>();
      const layerRecords = saved?.records ?? [];
      const scales = saved?.scales ?? [];
      const inputs = new InputScales();
      const schedule = scheduleOf(targets, assignments);
      if (layer <= lastCalibrated) runner ??= await options.createRunner(drift);
      const calibrates = layer <= lastCalibrated ? runner : null;
      let originalMoved = !drift;

      if (!saved && (targets.length > 0 || scalings.length > 0)) {
        const stages = schedule.trueSequential ? STAGES : [STAGES.flat()];
        let stats: BlockStats | null = null;
        for (const [index, roles] of stages.entries()) {
          const stage = targets.filter((t) => t.spec.role && roles.includes(t.spec.role));
          const rescales = index === 0 && scalings.length > 0;
          if (stage.length === 0 && !rescales) continue;
          if (calibrates && (needsRunner(stage) || rescales)) {
            stats = null;
            const needs = wanted(stage, assignments, rescales ? scalings : []);
            originalMoved ||= needs.drift;
            stats = await calibrates.observe(layer, {
              ...needs,
              // The arena is used again before solving when the original block moves on first.
              lend: options.lean === true && schedule.propagate !== "original" && originalMoved,
            });
          }
          // While the weights are the original ones.
          if (calibrates && !originalMoved) await calibrates.advanceOriginal(layer);
          originalMoved = true;
          if (index === 0 && calibrates && schedule.propagate === "original")
            await calibrates.advance(layer);
          const ctx = context((message) => onProgress({ type: "log", level: "info", message }));
          const notes = new Map<string, string[]>();
          for (const plan of index === 0 ? scalingPlans(scalings, targets, assignments) : []) {
            if (!stats) continue;
            const contextOf = (method: Method, place: string) =>
              solveContext(ctx, method.id, place);
            const result = await scaleSites(model, layer, plan, stats, contextOf, inputs);
            scales.push(...result.saved);
            for (const [path, own] of result.notes)
              notes.set(path, [...(notes.get(path) ?? []), ...own]);
          }
          for (const target of stage) {
            checkSignal(signal);
            const record = await solveOne(target, stats, solved, ctx, inputs);
            record.notes.push(...(notes.get(record.path) ?? []));
            layerRecords.push(record);
            if (options.lean) await dropGarbage();
          }
          for (const target of stage) install(target, solved);
        }
        await options.state.save(unit, { tensors: solved, records: layerRecords, scales });
      } else {
        if (calibrates && !originalMoved) await calibrates.advanceOriginal(layer);
        if (calibrates && schedule.propagate === "original") await calibrates.advance(layer);
        // After the block ran, as in a run that was not interrupted: folding scales changes the last bits.
        restoreScales(model, scales);
        for (const target of targets) install(target, solved);
      }
      release(targets, unit, options);
      await dropGarbage();
      if (calibrates && layer < lastCalibrated && schedule.propagate === "quantized") {
        await calibrates.advance(layer);
      }
      records.push(...layerRecords);
      const losses = layerRecords.flatMap((r) => (r.loss === undefined ? [] : [r.loss]));
      onProgress({
        type: "step",
        stage: "quantizing",
        item: layer + 1,
        total: layers,
        name: `layer ${layer}`,
        loss: losses.length > 0 ? losses.reduce((a, b) => a + b, 0) : undefined,
      });
    }
  } finally {
    await runner?.dispose();
  }

  if (tables.length > 0) {
    checkSignal(signal);
    const saved = await options.state.load("embeddings");
    const solved = saved?.tensors ?? new Map<string, QuantTensor>();
    const tableRecords = saved?.records ?? [];
    if (!saved) {
      const ctx = context((message) => onProgress({ type: "log", level: "info", message }));
      for (const target of tables) {
        tableRecords.push(await solveOne(target, null, solved, ctx, new InputScales()));
      }
      await options.state.save("embeddings", {
        tensors: solved,
        records: tableRecords,
        scales: [],
      });
    }
    for (const target of tables) install(target, solved);
    release(tables, "embeddings", options);
    records.push(...tableRecords);
    onProgress({
      type: "step",
      stage: "quantizing",
      item: layers,
      total: layers,
      name: "embeddings",
    });
  }
  return records;
}

interface Context {
  options: QuantizeOptions;
  memo: ReturnType<typeof createMemo>;
  log: (line: string) => void;
}

function solveContext(
  { options, memo, log }: Context,
  method: string,
  place: string,
): SolveContext {
  return {
    rng: new Philox(options.seed, `${method}:${place}`),
    engineLinalg: options.linalg,
    log,
    memo,
  };
}

async function solveOne(
  target: Parameter,
  stats: BlockStats | null,
  solved: Map<string, QuantTensor>,
  ctx: Context,
  inputs: InputScales,
): Promise<SolveRecord> {
  const { path, role, expert, shape } = target.spec;
  const assignment = ctx.options.assignments.get(path);
  if (!assignment || "quant" in target.weight) throw new Error(`${path} is already quantized`);
  const { method } = assignment;
  const site = role ? SITE_OF[role] : null;
  // Behind a router every expert has statistics of its own; attention sites never do.
  const key = site ? statsKey(site, expert) : "";
  const calibrated = needsOf(assignment).calibration;
  const own = calibrated ? (stats?.get(key) ?? null) : null;
  const k = shape[1] as number;
  const solve = (weight: Float32Array) =>
    method.solve(
      weight,
      { n: weight.length / k, k, path },
      own,
      assignment.options,
      solveContext(ctx, method.id, path),
    );
  if (method.byRows?.(assignment.options) && role === null) {
    const bands: QuantTensor[] = [];
    for await (const { values } of rowBands(target.weight)) {
      const { tensor } = await solve(values);
      bands.push(tensor);
      await dropGarbage();
    }
    solved.set(path, stackRows(bands));
    return { path, method: method.id, notes: [] };
  }
  const result = await solve(inputs.before(key, await target.weight.read()));
  solved.set(path, inputs.after(key, result.tensor));
  return {
    path,
    method: method.id,
    ...(result.loss === undefined ? {} : { loss: result.loss }),
    notes: [...(result.notes ?? [])],
  };
}

function install(target: Parameter, solved: Map<string, QuantTensor>): void {
  const tensor = solved.get(target.spec.path);
  if (!tensor) throw new Error(`${target.spec.path} was not solved`);
  target.weight = { quant: async () => tensor };
}

/** With `lean`, tensors that were saved are given up and read again on demand. */
function release(targets: readonly Parameter[], unit: string, options: QuantizeOptions): void {
  const { state } = options;
  if (!options.lean || !state.tensor) return;
  for (const target of targets) {
    const { path } = target.spec;
    target.weight = {
      quant: () => (state.tensor as NonNullable<typeof state.tensor>)(unit, path),
    };
  }
}

function needsOf(assignment: Assignment | undefined): Needs {
  return assignment ? assignment.method.needs(assignment.options) : NO_NEEDS;
}

/** Steps that only rescale, in order, then the scaler that solvers bring along (AWQ). */
function scalingPlans(
  scalings: readonly ScalingStep[],
  targets: readonly Parameter[],
  assignments: ReadonlyMap<string, Assignment>,
): ScalingPlan[] {
  const common = {
    isSolved: (path: string) => assignments.has(path),
    optionsOf(method: Method, path: string) {
      const assignment = assignments.get(path);
      return assignment?.method === method ? assignment.options : null;
    },
  };
  const ofSolvers = (readers: readonly string[]): Scaling | undefined =>
    readers.map((path) => assignments.get(path)).find((a) => a?.method.scaler);
  return [
    ...scalings.map((step) => ({ ...common, choose: () => step })),
    ...(targets.some((t) => assignments.get(t.spec.path)?.method.scaler)
      ? [{ ...common, choose: ofSolvers }]
      : []),
  ];
}

function wanted(
  targets: Parameter[],
  assignments: ReadonlyMap<string, Assignment>,
  scalings: readonly ScalingStep[],
) {
  const needs = [
    ...targets.map((t) => needsOf(assignments.get(t.spec.path))),
    ...scalings.map(({ method, options }) => method.needs(options)),
  ];
  return {
    hessian: needs.some((n) => n?.hessian),
    absStats: needs.some((n) => n?.absStats),
    drift: needs.some((n) => n?.drift ?? false),
  };
}

/** Methods that share a block share its schedule: the strictest wins. */
function scheduleOf(targets: Parameter[], assignments: ReadonlyMap<string, Assignment>): Schedule {
  const schedules = targets.map((t) => {
    const assignment = assignments.get(t.spec.path);
    return assignment?.method.schedule?.(assignment.options) ?? SCHEDULE;
  });
  return {
    propagate: schedules.some((s) => s.propagate === "original") ? "original" : "quantized",
    trueSequential: schedules.some((s) => s.trueSequential),
  };
}

function checkSignal(signal: AbortSignal | undefined): void {
  if (signal?.aborted) throw new InterruptedError("interrupted; finished layers are saved");
}
