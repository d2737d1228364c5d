/**
 * ggml's reference quantizers of the legacy block formats (ggml-quants.c, release line v0.5.0; no importance matrix). Every
 * operation is one f32 rounding, as in C; bytes equal those of llama.cpp's own library on the golden inputs.
 */
import { f32ToF16 } from "../core/dtype.js";
import { UsageError } from "../core/errors.js";

const f = Math.fround;
const BLOCK = 32;

export type QuantizableGgml = "Q4_0" | "Q4_1" | "Q8_0";
const BLOCK_BYTES: Record<QuantizableGgml, number> = { Q4_0: 18, Q4_1: 20, Q8_0: 34 };

/**
 * @param values a whole number of blocks of 32
 * @throws UsageError when the length is no multiple of 32
 */
export function quantizeGgml(type: QuantizableGgml, values: Float32Array): Uint8Array {
  if (values.length % BLOCK !== 0) {
    throw new UsageError(
      `${type} needs rows of a multiple of ${BLOCK} values, got ${values.length}`,
    );
  }
  const bytes = BLOCK_BYTES[type];
  const out = new Uint8Array((values.length / BLOCK) * bytes);
  for (let b = 0; b < values.length / BLOCK; b++) {
    const x = values.subarray(b * BLOCK, (b + 1) * BLOCK);
    const to = out.subarray(b * bytes, (b + 1) * bytes);
    if (type === "Q4_0") q40(x, to);
    else if (type === "Q4_1") q41(x, to);
    else q80(x, to);
  }
  return out;
}

function putF16(out: Uint8Array, at: number, value: number): void {
  const h = f32ToF16(value);
  out[at] = h & 255;
  out[at + 1] = h >> 8;
}

/** d = (signed value of largest magnitude) / -8; code = trunc(x / d + 8.5), at most 15. */
function q40(x: Float32Array, out: Uint8Array): void {
  let amax = 0;
  let max = 0;
  for (let j = 0; j < BLOCK; j++) {
    const v = x[j] as number;
    if (amax < Math.abs(v)) {
      amax = Math.abs(v);
      max = v;
    }
  }
  const d = f(max / -8);
  const id = d === 0 ? 0 : f(1 / d);
  putF16(out, 0, d);
  const code = (v: number) => Math.min(15, Math.trunc(f(f(v * id) + 8.5)));
  for (let j = 0; j < 16; j++) {
    out[2 + j] = code(x[j] as number) | (code(x[j + 16] as number) << 4);
  }
}

/** d = (max - min) / 15, m = min; code = trunc((x - m) / d + 0.5), at most 15. */
function q41(x: Float32Array, out: Uint8Array): void {
  let min = x[0] as number;
  let max = min;
  for (const v of x) {
    if (v < min) min = v;
    if (v > max) max = v;
  }
  const d = f(f(max - min) / 15);
  const id = d === 0 ? 0 : f(1 / d);
  putF16(out, 0, d);
  putF16(out, 2, min);
  const code = (v: number) => Math.min(15, Math.trunc(f(f(f(v - min) * id) + 0.5)));
  for (let j = 0; j < 16; j++) {
    out[4 + j] = code(x[j] as number) | (code(x[j + 16] as number) << 4);
  }
}

/** d = amax / 127; code = x / d rounded half away from zero. */
function q80(x: Float32Array, out: Uint8Array): void {
  let amax = 0;
  for (const v of x) amax = Math.max(amax, Math.abs(v));
  const d = f(amax / 127);
  const id = d === 0 ? 0 : f(1 / d);
  putF16(out, 0, d);
  for (let j = 0; j < BLOCK; j++) {
    const v = f((x[j] as number) * id);
    out[2 + j] = (Math.sign(v) * Math.floor(Math.abs(v) + 0.5)) & 255;
  }
}
