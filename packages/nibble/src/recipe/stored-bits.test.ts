import { describe, expect, it } from "vitest";
import { solveContext, studentT } from "../../test/support/solver.js";
import { bitsPerWeight, decode } from "../encodings/quant-tensor.js";
import { rtn } from "../methods/rtn.js";
import type { ParameterSpec } from "../model/roles.js";
import { storedBits } from "./stored-bits.js";

describe("scaleType: u8", () => {
  const [n, k] = [96, 128];
  const weight = studentT(n * k, 3);
  const solve = async (more: object) => {
    const options = rtn.options.parse({ groupSize: 32, ...more });
    const { tensor } = await rtn.solve(
      weight.slice(),
      { n, k, path: "w" },
      null,
      options,
      solveContext(),
    );
    const error = decode(tensor).reduce((sum, x, i) => sum + (x - (weight[i] as number)) ** 2, 0);
    return { options, tensor, error };
  };

  it.each([
    ["integer zeros", { zero: "int" }, 8 / 32 + 4 / 32 + 64 / (32 * n)],
    ["float zeros", { zero: "float" }, 16 / 32 + 128 / (32 * n)],
    ["symmetric", { sym: true }, 8 / 32 + 64 / (32 * n)],
  ])("takes 8 bits a scale, as planned, and costs little (%s)", async (_, more, overhead) => {
    const bytes = await solve({ ...more, scaleType: "u8" });
    const half = await solve({ ...more, scaleType: "f16" });
    expect(bitsPerWeight(bytes.tensor)).toBeCloseTo(4 + overhead, 10);
    const spec = { shape: [n, k] } as unknown as ParameterSpec;
    expect(storedBits(spec, { method: rtn as never, options: bytes.options })).toBe(
      bitsPerWeight(bytes.tensor) * n * k,
    );
    expect(bytes.error).toBeLessThan(1.03 * half.error);
  });

  it("refuses grids whose scales are negative or single", () => {
    expect(rtn.options.safeParse({ scaleType: "u8", sym: "full" }).success).toBe(false);
    expect(rtn.options.safeParse({ scaleType: "u8", groupSize: "tensor" }).success).toBe(false);
  });
});
