import { mkdtemp, readdir, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, it, vi } from "vitest";
import type { OnProgress } from "../core/progress.js";
import { Philox } from "../core/rng.js";
import { decode } from "../encodings/quant-tensor.js";
import { selectBackend } from "../kernels/select.js";
import { roundToNearest, rtn } from "../methods/rtn.js";
import type { ModelConfig } from "../model/config.js";
import { parameter } from "../model/model.js";
import { SITE_OF } from "../model/roles.js";
import { loadModel } from "../runtime/load-model.js";
import { openModel } from "../runtime/open.js";
import { captureLayers, outlierFacts } from "./activations.js";
import { kvVariants, variantErrors } from "./kv-error.js";
import { outputErrors, shareOut, withRoundedLayer } from "./layer-error.js";
import { measureSensitivity } from "./measure-sensitivity.js";
import { evaluatePerplexity } from "./perplexity.js";
import {
  codesPicture,
  gridPicture,
  inputPicture,
  kvPictures,
  outlierPicture,
  sensitivityPictures,
  weightPicture,
} from "./pictures.js";
import { roundingLosses } from "./rounding-loss.js";

const rng = new Philox(9, "layer-error");
const site = (values: Float32Array, rows: number, width: number) => ({
  site: "attn_in" as const,
  values,
  rows,
  width,
});

const model = fileURLToPath(new URL("../../test/golden/models/llama-tied", import.meta.url));
const ids = Array.from({ length: 40 }, (_, i) => (i * 37 + 11) % 250);
const rounding = { bits: 3, groupSize: 32 };

describe("outputErrors", () => {
  it("is the error of the outputs themselves, over all tokens and outputs", async () => {
    const backend = await selectBackend("wasm", () => {});
    const loaded = await loadModel(model);
    try {
      const modules = await outputErrors(
        loaded,
        ids,
        { widths: [3], groupSize: 32 },
        { backend, threads: 1 },
      );
      expect(modules).toHaveLength(7 * loaded.config.numHiddenLayers);
      const run = { backend, threads: 1, ids };
      for (const [layer, sites] of await captureLayers(loaded, [0, 1], run)) {
        for (const role of ["k", "down"] as const) {
          const x = sites.find((s) => s.site === SITE_OF[role]);
          const { spec, weight } = parameter(loaded, `layers.${layer}.${role}`);
          if (!x || "quant" in weight) throw new Error("nothing captured");
          const [n = 0, k = 0] = spec.shape;
          const w = await weight.read();
          const rounded = decode(
            roundToNearest(w.slice(), n, k, rtn.options.parse({ ...rounding, sym: false })),
          );
          let error = 0;
          let energy = 0;
          for (let t = 0; t < x.rows; t++) {
            for (let r = 0; r < n; r++) {
              let y = 0;
              let lost = 0;
              for (let i = 0; i < k; i++) {
                const value = x.values[t * k + i] as number;
                y += value * (w[r * k + i] as number);
                lost += value * ((w[r * k + i] as number) - (rounded[r * k + i] as number));
              }
              error += lost ** 2;
              energy += y ** 2;
            }
          }
          const found = modules.find((m) => m.path === spec.path)?.error[3] as number;
          expect(found / (error / energy)).toBeCloseTo(1, 4);
        }
      }
    } finally {
      await loaded.close();
    }
  });
});

describe("roundingLosses", () => {
  it("is the divergence of a model with that layer rounded, and leaves the others alone", async () => {
    const loaded = await loadModel(model);
    const run = { backend: "wasm" as const, threads: 1 };
    try {
      const { layers: kl } = await roundingLosses(loaded, ids, rounding, run);
      const reference = await openModel(loaded, { ...run, maxContext: 64 });
      const base = await evaluatePerplexity(reference, ids, { ctx: ids.length });
      for (const row of kl) {
        const other = withRoundedLayer(loaded, row.layer, rounding);
        const opened = await openModel(other, { ...run, maxContext: 64 });
        const direct = await evaluatePerplexity(opened, ids, { ctx: ids.length, reference });
        await opened.close();
        expect(row.kl).toBeGreaterThan(0);
        expect(row.kl).toBeCloseTo(direct.kl as number, 10);
        expect(row.deltaNll).toBeCloseTo(direct.nll - base.nll, 10);
      }
      await reference.close();
    } finally {
      await loaded.close();
    }
  });
});

