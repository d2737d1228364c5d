import { describe, expect, it } from "vitest";
import { FormatError } from "../core/errors.js";
import { Philox } from "../core/rng.js";
import { AffineColumns } from "./affine-bytes.js";
import { createGint } from "./gint.js";
import { packCodes, unpackCodes } from "./packed-codes.js";
import { bitsPerWeight, decode, decodeRows, effectiveWeight, storedBytes } from "./quant-tensor.js";
import {
  describe as describeTensor,
  deserialize,
  type NamedTensor,
  serialize,
} from "./serialize.js";
import { roundFloat, storeFloats } from "./stored-floats.js";
import { namedTable, TABLE_NAMES } from "./tables.js";
import type { Encoding, FloatType, Lut, QuantTensor } from "./types.js";

const rng = new Philox(11);
const codes = (bits: number, count: number) =>
  Uint8Array.from({ length: count }, () => rng.below(2 ** bits));
const floats = (type: FloatType, ...shape: number[]) =>
  storeFloats(Float32Array.from(rng.normals(shape.reduce((a, b) => a * b, 1))), type, shape);
const plain = (n: number, k: number, main: Encoding): QuantTensor => ({
  n,
  k,
  main,
  pre: [],
  post: [],
});
const lut = (
  n: number,
  k: number,
  bits: number,
  rest: Omit<Lut, "kind" | "bits" | "codes">,
): Lut => ({
  kind: "lut",
  bits,
  codes: packCodes(codes(bits, n * k), bits, n, k),
  ...rest,
});

const n = 6;
const k = 100;
const gint = (zero: number | Uint8Array | Float32Array, zeroBits = 3) =>
  createGint({
    n,
    k,
    bits: 3,
    groupSize: 32,
    codes: codes(3, n * k),
    scale: floats("f16", n * 4).data,
    scaleType: "f16",
    zero,
    zeroBits,
  });

/** Scales, and zeros if they are floats, in 8 bits. */
function eightBits(zero: Uint8Array | Float32Array) {
  const stored = (values: Float32Array) => {
    const columns = new AffineColumns(n, 4);
    for (let g = 0; g < 4; g++) columns.store(values, g);
    return columns.bytes;
  };
  const scale = floats("f16", n * 4).data.map(Math.abs);
  const affine = {
    scale: stored(scale),
    ...(zero instanceof Float32Array && { zero: stored(zero) }),
  };
  const parts = { n, k, bits: 3, groupSize: 32, codes: codes(3, n * k) };
  return createGint({ ...parts, scale, scaleType: "f16", zero, affine });
}

const TENSORS: Record<string, QuantTensor> = {
  "gint const zero": plain(n, k, gint(4)),
  "gint int zero": plain(n, k, gint(codes(3, n * 4))),
  "gint wider int zero": plain(n, k, gint(codes(4, n * 4), 4)),
  "gint float zero": plain(n, k, gint(floats("f16", n * 4).data)),
  "gint 8-bit scales": plain(n, k, eightBits(codes(3, n * 4))),
  "gint 8-bit scales and float zeros": plain(n, k, eightBits(floats("f16", n * 4).data)),
  "gint tensor scale": plain(
    n,
    k,
    createGint({
      n,
      k,
      bits: 2,
      groupSize: "tensor",
      codes: codes(2, n * k),
      scale: Float32Array.of(0.5),
      scaleType: "bf16",
      zero: 1,
    }),
  ),
  "lut named": plain(
    n,
    k,
    lut(n, k, 4, {
      table: { named: "nf4" },
      groupSize: 64,
      scale: floats("f16", n, 2),
      scaleNegative: floats("f16", n, 2),
    }),
  ),
  "lut row tables": plain(
    n,
    k,
    lut(n, k, 3, {
      table: { rowsPerTile: 1, colsPerTile: k, classes: 1, values: floats("f16", n, 1, 8) },
      groupSize: "channel",
    }),
  ),
  "lut two classes": plain(
    n,
    k,
    lut(n, k, 2, {
      table: {
        rowsPerTile: 4,
        colsPerTile: 64,
        classes: 2,
        colClass: codes(1, k),
        values: floats("f32", 4, 2, 4),
      },
      groupSize: "channel",
    }),
  ),
  "lut additive": plain(
    n,
    k,
    lut(n, k, 2, {
      table: {
        rowsPerTile: 1,
        colsPerTile: 64,
        classes: 1,
        values: floats("f16", n * 2, 1, 2),
        additive: true,
      },
      groupSize: "channel",
    }),
  ),
  dense: plain(n, k, { kind: "dense", type: "bf16", data: floats("bf16", n * k).data }),
  everything: {
    ...plain(n, k, gint(codes(3, n * 4))),
    csr: {
      rowPointers: Uint32Array.of(0, 1, 1, 1, 3, 3, 3),
      columns: Uint32Array.of(99, 0, 5),
      values: floats("f16", 3),
    },
    lowRank: [{ a: floats("f16", 2, k), b: floats("bf16", n, 2), alpha: 0.5 }],
    pre: [
      { op: "scale", values: floats("f32", k) },
      { op: "perm", index: rng.permutation(k) },
    ],
    post: [{ op: "layernorm" }],
  },
};

