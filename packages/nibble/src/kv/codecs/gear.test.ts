import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { Philox } from "../../core/rng.js";
import { svd } from "../../linalg/svd.js";
import {
  defineKvCodec,
  type KvCodecDefinition,
  type PlaneInfo,
  type PlaneName,
} from "../contract.js";
import { gearOver } from "./gear.js";
import { kvCodecs } from "./index.js";

const gear = kvCodecs.get("gear") as KvCodecDefinition;
const kivi2 = { codec: "kivi", bits: 2, group: 32, residual: 64 };
const gaussian = (n: number, name: string) => Float32Array.from(new Philox(1, name).normals(n));
const infoOf = (plane: PlaneName, headDim: number, seed = 0): PlaneInfo => ({
  plane,
  headDim,
  layer: 2,
  kvHead: 1,
  seed,
  calibration: null,
});

function roundTrip(
  options: object,
  plane: PlaneName,
  rows: Float32Array,
  headDim: number,
  seed = 0,
) {
  const codec = gear.create(gear.options.parse(options), infoOf(plane, headDim, seed));
  const n = rows.length / headDim;
  expect(n).toBe(codec.caps.group);
  const dst = new Uint8Array(codec.groupBytes).fill(255);
  const variable = codec.encode(rows, n, dst, { firstSlot: 0, length: n, attention: null });
  const out = new Float32Array(rows.length);
  codec.decode(dst, variable, n, out);
  return { out, dst, variable, codec };
}

const error = (a: Float32Array, b: Float32Array) =>
  Math.sqrt(a.reduce((sum, x, i) => sum + (x - (b[i] as number)) ** 2, 0));

/** Gaussian noise, a strong rank-2 part and a few outliers. */
function block(n: number, d: number, name: string): Float32Array {
  const rows = gaussian(n * d, name);
  const left = gaussian(2 * n, `${name}/left`);
  const right = gaussian(2 * d, `${name}/right`);
  for (let t = 0; t < n; t++)
    for (let c = 0; c < d; c++)
      for (let k = 0; k < 2; k++)
        rows[t * d + c] =
          (rows[t * d + c] as number) +
          2 * (left[2 * t + k] as number) * (right[2 * c + k] as number);
  rows[3 * d + 1] = 60;
  rows[40 * d + 9] = -45;
  return rows;
}

describe.each(["k", "v"] as const)("gear over KIVI, %s plane", (plane) => {
  const [n, d] = [64, 32];
  const rows = block(n, d, "rows");

  it("rank 0 and no outliers is the base codec bit for bit", () => {
    const { out, dst, variable } = roundTrip({ base: kivi2, rank: 0, sparse: 0 }, plane, rows, d);
    expect(variable).toBeNull();
    const base = kvCodecs.get("kivi");
    const { codec: _, ...entry } = kivi2;
    const plain = base.create(base.options.parse(entry), infoOf(plane, d));
    const g = plain.caps.group;
    for (let t = 0; t < n; t += g) {
      const bytes = new Uint8Array(plain.groupBytes);
      const want = new Float32Array(g * d);
      const info = { firstSlot: t, length: n, attention: null };
      plain.encode(rows.subarray(t * d, (t + g) * d), g, bytes, info);
      plain.decode(bytes, null, g, want);
      const at = (t / g) * plain.groupBytes;
      expect(dst.subarray(at, at + plain.groupBytes)).toEqual(bytes);
      expect(out.subarray(t * d, (t + g) * d)).toEqual(want);
    }
  });

  it("full rank gives the rows back, up to half floats", () => {
    const { out } = roundTrip({ base: kivi2, rank: 32, sparse: 0 }, plane, rows, d);
    const { out: base } = roundTrip({ base: kivi2, rank: 0, sparse: 0 }, plane, rows, d);
    expect(error(rows, out)).toBeLessThan(1e-3 * error(rows, base));
  });

  it("the error is at most the base codec's and falls with the rank", () => {
    fc.assert(
      fc.property(fc.integer({ min: 0, max: 10_000 }), (seed) => {
        const x = block(n, d, `property/${seed}`);
        let before = Number.POSITIVE_INFINITY;
        for (const rank of [0, 1, 2, 4, 8, 16]) {
          const now = error(x, roundTrip({ base: kivi2, rank, sparse: 0 }, plane, x, d, 7).out);
          expect(now).toBeLessThanOrEqual(before * 1.0001);
          before = now;
        }
      }),
      { numRuns: 5 },
    );
  });

  it("outliers alone lower the error, low rank lowers it further, a fixed seed fixes the bytes", () => {
    const at = (o: object) => roundTrip({ base: kivi2, ...o }, plane, rows, d);
    const base = error(rows, at({ rank: 0, sparse: 0 }).out);
    const sparse = at({ rank: 0 });
    const both = at({ rank: 2 });
    expect(error(rows, sparse.out)).toBeLessThan(base);
    expect(error(rows, both.out)).toBeLessThan(error(rows, sparse.out));
    // An outlier is exact but for its half float and the low rank on top of it.
    expect(Math.abs((sparse.out[3 * d + 1] as number) - 60)).toBeLessThan(0.05);
    const again = at({ rank: 2 });
    expect(again.dst).toEqual(both.dst);
    expect(again.variable).toEqual(both.variable);
    const other = roundTrip({ base: kivi2, rank: 2, loop: 2 }, plane, rows, d, 1);
    expect(other.dst).not.toEqual(both.dst);
  });

  it("decodes fewer rows than a block, and stays finite on constant and extreme rows", () => {
    const { dst, variable, out, codec } = roundTrip({ base: kivi2 }, plane, rows, d);
    for (const count of [32, 63]) {
      if (plane === "k" && count % 32 !== 0) continue;
      const some = new Float32Array(count * d);
      codec.decode(dst, variable, count, some);
      expect(some).toEqual(out.subarray(0, count * d));
    }
    for (const x of [0, 5, 3e4, -1e-20]) {
      const constant = new Float32Array(n * d).fill(x);
      const { out: y } = roundTrip({ base: kivi2 }, plane, constant, d);
      for (const v of y) expect(Math.abs(v - x)).toBeLessThanOrEqual(Math.abs(x) * 1e-3 + 1e-7);
    }
  });

  it("factored attention equals attention over the decoded rows", () => {
    const { out: full } = roundTrip({ base: kivi2, rank: 4, sparse: 0 }, plane, rows, d);
    const { out: base } = roundTrip({ base: kivi2, rank: 0, sparse: 0 }, plane, rows, d);
    const low = full.map((x, i) => x - (base[i] as number));
    const { values: s, left, right } = svd(Float64Array.from(low), n, d);
    expect(s[4] as number).toBeLessThan(1e-3 * (s[0] as number));
    const q = gaussian(d, "q");
    for (let t = 0; t < n; t++) {
      let [dense, factored] = [0, 0];
      for (let c = 0; c < d; c++) {
        dense += (full[t * d + c] as number) * (q[c] as number);
        factored += (base[t * d + c] as number) * (q[c] as number);
      }
      for (let k = 0; k < 4; k++) {
        let p = 0;
        for (let c = 0; c < d; c++) p += (right[k * d + c] as number) * (q[c] as number);
        factored += (left[k * n + t] as number) * (s[k] as number) * p;
      }
      expect(Math.abs(dense - factored)).toBeLessThan(1e-2);
    }
  });
});

