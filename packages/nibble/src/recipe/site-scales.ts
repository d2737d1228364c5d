/**
 * The pipeline's side of methods that rescale the input of a site before its linears are solved (AWQ, SmoothQuant): asks
 * the method for the scales of one block, folds them where the model allows it, and remembers them for a resumed run.
 */
import type { PreOp, QuantTensor } from "../encodings/types.js";
import type { SiteStatsView, SolveContext, SolverMethod } from "../methods/contract.js";
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
import type { Assignment } from "./quantize-model.js";

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

/** Scales all sites of a block whose step asks for it; `stats` becomes that of the rescaled inputs. */
export async function scaleSites(
  model: Model,
  layer: number,
  assignments: ReadonlyMap<string, Assignment>,
  stats: BlockStats,
  contextOf: (method: SolverMethod<unknown>, place: string) => SolveContext,
  inputs: InputScales,
): Promise<{ saved: SavedScale[]; notes: Map<string, string[]> }> {
  const saved: SavedScale[] = [];
  const notes = new Map<string, string[]>();
  for (const place of siteOrder(model, layer)) {
    const readers = siteParameters(model, place).map(({ spec }) => spec.path);
    const own = readers.map((path) => assignments.get(path)).find((a) => a?.method.scaler);
    if (!own?.method.scaler) continue;
    const { method, options } = own;
    const keys = statsKeys(model, place);
    const observed = sum(keys.map((key) => stats.get(key)));
    if (!observed) throw new Error(`no statistics of ${place.site} of layer ${layer}`);
    const view = await siteView(model, place, (path) => {
      const assignment = assignments.get(path);
      return assignment?.method === method ? assignment.options : null;
    });
    const name = `layers.${layer}.${statsKey(place.site, place.expert)}`;
    const result = await own.method.scaler.prepareSite(
      view,
      observed,
      options,
      contextOf(method, name),
    );
    if (!result) continue;
    const op = applySiteScale(model, place, result.scale);
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
