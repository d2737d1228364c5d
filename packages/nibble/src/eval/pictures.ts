/**
 * The pictures of one model: outliers before and after rotation, where the error of rounding falls, what the cache loses,
 * how a grid lies on the weights. Data is measured here, the drawing is charts/. Every picture has its data beside it.
 */

import { UsageError } from "../core/errors.js";
import { defaultThreads } from "../core/memory.js";
import type { OnProgress } from "../core/progress.js";
import type { BackendId } from "../kernels/contract.js";
import { selectBackend } from "../kernels/select.js";
import { rtn } from "../methods/rtn.js";
import { GroupParams } from "../methods/shared/group-params.js";
import { parameter } from "../model/model.js";
import { loadModel } from "../runtime/load-model.js";
import { openModel } from "../runtime/open.js";
import {
  type BeforeAfter,
  beforeAndAfter,
  outlierFacts,
  rotateModel,
  type SiteActivations,
} from "./activations.js";
import { heatmap } from "./charts/heatmap.js";
import { histogram } from "./charts/histogram.js";
import { lineChart } from "./charts/lines.js";
import { surfaceChart } from "./charts/surface.js";
import { type KvErrorRow, kvErrors, kvVariants } from "./kv-error.js";
import type { SensitivityResult } from "./layer-error.js";
import { encodeStream } from "./perplexity.js";

export interface Picture {
  name: string;
  svg: string;
  /** What was drawn, for JSON. */
  data: unknown;
}

export interface PictureOptions {
  /** Text that runs through the model. */
  text: string;
  tokens?: number;
  /** Layer of the outlier surfaces and the histogram; default: in the middle of the model. */
  layer?: number;
  bits?: number;
  seed?: number;
  backend?: "auto" | BackendId;
  threads?: number;
  onProgress?: OnProgress;
  signal?: AbortSignal;
}

const SITE_TEXT = {
  attn_in: "input of attention (q, k, v)",
  attn_out: "input of o",
  mlp_in: "input of the MLP (gate, up)",
  mlp_out: "input of down",
} as const;

/** Tokens along the depth of a surface. */
const SURFACE_TOKENS = 64;

/** |x| of the first tokens of a site. The very first token is left out: its few huge values ("massive activations",
 * arXiv:2402.17762) would hide everything else. */
function surfaceOf(name: string, { values, rows, width }: SiteActivations) {
  const from = rows > 1 ? 1 : 0;
  const shown = Math.min(rows - from, SURFACE_TOKENS);
  const absolute = Float32Array.from(
    values.subarray(from * width, (from + shown) * width),
    Math.abs,
  );
  return { name, values: absolute, rows: shown, columns: width };
}

/** Surfaces of one site before and after rotation. */
export function outlierPicture(
  found: BeforeAfter,
  site: SiteActivations["site"],
  model: string,
): Picture {
  const before = found.before.find((s) => s.site === site);
  const after = found.after.find((s) => s.site === site);
  if (!before || !after) throw new UsageError(`layer ${found.layer} has no site ${site} to draw`);
  const [a, b] = [outlierFacts(before), outlierFacts(after)];
  const times = (x: number) => x.toFixed(1);
  return {
    name: `outliers-${site}`,
    data: { layer: found.layer, site, before: a, after: b },
    svg: surfaceChart({
      title: `Layer ${found.layer}, ${SITE_TEXT[site]}: before and after rotation`,
      subtitle:
        `${model}. Each ridge is a token (the first one is left out). One scale per token must reach its highest peak: before, that is ${times(a.peakToRms)} times the typical value and rounding to 4 bits loses ${(100 * a.error4bit).toFixed(1)} % of the energy; ` +
        `after QuaRot's rotation ${times(b.peakToRms)} times and ${(100 * b.error4bit).toFixed(1)} %. The model computes the same.`,
      columnLabel: "channel",
      rowLabel: "token",
      valueLabel: "|activation|",
      surfaces: [surfaceOf("Before", before), surfaceOf("After", after)],
    }),
  };
}

/** Error of keys, and of values, by layer. */
export function kvPictures(rows: KvErrorRow[], model: string): Picture[] {
  const texts = {
    keys: "Keys have channels that are large for every token: one scale for a token is then set by them. Rotation (quarot) spreads them out, kivi gives channels scales of their own.",
    values:
      "Values have no such channels: a scale for each token serves them, and nothing is rotated here.",
  };
  return (["keys", "values"] as const).map((what) => {
    const names = [...new Set(rows.flatMap((row) => Object.keys(row[what])))];
    return {
      name: `kv-error-${what}`,
      data: rows.map((row) => ({ layer: row.layer, error: row[what] })),
      svg: lineChart({
        title: `KV cache: what the ${what} lose, by layer`,
        subtitle: `${model}. ${what === "keys" ? "Keys" : "Values"} of a text, stored as each cache preset stores them and read back. Lower is better. ${texts[what]}`,
        xLabel: "layer",
        yLabel: "relative RMS error (%, log scale)",
        logY: true,
        series: names.map((name) => ({
          name,
          dash: name.includes("not rotated"),
          points: rows.map((row) => ({ x: row.layer, y: 100 * (row[what][name] ?? Number.NaN) })),
        })),
      }),
    };
  });
}

