import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { compilePattern } from "./patterns.js";

const at = (path: string, module = "") => ({ path, module });

describe("patterns", () => {
  it("match whole role paths", () => {
    const cases: [string, string, boolean][] = [
      ["layers.*", "layers.12.q", true],
      ["layers.*", "embed", false],
      ["layers.0-3.*", "layers.3.down", true],
      ["layers.0-3.*", "layers.13.down", false],
      ["layers.0-3.{down,o}", "layers.2.o", true],
      ["layers.0-3.{down,o}", "layers.2.q", false],
      ["layers.{0,5-6}.q", "layers.6.q", true],
      ["layers.*.experts.0-1.{gate,up}", "layers.4.experts.1.up", true],
      ["head", "head", true],
      ["head", "heads", false],
      ["a.b", "axb", false],
    ];
    for (const [pattern, path, expected] of cases) {
      expect(compilePattern(pattern)(at(path)), `${pattern} ~ ${path}`).toBe(expected);
    }
  });

  it("match HF module names too", () => {
    const matches = compilePattern("model.layers.0-1.self_attn.*");
    expect(matches(at("layers.1.q", "model.layers.1.self_attn.q_proj"))).toBe(true);
    expect(matches(at("layers.1.up", "model.layers.1.mlp.up_proj"))).toBe(false);
  });

  it("refuse what cannot be meant", () => {
    for (const bad of ["", " ", "{a", "a}", "layers.5-2.q", "layers.0-99999.q"]) {
      expect(() => compilePattern(bad), bad).toThrow(/pattern/);
    }
  });

  it("never throw anything but a RecipeError", () => {
    fc.assert(
      fc.property(fc.string(), fc.string(), (pattern, path) => {
        try {
          compilePattern(pattern)(at(path));
        } catch (error) {
          expect((error as { code: string }).code).toBe("pattern");
        }
      }),
    );
  });
});
