/**
 * The pipeline's side of methods that rescale the input of a site before its linears are solved (AWQ, SmoothQuant): asks
 * the method for the scales of one block, folds them where the model allows it, and remembers them for a resumed run.
 */

import { RecipeError } from "../core/errors.js";
import type { PreOp, QuantTensor } from "../encodings/types.js";
import type { Method, SiteScaler, SiteStatsView, SolveContext } from "../methods/contract.js";
import {
  applySiteScale,
  multiplyColumns,
  rescaleStats,
  type SitePlace,
  siteOrder,
  siteParameters,
  siteView,
} from "../methods/shared/site-scale.js";
import type { Model } from "../model/model.js";
import { type BlockStats, type SiteStats, statsKey } from "../observers/block-runner.js";

/** A scale that was chosen; JSON keeps every f32 exactly. */
export interface SavedScale extends SitePlace {
  scale: number[];
}

/** What could not be folded: linears of the site are solved on scaled columns and divide their input at run time. */
export class InputScales {
  readonly #pending = new Map<string, { scale: Float32Array; op: PreOp }>();

  add(place: SitePlace, scale: Float32Array, op: PreOp): void {
    this.#pending.set(statsKey(place.site, place.expert), { scale, op });
  }
  /** Changes the weight that a solver gets. */
  before(key: string, weight: Float32Array): Float32Array {
    const pending = this.#pending.get(key);
    return pending ? multiplyColumns(weight, pending.scale) : weight;
  }
  /** Changes the tensor that a solver gave. */
  after(key: string, tensor: QuantTensor): QuantTensor {
    const pending = this.#pending.get(key);
    return pending ? { ...tensor, pre: [pending.op, ...tensor.pre] } : tensor;
  }
}

/** A method that rescales a site, with its options. */
export interface Scaling {
  method: Extract<Method, { scaler?: SiteScaler<unknown> }>;
  options: unknown;
}

/** Which method rescales a site and what is stored of it. */
export interface ScalingPlan {
  /** The method for a site whose linears are `readers`, or undefined to leave it. */
  choose(readers: readonly string[]): Scaling | undefined;
  /** Whether a linear is solved in this run, so that it can carry a scale that nothing else takes up. */
  isSolved(path: string): boolean;
  /** Options of a linear for `prepareSite`, null when `method` does not quantize it. */
  optionsOf(method: Method, path: string): unknown;
}

/**
 * Scales all sites of a block whose step asks for it; `stats` becomes that of the rescaled inputs.
 * @throws RecipeError for a scale that neither a norm nor a stored linear can take up
 */
export async function scaleSites(
  model: Model,
  layer: number,
  plan: ScalingPlan,
  stats: BlockStats,
  contextOf: (method: Method, place: string) => SolveContext,
  inputs: InputScales,
): Promise<{ saved: SavedScale[]; notes: Map<string, string[]> }> {
  const saved: SavedScale[] = [];
  const notes = new Map<string, string[]>();
  for (const place of siteOrder(model, layer)) {
    const readers = siteParameters(model, place).map(({ spec }) => spec.path);
    const own = plan.choose(readers);
    if (!own?.method.scaler) continue;
    const { method, options } = own;
    const keys = statsKeys(model, place);
    const observed = sum(keys.map((key) => stats.get(key)));
    if (!observed) throw new Error(`no statistics of ${place.site} of layer ${layer}`);
    const view = await siteView(model, place, (path) => plan.optionsOf(method, path));
    const name = `layers.${layer}.${statsKey(place.site, place.expert)}`;
    const result = await own.method.scaler.prepareSite(
      view,
      observed,
      options,
      contextOf(method, name),
    );
    if (!result) continue;
    const op = applySiteScale(model, place, result.scale);
    if (op && !readers.every((path) => plan.isSolved(path))) {
      throw new RecipeError(
        `${method.id} cannot rescale ${name}: the input is transformed while the model runs, and not all linears that read it are quantized`,
        { hint: `Quantize ${readers.join(", ")}, or leave ${place.site} out of its sites.` },
      );
    }
    if (op) for (const key of keys) inputs.add({ ...place, ...expertOf(key) }, result.scale, op);
    else saved.push({ ...place, scale: Array.from(result.scale) });
    for (const key of keys) {
      const entry = stats.get(key);
      if (entry) stats.set(key, rescaleStats(entry, result.scale) as SiteStats);
    }
    if (result.notes?.length) for (const path of readers) notes.set(path, result.notes);
  }
  return { saved, notes };
}

/** Folds the scales of a saved block again: they changed norm gains and neighbours, which the state does not hold. */
export function restoreScales(model: Model, saved: readonly SavedScale[]): void {
  for (const { scale, ...place } of saved) applySiteScale(model, place, Float32Array.from(scale));
}

/** Statistics of a site: behind a router every expert has its own. */
function statsKeys(model: Model, { site, expert }: SitePlace): string[] {
  const { experts } = model.config;
  if (!experts || expert !== null || site !== "mlp_in") return [statsKey(site, expert)];
  return Array.from({ length: experts.count }, (_, e) => statsKey(site, e));
}

function expertOf(key: string): { expert: number | null } {
  const [, expert] = key.split(":");
  return { expert: expert === undefined ? null : Number(expert) };
}

function sum(all: (SiteStatsView | undefined)[]): SiteStatsView | null {
  const [first, ...rest] = all.filter((s) => s !== undefined);
  if (!first) return null;
  return rest.reduce<SiteStatsView>(
    (a, b) => ({
      count: a.count + b.count,
      ...(a.hessian && b.hessian
        ? { hessian: a.hessian.map((x, i) => x + (b.hessian?.[i] ?? 0)) }
        : {}),
      ...(a.sumAbs && b.sumAbs ? { sumAbs: a.sumAbs.map((x, i) => x + (b.sumAbs?.[i] ?? 0)) } : {}),
      ...(a.maxAbs && b.maxAbs
        ? { maxAbs: a.maxAbs.map((x, i) => Math.max(x, b.maxAbs?.[i] ?? 0)) }
        : {}),
    }),
    first,
  );
}
