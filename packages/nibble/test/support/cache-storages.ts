/** Cache recipes that tests of the managed cache run over. */
import { kvCodecs } from "../../src/kv/codecs/index.js";
import type { KvPlane, KvRecipe } from "../../src/model/model.js";

/** Codecs with options that seal early enough for short tests. */
export const PLANES: Record<string, KvPlane[]> = {
  fp32: [{ codec: "fp32" }],
  fp16: [{ codec: "fp16" }],
  "int8-token": [{ codec: "int8-token" }],
  "int4-token": [{ codec: "int4-token" }, { codec: "int4-token", zero: "int", clip: 0.95 }],
  kivi: [
    { codec: "kivi", bits: 2, group: 8, residual: 16 },
    { codec: "kivi", bits: 4, group: 32, residual: 32 },
  ],
  kvquant: [
    { codec: "kvquant", bits: 3, group: 8 },
    { codec: "kvquant", bits: 4, group: 1 },
  ],
  qaq: [{ codec: "qaq", qNorm: 300 }],
  gear: [
    {
      codec: "gear",
      base: { codec: "kivi", bits: 2, group: 8, residual: 16 },
      rank: 2,
      buffer: 16,
    },
  ],
};
export const both = (plane: KvPlane): KvRecipe => ({ k: plane, v: plane });
const codecCases = kvCodecs
  .ids()
  .flatMap((id) =>
    (PLANES[id] ?? []).map((plane) => [JSON.stringify(plane), both(plane)] as const),
  );
const mixed: [string, KvRecipe][] = [
  [
    "rotated int4 keys, kivi values",
    { k: { codec: "int4-token", hadamard: true }, v: PLANES.kivi?.[0] as KvPlane },
  ],
  [
    "kivi keys, int8 values, sinks",
    { k: PLANES.kivi?.[0] as KvPlane, v: { codec: "int8-token" }, sinks: 3 },
  ],
  [
    "kvquant keys, fp32 values, sinks",
    { k: PLANES.kvquant?.[0] as KvPlane, v: { codec: "fp32" }, sinks: 1 },
  ],
];
/** Name and recipe of everything that the tests of caches run over. */
export const storages = [...codecCases, ...mixed];
