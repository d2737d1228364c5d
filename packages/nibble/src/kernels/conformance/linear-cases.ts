/** Random programs of linearInt, linearFloat, embed and csr, with the error bounds of the float ones. */
import type { Weight } from "../decode.js";
import { EPILOGUE, SCALAR_TYPE, WEIGHT_KIND, ZERO_KIND } from "../ops.js";
import {
  groupCodeSums,
  groupCount,
  PANEL,
  packPanel32,
  paddedColumns,
  panelCount,
  writePanelFloats,
  writePanelRow,
} from "../panel32.js";
import { NO_WEIGHT } from "../program.js";
import { bf16ToF32, f16ToF32, f32ToBf16, f32ToF16, silu } from "../reference/numerics.js";
import { type Lab, randomCodeStride, randomStride } from "./lab.js";
import type { Make } from "./row-cases.js";

/** Bound of float-class ops, relative to the sum of absolute products. */
const FLOAT_BOUND = 1e-5;

export interface Placed {
  index: number;
  n: number;
  k: number;
  outputs: number;
  fields: Weight;
  epilogue: number;
  /** Decoded weights [slot, k], and bias by slot. */
  values: Float64Array;
  bias: Float32Array;
}

/** Shape, epilogue and bias common to all kinds; slots are panel places, so interleaving is only a matter of the epilogue. */
function shape(lab: Lab) {
  const { random } = lab;
  const k = random.pick([1, 5, 31, 32, 33, 63, 64, 96, 100, 128, 130, 172, 200, 300]);
  const epilogue = random.pick([EPILOGUE.store, EPILOGUE.add, EPILOGUE.swiglu]);
  const swiglu = epilogue === EPILOGUE.swiglu;
  const n = swiglu ? 2 * random.int(1, 48) : random.pick([1, 16, 17, 31, 32, 33, 64, 70, 96]);
  const panels = panelCount(n);
  const bias = Float32Array.from({ length: panels * PANEL }, () => random.normal());
  const biased = random.chance(0.4);
  return {
    n,
    k,
    epilogue,
    outputs: swiglu ? n / 2 : n,
    bias: biased ? bias : new Float32Array(panels * PANEL),
    fields: {
      ...NO_WEIGHT,
      n,
      k,
      panels,
      kPad: k,
      interleaved: swiglu ? 1 : 0,
      biasAt: biased ? lab.place(bias) : -1,
    },
  };
}

/** Slots that hold a channel: all of n, or the two halves of interleaved panels. */
function isReal(n: number, interleaved: boolean, slot: number): boolean {
  if (!interleaved) return slot < n;
  return (slot >> 5) * 16 + (slot & 15) < n / 2;
}

interface GintOptions {
  groupSizes: readonly number[];
  /** Zero kinds that linearInt and linearFloat take. */
  asymmetric: boolean;
}

function placeCodes(lab: Lab, n: number, k: number, bits: number, interleaved: boolean) {
  const { random } = lab;
  const slots = panelCount(n) * PANEL;
  const max = 2 ** bits - 1;
  const fill = random.pick(["random", "random", "random", "zero", "max"]);
  const codes = new Uint8Array(slots * k);
  for (let slot = 0; slot < slots; slot++) {
    if (!isReal(n, interleaved, slot)) continue;
    for (let i = 0; i < k; i++) {
      codes[slot * k + i] = fill === "zero" ? 0 : fill === "max" ? max : random.int(0, max);
    }
  }
  const segments = packPanel32(codes, slots, k, bits);
  const at = (width: 8 | 4 | 2 | 1) => {
    const segment = segments[width];
    return segment ? lab.place(segment) : -1;
  };
  return { codes, slots, places: { seg8At: at(8), seg4At: at(4), seg2At: at(2), seg1At: at(1) } };
}

/** `[panels][count][32]` array of a type from a value per (slot, i). */
function placePanels(
  lab: Lab,
  slots: number,
  count: number,
  type: "f32" | "f16" | "bf16",
  value: (slot: number, i: number) => number,
): number {
  const target = type === "f32" ? new Float32Array(slots * count) : new Uint16Array(slots * count);
  for (let slot = 0; slot < slots; slot++) {
    writePanelFloats(
      target,
      type,
      slot,
      count,
      Array.from({ length: count }, (_, i) => value(slot, i)),
    );
  }
  return lab.place(target);
}

