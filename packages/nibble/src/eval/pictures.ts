/**
 * The pictures of one model: outliers before and after rotation, where the error of rounding falls, what the cache loses,
 * how a grid lies on the weights. Data is measured here, the drawing is charts/. Every picture has its data beside it.
 */

import { UsageError } from "../core/errors.js";
import { rtn } from "../methods/rtn.js";
import { GroupParams } from "../methods/shared/group-params.js";
import {
  type BeforeAfter,
  type OutlierFacts,
  outlierFacts,
  rowFacts,
  type SiteActivations,
} from "./activations.js";
import { heatmap } from "./charts/heatmap.js";
import { countBins, histogram } from "./charts/histogram.js";
import { lineChart } from "./charts/lines.js";
import { surfaceChart } from "./charts/surface.js";
import type { KvErrorRow } from "./kv-error.js";
import type { SensitivityResult } from "./layer-error.js";

export interface Picture {
  name: string;
  svg: string;
  /** What was drawn, for JSON. */
  data: unknown;
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
        `${model}. Each ridge is a token (the first one is left out). One scale per token must reach its highest peak: before, that is ${times(a.peakToRms)} times the typical value and rounding to 4 bits loses ${(100 * a.error).toFixed(1)} % of the energy; ` +
        `after QuaRot's rotation ${times(b.peakToRms)} times and ${(100 * b.error).toFixed(1)} %. The model computes the same.`,
      columnLabel: "channel",
      rowLabel: "token",
      valueLabel: "|activation|",
      surfaces: [surfaceOf("Before", before), surfaceOf("After", after)],
    }),
  };
}

/** Surface of one site of a model as it is. */
export function inputPicture(layer: number, found: SiteActivations, model: string): Picture {
  const facts = outlierFacts(found);
  return {
    name: `inputs-${found.site}`,
    data: { layer, site: found.site, facts },
    svg: surfaceChart({
      title: `Layer ${layer}, ${SITE_TEXT[found.site]}: what its quantizer sees`,
      subtitle: `${model}, after the transforms that the artifact holds. Each ridge is a token (the first one is left out). One scale per token must reach its highest peak: ${facts.peakToRms.toFixed(1)} times the typical value; rounding to 4 bits would lose ${(100 * facts.error).toFixed(1)} % of the energy.`,
      columnLabel: "channel",
      rowLabel: "token",
      valueLabel: "|activation|",
      surfaces: [surfaceOf("As it runs", found)],
      width: 600,
    }),
  };
}

/** How often each code of a quantized matrix is used. */
export function codesPicture(
  codes: Uint8Array,
  bits: number,
  { what, model }: { what: string; model: string },
): Picture {
  const count = 2 ** bits;
  const used = new Set(codes).size;
  let entropy = 0;
  for (const n of countBins(codes, -0.5, count - 0.5, count)) {
    const p = n / codes.length;
    if (p > 0) entropy -= p * Math.log2(p);
  }
  return {
    name: "codes",
    data: { what, bits, used, entropy },
    svg: histogram({
      title: `Codes of ${what}`,
      subtitle: `${model}. How often each of the ${count} values that ${bits} bits can stand for is used: ${used} of them are, and they carry ${entropy.toFixed(2)} bits of information a weight. Rare codes at both ends are the price of reaching the largest weights.`,
      xLabel: "code",
      values: codes,
      grid: count > 32 ? [] : Array.from({ length: count }, (_, i) => i),
      range: [-0.5, count - 0.5],
      bins: count,
    }),
  };
}

/** Outputs along the depth of a weight surface. */
const SURFACE_OUTPUTS = 64;

/** The same matrix [n, k] before and after rotation, some of its rows. */
export function weightPicture(
  [before, after]: readonly [Float32Array, Float32Array],
  [n, k]: [number, number],
  { what, model, bits }: { what: string; model: string; bits: number },
): Picture {
  const shown = Math.min(n, SURFACE_OUTPUTS);
  const sample = (weight: Float32Array) => {
    const values = new Float32Array(shown * k);
    for (let r = 0; r < shown; r++) {
      const from = Math.floor((r * n) / shown) * k;
      values.set(weight.subarray(from, from + k).map(Math.abs), r * k);
    }
    return values;
  };
  const facts = [before, after].map((values) => rowFacts({ values, rows: n, width: k }, bits)) as [
    OutlierFacts,
    OutlierFacts,
  ];
  const [a, b] = facts;
  const said = ({ peakToRms, error }: OutlierFacts) =>
    `${peakToRms.toFixed(1)} times the typical weight, and rounding to ${bits} bits loses ${(100 * error).toFixed(2)} % of the energy`;
  const surface = (name: string, weight: Float32Array) => ({
    name,
    values: sample(weight),
    rows: shown,
    columns: k,
  });
  return {
    name: "outliers-weights",
    data: { what, bits, before: a, after: b },
    svg: surfaceChart({
      title: `Weights of ${what}: before and after rotation`,
      subtitle: `${model}. Each ridge is an output (${shown} of ${n}). One scale per output must reach its largest weight: before, that is ${said(a)}; after QuaRot's rotation ${said(b)}.`,
      columnLabel: "input channel",
      rowLabel: "output",
      valueLabel: "|weight|",
      surfaces: [surface("Before", before), surface("After", after)],
    }),
  };
}

/** Error of keys, and of values, by layer. @param variants names of all that were tried; those without a line are named */
export function kvPictures(
  rows: KvErrorRow[],
  model: string,
  variants: readonly string[],
): Picture[] {
  const texts = {
    keys: "Keys have channels that are large for every token: one scale for a token is then set by them. Rotation (quarot) spreads them out, kivi gives channels scales of their own.",
    values:
      "Values have no such channels: a scale for each token serves them, and the cache rotates nothing.",
  };
  return (["keys", "values"] as const).map((what) => {
    const names = [...new Set(rows.flatMap((row) => Object.keys(row[what])))];
    const missing = variants.filter((name) => !names.includes(name));
    const absent =
      missing.length > 0
        ? ` No line for ${missing.join(", ")}: what they store depends on calibration, attention or keys before RoPE.`
        : "";
    return {
      name: `kv-error-${what}`,
      data: rows.map((row) => ({ layer: row.layer, error: row[what] })),
      svg: lineChart({
        title: `KV cache: what the ${what} lose, by layer`,
        subtitle: `${model}. ${what === "keys" ? "Keys" : "Values"} of a text, stored as each cache preset stores them and read back. Lower is better. ${texts[what]}${absent}`,
        xLabel: "layer",
        yLabel: "relative RMS error (%, log scale)",
        logY: true,
        series: names.map((name) => ({
          name,
          // Dashes let a line be seen that lies under another: the two quarot-kv4 are nearly equal.
          dash: name.includes("not rotated") || name.endsWith("-paper"),
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
      title: `The ${bits}-bit grid on the weights of ${what}`,
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
