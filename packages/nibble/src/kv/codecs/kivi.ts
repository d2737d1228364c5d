/**
 * KIVI (arXiv:2402.02750): keys in groups of tokens per channel, values in groups of channels per token, both with a
 * minimum and a scale that are not rounded to codes, and an exact tail. Keys are sealed `residual` tokens at a time, values
 * one by one when they are `residual` tokens old.
 * Key group (group tokens x headDim): codes channel by channel, then f16 scale[headDim], f16 minimum[headDim].
 * Value group (one token): codes, then f16 scale and f16 minimum of each headDim / group channels.
 */
import { z } from "zod";
import { f16ToF32, f32ToF16 } from "../../core/dtype.js";
import { RecipeError } from "../../core/errors.js";
import { defineKvCodec, type PlaneCodec, type PlaneInfo } from "../contract.js";
import { clamp, roundHalfEven } from "./numbers.js";

const f = Math.fround;

const options = z.strictObject({
  bits: z.union([z.literal(2), z.literal(4), z.literal(8)]).default(4),
  group: z.number().int().min(8).max(1024).default(32),
  residual: z.number().int().min(8).max(8192).default(128),
  /** Keys and queries turned by a Hadamard of the head (not part of KIVI; artifacts with R3 ask for it). */
  hadamard: z.boolean().default(false),
});
type KiviOptions = z.output<typeof options>;

/** Codes of `count` values `stride` apart, packed little end first from byte `at` on; gives f16 scale and minimum. */
function encodeVector(
  x: Float32Array,
  start: number,
  stride: number,
  count: number,
  bits: number,
  dst: Uint8Array,
  at: number,
): { scale: number; minimum: number } {
  const levels = 2 ** bits - 1;
  let low = x[start] as number;
  let high = low;
  for (let i = 1; i < count; i++) {
    const v = x[start + i * stride] as number;
    if (v < low) low = v;
    if (v > high) high = v;
  }
  const minimum = f32ToF16(low);
  const scale = f32ToF16(f(f(high - low) / levels));
  const base = f16ToF32(minimum);
  const step = f16ToF32(scale);
  // A constant vector has scale 0 and decodes to its minimum.
  const inverse = step > 0 ? f(1 / step) : 0;
  const perByte = 8 / bits;
  for (let i = 0; i < count; i += perByte) {
    let byte = 0;
    for (let j = 0; j < perByte; j++) {
      const v = x[start + (i + j) * stride] as number;
      byte |= roundHalfEven(clamp(f(f(v - base) * inverse), 0, levels)) << (j * bits);
    }
    dst[at + i / perByte] = byte;
  }
  return { scale, minimum };
}

function decodeVector(
  src: Uint8Array,
  at: number,
  count: number,
  bits: number,
  scale: number,
  minimum: number,
  out: Float32Array,
  start: number,
  stride: number,
): void {
  const perByte = 8 / bits;
  const mask = 2 ** bits - 1;
  let to = start;
  for (let i = 0; i < count / perByte; i++) {
    let byte = src[at + i] as number;
    for (let j = 0; j < perByte; j++) {
      out[to] = f((byte & mask) * scale) + minimum;
      byte >>= bits;
      to += stride;
    }
  }
}

const half = (src: Uint8Array, at: number) =>
  f16ToF32((src[at] as number) | ((src[at + 1] as number) << 8));
const setHalf = (dst: Uint8Array, at: number, bits: number) => {
  dst[at] = bits & 255;
  dst[at + 1] = bits >> 8;
};