export function placeGint(lab: Lab, { groupSizes, asymmetric }: GintOptions): Placed {
  const { random } = lab;
  const { n, k, epilogue, outputs, bias, fields } = shape(lab);
  const bits = random.int(1, 8);
  const groupSize = random.pick(groupSizes);
  const groups = groupCount(k, groupSize);
  const interleaved = fields.interleaved === 1;
  const { codes, slots, places } = placeCodes(lab, n, k, bits, interleaved);
  const half = random.chance(0.5);
  const max = 2 ** bits - 1;
  const real = (slot: number) => isReal(n, interleaved, slot);
  const scales = Float32Array.from({ length: slots * groups }, (_, i) =>
    real(Math.floor(i / groups)) ? f16ToF32(f32ToF16(0.01 + random.uniform() / 10)) : 0,
  );
  const zeroKind = random.pick([ZERO_KIND.const, ZERO_KIND.const, ZERO_KIND.int, ZERO_KIND.float]);
  const constant = random.pick([2 ** (bits - 1), 0, 1.5, -3]);
  const zeros = Float32Array.from({ length: slots * groups }, () =>
    zeroKind === ZERO_KIND.const
      ? constant
      : zeroKind === ZERO_KIND.int
        ? random.int(0, max)
        : f16ToF32(f32ToF16(random.normal() * max)),
  );
  const type = half ? "f16" : "f32";
  const at = (slot: number, g: number) => slot * groups + g;
  const intZeros = new Uint8Array(slots * groups);
  const sums = new Int32Array(slots * groups);
  const rowSums = new Int32Array(groups);
  for (let slot = 0; slot < slots; slot++) {
    writePanelRow(intZeros, slot, groups, zeros.subarray(at(slot, 0), at(slot + 1, 0)));
    groupCodeSums(codes.subarray(slot * k, (slot + 1) * k), k, groupSize, rowSums);
    writePanelRow(sums, slot, groups, rowSums);
  }
  const zeroAt =
    zeroKind === ZERO_KIND.const
      ? -1
      : zeroKind === ZERO_KIND.int
        ? lab.place(intZeros)
        : placePanels(lab, slots, groups, type, (s, g) => zeros[at(s, g)]);
  const weight: Weight = {
    ...fields,
    ...places,
    kind: WEIGHT_KIND.gint,
    kPad: paddedColumns(k),
    bits,
    groupSize,
    groups,
    scaleAt: placePanels(lab, slots, groups, type, (s, g) => scales[at(s, g)]),
    scaleType: half ? SCALAR_TYPE.f16 : SCALAR_TYPE.f32,
    zeroKind,
    zeroConstF: zeroKind === ZERO_KIND.const ? constant : 0,
    zeroAt,
    codeSumAt: asymmetric || random.chance(0.5) ? lab.place(sums) : -1,
  };
  const size = groupSize || k;
  const values = Float64Array.from({ length: slots * k }, (_, i) => {
    const slot = Math.floor(i / k);
    const entry = at(slot, Math.floor((i % k) / size));
    return scales[entry] * (codes[i] - zeros[entry]);
  });
  const index = lab.builder.weight(weight);
  return { index, n, k, outputs, fields: weight, epilogue, values, bias };
}

export function placeDense(lab: Lab): Placed {
  const { random } = lab;
  const { n, k, epilogue, outputs, bias, fields } = shape(lab);
  const slots = panelCount(n) * PANEL;
  const type = random.pick(["f32", "f16", "bf16"] as const);
  const round = {
    f32: Math.fround,
    f16: (x: number) => f16ToF32(f32ToF16(x)),
    bf16: (x: number) => bf16ToF32(f32ToBf16(x)),
  }[type];
  const values = Float64Array.from({ length: slots * k }, (_, i) =>
    isReal(n, fields.interleaved === 1, Math.floor(i / k)) ? round(random.normal()) : 0,
  );
  const denseAt = placePanels(lab, slots, k, type, (slot, i) => values[slot * k + i]);
  const weight = { ...fields, kind: WEIGHT_KIND[type], denseAt };
  const index = lab.builder.weight(weight);
  return { index, n, k, outputs, fields: weight, epilogue, values, bias };
}