describe.each(Object.entries(TENSORS))("%s", (_, tensor) => {
  const stored = serialize("m", tensor);
  const read = (tensors: NamedTensor[]) => (name: string) => {
    const found = tensors.find((t) => t.name === name);
    if (!found) throw new FormatError(`no tensor ${name}`);
    return found;
  };
  const json = () => JSON.parse(JSON.stringify(describeTensor(tensor)));

  it("survives serialization: same values, same bytes", async () => {
    const copy = await deserialize("m", json(), read(stored));
    expect(decode(copy)).toEqual(decode(tensor));
    expect(effectiveWeight(copy)).toEqual(effectiveWeight(tensor));
    expect(serialize("m", copy)).toEqual(stored);
    expect(copy.post).toEqual(tensor.post);
  });

  it("counts the bytes that are stored", () => {
    expect(storedBytes(tensor)).toBe(stored.reduce((sum, t) => sum + t.bytes.byteLength, 0));
  });

  it("decodes any rows", () => {
    expect(decodeRows(tensor, 2, 5)).toEqual(decode(tensor).slice(2 * k, 5 * k));
  });

  it("refuses wrong lengths, types and shapes of every tensor", async () => {
    for (const [i, target] of stored.entries()) {
      for (const broken of [
        { ...target, bytes: target.bytes.subarray(1) },
        { ...target, dtype: "U16x" as "U16" },
        { ...target, shape: [...target.shape, 1] },
      ]) {
        await expect(deserialize("m", json(), read(stored.with(i, broken)))).rejects.toThrow(
          new RegExp(`tensor ${target.name}`),
        );
      }
    }
  });
});

describe("hostile contents", () => {
  const tensor = TENSORS.everything as QuantTensor;
  const stored = serialize("m", tensor);
  const load = (
    name: string,
    change: (bytes: Uint8Array) => void,
    description: unknown = describeTensor(tensor),
  ) =>
    deserialize("m", description, (wanted) => {
      const found = stored.find((t) => t.name === wanted) as NamedTensor;
      if (wanted !== name) return found;
      const bytes = Uint8Array.from(found.bytes);
      change(bytes);
      return { ...found, bytes };
    });

  it.each([
    ["m.perm", (b: Uint8Array) => b.set(b.subarray(4, 8)), /no permutation/],
    ["m.csr.col", (b: Uint8Array) => b.fill(255), /column/],
    ["m.csr.row_ptr", (b: Uint8Array) => b.fill(9, 4, 5), /decreases/],
    ["m.csr.row_ptr", (b: Uint8Array) => b.fill(9, 0, 1), /span/],
    ["m.scale", (b: Uint8Array) => b.fill(255), /finite/],
  ])("%s", async (name, change, message) => {
    await expect(load(name, (b) => void change(b))).rejects.toThrow(message);
  });

  it("descriptions: unknown keys, encodings, sizes and tables", async () => {
    const good = describeTensor(tensor);
    for (const bad of [
      { ...good, extra: 1 },
      { ...good, bits: 9 },
      { ...good, shape: [0, 4] },
      { ...good, groupSize: 0 },
      { ...good, pre: [{ op: "perm" }, { op: "perm" }] },
      { ...describeTensor(TENSORS["lut named"] as QuantTensor), table: "nf5" },
      null,
    ]) {
      await expect(load("", () => {}, bad)).rejects.toThrow(FormatError);
    }
  });

  it("an encoding of another version is refused by its name", async () => {
    const vq = { encoding: "vq", shape: [n, k], dim: 2, books: 1, bits: 8, pre: [], post: [] };
    await expect(load("", () => {}, vq)).rejects.toMatchObject({
      code: "encoding",
      message: 'linears.m.encoding: the encoding "vq" is not one of gint, lut, dense',
    });
  });
});

