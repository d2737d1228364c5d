/** Linears over panel-32 weights, the embedding table and the CSR side-car (docs/engine.md, sections 4 and 5). */
import type { Weight } from "../decode.js";
import { EPILOGUE, SCALAR_TYPE, WEIGHT_KIND, ZERO_KIND } from "../ops.js";
import {
  type CodeSegments,
  PANEL,
  readPanelCodes,
  type SegmentWidth,
  segmentBytes,
  segmentWidths,
} from "../panel32.js";
import type { Operands } from "../program.js";
import { Fault, type Machine } from "./machine.js";
import { bf16ToF32, f16ToF32, silu } from "./numerics.js";

const f = Math.fround;

/** Views of the code segments of a weight. */
function segmentsOf({ u8 }: Machine, w: Weight): CodeSegments {
  const places: Record<SegmentWidth, number> = {
    8: w.seg8At,
    4: w.seg4At,
    2: w.seg2At,
    1: w.seg1At,
  };
  const segments: CodeSegments = {};
  for (const width of segmentWidths(w.bits)) {
    const at = places[width] * 64;
    segments[width] = u8.subarray(at, at + segmentBytes(w.n, w.k, width));
  }
  return segments;
}

/** A scale or float zero: entry `i` of the array at line `at`. */
function scalar(machine: Machine, w: Weight, at: number, i: number): number {
  return w.scaleType === SCALAR_TYPE.f16
    ? f16ToF32(machine.u16[at * 32 + i])
    : machine.f32[at * 16 + i];
}

/** Zero point of group entry `i`. */
function zeroOf(machine: Machine, w: Weight, i: number): number {
  if (w.zeroKind === ZERO_KIND.const) return w.zeroConstF;
  return w.zeroKind === ZERO_KIND.int
    ? machine.u8[w.zeroAt * 64 + i]
    : scalar(machine, w, w.zeroAt, i);
}

/** Weight `column` of a dense channel. */
function denseValue({ f32, u16 }: Machine, w: Weight, slot: number, column: number): number {
  const i = ((slot >> 5) * w.k + column) * PANEL + (slot & 31);
  if (w.kind === WEIGHT_KIND.f32) return f32[w.denseAt * 16 + i];
  const bits = u16[w.denseAt * 32 + i];
  return w.kind === WEIGHT_KIND.f16 ? f16ToF32(bits) : bf16ToF32(bits);
}

/** Group geometry and the entry of (slot, group) in `[panel][G][32]` arrays. */
const groupSizeOf = (w: Weight) => (w.groupSize > 0 ? w.groupSize : w.k);
const groupEntry = (w: Weight, slot: number, g: number) =>
  ((slot >> 5) * w.groups + g) * PANEL + (slot & 31);

/** y[32] of one panel and row -> dst, with bias and epilogue. */
function finish(
  { f32 }: Machine,
  w: Weight,
  panel: number,
  y: Float32Array,
  dst: number,
  epilogue: number,
): void {
  if (w.biasAt >= 0) {
    for (let lane = 0; lane < PANEL; lane++) y[lane] += f32[w.biasAt * 16 + panel * PANEL + lane];
  }
  if (epilogue === EPILOGUE.swiglu) {
    const outputs = Math.min(16, w.n / 2 - panel * 16);
    for (let i = 0; i < outputs; i++) f32[dst + panel * 16 + i] = silu(y[i]) * y[16 + i];
    return;
  }
  const outputs = Math.min(PANEL, w.n - panel * PANEL);
  for (let i = 0; i < outputs; i++) {
    const at = dst + panel * PANEL + i;
    f32[at] = epilogue === EPILOGUE.add ? f32[at] + y[i] : y[i];
  }
}