export function placeLut(lab: Lab): Placed {
  const { random } = lab;
  const { n, k, epilogue, outputs, bias, fields } = shape(lab);
  const bits = random.pick([1, 2, 3, 4, 4, 5, 8]);
  const entries = 2 ** bits;
  const { codes, slots, places } = placeCodes(lab, n, k, bits, fields.interleaved === 1);
  const perRow = random.chance(0.5);
  const table = Float32Array.from({ length: (perRow ? slots : 1) * entries }, () =>
    random.normal(),
  );
  const scaled = random.chance(0.7);
  const groupSize = scaled ? random.pick([0, 32, 64, 8]) : 0;
  const groups = groupCount(k, groupSize);
  const signed = scaled && random.chance(0.5);
  const half = random.chance(0.5);
  const scaleValues = () =>
    Float32Array.from({ length: slots * groups }, () => f16ToF32(f32ToF16(random.uniform())));
  const scale = scaleValues();
  const negative = signed ? scaleValues() : scale;
  const placeScale = (list: Float32Array) =>
    placePanels(lab, slots, groups, half ? "f16" : "f32", (slot, g) => list[slot * groups + g]);
  const weight: Weight = {
    ...fields,
    ...places,
    kind: WEIGHT_KIND.lut,
    kPad: paddedColumns(k),
    bits,
    groupSize,
    groups,
    scaleAt: scaled ? placeScale(scale) : -1,
    scaleType: half ? SCALAR_TYPE.f16 : SCALAR_TYPE.f32,
    negativeScaleAt: signed ? placeScale(negative) : -1,
    tableScope: perRow ? 1 : 0,
    tableAt: perRow
      ? placePanels(lab, slots, entries, "f32", (slot, c) => table[slot * entries + c])
      : lab.place(table),
  };
  const size = groupSize || k;
  const values = Float64Array.from({ length: slots * k }, (_, i) => {
    const slot = Math.floor(i / k);
    const value = table[(perRow ? slot * entries : 0) + codes[i]];
    const entry = slot * groups + Math.floor((i % k) / size);
    return scaled ? value * (value < 0 ? negative : scale)[entry] : value;
  });
  const index = lab.builder.weight(weight);
  return { index, n, k, outputs, fields: weight, epilogue, values, bias };
}

/** Destination of a linear: read too when the epilogue adds. */
function destination(lab: Lab, w: Placed) {
  const { random } = lab;
  const ldDst = randomStride(random, w.outputs);
  if (w.epilogue !== EPILOGUE.add) return { dstAt: lab.f32Rows("dst", ldDst, "out"), ldDst };
  const row = () => Float32Array.from({ length: w.outputs }, () => random.normal());
  return { dstAt: lab.f32Rows("dst", ldDst, "inout", row), ldDst };
}

const linearInt: Make = (lab) => {
  const { random } = lab;
  const asymmetric = random.chance(0.4);
  const w = placeGint(lab, { groupSizes: [0, 0, 32, 64, 128], asymmetric });
  const { groups, groupSize } = w.fields;
  const activationGroups = random.chance(0.5) ? 1 : groups;
  const bits = random.pick([2, 4, 8]);
  const [low, high] =
    asymmetric && bits < 8 ? [0, 2 ** bits - 1] : [-(2 ** (bits - 1)), 2 ** (bits - 1) - 1];
  const fill = random.pick(["random", "random", "low", "high"]);
  const rows = Array.from({ length: lab.maxRows }, () =>
    Int8Array.from({ length: paddedColumns(w.k) }, (_, i) =>
      i >= w.k ? 0 : fill === "low" ? low : fill === "high" ? high : random.int(low, high),
    ),
  );
  const size = groupSize || w.k;
  const sums = (m: number) =>
    Array.from({ length: groups }, (_, g) =>
      (rows[m] as Int8Array)
        .subarray(g * size, Math.min((g + 1) * size, w.k))
        .reduce((a, b) => a + b, 0),
    );
  const perGroup = (make: () => number) => () => Array.from({ length: activationGroups }, make);
  const ldCodes = randomCodeStride(random, w.k);
  lab.emit("linearInt", {
    rowsReg: 0,
    codesAt: lab.i8Rows("codes", ldCodes, "in", (m) => rows[m] as Int8Array),
    ldCodes,
    scaleAt: lab.f32Rows(
      "scale",
      activationGroups,
      "in",
      perGroup(() => random.uniform() + 0.01),
    ),
    sumAt: lab.i32Rows("sum", groups, "in", sums),
    zeroAt: asymmetric
      ? lab.i32Rows(
          "zero",
          activationGroups,
          "in",
          perGroup(() => random.int(low, high)),
        )
      : -1,
    activationGroups,
    weightW: w.index,
    ...destination(lab, w),
    epilogue: w.epilogue,
  });
};

