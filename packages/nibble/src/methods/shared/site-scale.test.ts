import { describe, expect, it } from "vitest";
import { activations, statsOf } from "../../../test/support/solver.js";
import { tinyForward } from "../../../test/tiny-forward.js";
import { tinyModel } from "../../../test/tiny-model.js";
import { Philox } from "../../core/rng.js";
import { type Model, parameter } from "../../model/model.js";
import {
  applySiteScale,
  rescaleStats,
  type SitePlace,
  siteOrder,
  siteProducer,
  siteView,
} from "./site-scale.js";

const IDS = [3, 17, 4, 41, 9];

/** Random scales over four orders of magnitude; heads that share a row of v share theirs. */
function randomScale(model: Model, place: SitePlace, k: number): Float32Array {
  const rng = new Philox(7, `${place.layer}${place.site}${place.expert}`);
  const s = Float32Array.from({ length: k }, () => 100 ** rng.normal());
  const producer = siteProducer(model, place);
  if (producer.kind !== "rows" || producer.repeat === 1) return s;
  const { repeat, headDim } = producer;
  return s.map((_, c) => {
    const head = Math.floor(c / headDim);
    return s[(head - (head % repeat)) * headDim + (c % headDim)] as number;
  });
}

async function scaleEverything(model: Model): Promise<number> {
  let folded = 0;
  for (let layer = 0; layer < model.config.numHiddenLayers; layer++) {
    for (const place of siteOrder(model, layer)) {
      const { k } = await siteView(model, place, () => null);
      expect(applySiteScale(model, place, randomScale(model, place, k))).toBeNull();
      folded++;
    }
  }
  return folded;
}

async function difference(a: Model, b: Model): Promise<number> {
  const x = await tinyForward(a, IDS);
  const y = await tinyForward(b, IDS);
  let most = 0;
  x.forEach((row, t) => {
    row.forEach((v, i) => {
      most = Math.max(most, Math.abs(v - (y[t]?.[i] as number)));
    });
  });
  return most;
}

describe("site scales", () => {
  it.each([
    ["grouped heads", {}],
    ["one KV head a head", { numKeyValueHeads: 4 }],
    ["biases", { bias: { q: true, k: true, v: true, o: true, mlp: true } }],
    ["QK-norm, tied", { qkNorm: true, tieWordEmbeddings: true }],
    ["experts", { experts: { count: 3, perToken: 2 } }],
  ])("scaling every site leaves the logits as they are, 1e-4 (%s)", async (_, changes) => {
    const model = tinyModel(changes);
    expect(await scaleEverything(model)).toBe("experts" in changes ? 12 : 8);
    expect(await difference(model, tinyModel(changes))).toBeLessThan(1e-4);
    const gain = parameter(model, "layers.0.inputNorm").weight;
    if ("quant" in gain) throw new Error("a norm was quantized");
    expect(await gain.read()).not.toEqual(
      await (parameter(tinyModel(changes), "layers.0.inputNorm").weight as typeof gain).read(),
    );
  });

  it("the view shows weights with the scales that came before", async () => {
    const model = tinyModel();
    const place: SitePlace = { layer: 1, site: "mlp_in", expert: null };
    const before = await siteView(model, place, (path) => path);
    expect(before.linears.map((l) => l.options)).toEqual(["layers.1.gate", "layers.1.up"]);
    applySiteScale(model, place, new Float32Array(36).fill(4));
    const after = await siteView(model, place, () => null);
    expect(after.linears[1]?.weight).toEqual(before.linears[1]?.weight.map((x) => 4 * x));
  });

  it("what cannot be folded comes back as an operation, and the model stays", async () => {
    const model = tinyModel();
    const place: SitePlace = { layer: 0, site: "attn_out", expert: null };
    const uneven = Float32Array.from({ length: 32 }, (_, i) => 2 ** (i % 5));
    expect(applySiteScale(model, place, uneven)).toEqual({
      op: "scale",
      values: { type: "f32", shape: [32], data: uneven.map((s) => 1 / s) },
    });
    model.transforms.push({ op: "hadamard", site: "mlp_out", size: 8 });
    expect(
      applySiteScale(
        model,
        { layer: 0, site: "mlp_out", expert: null },
        new Float32Array(40).fill(2),
      ),
    ).not.toBeNull();
    model.transforms.pop();
    expect(await difference(model, tinyModel())).toBe(0);
  });

  it("refuses scales that are not finite and positive, or of another length", () => {
    const place: SitePlace = { layer: 1, site: "attn_in", expert: null };
    for (const bad of [0, -1, Number.NaN, Number.POSITIVE_INFINITY]) {
      const scale = new Float32Array(36).fill(1);
      scale[5] = bad;
      expect(() => applySiteScale(tinyModel(), place, scale)).toThrow(/layers\.1 attn_in/);
    }
    expect(() => applySiteScale(tinyModel(), place, new Float32Array(35).fill(1))).toThrow(
      /layers\.1 attn_in/,
    );
  });

  it("rescaled statistics are those of rescaled inputs", () => {
    const x = activations(50, 12);
    const scale = Float32Array.from({ length: 12 }, (_, i) => 2 ** (i - 5));
    const expected = statsOf(
      x.map((v, i) => v / (scale[i % 12] as number)),
      12,
    );
    const got = rescaleStats(statsOf(x, 12), scale);
    expect(got.hessian).toEqual(expected.hessian);
    expect(got.sumAbs).toEqual(expected.sumAbs);
    expect(got.maxAbs).toEqual(expected.maxAbs);
  });
});