export function linearInt(machine: Machine, o: Operands<"linearInt">, rows: number): void {
  const { i8, i32, f32 } = machine;
  const w = machine.weights[o.weightW];
  const { k, groups } = w;
  const size = groupSizeOf(w);
  const floatZero =
    w.zeroKind === ZERO_KIND.float ||
    (w.zeroKind === ZERO_KIND.const && !Number.isInteger(w.zeroConstF));
  const segments = segmentsOf(machine, w);
  const codes = Array.from({ length: PANEL }, () => new Uint8Array(k));
  const y = new Float32Array(PANEL);
  for (let panel = 0; panel < w.panels; panel++) {
    for (let lane = 0; lane < PANEL; lane++) {
      readPanelCodes(segments, panel * PANEL + lane, k, w.bits, codes[lane]);
    }
    for (let m = 0; m < rows; m++) {
      const x = o.codesAt * 64 + m * o.ldCodes;
      for (let lane = 0; lane < PANEL; lane++) {
        const row = codes[lane];
        for (let g = 0; g < groups; g++) {
          const end = Math.min((g + 1) * size, k);
          let acc = 0;
          for (let i = g * size; i < end; i++) acc = (acc + row[i] * i8[x + i]) | 0;
          const entry = groupEntry(w, panel * PANEL + lane, g);
          const activation = o.activationGroups === 1 ? m : m * groups + g;
          let sum = i32[o.sumAt * 16 + m * groups + g];
          const zero = zeroOf(machine, w, entry);
          if (o.zeroAt >= 0) {
            const za = i32[o.zeroAt * 16 + activation];
            acc = (acc - Math.imul(za, i32[w.codeSumAt * 16 + entry])) | 0;
            sum = (sum - Math.imul(za, end - g * size)) | 0;
          }
          const scale = f(f32[o.scaleAt * 16 + activation] * scalar(machine, w, w.scaleAt, entry));
          const value = floatZero
            ? f(f(f(acc) - f(zero * f(sum))) * scale)
            : f(f((acc - Math.imul(zero, sum)) | 0) * scale);
          y[lane] = g === 0 ? value : y[lane] + value;
        }
      }
      finish(machine, w, panel, y, o.dstAt * 16 + m * o.ldDst, o.epilogue);
    }
  }
}

/** Decoded channels of one panel: values before the group scale, split by sign where negative entries have their own. */
interface FloatPanel {
  values: Float32Array[];
  /** Group scales [32][G], all 1 when there are none; `negative` likewise, or null. */
  scale: Float32Array[];
  negative: Float32Array[] | null;
}

function loadPanel(
  machine: Machine,
  w: Weight,
  segments: CodeSegments,
  panel: number,
  p: FloatPanel,
) {
  const codes = new Uint8Array(w.k);
  const size = groupSizeOf(w);
  for (let lane = 0; lane < PANEL; lane++) {
    const slot = panel * PANEL + lane;
    const values = p.values[lane];
    if (w.denseAt >= 0) {
      for (let i = 0; i < w.k; i++) values[i] = denseValue(machine, w, slot, i);
      continue;
    }
    readPanelCodes(segments, slot, w.k, w.bits, codes);
    for (let g = 0; g < w.groups; g++) {
      const entry = groupEntry(w, slot, g);
      if (w.scaleAt >= 0) p.scale[lane][g] = scalar(machine, w, w.scaleAt, entry);
      if (p.negative) p.negative[lane][g] = scalar(machine, w, w.negativeScaleAt, entry);
      const end = Math.min((g + 1) * size, w.k);
      const zero = w.kind === WEIGHT_KIND.gint ? zeroOf(machine, w, entry) : 0;
      for (let i = g * size; i < end; i++) {
        values[i] =
          w.kind === WEIGHT_KIND.gint ? codes[i] - zero : tableValue(machine, w, slot, codes[i]);
      }
    }
  }
}

function tableValue({ f32 }: Machine, w: Weight, slot: number, code: number): number {
  if (w.tableScope === 0) return f32[w.tableAt * 16 + code];
  return f32[w.tableAt * 16 + ((slot >> 5) * 2 ** w.bits + code) * PANEL + (slot & 31)];
}