describe("bit planes", () => {
  const planes = (tensor: QuantTensor) => {
    if (tensor.main.kind === "dense") throw new Error("no codes");
    const all = unpackCodes(tensor.main.codes);
    return [all.map((c) => c & 1), all.map((c) => c >> 1)] as const;
  };

  it("any 2-bit table is c0 + c1 b0 + c2 b1 + c3 (b0 and b1); an additive one has c0 = c3 = 0", () => {
    const additive = TENSORS["lut additive"] as QuantTensor;
    const [b0, b1] = planes(additive);
    const { values } = (additive.main as Lut).table as { values: { data: Float32Array } };
    decode(additive).forEach((w, i) => {
      const tile = 2 * Math.floor(i / k) + Math.floor((i % k) / 64);
      const [a0, a1] = [values.data[2 * tile] as number, values.data[2 * tile + 1] as number];
      expect(w).toBe(Math.fround((b0[i] ? a0 : 0) + (b1[i] ? a1 : 0)));
    });
    const table = Float32Array.of(-1.25, -0.5, 0.375, 2);
    const one = plain(
      n,
      k,
      lut(n, k, 2, {
        table: {
          rowsPerTile: n,
          colsPerTile: k,
          classes: 1,
          values: storeFloats(table, "f32", [1, 1, 4]),
        },
        groupSize: "channel",
      }),
    );
    const [low, high] = planes(one);
    decode(one).forEach((w, i) => {
      const [x, y] = [low[i] as number, high[i] as number];
      expect(w).toBe(-1.25 + 0.75 * x + 1.625 * y + (2 + 0.5 - 0.375 - 1.25) * x * y);
    });
  });

  it("1-bit integers with a constant zero of 1/2 are signs times a scale", () => {
    const scale = floats("f16", n).data.map(Math.abs);
    const bits = codes(1, n * k);
    const signs = createGint({
      ...{ n, k, bits: 1, groupSize: "channel", codes: bits, scaleType: "f16", zero: 0.5 },
      scale: scale.map((s) => 2 * s),
    });
    decode(plain(n, k, signs)).forEach((w, i) => {
      expect(w).toBe((bits[i] ? 1 : -1) * (scale[Math.floor(i / k)] as number));
    });
  });
});

describe("accounting", () => {
  const bits = (width: number, group: number | "channel", zero: "const" | "int" | "float") => {
    const [rows, cols] = [576, 1536];
    const groups = group === "channel" ? 1 : cols / group;
    return bitsPerWeight(
      plain(
        rows,
        cols,
        createGint({
          n: rows,
          k: cols,
          bits: width,
          groupSize: group,
          codes: new Uint8Array(rows * cols),
          scale: new Float32Array(rows * groups),
          scaleType: "f16",
          zero:
            zero === "const"
              ? 2 ** (width - 1)
              : zero === "int"
                ? new Uint8Array(rows * groups)
                : new Float32Array(rows * groups),
        }),
      ),
    );
  };
  it.each([
    [4, 128, "const", 4.125],
    [4, 128, "int", 4.15625],
    [4, 128, "float", 4.25],
    [4, 64, "int", 4.3125],
    [3, 128, "int", 3.1484375],
    [4, "channel", "const", 4 + 16 / 1536],
  ] as const)("int%i group %s zero %s: %f bits per weight", (width, group, zero, expected) => {
    expect(bits(width, group, zero)).toBeCloseTo(expected, 10);
  });
});

describe("tables", () => {
  it("have 2^bits finite entries (fp8 holds NaN and infinities)", () => {
    for (const name of TABLE_NAMES) {
      const { bits, values } = namedTable(name);
      expect(values.length).toBe(2 ** bits);
      if (!name.startsWith("fp8")) expect(values.every(Number.isFinite)).toBe(true);
    }
  });
  it("fp6_e3m2 lists the values of the paper", () => {
    const { values } = namedTable("fp6_e3m2");
    expect([...values.slice(0, 16)]).toEqual([
      0, 0.0625, 0.125, 0.1875, 0.25, 0.3125, 0.375, 0.4375, 0.5, 0.625, 0.75, 0.875, 1, 1.25, 1.5,
      1.75,
    ]);
    expect(values[31]).toBe(28);
    expect(values[63]).toBe(-28);
  });
  it("small formats", () => {
    const positive = (name: string, count: number) => [...namedTable(name).values.slice(0, count)];
    expect(positive("fp4_e2m1", 8)).toEqual([0, 0.5, 1, 1.5, 2, 3, 4, 6]);
    expect(positive("fp6_e2m3", 32).at(-1)).toBe(7.5);
    expect(positive("fp5_e2m2", 16).at(-1)).toBe(7);
    expect(namedTable("fp8_e4m3").values[0x7e]).toBe(448);
    expect(namedTable("nf4").values[1]).toBe(Math.fround(-0.6961928009986877));
  });
  it("an unknown table names the nearest", () => {
    expect(() => namedTable("nf44")).toThrow(
      expect.objectContaining({ hint: 'Did you mean "nf4"?' }),
    );
    expect(() => namedTable("constructor")).toThrow(FormatError);
  });
});

describe("stored floats", () => {
  it("round half to even", () => {
    expect(roundFloat(1 + 2 ** -11, "f16")).toBe(1);
    expect(roundFloat(1 + 3 * 2 ** -11, "f16")).toBe(1 + 2 ** -9);
    expect(roundFloat(1 + 2 ** -8, "bf16")).toBe(1);
    expect(roundFloat(1 + 2 ** -24, "f32")).toBe(1);
  });
});
