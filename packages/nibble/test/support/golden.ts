/** Golden values of single weight methods, see test/golden/README.md. */
import { readFileSync } from "node:fs";

export interface WeightGolden {
  pruning: {
    W: number[];
    X: number[];
    wanda50_keep: number[];
    wanda24_keep: number[];
    sparsegpt50: number[];
    recon_err: { wanda50: number; sparsegpt50: number; magnitude50: number };
  };
  ternary: { w: number[]; codes: number[]; inverseScale: number };
  nf4: { w: number[]; absmax: number; codes: number[]; bytes: string };
}

export function weightGolden(): WeightGolden {
  return JSON.parse(readFileSync(new URL("../golden/weights.json", import.meta.url), "utf8"));
}
