/**
 * One scale and zero per token and KV head, the cache path of QuaRot (arXiv:2404.00456). `zero: "float"` is the path of the
 * authors' code, `zero: "int"` that of the paper's tables: the range includes 0 and the zero point is a code. The arithmetic
 * is that of the kernels, so both tiers store the same numbers. Group: codes [headDim], f16 scale, f16 zero.
 */
import { z } from "zod";
import { f16ToF32, f32ToF16 } from "../../core/dtype.js";
import { RecipeError } from "../../core/errors.js";
import { type CodecCaps, defineKvCodec, type PlaneCodec, type PlaneInfo } from "../contract.js";
import { clamp, roundHalfEven } from "./numbers.js";

const f = Math.fround;
const MIN_RANGE = f(1e-5);

const options = z.strictObject({
  hadamard: z.boolean().default(false),
  clip: z.number().gt(0).max(1).default(1),
  zero: z.enum(["float", "int"]).default("float"),
  /** Width of the query in the packed kernels; the managed cache always reads f32 queries. */
  qBits: z.union([z.literal(8), z.literal(32)]).default(8),
});
type IntTokenOptions = z.output<typeof options>;

/** Scale and zero of one row as they are stored, and the code of a value. */
function rowQuantizer(x: Float32Array, { clip, zero: kind }: IntTokenOptions, levels: number) {
  const withZero = kind === "int";
  let low = withZero ? 0 : (x[0] as number);
  let high = low;
  for (const v of x) {
    if (v < low) low = v;
    if (v > high) high = v;
  }
  const factor = f(clip);
  low = f(factor * low);
  high = f(factor * high);
  if (withZero && low === 0 && high === 0) {
    low = -1;
    high = 1;
  }
  const range = f(high - low);
  const scale = f32ToF16(f((withZero ? range : Math.max(range, MIN_RANGE)) / levels)) || 1;
  const inverse = f(1 / f16ToF32(scale));
  if (withZero) {
    const zero = roundHalfEven(f(-low * inverse));
    return {
      scale,
      zero: f32ToF16(zero),
      code: (v: number) => roundHalfEven(f(v * inverse)) + zero,
    };
  }
  const zero = f32ToF16(f(0 - low));
  const shift = f16ToF32(zero);
  return { scale, zero, code: (v: number) => roundHalfEven(f(f(v + shift) * inverse)) };
}

function create(bits: 4 | 8, o: IntTokenOptions, info: PlaneInfo): PlaneCodec {
  const { headDim, plane } = info;
  if (o.hadamard && plane === "v") {
    throw new RecipeError(
      "the Hadamard rotation belongs to keys; values come rotated from the weights or not at all",
      { hint: "Remove hadamard from the v plane of the kv recipe." },
      "kv-hadamard",
    );
  }
  if (bits === 4 && headDim % 2 !== 0) {
    throw new RecipeError(
      `int4-token needs an even head size, this model has ${headDim}`,
      {},
      "kv-head",
    );
  }
  const levels = 2 ** bits - 1;
  const codeBytes = (headDim * bits) / 8;
  const groupBytes = Math.ceil((codeBytes + 4) / 4) * 4;
  const caps: CodecCaps = {
    group: 1,
    flush: { when: 1, keep: 0, take: 1 },
    sealTiming: "beforeAttend",
    keyFrame: "post",
    slotRewrite: true,
    variableBytes: false,
    ...(o.hadamard ? { headTransform: "hadamard" as const } : {}),
  };
  return {
    caps,
    groupBytes,
    encode(rows, _n, dst) {
      const x = rows.length === headDim ? rows : rows.subarray(0, headDim);
      const { scale, zero, code } = rowQuantizer(x, o, levels);
      for (let d = 0; d < headDim; d++) {
        const c = clamp(code(x[d] as number), 0, levels);
        if (bits === 8) dst[d] = c;
        else if (d % 2 === 0) dst[d >> 1] = c;
        else dst[d >> 1] = (dst[d >> 1] as number) | (c << 4);
      }
      const parameters = new DataView(dst.buffer, dst.byteOffset + groupBytes - 4, 4);
      parameters.setUint16(0, scale, true);
      parameters.setUint16(2, zero, true);
      return null;
    },
    decode(src, _variable, _n, out) {
      const at = groupBytes - 4;
      const scale = f16ToF32((src[at] as number) | ((src[at + 1] as number) << 8));
      const stored = f16ToF32((src[at + 2] as number) | ((src[at + 3] as number) << 8));
      const zero = o.zero === "int" ? f(scale * stored) : stored;
      if (bits === 8) {
        for (let d = 0; d < headDim; d++) out[d] = f((src[d] as number) * scale) - zero;
        return;
      }
      for (let i = 0; i < codeBytes; i++) {
        const pair = src[i] as number;
        out[2 * i] = f((pair & 15) * scale) - zero;
        out[2 * i + 1] = f((pair >> 4) * scale) - zero;
      }
    },
  };
}

const define = (bits: 4 | 8) =>
  defineKvCodec<IntTokenOptions>({
    id: `int${bits}-token`,
    title: `${bits} bits per token`,
    paper: "arXiv:2404.00456",
    summary: `${bits}-bit codes, one scale and zero per token and head, keys optionally rotated (R3); queries in 8 bits (qBits) in the kernels, in f32 in the managed cache.`,
    options,
    planes: ["k", "v"],
    kernels: () => "token",
    bitsPerElement: (_, headDim) => bits + 32 / headDim,
    create: (o, info) => create(bits, o, info),
  });

export const int8Token = define(8);
export const int4Token = define(4);
