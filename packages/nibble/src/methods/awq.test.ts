import { describe, expect, it } from "vitest";
import {
  activations,
  gaussian,
  outputError,
  solveContext,
  statsOf,
  studentT,
} from "../../test/support/solver.js";
import { decode } from "../encodings/quant-tensor.js";
import { referenceLinalg } from "../linalg/engine-linalg.js";
import { type AwqOptions, awq, awqScale, clipGroups } from "./awq.js";
import type { SiteLinear, SiteProducer, SiteStatsView, SiteView } from "./contract.js";
import { rtn } from "./rtn.js";
import { multiplyColumns, rescaleStats } from "./shared/site-scale.js";

const options = (o: object = {}): AwqOptions => awq.options.parse({ groupSize: 32, bits: 3, ...o });
const prepare = awq.scaler?.prepareSite as NonNullable<typeof awq.scaler>["prepareSite"];

function siteOf(
  linears: SiteLinear<AwqOptions>[],
  producer: SiteProducer = { kind: "norm" },
  site: SiteView<AwqOptions>["site"] = "attn_in",
): SiteView<AwqOptions> {
  return { site, layer: 0, expert: null, k: linears[0]?.k ?? 0, producer, linears };
}

async function solve(
  w: Float32Array,
  n: number,
  k: number,
  stats: SiteStatsView,
  o: AwqOptions,
  path = "layers.0.o",
) {
  return awq.solve(w.slice(), { n, k, path }, stats, o, solveContext());
}

/** Output error of solving with the input scale that AWQ finds, measured against the original weight and inputs. */
async function scaledError(
  w: Float32Array,
  n: number,
  k: number,
  x: Float64Array,
  o: AwqOptions,
): Promise<number> {
  const stats = statsOf(x, k);
  const site = siteOf([{ path: "layers.0.up", n, k, weight: w, options: o }]);
  const found = await prepare(site, stats, o, solveContext());
  const scale = found?.scale ?? new Float32Array(k).fill(1);
  const { tensor } = await solve(
    multiplyColumns(w.slice(), scale),
    n,
    k,
    rescaleStats(stats, scale),
    o,
  );
  const pre = [
    {
      op: "scale" as const,
      values: { type: "f32" as const, shape: [k], data: scale.map((s) => 1 / s) },
    },
  ];
  return outputError({ ...tensor, pre }, w, x);
}

describe("awq scale search", () => {
  const [n, k] = [40, 96];
  const w = studentT(n * k, 1, 0.05);
  const x = activations(256, k, 1);

  it("alpha 0 is s = 1; max(s) min(s) = 1 for any alpha", () => {
    const magnitude = Float64Array.from({ length: 30 }, (_, i) => 10 ** (i % 7));
    expect([...awqScale(magnitude, 0, null)]).toEqual(new Array(30).fill(1));
    for (const alpha of [0.05, 0.5, 0.95]) {
      const s = awqScale(magnitude, alpha, null);
      expect(Math.max(...s) * Math.min(...s)).toBeCloseTo(1, 5);
      const duo = awqScale(
        magnitude,
        alpha,
        Float64Array.from({ length: 30 }, (_, i) => 0.1 + i / 40),
      );
      expect(Math.max(...duo) * Math.min(...duo)).toBeCloseTo(1, 5);
    }
    const withZero = awqScale(Float64Array.of(0, 1, 4), 0.5, null);
    expect(withZero.every((s) => s > 0 && Number.isFinite(s))).toBe(true);
  });

  it("the chosen error is that of solving with the scale, and not above the unscaled one", async () => {
    const o = options({ clip: false });
    const stats = statsOf(x, k);
    const site = siteOf([{ path: "layers.0.up", n, k, weight: w, options: o }]);
    const found = await prepare(site, stats, o, solveContext());
    if (!found) throw new Error("outlier channels must be scaled");
    const plain = await solve(w, n, k, stats, o);
    const scaled = await solve(
      multiplyColumns(w.slice(), found.scale),
      n,
      k,
      rescaleStats(stats, found.scale),
      o,
    );
    const ratio = (scaled.loss as number) / (plain.loss as number);
    expect(ratio).toBeLessThan(1);
    expect(found.notes?.[0]).toContain(`error ${ratio.toFixed(3)} of unscaled`);
  });

  it("the search leaves the weights alone", async () => {
    const copy = w.slice();
    await prepare(
      siteOf([{ path: "layers.0.up", n, k, weight: copy, options: options() }]),
      statsOf(x, k),
      options(),
      solveContext(),
    );
    expect(copy).toEqual(w);
  });

  it("two outlier channels x 50: far better than rounding; clipping helps further", async () => {
    const outliers = x.slice();
    for (let t = 0; t < 256; t++) {
      for (const c of [11, 60]) outliers[t * k + c] = 50 * (outliers[t * k + c] as number);
    }
    const o = { bits: 3, groupSize: 32 };
    const { tensor } = await rtn.solve(
      w.slice(),
      { n, k, path: "w" },
      null,
      rtn.options.parse(o),
      solveContext(),
    );
    const rounding = outputError(tensor, w, outliers);
    const scaling = await scaledError(w, n, k, outliers, options({ clip: false }));
    expect(scaling).toBeLessThan(0.3 * rounding);
    expect(await scaledError(w, n, k, outliers, options())).toBeLessThan(scaling);
    expect(await scaledError(w, n, k, outliers, options({ scaling: "duo" }))).toBeLessThan(
      0.3 * rounding,
    );
    expect(await scaledError(w, n, k, outliers, options({ scaling: "none" }))).toBeLessThan(
      rounding,
    );
  });

  it("sums the errors of the linears of a site; those of other steps do not count", async () => {
    const other = studentT(n * k, 2, 0.05);
    const o = options({ clip: false });
    const stats = statsOf(x, k);
    const alone = await prepare(
      siteOf([{ path: "layers.0.q", n, k, weight: w, options: o }]),
      stats,
      o,
      solveContext(),
    );
    const ignored = await prepare(
      siteOf([
        { path: "layers.0.q", n, k, weight: w, options: o },
        { path: "layers.0.k", n, k, weight: other, options: null },
      ]),
      stats,
      o,
      solveContext(),
    );
    expect(ignored).toEqual(alone);
  });

  it("v -> o with fewer KV heads: skipped, or one scale for the heads that share a row", async () => {
    const producer: SiteProducer = { kind: "rows", repeat: 3, headDim: 8 };
    const stats = statsOf(x, k);
    const o = options({ clip: false });
    const linears = [{ path: "layers.0.o", n, k, weight: w, options: o }];
    expect(
      await prepare(siteOf(linears, producer, "attn_out"), stats, o, solveContext()),
    ).toBeNull();
    const shared = await prepare(
      siteOf(linears, producer, "attn_out"),
      stats,
      options({ clip: false, gqa: "shared" }),
      solveContext(),
    );
    shared?.scale.forEach((s, c) => {
      const head = Math.floor(c / 8);
      const first = (head - (head % 3)) * 8 + (c % 8);
      if (s !== shared.scale[first]) throw new Error(`channel ${c} has a scale of its own`);
    });
    expect(new Set(shared?.scale).size).toBeGreaterThan(1);
  });
});

