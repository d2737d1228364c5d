/**
 * Rescaling of the input of a site, exactly: linears W diag(s), input x / s (SmoothQuant arXiv 2211.10438, AWQ arXiv
 * 2306.00978). 1 / s goes into whatever computes the input: a norm gain, or the rows of v or up.
 */
import { NumericError } from "../../core/errors.js";
import type { PreOp } from "../../encodings/types.js";
import { type LazyTensor, type Model, type Parameter, parameter } from "../../model/model.js";
import { LINEAR_ROLES, SITE_OF, type Site } from "../../model/roles.js";
import type { SiteProducer, SiteStatsView, SiteView } from "../contract.js";

export interface SitePlace {
  layer: number;
  site: Site;
  /** Expert of mlp_out in a MoE block, else null. */
  expert: number | null;
}

/** Order in which the sites of a block are prepared: a scale that folds into v or up comes after those of their inputs. */
export function siteOrder(model: Model, layer: number): SitePlace[] {
  const { experts } = model.config;
  const outs = experts ? Array.from({ length: experts.count }, (_, e) => e) : [null];
  return [
    ...(["attn_in", "attn_out", "mlp_in"] as const).map((site) => ({ layer, site, expert: null })),
    ...outs.map((expert) => ({ layer, site: "mlp_out" as const, expert })),
  ];
}

/** Linears that read the site, in checkpoint order. */
export function siteParameters(model: Model, { layer, site, expert }: SitePlace): Parameter[] {
  return [...model.parameters.values()].filter(
    ({ spec }) =>
      spec.layer === layer &&
      spec.role !== null &&
      LINEAR_ROLES.includes(spec.role) &&
      SITE_OF[spec.role] === site &&
      (expert === null || spec.expert === expert),
  );
}

/** Channels of the input of a site. */
function siteChannels(model: Model, place: SitePlace): number {
  return siteParameters(model, place)[0]?.spec.shape[1] ?? 0;
}

export function siteProducer(model: Model, place: SitePlace): SiteProducer {
  const { site } = place;
  const { config } = model;
  if (model.transforms.some((transform) => transform.site === site)) {
    return { kind: "none", why: "the input is transformed while the model runs" };
  }
  if (site === "attn_in" || site === "mlp_in") return { kind: "norm" };
  if (site === "mlp_out") return { kind: "rows", repeat: 1, headDim: siteChannels(model, place) };
  const repeat = config.numAttentionHeads / config.numKeyValueHeads;
  return { kind: "rows", repeat, headDim: config.headDim };
}

/** What `prepareSite` is given. `optionsOf` says with which options the step quantizes a linear, null if it does not. */
export async function siteView<Options>(
  model: Model,
  place: SitePlace,
  optionsOf: (path: string) => Options | null,
): Promise<SiteView<Options>> {
  const linears = [];
  for (const source of siteParameters(model, place)) {
    const { path, shape } = source.spec;
    const weight = await lazy(source).read();
    linears.push({ path, n: shape[0] ?? 0, k: shape[1] ?? 0, weight, options: optionsOf(path) });
  }
  return { ...place, k: siteChannels(model, place), producer: siteProducer(model, place), linears };
}

/**
 * Multiplies the columns of the site's linears (and of a MoE router that reads it) by `scale` and divides the producer.
 * Tensors are wrapped: nothing is read here.
 * @returns null when that was done; otherwise the model is unchanged, and the operation divides the input
 * @throws NumericError for a scale that is not finite and positive
 */
export function applySiteScale(model: Model, place: SitePlace, scale: Float32Array): PreOp | null {
  const { layer, site, expert } = place;
  const k = siteChannels(model, place);
  if (scale.length !== k || !scale.every((s) => s > 0 && s < Number.POSITIVE_INFINITY)) {
    throw new NumericError("the scale of the input is not finite and positive", {
      place: `layers.${layer} ${site}`,
    });
  }
  const producer = siteProducer(model, place);
  const inverse = scale.map((s) => 1 / s);
  const rows = producer.kind === "rows" ? rowFactors(producer, inverse) : null;
  if (producer.kind === "none" || (producer.kind === "rows" && !rows)) {
    return { op: "scale", values: { type: "f32", shape: [k], data: inverse } };
  }
  const base = `layers.${layer}`;
  if (rows) {
    const path =
      site === "attn_out"
        ? `${base}.v`
        : `${base}.${expert === null ? "" : `experts.${expert}.`}up`;
    const source = parameter(model, path);
    source.weight = wrap(lazy(source), (data) => multiplyRows(data, rows));
    if (source.bias) source.bias = wrap(source.bias, (data) => multiplyRows(data, rows));
  } else {
    const norm = parameter(model, `${base}.${site === "attn_in" ? "inputNorm" : "postNorm"}`);
    norm.weight = wrap(lazy(norm), (data) => multiplyRows(data, inverse));
  }
  const readers = siteParameters(model, place);
  const router = model.parameters.get(`${base}.router`);
  if (site === "mlp_in" && router) readers.push(router);
  for (const reader of readers)
    reader.weight = wrap(lazy(reader), (data) => multiplyColumns(data, scale));
  return null;
}

/** w[r, c] *= scale[c], in place. */
export function multiplyColumns(w: Float32Array, scale: Float32Array): Float32Array {
  const k = scale.length;
  for (let at = 0; at < w.length; at += k) {
    for (let c = 0; c < k; c++) w[at + c] = (w[at + c] as number) * (scale[c] as number);
  }
  return w;
}

/** Statistics of x / scale. */
export function rescaleStats(stats: SiteStatsView, scale: Float32Array): SiteStatsView {
  const k = scale.length;
  const inverse = scale.map((s) => 1 / s);
  const { hessian, sumAbs, maxAbs } = stats;
  return {
    count: stats.count,
    ...(hessian && {
      hessian: hessian.map(
        (x, i) => x * (inverse[Math.floor(i / k)] as number) * (inverse[i % k] as number),
      ),
    }),
    ...(sumAbs && { sumAbs: sumAbs.map((x, i) => x * (inverse[i] as number)) }),
    ...(maxAbs && { maxAbs: maxAbs.map((x, i) => x * (inverse[i] as number)) }),
  };
}

/** Factor of each producing row, or null when channels that share a row differ. */
function rowFactors(
  producer: { repeat: number; headDim: number },
  inverse: Float32Array,
): Float32Array | null {
  const { repeat, headDim } = producer;
  const rows = new Float32Array(inverse.length / repeat);
  for (const [channel, factor] of inverse.entries()) {
    const head = Math.floor(channel / headDim);
    const row = Math.floor(head / repeat) * headDim + (channel % headDim);
    if (head % repeat === 0) rows[row] = factor;
    else if (rows[row] !== factor) return null;
  }
  return rows;
}

/** Row r of a matrix, or element r of a vector, times factor[r], in place. */
function multiplyRows(data: Float32Array, factor: Float32Array): Float32Array {
  const width = data.length / factor.length;
  for (const [r, f] of factor.entries()) {
    for (let i = r * width; i < (r + 1) * width; i++) data[i] = (data[i] as number) * f;
  }
  return data;
}

function lazy(source: Parameter): LazyTensor {
  if ("quant" in source.weight)
    throw new Error(`${source.spec.path} is quantized and cannot be scaled`);
  return source.weight;
}

function wrap(tensor: LazyTensor, change: (data: Float32Array) => Float32Array): LazyTensor {
  return { shape: tensor.shape, read: async () => change(await tensor.read()) };
}
