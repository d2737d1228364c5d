/** The managed cache behind a model: the same numbers as the packed kernels where both can, and every preset. */
import { afterEach, describe, expect, it } from "vitest";
import { tinyModel } from "../../test/tiny-model.js";
import { Philox } from "../core/rng.js";
import type { BackendId } from "../kernels/contract.js";
import type { KvRecipe } from "../model/model.js";
import { allLogits } from "./logits.js";
import { type OpenedModel, type OpenOptions, openLoaded } from "./opened.js";
import { createSession } from "./session.js";

const opened: OpenedModel[] = [];
afterEach(async () => {
  for (const model of opened.splice(0)) await model.close();
});
async function open(kv: KvRecipe | string, options: OpenOptions = {}): Promise<OpenedModel> {
  const model = await openLoaded(tinyModel({ maxPositionEmbeddings: 400, ...SIZES }), {
    backend: "reference",
    threads: 1,
    maxRows: 40,
    kv,
    ...options,
  });
  opened.push(model);
  return model;
}
const SIZES = { hiddenSize: 64, numAttentionHeads: 2, numKeyValueHeads: 1, headDim: 32 };
const ids = (length: number) =>
  Array.from({ length }, (_, i) => new Philox(1, "managed", i).below(50));

/** The same storage, sent to the managed tier by a prefill mode that the kernels do not have. */
function managed(recipe: KvRecipe, prefill: "exact" | "chunked" = "exact"): KvRecipe {
  return { ...recipe, prefill };
}
const plain = (codec: string, options = {}): KvRecipe => ({
  k: { codec, ...options },
  v: { codec, ...options },
});

function largest(a: Float32Array, b: Float32Array): number {
  return a.reduce((max, x, i) => Math.max(max, Math.abs(x - (b[i] as number))), 0);
}

describe("rows fed one by one", () => {
  it("equal the packed tier bit for bit over an exact cache, on the reference backend", async () => {
    const [flat, own] = [await open("fp32"), await open(managed(plain("fp32")))];
    expect(flat.compiled.layers).toBeNull();
    expect(own.compiled.layers).not.toBeNull();
    expect(await allLogits(own.runner, ids(300))).toEqual(await allLogits(flat.runner, ids(300)));
  });

  it.each([
    ["fp16", plain("fp16"), 1e-5],
    [
      "int8-token",
      { k: { codec: "int8-token", hadamard: true, qBits: 32 }, v: { codec: "int8-token" } },
      1e-4,
    ],
    [
      "int4-token",
      { k: { codec: "int4-token", hadamard: true, qBits: 32 }, v: { codec: "int4-token" } },
      1e-4,
    ],
    ["kivi", plain("kivi", { bits: 4, residual: 32 }), 1e-4],
  ] as [string, KvRecipe, number][])("equal the packed tier over %s", async (_, recipe, bound) => {
    const [flat, own] = [await open(recipe), await open(managed(recipe))];
    expect(flat.compiled.layers).toBeNull();
    const [a, b] = [await allLogits(flat.runner, ids(150)), await allLogits(own.runner, ids(150))];
    expect(largest(a, b)).toBeLessThan(bound);
  });

  it.each(["native", "wasm"] as BackendId[])("equal the reference on %s", async (backend) => {
    const recipe = { ...plain("kivi", { bits: 4, residual: 32 }), sinks: 2 };
    const [a, b] = [await open(recipe), await open(recipe, { backend, threads: 2 })];
    const [x, y] = [await allLogits(a.runner, ids(120)), await allLogits(b.runner, ids(120))];
    expect(largest(x, y)).toBeLessThan(1e-4);
  });
});