describe("awq clip search", () => {
  const [n, k] = [20, 80];
  const w = studentT(n * k, 3, 0.05);
  const x = activations(200, k, 3);
  const stats = statsOf(x, k);
  const gram = Float32Array.from({ length: k * k }, (_, i) => {
    const [r, c] = [Math.floor(i / k), i % k];
    return (stats.hessian[r < c ? r * k + c : c * k + r] as number) / stats.count;
  });

  it("one candidate is no clipping", async () => {
    const copy = w.slice();
    await clipGroups(
      copy,
      n,
      k,
      gram,
      options({ clipGrid: 20, clipMaxShrink: 0.05 }),
      referenceLinalg,
    );
    expect(copy).toEqual(w);
  });

  it("no group's error grows, most fall; ragged groups too", async () => {
    const copy = w.slice();
    const { before, after } = await clipGroups(copy, n, k, gram, options(), referenceLinalg);
    expect(before.length).toBe(n * 3);
    after.forEach((e, i) => {
      if (e > (before[i] as number)) throw new Error(`group ${i} grew`);
    });
    expect(after.filter((e, i) => e < (before[i] as number)).length).toBeGreaterThan(
      before.length / 4,
    );
    for (const [i, c] of copy.entries())
      expect(Math.abs(c)).toBeLessThanOrEqual(Math.abs(w[i] as number));
  });

  it("leaves q and k alone", async () => {
    const clipped = await solve(w, n, k, stats, options());
    for (const path of ["layers.0.q", "layers.7.k"]) {
      const { tensor } = await solve(w, n, k, stats, options(), path);
      const { tensor: plain } = await solve(w, n, k, stats, options({ clip: false }), path);
      expect(decode(tensor)).toEqual(decode(plain));
      expect(decode(tensor)).not.toEqual(decode(clipped.tensor));
    }
  });

  it("rounds with AWQ's grid: the range need not contain 0", async () => {
    const positive = gaussian(32, 4).map((v) => 5 + 0.01 * v);
    const { tensor } = await solve(
      positive,
      1,
      32,
      statsOf(activations(64, 32), 32),
      options({ clip: false }),
    );
    // zero is clamped to 0, so everything beyond 7 steps of (max - min) / 7 is cut off.
    const range = Math.max(...positive) - Math.min(...positive);
    expect(Math.max(...decode(tensor))).toBeCloseTo(range, 3);
  });
});