describe("measureSensitivity", () => {
  it("goes on after an interruption at any layer, to the same result", async () => {
    const home = await mkdtemp(join(tmpdir(), "nibble-sensitivity-"));
    vi.stubEnv("NIBBLE_HOME", home);
    const loaded = await loadModel(model);
    const options = { ...rounding, kl: true, backend: "wasm" as const, threads: 1 };
    try {
      const whole = JSON.stringify(await measureSensitivity(loaded, ids, options));
      expect(await readdir(join(home, "sensitivity"))).toEqual([]);
      let steps = 0;
      for (let runs = 0; ; runs++) {
        const stop = new AbortController();
        const before = steps;
        const onProgress: OnProgress = (event) => {
          // Two layers further in every run: the first is one that is measured, the second is interrupted.
          if (event.type === "step" && event.item >= 0 && ++steps - before > 1 + runs)
            stop.abort(new Error("stop"));
        };
        const result = await measureSensitivity(loaded, ids, {
          ...options,
          onProgress,
          signal: stop.signal,
        }).catch((error: Error) => error.message);
        if (typeof result !== "string") {
          expect(runs).toBeGreaterThan(1);
          expect(JSON.stringify(result)).toBe(whole);
          break;
        }
        expect(result).toBe("stop");
      }
    } finally {
      await loaded.close();
      vi.unstubAllEnvs();
      await rm(home, { recursive: true });
    }
  });
});

describe("shareOut", () => {
  it("divides a layer's cost by output error and scales it to other widths", () => {
    const modules = [
      { path: "layers.0.q", layer: 0, role: "q" as const, weights: 10, error: { 2: 0.3, 4: 0.01 } },
      { path: "layers.0.o", layer: 0, role: "o" as const, weights: 20, error: { 2: 0.9, 4: 0.03 } },
    ];
    const roles = [
      { role: "q" as const, kl: 1 },
      { role: "o" as const, kl: 3 },
    ];
    const shared = shareOut(modules, { layers: [{ layer: 0, kl: 0.4 }], roles }, 4);
    expect(shared.map((s) => s.path)).toEqual(["layers.0.q", "layers.0.o"]);
    expect(shared[0]?.loss[4]).toBeCloseTo(0.1, 12);
    expect(shared[0]?.loss[2]).toBeCloseTo(3, 12);
    expect(shared[1]?.loss[4]).toBeCloseTo(0.3, 12);
  });

  it("meets the losses of layers and of roles, whatever the output errors say", () => {
    const modules = [0, 1, 2].flatMap((layer) =>
      (["q", "v", "down"] as const).map((role, i) => ({
        path: `layers.${layer}.${role}`,
        ...{ layer, role, weights: 10, error: { 3: 4 * (i + layer + 1), 4: i + layer + 1 } },
      })),
    );
    const kl = [0.1, 0.2, 0.3].map((value, layer) => ({ layer, kl: value }));
    const roles = [
      { role: "q" as const, kl: 0.02 },
      { role: "v" as const, kl: 0.2 },
      { role: "down" as const, kl: 0.08 },
    ];
    const shared = shareOut(modules, { layers: kl, roles }, 4);
    const total = (of: string) =>
      shared.filter((s) => s.path.includes(of)).reduce((sum, s) => sum + (s.loss[4] ?? 0), 0);
    for (const row of kl) expect(total(`.${row.layer}.`)).toBeCloseTo(row.kl, 6);
    // Both margins describe one model: roles are brought to the total of the layers (here twice theirs).
    for (const row of roles) expect(total(`.${row.role}`)).toBeCloseTo(2 * row.kl, 6);
    for (const s of shared) expect(s.loss[3]).toBeCloseTo(4 * (s.loss[4] ?? 0), 12);
  });
});

describe("roundingLosses of roles", () => {
  it("is the divergence of a model with that role rounded in all layers, and leaves the others alone", async () => {
    const loaded = await loadModel(model);
    const run = { backend: "wasm" as const, threads: 1 };
    try {
      const { roles: rows } = await roundingLosses(loaded, ids, rounding, run);
      expect(rows.map((row) => row.role)).toEqual(["q", "k", "v", "o", "gate", "up", "down"]);
      const reference = await openModel(loaded, { ...run, maxContext: 64 });
      for (const row of [rows[2], rows[6]]) {
        let other = loaded;
        for (let layer = 0; layer < loaded.config.numHiddenLayers; layer++) {
          other = withRoundedLayer(other, layer, rounding, row?.role ?? null);
        }
        const opened = await openModel(other, { ...run, maxContext: 64 });
        const direct = await evaluatePerplexity(opened, ids, { ctx: ids.length, reference });
        await opened.close();
        expect(row?.kl).toBeGreaterThan(0);
        expect(row?.kl).toBeCloseTo(direct.kl as number, 10);
      }
      await reference.close();
    } finally {
      await loaded.close();
    }
  });
});

