/** The reference against plain f64 mathematics: what the numbers mean, where the conformance suite checks that all agree. */
import { readFileSync } from "node:fs";
import { beforeAll, describe, expect, it } from "vitest";
import { hadamardSigns } from "../../linalg/hadamard-matrices.js";
import { Lab, type Random, randomRow } from "../conformance/lab.js";
import { type Placed, placeDense, placeGint, placeLut } from "../conformance/linear-cases.js";
import { execute } from "../conformance/run.js";
import type { Engine } from "../contract.js";
import { EPILOGUE } from "../ops.js";
import { groupCount, PANEL } from "../panel32.js";
import { referenceBackend } from "../reference.js";

let engine: Engine;
beforeAll(async () => {
  engine = await referenceBackend.createEngine({ arenaBytes: 2 ** 23, threads: 1 });
});

async function run(lab: Lab) {
  const { buffer } = await execute(engine, lab);
  return {
    f32: new Float32Array(buffer),
    f64: new Float64Array(buffer),
    i32: new Int32Array(buffer),
    i8: new Int8Array(buffer),
  };
}

const normals = (random: Random, count: number) =>
  Float32Array.from({ length: count }, () => random.normal());

/** Largest |a - b| over the largest |b|. */
function relativeError(a: ArrayLike<number>, b: ArrayLike<number>): number {
  let error = 0;
  let scale = 1e-30;
  for (let i = 0; i < b.length; i++) {
    error = Math.max(error, Math.abs((a[i] as number) - (b[i] as number)));
    scale = Math.max(scale, Math.abs(b[i] as number));
  }
  return error / scale;
}

describe("row ops", () => {
  it("rmsnorm, siluMul and mixHeads agree with f64 within 1e-6", async () => {
    const lab = new Lab(1, 1);
    const width = 96;
    const x = normals(lab.random, width);
    const gain = normals(lab.random, width);
    const up = normals(lab.random, width);
    const mix = normals(lab.random, 16);
    const row = (data: Float32Array) => lab.f32Rows("row", width, "in", () => data);
    const srcAt = row(x);
    const out = () => lab.f32Rows("out", width, "out");
    const [norm, silu, mixed] = [out(), out(), out()];
    const common = { rowsReg: 0, srcAt, ldSrc: width, ldDst: width };
    lab.emit("rmsnorm", { ...common, dstAt: norm, width, gainAt: lab.place(gain), epsilonF: 1e-5 });
    lab.emit("siluMul", {
      rowsReg: 0,
      gateAt: srcAt,
      ldGate: width,
      upAt: row(up),
      ldUp: width,
      dstAt: silu,
      ldDst: width,
      width,
    });
    lab.emit("mixHeads", {
      ...common,
      dstAt: mixed,
      count: 4,
      inner: 24,
      matrixAt: lab.place(mix),
    });
    const { f32 } = await run(lab);
    const rms = Math.sqrt(x.reduce((s, v) => s + v * v, 0) / width + 1e-5);
    const at = (line: number) => f32.subarray(line * 16, line * 16 + width);
    expect(
      relativeError(
        at(norm),
        x.map((v, i) => (v / rms) * gain[i]),
      ),
    ).toBeLessThan(1e-6);
    expect(
      relativeError(
        at(silu),
        x.map((v, i) => (v / (1 + Math.exp(-v))) * up[i]),
      ),
    ).toBeLessThan(1e-6);
    const expected = Float64Array.from({ length: width }, (_, i) => {
      const h = Math.floor(i / 24);
      let sum = 0;
      for (let j = 0; j < 4; j++) sum += mix[h * 4 + j] * x[j * 24 + (i % 24)];
      return sum;
    });
    expect(relativeError(at(mixed), expected)).toBeLessThan(1e-6);
  });

  it("quantize: error at most half a step inside the clip range, sums are those of the codes", async () => {
    for (let seed = 0; seed < 120; seed++) {
      const lab = new Lab(seed, 1);
      const { random } = lab;
      const width = random.pick([1, 33, 64, 100]);
      const x = randomRow(random, width);
      const groupSize = random.pick([0, 32]);
      const groups = groupCount(width, groupSize);
      const symmetric = random.int(0, 1);
      const bits = random.int(2, 8);
      const codesAt = lab.i8Rows("codes", 192, "out");
      const scaleAt = lab.f32Rows("scale", groups, "out");
      const sumAt = lab.i32Rows("sum", groups, "out");
      const zeroAt = symmetric ? -1 : lab.i32Rows("zero", groups, "out");
      lab.emit("quantize", {
        rowsReg: 0,
        srcAt: lab.f32Rows("src", width, "in", () => x),
        ldSrc: width,
        width,
        codesAt,
        ldCodes: 192,
        scaleAt,
        sumAt,
        zeroAt,
        bits,
        symmetric,
        groupSize,
        clipF: 1,
      });
      const { f32, i32, i8 } = await run(lab);
      const sums = new Array<number>(groups).fill(0);
      for (let i = 0; i < width; i++) {
        const g = groupSize ? Math.floor(i / groupSize) : 0;
        const code = i8[codesAt * 64 + i];
        sums[g] += code;
        const scale = f32[scaleAt * 16 + g];
        const value = scale * (code - (symmetric ? 0 : i32[zeroAt * 16 + g]));
        // Rounding of both x and the zero point when asymmetric: one step in all.
        const steps = symmetric ? 0.5 : 1;
        expect(Math.abs(value - x[i])).toBeLessThanOrEqual(scale * steps * 1.001);
        const range = 2 ** (bits - 1);
        const [low, high] = symmetric || bits === 8 ? [-range, range - 1] : [0, 2 * range - 1];
        expect(code >= low && code <= high).toBe(true);
      }
      expect([...i32.subarray(sumAt * 16, sumAt * 16 + groups)]).toEqual(sums);
      for (let i = width; i < Math.ceil(width / 32) * 32; i++) expect(i8[codesAt * 64 + i]).toBe(0);
    }
  });
});

