import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { buildGguf } from "../../test/support/gguf-builder.js";
import { tinyTokenizer } from "../../test/support/tiny-tokenizer.js";
import { bufferSource } from "../core/byte-source.js";
import { openGguf } from "../formats/gguf.js";
import { ggufTokenizer } from "../formats/gguf-tokenizer.js";
import { Tokenizer } from "./tokenizer.js";
import { readTokenizerJson } from "./tokenizer-json.js";

const MAX = 1 << 24;
const bpe = (vocab: unknown, more: object = {}) => ({
  version: "1.0",
  added_tokens: [{ id: 0, content: '}"vocab":{' }],
  model: { type: "BPE", dropout: null, vocab, merges: ["a b"], ...more },
  decoder: { type: "ByteLevel" },
});

/** Reads, and compares with what JSON.parse makes of the same text. */
function check(text: string): boolean {
  const read = readTokenizerJson(text, MAX);
  if (!read) return false;
  const plain = JSON.parse(text) as { model: { vocab: object } };
  expect(read.vocabulary).toEqual(new Map(Object.entries(plain.model.vocab)));
  expect(read.json).toEqual({ ...plain, model: { ...plain.model, vocab: {} } });
  return true;
}

describe("reading tokenizer.json", () => {
  it("gives what JSON.parse gives, for any tokens and layout", () => {
    const vocabularies = fc
      .uniqueArray(
        fc.oneof(
          fc.string({ unit: "binary" }),
          fc.string(),
          fc.constantFrom("\\", '"', '\\"', "__proto__", "vocab", "7"),
        ),
        { minLength: 1, maxLength: 30 },
      )
      .map(
        (tokens) => `{${tokens.map((token, id) => `${JSON.stringify(token)}:${id * 3}`).join()}}`,
      );
    fc.assert(
      fc.property(vocabularies, fc.constantFrom(0, 1, 2), (vocab, indent) => {
        const text = JSON.stringify(bpe("@"), null, indent).replace('"@"', () => vocab);
        expect(check(text)).toBe(true);
        expect(check(JSON.stringify(JSON.parse(text), null, indent))).toBe(true);
      }),
    );
  });
  it("never gives anything else, whatever is broken", () => {
    const text = JSON.stringify(bpe({ a: 0, b: 1, "\u0120t": 2, '"': 3 }));
    fc.assert(
      fc.property(
        fc.nat(text.length - 1),
        fc.constantFrom("", '"', "{", "}", ",", "0", "9", "\\", "-"),
        fc.boolean(),
        (at, put, cut) => {
          const broken = text.slice(0, at) + put + (cut ? "" : text.slice(at + 1));
          let valid = true;
          try {
            JSON.parse(broken);
          } catch {
            valid = false;
          }
          if (valid) check(broken);
          else expect(readTokenizerJson(broken, MAX)).toBeNull();
        },
      ),
      { numRuns: 500 },
    );
  });
  it("leaves what it does not know to JSON.parse", () => {
    const text = (value: unknown) => JSON.stringify(value);
    const model = text(bpe({ a: 1 }));
    for (const other of [
      "",
      "{}",
      "[]",
      "null",
      text({ model: 1 }),
      text(bpe([["a", 1]])),
      text(bpe({})),
      text(bpe({ a: -1 })),
      text(bpe({ a: 1.5 })),
      text(bpe({ a: 1, b: 1 })),
      text(bpe({ a: MAX })),
      text(bpe({ a: "1" })),
      text(bpe({ a: 1 }, { type: "WordPiece" })),
      model.replace('"a":1', '"a":1,"a":2'),
      model.replace('"a":1', '"a":01'),
      model.replace('"merges"', '"vocab":{"b":2},"merges"'),
      model.replace('"merges"', '"vocab":{},"merges"'),
      model.replace('"decoder"', '"model":{"type":"BPE","vocab":{"b":2}},"decoder"'),
      model.replace('"decoder"', '"model":null,"decoder"'),
    ]) {
      expect(readTokenizerJson(other, MAX), other).toBeNull();
    }
  });
  it("a tokenizer made from it is the one that the plain text gives", async () => {
    const file = await openGguf(bufferSource(buildGguf(tinyTokenizer()), "t.gguf"));
    const { files } = ggufTokenizer(file);
    const text = new TextDecoder().decode(files.get("tokenizer.json"));
    expect(readTokenizerJson(text, MAX)).not.toBeNull();
    const config = JSON.parse(new TextDecoder().decode(files.get("tokenizer_config.json")));
    const plain = new Tokenizer(JSON.parse(text), config);
    const quick = Tokenizer.fromFiles(files);
    expect(quick.vocabSize).toBe(plain.vocabSize);
    for (let id = 0; id < plain.vocabSize; id++) {
      expect(quick.token(id)).toBe(plain.token(id));
      expect(quick.tokenId(plain.token(id) ?? "")).toBe(plain.tokenId(plain.token(id) ?? ""));
    }
    expect([quick.bosTokenId, quick.eosTokenId, quick.prefixIds]).toEqual([
      plain.bosTokenId,
      plain.eosTokenId,
      plain.prefixIds,
    ]);
    expect(quick.encode("hello world 12 <|im_end|>")).toEqual(
      plain.encode("hello world 12 <|im_end|>"),
    );
  });
});