function keyCodec({ bits, group, residual, hadamard }: KiviOptions, headDim: number): PlaneCodec {
  const channelBytes = (group * bits) / 8;
  const scales = headDim * channelBytes;
  const minima = scales + 2 * headDim;
  return {
    caps: {
      group,
      flush: { when: residual, keep: 0, take: residual },
      sealTiming: "afterAttend",
      keyFrame: "post",
      slotRewrite: false,
      variableBytes: false,
      ...(hadamard ? { headTransform: "hadamard" as const } : {}),
    },
    groupBytes: minima + 2 * headDim,
    encode(rows, _n, dst) {
      for (let c = 0; c < headDim; c++) {
        const { scale, minimum } = encodeVector(
          rows,
          c,
          headDim,
          group,
          bits,
          dst,
          c * channelBytes,
        );
        setHalf(dst, scales + 2 * c, scale);
        setHalf(dst, minima + 2 * c, minimum);
      }
      return null;
    },
    decode(src, _variable, n, out) {
      const whole = n === group ? out : new Float32Array(group * headDim);
      for (let c = 0; c < headDim; c++) {
        const [scale, minimum] = [half(src, scales + 2 * c), half(src, minima + 2 * c)];
        decodeVector(src, c * channelBytes, group, bits, scale, minimum, whole, c, headDim);
      }
      if (whole !== out) out.set(whole.subarray(0, n * headDim));
    },
  };
}

function valueCodec({ bits, group, residual }: KiviOptions, headDim: number): PlaneCodec {
  const blocks = headDim / group;
  const blockBytes = (group * bits) / 8;
  const scales = blocks * blockBytes;
  const minima = scales + 2 * blocks;
  return {
    caps: {
      group: 1,
      flush: { when: residual + 1, keep: residual, take: 1 },
      sealTiming: "afterAttend",
      keyFrame: "post",
      slotRewrite: true,
      variableBytes: false,
    },
    groupBytes: Math.ceil((minima + 2 * blocks) / 4) * 4,
    encode(rows, _n, dst) {
      for (let b = 0; b < blocks; b++) {
        const { scale, minimum } = encodeVector(
          rows,
          b * group,
          1,
          group,
          bits,
          dst,
          b * blockBytes,
        );
        setHalf(dst, scales + 2 * b, scale);
        setHalf(dst, minima + 2 * b, minimum);
      }
      return null;
    },
    decode(src, _variable, _n, out) {
      for (let b = 0; b < blocks; b++) {
        const [scale, minimum] = [half(src, scales + 2 * b), half(src, minima + 2 * b)];
        decodeVector(src, b * blockBytes, group, bits, scale, minimum, out, b * group, 1);
      }
    },
  };
}

function create(o: KiviOptions, { plane, headDim }: PlaneInfo): PlaneCodec {
  if (o.group % 8 !== 0) {
    throw new RecipeError(`kivi group is ${o.group}, expected a multiple of 8`, {}, "kv-group");
  }
  if (plane === "v" && o.hadamard) {
    throw new RecipeError("the Hadamard rotation belongs to keys", {}, "kv-hadamard");
  }
  if (plane === "v") {
    if (headDim % o.group !== 0) {
      throw new RecipeError(
        `kivi groups of ${o.group} channels do not divide the head size ${headDim}`,
        { hint: "Set group to a divisor of the head size." },
        "kv-group",
      );
    }
    return valueCodec(o, headDim);
  }
  if (o.residual % o.group !== 0) {
    throw new RecipeError(
      `kivi residual ${o.residual} is no multiple of the group ${o.group}`,
      { hint: "Keys are sealed a whole residual at a time." },
      "kv-group",
    );
  }
  return keyCodec(o, headDim);
}

export const kivi = defineKvCodec<KiviOptions>({
  id: "kivi",
  title: "KIVI",
  paper: "arXiv:2402.02750",
  summary: "Keys per channel, values per token, 2 or 4 bits, exact tail; no calibration.",
  options,
  planes: ["k", "v"],
  // The kernels read groups of 32, and keys and values share their ring of exact rows.
  kernels: ({ bits, group, residual }) =>
    bits < 8 && group === 32 && residual % 32 === 0 ? `kivi, residual ${residual}` : null,
  bitsPerElement: ({ bits, group }) => bits + 32 / group,
  create,
});
