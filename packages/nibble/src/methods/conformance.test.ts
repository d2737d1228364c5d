/** What every weight method must do, whatever it is. A new method needs a line in CASES. */
import { describe, expect, it } from "vitest";
import {
  activations,
  outputError,
  relativeError,
  solveContext,
  statsOf,
  studentT,
} from "../../test/support/solver.js";
import { groupsPerRow } from "../encodings/groups.js";
import { packedBytes } from "../encodings/packed-codes.js";
import { bitsPerWeight, decode } from "../encodings/quant-tensor.js";
import { describe as describeTensor, deserialize, serialize } from "../encodings/serialize.js";
import { roundFloat } from "../encodings/stored-floats.js";
import type { QuantTensor } from "../encodings/types.js";
import type { SolverMethod } from "./contract.js";
import { methods } from "./index.js";
import { rtn } from "./rtn.js";

interface Case {
  /** Options of RTN with the same code bits and groups, whose error must not be smaller; or why that does not hold. */
  rtn: Record<string, unknown> | string;
  /** Which error counts. */
  error: "weight" | "output";
  /** Stored bits per weight by the formula of the method's specification. */
  bits(n: number, k: number, tensor: QuantTensor): number;
}

const side = (tensor: QuantTensor) => {
  const entries = tensor.csr?.columns.length ?? 0;
  return tensor.csr ? entries * 32 + 32 * (tensor.n + 1) : 0;
};
/** Codes of b bits (rows padded to 64), a scale of s bits and a zero of z bits per group (zeros packed as one row). */
const grouped =
  (b: number, s: number, z: 0 | "int" | "float", g: number | "channel") =>
  (n: number, k: number, t: QuantTensor) => {
    const groups = n * groupsPerRow(k, g);
    const zeros = z === "int" ? 8 * packedBytes(b, 1, groups) : z === "float" ? 16 * groups : 0;
    return (8 * packedBytes(b, n, k) + s * groups + zeros + side(t)) / (n * k);
  };
const density = (t: QuantTensor) => decode(t).filter((x) => x !== 0).length / (t.n * t.k);

const CASES: Record<string, Case> = {
  rtn: { rtn: {}, error: "weight", bits: grouped(4, 16, "int", "channel") },
  gptq: { rtn: {}, error: "output", bits: grouped(4, 16, "int", "channel") },
  awq: { rtn: { groupSize: 128 }, error: "output", bits: grouped(4, 16, "int", 128) },
  squeezellm: {
    rtn: {},
    error: "output",
    bits: (n, k, t) => (8 * packedBytes(4, n, k) + 16 * 16 * n + side(t)) / (n * k),
  },
  hqq: {
    rtn: "minimizes sum |error|^0.7, which may raise the squared error of heavy-tailed groups",
    error: "weight",
    bits: grouped(4, 16, "float", 64),
  },
  easyquant: { rtn: {}, error: "weight", bits: grouped(4, 16, 0, "channel") },
  nf4: {
    rtn: { groupSize: 64 },
    error: "weight",
    bits: (n, k) => {
      const groups = n * groupsPerRow(k, 64);
      return (8 * packedBytes(4, n, k) + 8 * groups + 32 * Math.ceil(groups / 256) + 32) / (n * k);
    },
  },
  afpq: {
    rtn: { groupSize: 128 },
    error: "weight",
    bits: (n, k) => (8 * packedBytes(4, n, k) + 32 * n * groupsPerRow(k, 128)) / (n * k),
  },
  float: {
    rtn: "errs in proportion to each weight: better than integers only where outliers stretch a row (float.test.ts)",
    error: "weight",
    bits: grouped(6, 16, 0, "channel"),
  },
  neuzip: {
    rtn: { bits: 8 },
    error: "weight",
    bits: (n, k, t) =>
      t.main.kind === "dense" ? (8 * (t.main.codec?.bytes.length ?? 0)) / (n * k) : 0,
  },
  wanda: {
    rtn: "prunes: half of the weights are 0, whatever the bits of the others",
    error: "output",
    bits: (n, k, t) => (8 * n * Math.ceil(k / 8)) / (n * k) + 16 * density(t),
  },
  sparsegpt: {
    rtn: "prunes: half of the weights are 0, whatever the bits of the others",
    error: "output",
    bits: (n, k, t) => (8 * n * Math.ceil(k / 8)) / (n * k) + 16 * density(t),
  },
  ternary: {
    rtn: "only for models that were trained ternary",
    error: "weight",
    bits: (n, k) => (8 * packedBytes(2, n, k) + 32) / (n * k),
  },
};

const weightMethods = [...methods].filter((m): m is SolverMethod<unknown> => m.kind === "weights");
const X_TOKENS = 320;
const SIZES = [
  { n: 40, k: 192 },
  { n: 24, k: 100 },
];
const data = SIZES.map(({ n, k }, i) => {
  const x = activations(X_TOKENS, k, i);
  return { n, k, w: studentT(n * k, i, 0.02), x, stats: statsOf(x, k) };
});

async function solve(
  method: SolverMethod<unknown>,
  options: unknown,
  { n, k, w, stats }: (typeof data)[number],
) {
  const given = method.needs(options).calibration ? stats : null;
  return method.solve(w.slice(), { n, k, path: "layers.0.o" }, given, options, solveContext());
}