/** linearFloat with a weight of any kind; the bound is computed from decoded values in f64. */
const linearFloat =
  (place: (lab: Lab) => Placed): Make =>
  (lab) => {
    const { random } = lab;
    const w = place(lab);
    const ldSrc = randomStride(random, w.k);
    const rows = Array.from({ length: lab.maxRows }, () => {
      const scale = random.pick([1, 1, 0, 30, 1e-3]);
      return Float32Array.from({ length: w.k }, () => random.normal() * scale);
    });
    const srcAt = lab.f32Rows("src", ldSrc, "in", (m) => rows[m] as Float32Array);
    const { dstAt, ldDst } = destination(lab, w);
    lab.emit("linearFloat", {
      rowsReg: 0,
      srcAt,
      ldSrc,
      weightW: w.index,
      dstAt,
      ldDst,
      epilogue: w.epilogue,
    });
    lab.tolerate("dst", floatBounds(rows, w, ldDst));
  };

/** Allowed difference of each output of linearFloat, [rows, ldDst]. */
function floatBounds(rows: Float32Array[], w: Placed, ldDst: number): Float64Array {
  const bounds = new Float64Array(rows.length * ldDst);
  const slots = w.bias.length;
  rows.forEach((x, m) => {
    const y = new Float64Array(slots);
    const sums = new Float64Array(slots);
    for (let slot = 0; slot < slots; slot++) {
      y[slot] = w.bias[slot];
      sums[slot] = Math.abs(w.bias[slot]);
      for (let i = 0; i < w.k; i++) {
        const product = x[i] * w.values[slot * w.k + i];
        y[slot] += product;
        sums[slot] += Math.abs(product);
      }
    }
    for (let i = 0; i < w.outputs; i++) {
      let bound = FLOAT_BOUND * (sums[i] + 1e-30);
      if (w.epilogue === EPILOGUE.add) bound += 1e-6;
      if (w.epilogue === EPILOGUE.swiglu) {
        const gate = (i >> 4) * PANEL + (i & 15);
        const up = gate + 16;
        // silu has slope at most 1.1.
        bound =
          FLOAT_BOUND *
          (1.1 * sums[gate] * (Math.abs(y[up]) + FLOAT_BOUND * sums[up]) +
            Math.abs(silu(y[gate])) * sums[up] +
            Math.abs(silu(y[gate]) * y[up]) +
            1e-30);
      }
      bounds[m * ldDst + i] = bound;
    }
  });
  return bounds;
}

const embed: Make = (lab) => {
  const { random } = lab;
  const w = random.chance(0.5)
    ? placeDense(lab)
    : placeGint(lab, { groupSizes: [0, 32, 64, 8], asymmetric: false });
  // An embedding table is never interleaved: register it again without that flag.
  const table = lab.builder.weight({ ...w.fields, interleaved: 0 });
  const ldDst = randomStride(random, w.k);
  lab.emit("embed", {
    rowsReg: 0,
    dstAt: lab.f32Rows("dst", ldDst, "out"),
    ldDst,
    tokensAt: lab.i32Rows("tokens", 1, "in", () => [random.int(0, w.n - 1)]),
    tableW: table,
  });
};

const csr: Make = (lab) => {
  const { random } = lab;
  const k = random.pick([1, 30, 64, 130]);
  const outputs = random.int(1, 60);
  const pointers = new Uint32Array(outputs + 1);
  const columns: number[] = [];
  for (let n = 0; n < outputs; n++) {
    const count = random.chance(0.3) ? 0 : random.int(0, Math.min(k, 6));
    for (let i = 0; i < count; i++) columns.push(random.int(0, k - 1));
    pointers[n + 1] = columns.length;
  }
  const values = Float32Array.from(columns, () => random.normal());
  const ldSrc = randomStride(random, k);
  const ldDst = randomStride(random, outputs);
  const normal = (count: number) => Float32Array.from({ length: count }, () => random.normal());
  lab.emit("csr", {
    rowsReg: 0,
    srcAt: lab.f32Rows("src", ldSrc, "in", () => normal(k)),
    ldSrc,
    rowPointersAt: lab.place(pointers),
    columnsAt: lab.place(Uint32Array.from(columns)),
    valuesAt: lab.place(values),
    outputs,
    dstAt: lab.f32Rows("dst", ldDst, "inout", () => normal(outputs)),
    ldDst,
  });
  // At most six products of values below 6 * 6.
  lab.tolerate("dst", FLOAT_BOUND * 220);
};

export const linearCases: Record<string, Make> = {
  linearInt,
  "linearFloat, dense weights": linearFloat(placeDense),
  "linearFloat, integer weights": linearFloat((lab) =>
    placeGint(lab, { groupSizes: [0, 32, 64, 8, 24], asymmetric: false }),
  ),
  "linearFloat, table weights": linearFloat(placeLut),
  embed,
  csr,
};
