import { describe, expect, it } from "vitest";
import { formatName, type StoredLinear } from "./format-name.js";

const int = (bits: number): StoredLinear => ({ encoding: "gint", bits });
const layer = (one: StoredLinear, index = 0) => [`model.layers.${index}.mlp.up_proj`, one] as const;
const head = ["model.embed_tokens", int(8)] as const;

describe("formatName", () => {
  it.each([
    ["W4A16-INT", [head, layer(int(4))], []],
    ["W8A8-INT", [layer(int(8))], [{ bits: 8 }]],
    ["W4A4-INT", [head, layer(int(4))], [{ bits: 4 }, { bits: 4 }]],
    ["W2-4A16-INT", [layer(int(4)), layer(int(2), 1)], []],
    [
      "W8A8-FP",
      [head, layer({ encoding: "lut", bits: 8, table: "fp8_e4m3" })],
      [{ bits: 8, format: "e4m3" }],
    ],
    // Integer inputs on float weights, tables that are neither: no kind is claimed.
    ["W6A8", [layer({ encoding: "lut", bits: 6, table: "fp6_e3m2" })], [{ bits: 8 }]],
    ["W4A16", [layer({ encoding: "lut", bits: 4, table: "nf4" })], []],
    ["W4-16A16-INT", [layer(int(4)), layer({ encoding: "dense" }, 1)], []],
    [null, [head, layer({ encoding: "dense" })], []],
  ] as const)("%s", (name, linears, inputs) => {
    expect(formatName(linears, inputs)).toBe(name);
  });
});