const asBf16 = (w: Float32Array) => w.map((x) => roundFloat(x, "bf16"));
const bytesOfTensor = (tensor: QuantTensor) =>
  serialize("m", tensor).map(({ name, dtype, shape, bytes }) => ({
    name,
    dtype,
    shape,
    bytes: [...bytes],
  }));

describe.each(weightMethods.map((m) => [m.id, m] as const))("%s", (id, method) => {
  const options = method.options.parse({});
  const expected = CASES[id];

  it("has a line in this suite, text for its page, and targets", () => {
    expect(expected, `add "${id}" to CASES`).toBeDefined();
    expect(method.paper).toMatch(/^(arXiv:\d{4}\.\d{5}|https:\/\/|IST-DASLab|round)/);
    expect(method.summary).toMatch(/\.$/);
    expect(method.targets(options).targets).toEqual(["layers.*"]);
    const { peakBytes, flops } = method.estimate({ n: 576, k: 1536 }, options);
    expect(peakBytes).toBeGreaterThan(0);
    expect(flops).toBeGreaterThan(0);
  });

  it("refuses an option it does not have", () => {
    expect(() => method.options.parse({ bitz: 4 })).toThrow(/bitz/);
  });

  it.each(data)(
    "same seed, same bytes; bits as in the formula; save and load ($n x $k)",
    async (one) => {
      const { tensor } = await solve(method, options, one);
      const again = await solve(method, options, one);
      expect(bytesOfTensor(again.tensor)).toEqual(bytesOfTensor(tensor));

      const stored = serialize("m", tensor);
      const bits = (8 * stored.reduce((sum, t) => sum + t.bytes.byteLength, 0)) / (one.n * one.k);
      expect(bitsPerWeight(tensor)).toBeCloseTo(bits, 9);
      expect(expected?.bits(one.n, one.k, tensor)).toBeCloseTo(bits, 9);

      const byName = new Map(stored.map((t) => [t.name, { ...t, bytes: t.bytes.slice() }]));
      const description: unknown = JSON.parse(JSON.stringify(describeTensor(tensor)));
      const loaded = await deserialize("m", description, (name) => {
        const found = byName.get(name);
        if (!found) throw new Error(`${name} was not stored`);
        return found;
      });
      expect(decode(loaded)).toEqual(decode(tensor));
      expect(bytesOfTensor(loaded)).toEqual(bytesOfTensor(tensor));
    },
  );

  it("expects to store what it stores (15 %)", async () => {
    if (!method.storedBits) return;
    for (const one of data) {
      const { tensor } = await solve(method, options, { ...one, w: asBf16(one.w) });
      const ratio = (bitsPerWeight(tensor) * one.n * one.k) / method.storedBits(one, options);
      expect(Math.abs(ratio - 1)).toBeLessThan(0.15);
    }
  });

  it("stores what it says it produces", async () => {
    const produced = method.produces(options);
    const [one] = data;
    if (!one) throw new Error("no data");
    const { main, csr, pre } = (await solve(method, options, one)).tensor;
    expect(main.kind).toBe(produced.encoding);
    if (produced.encoding === "dense" && main.kind === "dense") {
      expect(main.codec?.id).toBe(produced.codec);
    } else if (produced.encoding !== "dense" && main.kind !== "dense") {
      expect(main.bits).toBe(produced.bits);
      expect(main.groupSize).toBe(produced.groupSize);
      expect(Boolean(csr)).toBe(produced.csr ?? false);
      if (produced.encoding === "gint" && main.kind === "gint")
        expect(main.zero.kind).toBe(produced.zero);
      if (produced.encoding === "lut" && main.kind === "lut") {
        expect("named" in main.table ? main.table.named : "row").toBe(produced.table);
      }
    }
    expect(pre).toEqual([]);
  });

  it.each(data)("is not worse than rounding at equal bits, or says why ($n x $k)", async (one) => {
    const { tensor } = await solve(method, options, one);
    const { n, k, w, x } = one;
    const error = (t: QuantTensor) =>
      expected?.error === "output" ? outputError(t, w, x) : relativeError(decode(t), w);
    expect(error(tensor)).toBeLessThan(expected?.error === "output" ? Number.POSITIVE_INFINITY : 1);
    if (typeof expected?.rtn === "string") {
      expect(expected.rtn).not.toBe("");
      return;
    }
    const baseline = await rtn.solve(
      w.slice(),
      { n, k, path: "m" },
      null,
      rtn.options.parse(expected?.rtn),
      solveContext(),
    );
    expect(error(tensor)).toBeLessThanOrEqual(error(baseline.tensor));
  });

  it.each([Number.NaN, Number.POSITIVE_INFINITY])(
    "refuses the weight %f and names the tensor",
    async (bad) => {
      const [one] = data;
      if (!one) throw new Error("no data");
      const w = one.w.slice();
      w[77] = bad;
      await expect(solve(method, options, { ...one, w })).rejects.toMatchObject({
        code: "not-finite",
        place: "layers.0.o",
      });
    },
  );

  it("zeros stay zeros", async () => {
    const [one] = data;
    if (!one) throw new Error("no data");
    const { tensor } = await solve(method, options, { ...one, w: new Float32Array(one.n * one.k) });
    for (const v of decode(tensor)) if (Math.abs(v) > 0) throw new Error(`0 became ${v}`);
  });
});
