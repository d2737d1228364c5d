import { describe, expect, it } from "vitest";
import { activations, gaussian, solveContext, statsOf } from "../../test/support/solver.js";
import type { SiteProducer, SiteView } from "./contract.js";
import { type SmoothquantOptions, smoothquant, smoothScale } from "./smoothquant.js";

const options = (o: object = {}): SmoothquantOptions => smoothquant.options.parse(o);
const k = 48;
const linears = [1, 2, 3].map((seed) => ({
  path: `layers.0.${"qkv"[seed - 1]}`,
  n: 16,
  k,
  weight: gaussian(16 * k, seed, 0.1),
  options: null,
}));
const stats = statsOf(activations(200, k, 5), k);
const site = (
  name: SiteView<SmoothquantOptions>["site"],
  producer: SiteProducer = { kind: "norm" },
): SiteView<SmoothquantOptions> => ({
  site: name,
  layer: 0,
  expert: null,
  k,
  producer,
  linears,
});

describe("smoothquant", () => {
  it("alpha 0.5 makes the maxima of inputs and weights equal, channel by channel", async () => {
    const found = await smoothquant.scaler.prepareSite(
      site("attn_in"),
      stats,
      options(),
      solveContext(),
    );
    if (!found) throw new Error("not smoothed");
    found.scale.forEach((s, c) => {
      let most = 0;
      for (const { weight } of linears)
        for (let r = 0; r < 16; r++) most = Math.max(most, Math.abs(weight[r * k + c] as number));
      const input = (stats.maxAbs[c] as number) / s;
      expect(Math.abs(input / (most * s) - 1)).toBeLessThan(1e-5);
    });
  });

  it("s = 1 where a^alpha = w^(1 - alpha); floors for channels of zeros", () => {
    expect(smoothScale([0.25], [0.25], 0.5)[0]).toBe(1);
    expect(smoothScale([0.5 ** 1.5], [0.5 ** 8.5], 0.85)[0]).toBeCloseTo(1, 5);
    expect(smoothScale([0], [1], 0.5)[0]).toBe(Math.fround(1e-5));
    expect(Number.isFinite(smoothScale([3], [0], 0.5)[0])).toBe(true);
  });

  it("smooths behind norms only, unless told; heads that share a row of v share the largest scale", async () => {
    const producer: SiteProducer = { kind: "rows", repeat: 2, headDim: 8 };
    expect(
      await smoothquant.scaler.prepareSite(
        site("attn_out", producer),
        stats,
        options(),
        solveContext(),
      ),
    ).toBeNull();
    const own = await smoothquant.scaler.prepareSite(
      site("attn_out"),
      stats,
      options({ sites: ["attn_out"] }),
      solveContext(),
    );
    const shared = await smoothquant.scaler.prepareSite(
      site("attn_out", producer),
      stats,
      options({ sites: ["attn_out"] }),
      solveContext(),
    );
    shared?.scale.forEach((s, c) => {
      const first = c - (Math.floor(c / 8) % 2) * 8;
      expect(s).toBe(Math.max(own?.scale[first] as number, own?.scale[first + 8] as number));
    });
  });

  it("refuses activations that are not finite, and names the site", async () => {
    const bad = {
      ...stats,
      maxAbs: stats.maxAbs.map((x, i) => (i === 3 ? Number.POSITIVE_INFINITY : x)),
    };
    await expect(
      smoothquant.scaler.prepareSite(site("mlp_in"), bad, options(), solveContext()),
    ).rejects.toThrow(/layers\.0 mlp_in/);
  });
});
