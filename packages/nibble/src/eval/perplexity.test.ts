import { describe, expect, it } from "vitest";
import {
  FakeRunner,
  fakeEncode,
  fakeLogits,
  fakeOpened,
  logSumExp,
} from "../../test/support/fake-model.js";
import { emptyRecord, evaluatePerplexity, evaluateTexts } from "./perplexity.js";

const ids = Array.from({ length: 50 }, (_, i) => (i * 7) % 13);
const loss = (prefix: number[], target: number) => {
  const logits = fakeLogits(prefix);
  return logSumExp(logits) - (logits[target] as number);
};
const open = (options = {}) =>
  fakeOpened(new FakeRunner({ maxRows: 7, maxLogitRows: 3, ...options }));
const mean = (values: number[]) => values.reduce((a, b) => a + b, 0) / values.length;

describe("evaluatePerplexity", () => {
  it("predicts each window from its own start and drops the tail", async () => {
    const expected: number[] = [];
    for (const start of [0, 16, 32]) {
      for (let i = 1; i < 16; i++)
        expected.push(loss(ids.slice(start, start + i), ids[start + i] as number));
    }
    const record = emptyRecord();
    const result = await evaluatePerplexity(open(), ids, { ctx: 16, record });
    expect(result).toMatchObject({ tokens: 45, windows: 3, ctx: 16 });
    expect(record.nll).toEqual(expected);
    expect(result.nll).toBeCloseTo(mean(expected), 12);
    expect(result.perplexity).toBeCloseTo(Math.exp(mean(expected)), 10);
    expect((await evaluatePerplexity(open(), ids, { ctx: 16, windows: 1 })).tokens).toBe(15);
  });

  it("with a stride scores every target once, with at least ctx - stride tokens in front of it", async () => {
    const expected: number[] = [];
    let scored = 1;
    for (let start = 0; scored < ids.length; start += 4) {
      const end = Math.min(start + 16, ids.length);
      for (; scored < end; scored++)
        expected.push(loss(ids.slice(start, scored), ids[scored] as number));
    }
    const record = emptyRecord();
    const result = await evaluatePerplexity(open(), ids, { ctx: 16, stride: 4, record });
    expect(record.nll).toEqual(expected);
    expect(result).toMatchObject({ tokens: 49, stride: 4 });
  });

  it("records divergences from a reference; from itself they are 0", async () => {
    const record = emptyRecord();
    const result = await evaluatePerplexity(open(), ids, {
      ctx: 16,
      reference: open({ salt: 5 }),
      record,
    });
    expect(record.kl).toHaveLength(45);
    expect(record.same).toHaveLength(45);
    expect(record.referenceNll).toHaveLength(45);
    expect(result.kl).toBeCloseTo(mean(record.kl), 12);
    expect(result.kl).toBeGreaterThan(0.1);
    const self = await evaluatePerplexity(open(), ids, { ctx: 16, reference: open() });
    expect(self.kl).toBeCloseTo(0, 12);
    expect(self.topAgreement).toBe(1);
  });

  it("gives bits per byte of the predicted text", async () => {
    const text = fakeEncode("the other thing here and there is the weather");
    const record = emptyRecord();
    const result = await evaluatePerplexity(open(), text, { ctx: text.length, record });
    // All bytes but those of the first token "th".
    const bytes = "the other thing here and there is the weather".length - 2;
    expect(result.bitsPerByte).toBeCloseTo(
      record.nll.reduce((a, b) => a + b, 0) / Math.LN2 / bytes,
      12,
    );
  });

  it("warns about a short text and refuses impossible numbers", async () => {
    const lines: string[] = [];
    const result = await evaluatePerplexity(open(), ids, {
      ctx: 64,
      onWarning: (line) => lines.push(line),
    });
    expect(result).toMatchObject({ ctx: 50, tokens: 49, windows: 1 });
    expect(lines[0]).toMatch(/50 tokens, less than ctx 64/);
    await expect(evaluatePerplexity(open(), ids, { ctx: 1 })).rejects.toThrow(/ctx is 1/);
    await expect(evaluatePerplexity(open(), ids, { ctx: 999 })).rejects.toThrow(/exceeds the 256/);
    await expect(evaluatePerplexity(open(), ids, { ctx: 16, stride: 17 })).rejects.toThrow(
      /stride is 17/,
    );
    await expect(evaluatePerplexity(open(), ids, { ctx: 16, windows: 0 })).rejects.toThrow(
      /windows is 0/,
    );
  });
});

describe("evaluateTexts", () => {
  it("predicts every token but the first of every text", async () => {
    const texts = [ids.slice(0, 9), [3], ids.slice(9, 45)];
    const lines: string[] = [];
    const record = emptyRecord();
    const result = await evaluateTexts(open(), texts, {
      ctx: 16,
      record,
      onWarning: (line) => lines.push(line),
    });
    expect(result.tokens).toBe(8 + 35);
    expect(record.nll[0]).toBe(loss([0], 7));
    expect(record.nll[8]).toBe(loss(ids.slice(9, 10), ids[10] as number));
    // Windows of the long text overlap by one token: 0..15, 15..30, 30..35.
    expect(record.nll[8 + 15]).toBe(loss(ids.slice(9 + 15, 9 + 16), ids[9 + 16] as number));
    expect(lines).toEqual(["1 of 3 texts have fewer than two tokens"]);
    await expect(evaluateTexts(open(), [[1]], { ctx: 16 })).rejects.toThrow(/nothing to predict/);
  });
});