describe("prefill modes", () => {
  const recipe = plain("int4-token");
  const next = async (model: OpenedModel, from: number) => {
    model.runner.tables.reserve(0, from + 1);
    await model.runner.step({ tokens: [7], positions: [from], sequences: [0] }, [0]);
    return model.runner.logits(0).slice();
  };

  it("exact: the prompt's logits are those of an exact cache, whatever the chunks", async () => {
    const [exact, own] = [await open("fp32"), await open(managed(recipe))];
    await exact.runner.prefill(0, ids(110), 0, { logits: true });
    await own.runner.prefill(0, ids(110), 0, { logits: true });
    expect(largest(own.runner.logits(0), exact.runner.logits(0))).toBeLessThan(1e-5);
    expect(largest(await next(own, 110), await next(exact, 110))).toBeGreaterThan(1e-6);
  });

  it("chunked: a prompt of one chunk is exact, a longer one reads its beginning back", async () => {
    const [exact, own] = [await open("fp32"), await open(managed(recipe, "chunked"))];
    for (const [length, same] of [
      [40, true],
      [110, false],
    ] as const) {
      for (const { runner } of [exact, own]) {
        runner.tables.truncate(0, 0);
        await runner.prefill(0, ids(length), 0, { logits: true });
      }
      const difference = largest(own.runner.logits(0), exact.runner.logits(0));
      expect(difference < 1e-5).toBe(same);
    }
  });
});

describe("sessions", () => {
  const generate = async (model: OpenedModel, slot: number, prompt: number[]) => {
    const tokens: number[] = [];
    for await (const piece of createSession(model, slot).generate(prompt, { maxTokens: 12 })) {
      tokens.push(piece.token);
    }
    return tokens;
  };

  it.each(["gear-kivi2", "streaming", "h2o-20", "keyformer-50"])(
    "side by side give what each gives alone (%s)",
    async (kv) => {
      const prompts = [ids(50), ids(9), ids(70)];
      const alone: number[][] = [];
      const single = await open(kv, { sequences: 3 });
      for (const [slot, prompt] of prompts.entries()) {
        alone.push(await generate(single, slot, prompt));
      }
      const many = await open(kv, { sequences: 3 });
      const together = await Promise.all(prompts.map((p, slot) => generate(many, slot, p)));
      expect(together).toEqual(alone);
    },
  );

  it("a second turn runs only what is new, and forgets what it must", async () => {
    const model = await open({
      ...plain("fp16"),
      retention: { type: "window", sinks: 2, recent: 20 },
    });
    const session = createSession(model, 0);
    const run = async (prompt: number[]) => {
      for await (const _ of session.generate(prompt, { maxTokens: 4 }));
      return session.summary;
    };
    const first = await run(ids(60));
    const turn = [...ids(60), ...(first?.tokens ?? []), 3, 4];
    expect((await run(turn))?.reusedTokens).toBeGreaterThan(59);
    expect((await run([...ids(30), 1]))?.reusedTokens).toBe(0);
  });
});

it("rows that do not follow the sequence are refused", async () => {
  const { runner } = await open(managed(plain("fp16")));
  runner.tables.reserve(0, 10);
  await expect(
    runner.step({ tokens: [1], positions: [3], sequences: [0] }, []),
  ).rejects.toMatchObject({ code: "usage" });
});

it("a draft that nobody kept can be cut off like other rows", async () => {
  const kv: KvRecipe = { ...plain("fp16"), sinks: 2 };
  const logits = async (drafted: boolean) => {
    const { runner } = await open(kv);
    await runner.prefill(0, ids(40), 0, { logits: false });
    if (drafted) {
      const rows = { tokens: [1, 2, 3], positions: [40, 41, 42], sequences: [0, 0, 0] };
      await runner.step({ ...rows, drafts: new Set([0]) }, [2]);
      runner.tables.truncate(0, 40);
    }
    await runner.step({ tokens: [5], positions: [40], sequences: [0] }, [0]);
    return runner.logits(0).slice();
  };
  expect(await logits(true)).toEqual(await logits(false));
});

it("an answer does not depend on the slot that its sequence has, noise of policies included", async () => {
  const model = await open("keyformer-50", { sequences: 2 });
  const answers: number[][] = [];
  for (const slot of [0, 1]) {
    const tokens: number[] = [];
    const session = createSession(model, slot);
    for await (const { token } of session.generate(ids(30), { maxTokens: 25 })) tokens.push(token);
    answers.push(tokens);
  }
  expect(answers[1]).toEqual(answers[0]);
});
