/** What `nibble inspect --plot` does: runs a text through a model, reads weights, hands both to the drawings. Node only. */
import { basename } from "node:path";
import { UsageError } from "../core/errors.js";
import { defaultThreads } from "../core/memory.js";
import type { OnProgress } from "../core/progress.js";
import { unpackCodes } from "../encodings/packed-codes.js";
import type { BackendId } from "../kernels/contract.js";
import { selectBackend } from "../kernels/select.js";
import { parameter } from "../model/model.js";
import { loadModel } from "../runtime/load-model.js";
import { openModel } from "../runtime/open.js";
import { type BeforeAfter, beforeAndAfter, captureLayers, rotateModel } from "./activations.js";
import { type KvErrorRow, kvErrors, kvVariants } from "./kv-error.js";
import { encodeStream } from "./perplexity.js";
import {
  codesPicture,
  gridPicture,
  inputPicture,
  kvPictures,
  outlierPicture,
  type Picture,
  weightPicture,
} from "./pictures.js";

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

/**
 * All pictures of a model. An original one is drawn before and after QuaRot's rotation, an artifact as it is: it cannot be
 * rotated any more.
 */
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
  let variants: string[];
  let label: string;
  let layers: number;
  let quantized: boolean;
  try {
    ids = encodeStream(opened, options.text).slice(0, tokens);
    const all = kvVariants(opened.model.config);
    variants = all.map((variant) => variant.name);
    rows = await kvErrors(opened, ids, all);
    layers = opened.model.config.numHiddenLayers;
    quantized = [...opened.model.parameters.values()].some(({ weight }) => "quant" in weight);
    const { id } = opened.model.source;
    label = quantized ? `${basename(name)} (from ${id})` : id;
  } finally {
    await opened.close();
  }
  const layer = options.layer ?? Math.floor(layers / 2);
  if (!(layer >= 0 && layer < layers))
    throw new UsageError(`layer ${layer} does not exist: there are ${layers}`);

  step(1, "activations");
  const capture = { backend, threads, ids, ...(signal ? { signal } : {}) };
  if (quantized) {
    const model = await loadModel(name, signal ? { signal } : {});
    try {
      const found = (await captureLayers(model, [layer], capture)).get(layer) ?? [];
      const sites = found.filter(({ site }) => site === "attn_in" || site === "mlp_out");
      const { spec, weight } = parameter(model, `layers.${layer}.down`);
      const main = "quant" in weight ? (await weight.quant()).main : null;
      return [
        ...sites.map((site) => inputPicture(layer, site, label)),
        ...(main && main.kind !== "dense"
          ? [codesPicture(unpackCodes(main.codes), main.bits, { what: spec.path, model: label })]
          : []),
        ...kvPictures(rows, label, variants),
      ];
    } finally {
      await model.close();
    }
  }
  const [found] = await beforeAndAfter(name, [layer], seed, capture);
  const pictures = [
    outlierPicture(found as BeforeAfter, "attn_in", label),
    outlierPicture(found as BeforeAfter, "mlp_out", label),
    ...kvPictures(rows, label, variants),
  ];
  step(2, "weights");
  const matrices: { weight: Float32Array; shape: [number, number] }[] = [];
  for (const rotate of [false, true]) {
    const model = await loadModel(name, signal ? { signal } : {});
    try {
      if (rotate) await rotateModel(model, seed);
      const found = parameter(model, `layers.${layer}.down`);
      if ("quant" in found.weight) throw new UsageError("weights are quantized already");
      const weight = await found.weight.read();
      const [n = 0, k = 0] = found.spec.shape;
      matrices.push({ weight, shape: [n, k] });
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
  const [before, after] = matrices;
  if (before && after) {
    const what = { what: `layers.${layer}.down`, model: label, bits };
    pictures.splice(2, 0, weightPicture([before.weight, after.weight], before.shape, what));
  }
  step(4, "done");
  return pictures;
}