/** Weights of a matrix in units of their group's scale, with the grid. */
export function gridPicture(
  weight: Float32Array,
  [n, k]: [number, number],
  { bits, what, model, name }: { bits: number; what: string; model: string; name: string },
): Picture {
  const options = rtn.options.parse({ bits, groupSize: "channel", sym: "narrow" });
  const params = new GroupParams(options, n, k);
  params.fitAll(weight, null);
  const quant = params.toTensor(params.encode(weight));
  if (quant.main.kind !== "gint") throw new Error("RTN gives integer codes");
  const scale = quant.main.scale.data;
  const step = Math.max(1, Math.floor(n / 64));
  const values: number[] = [];
  let used = 0;
  for (let r = 0; r < n; r += step) {
    for (let c = 0; c < k; c++) {
      const v = (weight[r * k + c] as number) / (scale[r] as number);
      values.push(v);
      if (Math.abs(v) < 0.5) used++;
    }
  }
  const top = 2 ** (bits - 1) - 1;
  return {
    name,
    data: { what, bits, roundedToZero: used / values.length, sampled: values.length },
    svg: histogram({
      title: `Weights of ${what} on the ${bits}-bit grid`,
      subtitle: `${model}. Each weight over the scale of its row; dashed lines are the values that ${bits}-bit codes can stand for. ${((100 * used) / values.length).toFixed(0)} % of the weights round to 0: the largest weight of a row sets the scale of all.`,
      xLabel: "weight / scale of its row",
      values,
      grid: Array.from({ length: 2 * top + 1 }, (_, i) => i - top),
    }),
  };
}

/** Output error by layer and module, and KL by layer. */
export function sensitivityPictures(result: SensitivityResult, model: string): Picture[] {
  const { bits } = result;
  const layers = [...new Set(result.modules.map((m) => m.layer))];
  const roles = [...new Set(result.modules.map((m) => m.role))];
  const group =
    result.groupSize === "channel" ? "one scale a row" : `groups of ${result.groupSize}`;
  const at = (role: string, layer: number) => {
    const found = result.modules.filter((m) => m.role === role && m.layer === layer);
    return found.reduce((sum, m) => sum + (m.error[bits] ?? Number.NaN), 0) / found.length;
  };
  const pictures: Picture[] = [
    {
      name: "layer-error",
      data: result.modules,
      svg: heatmap({
        title: "Quantization error by layer and module",
        subtitle: `${model}. Share of each linear's output energy that is lost when its weights are rounded to ${bits} bits (${group}), on ${result.tokens} tokens.`,
        rows: roles,
        columns: layers.map(String),
        xLabel: "layer",
        yLabel: "module",
        valueLabel: "error (%, log scale)",
        log: true,
        values: roles.map((role) => layers.map((layer) => 100 * at(role, layer))),
      }),
    },
  ];
  if (result.kl) {
    pictures.push({
      name: "layer-sensitivity",
      data: result.kl,
      svg: lineChart({
        title: "Sensitivity: one layer rounded, all others exact",
        subtitle: `${model}. How far the whole model's predictions move when this layer alone is rounded to ${bits} bits (${group}). Layers that peak deserve more bits.`,
        xLabel: "layer",
        yLabel: "KL divergence (nats a token, log scale)",
        logY: true,
        series: [
          { name: `${bits} bits`, points: result.kl.map(({ layer, kl }) => ({ x: layer, y: kl })) },
        ],
      }),
    });
  }
  return pictures;
}

/** All pictures of an original (unquantized) model. */
export async function modelPictures(name: string, options: PictureOptions): Promise<Picture[]> {
  const { seed = 0, bits = 4, onProgress, signal } = options;
  const log = (line: string) => onProgress?.({ type: "log", level: "info", message: line });
  const backend = await selectBackend(options.backend ?? "auto", log);
  const threads = options.threads ?? defaultThreads();
  const step = (item: number, what: string) =>
    onProgress?.({ type: "step", stage: "drawing", item, total: 4, name: what });
  const run = {
    ...(options.backend ? { backend: options.backend } : {}),
    threads,
    ...(signal ? { signal } : {}),
  };

  step(0, "cache errors");
  const tokens = options.tokens ?? 256;
  const opened = await openModel(name, { ...run, kv: "fp32", maxContext: tokens });
  let ids: number[];
  let rows: KvErrorRow[];
  let label: string;
  let layers: number;
  try {
    ids = encodeStream(opened, options.text).slice(0, tokens);
    rows = await kvErrors(opened, ids, kvVariants(opened.model.config));
    label = opened.model.source.id;
    layers = opened.model.config.numHiddenLayers;
  } finally {
    await opened.close();
  }
  const layer = options.layer ?? Math.floor(layers / 2);
  if (!(layer >= 0 && layer < layers))
    throw new UsageError(`layer ${layer} does not exist: there are ${layers}`);

  step(1, "activations");
  const [found] = await beforeAndAfter(name, [layer], seed, {
    backend,
    threads,
    ids,
    ...(signal ? { signal } : {}),
  });
  const pictures = [
    outlierPicture(found as BeforeAfter, "attn_in", label),
    outlierPicture(found as BeforeAfter, "mlp_out", label),
    ...kvPictures(rows, label),
  ];
  step(2, "weights");
  for (const rotate of [false, true]) {
    const model = await loadModel(name, signal ? { signal } : {});
    try {
      if (rotate) await rotateModel(model, seed);
      const found = parameter(model, `layers.${layer}.down`);
      if ("quant" in found.weight) throw new UsageError("weights are quantized already");
      const weight = await found.weight.read();
      const [n = 0, k = 0] = found.spec.shape;
      const what = `layers.${layer}.down${rotate ? ", rotated" : ""}`;
      pictures.push(
        gridPicture(weight, [n, k], {
          bits,
          what,
          model: label,
          name: rotate ? "weights-rotated" : "weights",
        }),
      );
    } finally {
      await model.close();
    }
  }
  step(4, "done");
  return pictures;
}