interface GoldenCase {
  n: number;
  k: number;
  m: number;
  Hx_first8: number[];
  Hx_last4: number[];
  HTx_first8: number[];
}

describe("hadamard", () => {
  const path = new URL("../../../test/golden/hadamard.json", import.meta.url);
  const golden = JSON.parse(readFileSync(path, "utf8")) as { cases: GoldenCase[] };
  for (const { n, k, m, ...expected } of golden.cases) {
    it(`golden n = ${n} = ${k} * ${m}: error < 1e-5`, async () => {
      const lab = new Lab(1, 1);
      const x = Float32Array.from({ length: n }, (_, t) => (((37 * t) % 101) - 50) / 50);
      const srcAt = lab.f32Rows("src", n, "in", () => x);
      const signs = k > 1 ? hadamardSigns(k) : null;
      const matrixAt = signs ? lab.place(signs) : -1;
      const results = [0, 1].map((transpose) => {
        const dstAt = lab.f32Rows("dst", n, "out");
        lab.emit("hadamard", {
          ...{ rowsReg: 0, srcAt, ldSrc: n, dstAt, ldDst: n, blocks: 1, orderK: k, orderM: m },
          ...{ inner: 1, matrixAt, transpose, preSignAt: -1, postSignAt: -1 },
          normF: 1 / Math.sqrt(n),
        });
        return dstAt;
      });
      const { f32 } = await run(lab);
      const [y, yT] = results.map((at) => f32.subarray(at * 16, at * 16 + n));
      const close = (actual: Float32Array, list: number[]) =>
        list.forEach((value, i) => {
          expect(Math.abs(actual[i] - value)).toBeLessThan(1e-5 * Math.max(1, Math.abs(value)));
        });
      close(y.subarray(0, 8), expected.Hx_first8);
      close(y.subarray(n - 4), expected.Hx_last4);
      close(yT.subarray(0, 8), expected.HTx_first8);
    });
  }
});