describe("gear", () => {
  it("three iterations catch 90 % of what the best rank-2 approximation of the residual catches", () => {
    // Over a base that stores nothing the whole block is the residual.
    const nothing = defineKvCodec({
      ...kvCodecs.get("fp16"),
      id: "nothing",
      create: (_, { headDim }) => ({
        caps: kvCodecs.get("fp16").create({}, infoOf("k", headDim)).caps,
        groupBytes: 0,
        encode: () => null,
        decode: (_src, _variable, _n, out) => void out.fill(0),
      }),
    }) as KvCodecDefinition;
    const [n, d] = [64, 32];
    for (const seed of [0, 1, 2]) {
      const x = block(n, d, `planted/${seed}`);
      const codec = gearOver([nothing]);
      const options = codec.options.parse({ base: { codec: "nothing" }, sparse: 0 });
      const plane = codec.create(options, infoOf("k", d, seed));
      const dst = new Uint8Array(plane.groupBytes);
      const out = new Float32Array(n * d);
      plane.encode(x, n, dst, { firstSlot: 0, length: n, attention: null });
      plane.decode(dst, null, n, out);
      const total = x.reduce((sum, v) => sum + v * v, 0);
      const { values: s } = svd(Float64Array.from(x), n, d);
      const best = (s[0] as number) ** 2 + (s[1] as number) ** 2;
      expect((total - error(x, out) ** 2) / best).toBeGreaterThan(0.9);
    }
  });

  it("composes over per-token and variable codecs and counts its bytes", () => {
    const [n, d] = [64, 32];
    const rows = block(n, d, "compose");
    for (const base of [
      { codec: "int4-token" },
      { codec: "qaq", qNorm: 300, bits: [2, 2] },
      { codec: "fp16" },
    ]) {
      const { out, dst, variable, codec } = roundTrip({ base }, "k", rows, d);
      const plain = roundTrip({ base, rank: 0, sparse: 0 }, "k", rows, d).out;
      expect(error(rows, out)).toBeLessThanOrEqual(error(rows, plain) * 1.001);
      expect(codec.caps.variableBytes).toBe(true);
      expect(dst.length % 4).toBe(0);
      expect(variable).not.toBeNull();
    }
    const options = gear.options.parse({ base: kivi2, rank: 2, sparse: 0 }) as { base: object };
    const { codec } = roundTrip({ base: kivi2, rank: 2, sparse: 0 }, "v", rows, d);
    expect(gear.bitsPerElement(options, d)).toBeCloseTo((8 * codec.groupBytes) / (n * d), 10);
    // Parsed options are plain data and parse to themselves.
    expect(gear.options.parse(JSON.parse(JSON.stringify(options)))).toEqual(options);
  });

  it("refuses unknown bases, wrong base options and buffers that do not fit", () => {
    const message = (o: object) => gear.options.safeParse(o).error?.issues[0]?.message ?? "";
    expect(message({ base: { codec: "kivy" } })).toContain('no base codec "kivy"');
    expect(message({ base: { codec: "kivi", bits: 3 } })).not.toBe("");
    expect(gear.options.safeParse({ base: kivi2, loop: 1 }).success).toBe(false);
    const odd = gear.options.parse({ base: kivi2, buffer: 48 });
    expect(() => gear.create(odd, infoOf("k", 32))).toThrow(
      /no multiple of the base codec's group/,
    );
  });

  it("refuses head sizes whose outliers have no column number", () => {
    const base = { codec: "kivi", bits: 2, group: 32, residual: 64 };
    const made = (sparse: number) =>
      gear.create(gear.options.parse({ base, sparse }), infoOf("k", 320, 0));
    expect(() => made(0.02)).toThrow(expect.objectContaining({ code: "kv-head" }));
    expect(made(0).caps.group).toBe(64);
  });
});