export function linearFloat(machine: Machine, o: Operands<"linearFloat">, rows: number): void {
  const { f32 } = machine;
  const w = machine.weights[o.weightW];
  const dense = w.denseAt >= 0;
  const groups = dense ? 1 : w.groups;
  const size = dense ? w.k : groupSizeOf(w);
  const segments = dense ? {} : segmentsOf(machine, w);
  const lanes = <T>(make: () => T) => Array.from({ length: PANEL }, make);
  const ones = () => new Float32Array(groups).fill(1);
  const p: FloatPanel = {
    values: lanes(() => new Float32Array(w.k)),
    scale: lanes(ones),
    negative: w.negativeScaleAt >= 0 ? lanes(ones) : null,
  };
  const y = new Float32Array(PANEL);
  for (let panel = 0; panel < w.panels; panel++) {
    loadPanel(machine, w, segments, panel, p);
    for (let m = 0; m < rows; m++) {
      const x = o.srcAt * 16 + m * o.ldSrc;
      for (let lane = 0; lane < PANEL; lane++) {
        const values = p.values[lane];
        for (let g = 0; g < groups; g++) {
          let positive = 0;
          let negative = 0;
          const end = Math.min((g + 1) * size, w.k);
          for (let i = g * size; i < end; i++) {
            const product = f(f32[x + i] * values[i]);
            if (p.negative && values[i] < 0) negative = f(negative + product);
            else positive = f(positive + product);
          }
          let value = f(positive * p.scale[lane][g]);
          if (p.negative) value = f(value + f(negative * p.negative[lane][g]));
          y[lane] = g === 0 ? value : y[lane] + value;
        }
      }
      finish(machine, w, panel, y, o.dstAt * 16 + m * o.ldDst, o.epilogue);
    }
  }
}

export function embed(machine: Machine, o: Operands<"embed">, rows: number): void {
  const { f32 } = machine;
  const w = machine.weights[o.tableW];
  const dense = w.denseAt >= 0;
  const segments = dense ? {} : segmentsOf(machine, w);
  const codes = new Uint8Array(w.k);
  const size = groupSizeOf(w);
  for (let m = 0; m < rows; m++) {
    const token = machine.index(o.tokensAt, m, w.n);
    const dst = o.dstAt * 16 + m * o.ldDst;
    if (!dense) readPanelCodes(segments, token, w.k, w.bits, codes);
    for (let i = 0; i < w.k; i++) {
      if (dense) f32[dst + i] = denseValue(machine, w, token, i);
      else {
        const entry = groupEntry(w, token, Math.floor(i / size));
        const value = f(codes[i] - zeroOf(machine, w, entry));
        f32[dst + i] = scalar(machine, w, w.scaleAt, entry) * value;
      }
    }
  }
}

export function csr(machine: Machine, o: Operands<"csr">, rows: number): void {
  const { f32, u32, arenaBytes } = machine;
  const room = Math.min(arenaBytes - o.columnsAt * 64, arenaBytes - o.valuesAt * 64) / 4;
  for (let n = 0; n < o.outputs; n++) {
    const start = u32[o.rowPointersAt * 16 + n];
    const end = u32[o.rowPointersAt * 16 + n + 1];
    if (start > end || end > room) throw new Fault();
    for (let i = start; i < end; i++) machine.checked(u32[o.columnsAt * 16 + i], o.ldSrc);
    for (let m = 0; m < rows; m++) {
      let sum = 0;
      for (let i = start; i < end; i++) {
        const x = f32[o.srcAt * 16 + m * o.ldSrc + u32[o.columnsAt * 16 + i]];
        sum = f(sum + f(f32[o.valuesAt * 16 + i] * x));
      }
      f32[o.dstAt * 16 + m * o.ldDst + n] += sum;
    }
  }
}
