/** Exact and half-precision rows: the baselines every other codec is measured against. */
import { z } from "zod";
import { f16ToF32, f32ToF16 } from "../../core/dtype.js";
import { type CodecCaps, defineKvCodec } from "../contract.js";

// The flag stays on exact planes, where it does nothing: it belongs to the model (R3) and outlives a change of codec.
const options = z.strictObject({ hadamard: z.boolean().optional() });

const CAPS: CodecCaps = {
  group: 1,
  flush: { when: 1, keep: 0, take: 1 },
  sealTiming: "beforeAttend",
  keyFrame: "post",
  slotRewrite: true,
  variableBytes: false,
};

export const fp32 = defineKvCodec({
  id: "fp32",
  title: "32-bit float",
  paper: "",
  summary: "Rows as they are.",
  options,
  planes: ["k", "v"],
  kernels: () => "token",
  bitsPerElement: () => 32,
  create: (_, { headDim }) => ({
    caps: CAPS,
    groupBytes: headDim * 4,
    encode(rows, n, dst) {
      new Float32Array(dst.buffer, dst.byteOffset, n * headDim).set(rows.subarray(0, n * headDim));
      return null;
    },
    decode(src, _variable, n, out) {
      out.set(new Float32Array(src.buffer, src.byteOffset, n * headDim));
    },
  }),
});

export const fp16 = defineKvCodec({
  id: "fp16",
  title: "16-bit float",
  paper: "",
  summary: "Rows rounded to half precision.",
  options,
  planes: ["k", "v"],
  kernels: () => "token",
  bitsPerElement: () => 16,
  create: (_, { headDim }) => ({
    caps: CAPS,
    groupBytes: Math.ceil((headDim * 2) / 4) * 4,
    encode(rows, n, dst) {
      const halves = new Uint16Array(dst.buffer, dst.byteOffset, n * headDim);
      for (let i = 0; i < halves.length; i++) halves[i] = f32ToF16(rows[i] as number);
      return null;
    },
    decode(src, _variable, n, out) {
      const halves = new Uint16Array(src.buffer, src.byteOffset, n * headDim);
      for (let i = 0; i < halves.length; i++) out[i] = f16ToF32(halves[i] as number);
    },
  }),
});