/** W x + bias of a placed weight in f64, by output, with its sum of absolute products. */
function product(w: Placed, x: ArrayLike<number>): { y: number[]; sums: number[] } {
  const slot = (s: number) => {
    let [y, sum] = [w.bias[s], Math.abs(w.bias[s])];
    for (let i = 0; i < w.k; i++) {
      const term = (x[i] as number) * w.values[s * w.k + i];
      y += term;
      sum += Math.abs(term);
    }
    return { y, sum };
  };
  const outputs = Array.from({ length: w.outputs }, (_, i) => {
    if (w.epilogue !== EPILOGUE.swiglu) return slot(i);
    const gate = slot((i >> 4) * PANEL + (i & 15));
    const up = slot((i >> 4) * PANEL + (i & 15) + 16);
    const sum = 1.1 * gate.sum * (Math.abs(up.y) + 1) + (Math.abs(gate.y) + 1) * up.sum;
    return { y: (gate.y / (1 + Math.exp(-gate.y))) * up.y, sum };
  });
  return { y: outputs.map((o) => o.y), sums: outputs.map((o) => o.sum) };
}

describe("linears", () => {
  const kinds = {
    dense: placeDense,
    integer: (lab: Lab) => placeGint(lab, { groupSizes: [0, 32, 64, 8], asymmetric: false }),
    table: placeLut,
  };
  for (const [kind, place] of Object.entries(kinds)) {
    it(`linearFloat with ${kind} weights is W x + b within 1e-5 of the absolute products`, async () => {
      for (let seed = 0; seed < 40; seed++) {
        const lab = new Lab(seed, 1);
        const w = place(lab);
        const x = normals(lab.random, w.k);
        const start = w.epilogue === EPILOGUE.add ? 0.5 : 0;
        const dstAt = lab.f32Rows("dst", w.outputs, "inout", () =>
          new Float32Array(w.outputs).fill(start),
        );
        lab.emit("linearFloat", {
          rowsReg: 0,
          srcAt: lab.f32Rows("src", w.k, "in", () => x),
          ldSrc: w.k,
          weightW: w.index,
          dstAt,
          ldDst: w.outputs,
          epilogue: w.epilogue,
        });
        const { f32 } = await run(lab);
        const { y, sums } = product(w, x);
        for (let i = 0; i < w.outputs; i++) {
          const error = Math.abs(f32[dstAt * 16 + i] - y[i] - start);
          expect(error, `seed ${seed}, output ${i}`).toBeLessThanOrEqual(1e-5 * (sums[i] + 1));
        }
      }
    });
  }

  it("linearInt is W x of the dequantized activations within 1e-5, symmetric or not", async () => {
    for (let seed = 0; seed < 60; seed++) {
      const lab = new Lab(seed, 1);
      const { random } = lab;
      const asymmetric = random.chance(0.5);
      const w = placeGint(lab, { groupSizes: [0, 32, 64], asymmetric });
      const { groups, groupSize } = w.fields;
      const size = groupSize || w.k;
      const codes = Int8Array.from({ length: w.k }, () => random.int(-128, 127));
      const sums = new Int32Array(groups);
      codes.forEach((c, i) => {
        sums[Math.floor(i / size)] += c;
      });
      const scales = Float32Array.from({ length: groups }, () => random.uniform());
      const zeros = Int32Array.from({ length: groups }, () =>
        asymmetric ? random.int(-99, 99) : 0,
      );
      const x = Float64Array.from(codes, (c, i) => {
        const g = Math.floor(i / size);
        return scales[g] * (c - zeros[g]);
      });
      const dstAt = lab.f32Rows("dst", w.outputs, "inout", () => new Float32Array(w.outputs));
      const ldCodes = (Math.ceil(w.k / 64) | 1) * 64;
      lab.emit("linearInt", {
        rowsReg: 0,
        codesAt: lab.i8Rows("codes", ldCodes, "in", () => {
          const row = new Int8Array(ldCodes);
          row.set(codes);
          return row;
        }),
        ldCodes,
        scaleAt: lab.f32Rows("scale", groups, "in", () => scales),
        sumAt: lab.i32Rows("sum", groups, "in", () => sums),
        zeroAt: asymmetric ? lab.i32Rows("zero", groups, "in", () => zeros) : -1,
        activationGroups: groups,
        weightW: w.index,
        dstAt,
        ldDst: w.outputs,
        epilogue: w.epilogue,
      });
      const { f32 } = await run(lab);
      const { y, sums: bounds } = product(w, x);
      for (let i = 0; i < w.outputs; i++) {
        const error = Math.abs(f32[dstAt * 16 + i] - y[i]);
        expect(error, `seed ${seed}, output ${i}`).toBeLessThanOrEqual(1e-5 * (bounds[i] + 1));
      }
    }
  });
});

