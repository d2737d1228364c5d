/**
 * A retention policy for tests that uses every hook: it merges each run of `run` tokens into one slot by running means
 * (what DMC does with learned decisions), keeps the last `recent` slots, and folds what it evicts into a state of constant
 * size that stays part of the softmax (what LESS does with learned feature maps).
 */
import { z } from "zod";
import { defineRetention, type RowDecision } from "../../src/kv/contract.js";

/** Feature maps of queries and keys: the mass an evicted key gives a query is phi(q) . psi(k). */
export interface FeatureMaps {
  rank: number;
  phi(query: Float32Array): Float64Array;
  psi(key: Float32Array): Float64Array;
}

/** Nonnegative features of two channels each; the inner product is positive for any rows. */
const DEFAULT_MAPS: FeatureMaps = {
  rank: 4,
  phi: (q) =>
    Float64Array.from({ length: 4 }, (_, i) => 0.1 + Math.abs((q[i] ?? 0) + (q[i + 1] ?? 0))),
  psi: (k) =>
    Float64Array.from({ length: 4 }, (_, i) => 0.1 + Math.abs((k[i] ?? 0) - (k[i + 1] ?? 0))),
};

export function mergePolicy(maps: FeatureMaps = DEFAULT_MAPS) {
  return defineRetention({
    id: "test-merge",
    title: "Merges, evicts and remembers",
    paper: "none",
    summary: "Uses every hook; for tests.",
    options: z.strictObject({
      run: z.number().int().min(1).default(2),
      recent: z.number().int().min(1).default(8),
    }),
    granularity: "head",
    positions: "absolute",
    prefixShareable: false,
    stats: () => ({ kind: "none" }),
    create({ run, recent }, { headDim: d }) {
      const { rank, phi, psi } = maps;
      // [rank, d] of psi(k) v^T, then [rank] of psi(k), then how many tokens the newest slot holds.
      const state = new Float64Array(rank * d + rank + 1);
      const TOKENS = rank * d + rank;
      return {
        preAppend({ rows }): RowDecision[] {
          return Array.from({ length: rows }, () => {
            const held = state[TOKENS] as number;
            if (held === 0 || held === run) {
              state[TOKENS] = 1;
              return "append";
            }
            state[TOKENS] = held + 1;
            return { merge: { oldWeight: held / (held + 1), newWeight: 1 / (held + 1) } };
          });
        },
        afterAttend({ live }) {
          const surplus = live - recent;
          return surplus > 0 ? { evict: Int32Array.from({ length: surplus }, (_, i) => i) } : null;
        },
        onEvict(key, value) {
          for (const [r, weight] of psi(key).entries()) {
            for (let i = 0; i < d; i++) {
              state[r * d + i] = (state[r * d + i] as number) + weight * (value[i] as number);
            }
            state[rank * d + r] = (state[rank * d + r] as number) + weight;
          }
        },
        auxPart(queries, rows) {
          if (state.subarray(rank * d, TOKENS).every((z) => z === 0)) return null;
          const part = {
            max: new Float32Array(rows),
            sum: new Float32Array(rows),
            acc: new Float32Array(rows * d),
          };
          for (let q = 0; q < rows; q++) {
            for (const [r, f] of phi(queries.subarray(q * d, (q + 1) * d)).entries()) {
              part.sum[q] = (part.sum[q] as number) + f * (state[rank * d + r] as number);
              for (let i = 0; i < d; i++) {
                part.acc[q * d + i] =
                  (part.acc[q * d + i] as number) + f * (state[r * d + i] as number);
              }
            }
          }
          return part;
        },
        capacity: () => recent,
        snapshot: () => new Uint8Array(state.slice().buffer),
        restore: (bytes) => state.set(new Float64Array(bytes.slice().buffer)),
        bytes: state.byteLength,
      };
    },
  });
}