describe("outliers", () => {
  const flat = Float32Array.from(rng.normals(20 * 64));
  const spiky = flat.map((v, i) => (i % 64 === 7 ? 40 * v : v));
  it("are told by peak to rms and cost at 4 bits", () => {
    const a = outlierFacts(site(spiky, 20, 64));
    const b = outlierFacts(site(flat, 20, 64));
    expect(a.peakToRms).toBeGreaterThan(1.5 * b.peakToRms);
    expect(a.max).toBeGreaterThan(b.max);
  });
  it("are drawn before and after", () => {
    const picture = outlierPicture(
      { layer: 5, before: [site(spiky, 20, 64)], after: [site(flat, 20, 64)] },
      "attn_in",
      "m",
    );
    expect(picture.svg).toContain("before and after rotation");
    expect(() => outlierPicture({ layer: 5, before: [], after: [] }, "mlp_out", "m")).toThrow(
      /no site mlp_out/,
    );
  });
});

describe("cache errors", () => {
  const config = { headDim: 64 } as ModelConfig;
  const variants = kvVariants(config);
  const shape = { headDim: 64, kvHeads: 2, layer: 0 };
  const spread = Float32Array.from(rng.normals(64 * 2 * 96));
  const channels = spread.map((v, i) => (i % 64 === 3 ? 25 + v : v));
  it("keys with outlier channels: rotation and scales of channels help, 8 bits help all", () => {
    const keys = variantErrors(channels, "k", variants, shape);
    const plain = keys["4 bits, not rotated"] as number;
    expect(keys["quarot-kv4"]).toBeLessThan(plain);
    expect(keys.kivi4).toBeLessThan(plain);
    expect(keys["quarot-kv8"]).toBeLessThan(plain / 10);
    expect(keys.fp16).toBeLessThan(1e-3);
  });
  it("is the error of the codec: 4 bits with a scale for each token lose a known share of a normal vector", () => {
    const values = variantErrors(spread, "v", variants, shape);
    // 15 steps over the range of 64 normals (about 4.7 sigma): step / sqrt(12).
    expect(values["quarot-kv4"]).toBeGreaterThan(0.07);
    expect(values["quarot-kv4"]).toBeLessThan(0.12);
    expect(values["quarot-kv4"]).toBeCloseTo(values["4 bits, not rotated"] as number, 12);
  });
  it("leaves out what a head size does not allow", () => {
    const names = kvVariants({ headDim: 80 } as ModelConfig).map((v) => v.name);
    expect(names).not.toContain("quarot-kv4");
    expect(names).toContain("fp16");
  });
});

describe("pictures", () => {
  const flat = Float32Array.from(rng.normals(20 * 64));
  it("codes: used values and bits of information", () => {
    const { data, svg } = codesPicture(Uint8Array.from([0, 1, 1, 3]), 2, { what: "w", model: "m" });
    expect(data).toMatchObject({ used: 3, entropy: 1.5 });
    expect(svg).toContain("1.50 bits");
  });

  it("are drawn from data, with labels", () => {
    const rows = [0, 1, 2].map((layer) => ({
      layer,
      keys: { fp16: 0.001, "quarot-kv4": 0.1 },
      values: { fp16: 0.001 },
    }));
    const modules = [0, 1].map((layer) => ({
      path: `layers.${layer}.q`,
      layer,
      role: "q" as const,
      weights: 4,
      error: { 4: 0.01 * (layer + 1) },
    }));
    const kl = [0, 1].map((layer) => ({ layer, kl: 0.1, deltaNll: 0.1 }));
    const drawn = [
      ...kvPictures(rows, "m", ["fp16", "quarot-kv4", "qaq"]),
      gridPicture(Float32Array.from(rng.normals(64 * 16)), [16, 64], {
        bits: 4,
        what: "w",
        model: "m",
        name: "weights",
      }),
      weightPicture(
        [Float32Array.from(rng.normals(64 * 16)), Float32Array.from(rng.normals(64 * 16))],
        [16, 64],
        { what: "w", model: "m", bits: 4 },
      ),
      inputPicture(3, site(flat, 20, 64), "m"),
      codesPicture(Uint8Array.from([0, 1, 1, 3]), 2, { what: "w", model: "m" }),
      ...sensitivityPictures({ model: "m", bits: 4, groupSize: 128, tokens: 9, modules, kl }, "m"),
    ];
    for (const { svg } of drawn) {
      expect(svg).toMatch(/^<svg/);
      expect(svg).not.toMatch(/NaN|undefined/);
    }
    // Variants without a line are named, for keys and for values.
    const words = (svg = "") => svg.replace(/<[^>]*>/g, " ").replace(/\s+/g, " ");
    expect(words(drawn[0]?.svg)).toContain("No line for qaq:");
    expect(words(drawn[1]?.svg)).toContain("No line for quarot-kv4, qaq:");
    expect(drawn.map((p) => p.name)).toEqual([
      "kv-error-keys",
      "kv-error-values",
      "weights",
      "outliers-weights",
      "inputs-attn_in",
      "codes",
      "layer-error",
      "layer-sensitivity",
    ]);
  });
});