describe("algebra and statistics", () => {
  it("inverseFactor: U^T U H = I within 1e-5; an indefinite matrix reports a column", async () => {
    const n = 24;
    const lab = new Lab(3, 1);
    const x = normals(lab.random, 3 * n * n);
    const h = new Float64Array(n * n);
    for (let i = 0; i < n; i++) {
      for (let j = 0; j < n; j++) {
        for (let r = 0; r < 3 * n; r++) h[i * n + j] += x[r * n + i] * x[r * n + j];
      }
    }
    const bad = h.slice();
    bad[5 * n + 5] = -1;
    const emit = (matrix: Float64Array) => {
      const factorAt = lab.output("factor", "f32", new Float32Array(n * n));
      const statusAt = lab.output("status", "i32", Int32Array.of(-1));
      lab.emit("inverseFactor", { size: n, hessianAt: lab.place(matrix), factorAt, statusAt });
      return { factorAt, statusAt };
    };
    const good = emit(h);
    const failed = emit(bad);
    const { f32, i32 } = await run(lab);
    expect(i32[good.statusAt * 16]).toBe(0);
    expect(i32[failed.statusAt * 16]).toBe(6);
    const u = f32.subarray(good.factorAt * 16, good.factorAt * 16 + n * n);
    for (let i = 0; i < n; i++) {
      for (let j = 0; j < n; j++) {
        let sum = 0;
        for (let a = 0; a < n; a++) {
          let inverse = 0;
          for (let r = 0; r <= Math.min(i, a); r++) inverse += u[r * n + i] * u[r * n + a];
          sum += inverse * h[a * n + j];
        }
        expect(Math.abs(sum - (i === j ? 1 : 0))).toBeLessThan(1e-5);
      }
    }
  });

  it("logitStats, klDivergence and route give the textbook values", async () => {
    const lab = new Lab(1, 1);
    const logits = [1, 3, 3, -2];
    const other = [1, 2, 3, -2];
    const logitsAt = lab.f32Rows("logits", 4, "in", () => logits);
    const otherAt = lab.f32Rows("other", 4, "in", () => other);
    const statsAt = lab.f32Rows("stats", 4, "out");
    const klAt = lab.f32Rows("kl", 2, "out");
    const indexAt = lab.output("index", "i32", new Int32Array(64).fill(-1));
    const weightAt = lab.output("weight", "f32", new Float32Array(64));
    lab.emit("logitStats", {
      ...{ rowsReg: 0, logitsAt, ldLogits: 4, width: 4 },
      targetsAt: lab.i32Rows("targets", 1, "in", () => [3]),
      dstAt: statsAt,
    });
    lab.emit("klDivergence", {
      ...{ rowsReg: 0, referenceAt: logitsAt, ldReference: 4, logitsAt: otherAt, ldLogits: 4 },
      ...{ width: 4, dstAt: klAt },
    });
    lab.emit("route", {
      ...{ rowsReg: 0, logitsAt, ldLogits: 4, experts: 4, topK: 2, indexAt, weightAt, ldLists: 16 },
      countReg: 20,
    });
    const { f32, i32 } = await run(lab);
    const lse = (list: number[]) => Math.log(list.reduce((s, v) => s + Math.exp(v), 0));
    expect(i32[statsAt * 16]).toBe(1);
    expect(f32[statsAt * 16 + 1]).toBe(3);
    expect(f32[statsAt * 16 + 2]).toBeCloseTo(lse(logits), 5);
    expect(f32[statsAt * 16 + 3]).toBe(-2);
    const kl = logits.reduce((sum, v, i) => {
      const p = Math.exp(v - lse(logits));
      return sum + p * (v - lse(logits) - (other[i] - lse(other)));
    }, 0);
    expect(f32[klAt * 16]).toBeCloseTo(kl, 5);
    expect(f32[klAt * 16 + 1]).toBe(0);
    expect([...i32.subarray(20, 24)]).toEqual([0, 1, 1, 0]);
    expect(i32[indexAt * 16 + 16]).toBe(0);
    expect(f32[weightAt * 16 + 16]).toBe(0.5);
    expect(f32[weightAt * 16 + 32]).toBe(0.5);
  });
});
