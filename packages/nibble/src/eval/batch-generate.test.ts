import { expect, it } from "vitest";
import { tinyModel } from "../../test/tiny-model.js";
import { Philox } from "../core/rng.js";
import { openLoaded } from "../runtime/opened.js";
import { createSession } from "../runtime/session.js";
import { generateBatch, greedy } from "./batch-generate.js";

it("gives the tokens of a session, also where the cache keeps a share of the prompt", async () => {
  const prompt = Array.from({ length: 40 }, (_, i) => new Philox(3, "batch", i).below(50));
  const limit = 60;
  for (const retention of [
    { type: "all" },
    { type: "h2o", heavy: 0.1, recent: 0.1 },
    { type: "keyformer", budget: 0.3, maxNewTokens: limit },
  ]) {
    const opened = await openLoaded(tinyModel({ maxPositionEmbeddings: 128, eosTokenIds: [] }), {
      kv: { k: { codec: "fp16" }, v: { codec: "fp16" }, retention, prefill: "stepwise" },
      ...{ backend: "reference", threads: 1, maxRows: 64 },
    });
    const expected: number[] = [];
    const session = createSession(opened);
    for await (const { token } of session.generate(prompt, { maxTokens: limit }))
      expected.push(token);
    session.reset();
    const [tokens] = await generateBatch(opened.runner, [
      { prompt, limit, choose: greedy, ends: () => false },
    ]);
    await opened.close();
    expect([retention, tokens]).toEqual([retention, expected]);
  }
});
