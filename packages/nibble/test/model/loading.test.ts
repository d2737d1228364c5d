/** SmolLM2-135M-Instruct, the real file: facts, weights, tokenizer and chat template against independent programs. */
import { readFileSync } from "node:fs";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { fileSource } from "../../src/core/file-source.js";
import { openGgufModel } from "../../src/formats/gguf-model.js";
import { ALIASES } from "../../src/hub/resolve.js";
import { encodeChat, renderChat } from "../../src/model/chat-template.js";
import { buildModel, unusedTensors } from "../../src/model/load.js";
import { isTied, type LazyTensor, type Model } from "../../src/model/model.js";
import { Tokenizer } from "../../src/model/tokenizer.js";
import { requires, sharedFile, smollm2 } from "./locate.js";

const texts = {
  test: sharedFile("data/wikitext2-test.txt"),
  valid: sharedFile("data/wikitext2-valid.txt"),
  golden: sharedFile("golden/smollm2-greedy.json"),
};
/** WikiText's files have CR LF here; the protocol reads text with LF. */
const read = (path: string) => readFileSync(path, "utf8").replaceAll("\r\n", "\n");

describe("SmolLM2-135M", requires({ "the model": smollm2 }), () => {
  let model: Model;
  let tokenizer: Tokenizer;
  beforeAll(async () => {
    const { config, source, files, id } = await openGgufModel(await fileSource(smollm2 ?? ""));
    expect(unusedTensors(config, source)).toEqual([]);
    model = buildModel(config, source, files, id);
    tokenizer = Tokenizer.fromFiles(files);
  });
  afterAll(() => model?.close());

  it("facts", () => {
    expect(model.config).toMatchObject({
      architecture: "llama",
      vocabSize: 49152,
      hiddenSize: 576,
      intermediateSize: 1536,
      numHiddenLayers: 30,
      numAttentionHeads: 9,
      numKeyValueHeads: 3,
      headDim: 64,
      rmsNormEps: 1e-5,
      maxPositionEmbeddings: 8192,
      rope: { type: "default", theta: 100000 },
      bosTokenId: 1,
      eosTokenIds: [2, 0],
    });
    expect(isTied(model)).toBe(true);
  });

  it("every weight is read, finite, and counted", async () => {
    let count = 0;
    const started = performance.now();
    for (const { weight } of model.parameters.values())
      count += (await (weight as LazyTensor).read()).length;
    console.log(`134.5 M values in ${(performance.now() - started).toFixed(0)} ms`);
    expect(count).toBe(134_515_008);
  });

  it("the hash is the file's", async () => {
    expect(await model.source.sha256()).toBe(ALIASES["smollm2-135m"]?.sha256);
  });

  it("the chat template of the specification", () => {
    const messages = [{ role: "user", content: "Hi" }];
    const expected =
      "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n";
    expect(renderChat(model.files, messages, { addGenerationPrompt: true })).toBe(expected);
    const { ids, warnings } = encodeChat(tokenizer, model.files, messages, {
      addGenerationPrompt: true,
    });
    expect(ids).toEqual(tokenizer.encode(expected, { special: false }));
    expect(warnings).toEqual([]);
  });

  it("difficult texts come back", () => {
    const list = [
      "½ ٣٤",
      "a\r\nb",
      "x\u00a0y",
      "🚀👩‍👩‍👧",
      "      deep",
      " both ",
      "12345",
      "<|im_start|>",
    ];
    for (const text of list) expect(tokenizer.decode(tokenizer.encode(text))).toBe(text);
    expect(tokenizer.encode("12345")).toHaveLength(5);
    expect(tokenizer.encode("<|im_start|>")).toEqual([1]);
    expect(tokenizer.encode("<|im_start|>", { parse: false })).not.toContain(1);
  });

  it(
    "prompts of the golden file: the same ids, the same text of the answer",
    requires({ "golden values": texts.golden }),
    () => {
      const { rows } = JSON.parse(readFileSync(texts.golden ?? "", "utf8")) as {
        rows: { prompt: string; ids: number[]; greedy: number[]; text: string }[];
      };
      for (const { prompt, ids, greedy, text } of rows) {
        expect(tokenizer.encode(prompt)).toEqual(ids);
        expect(tokenizer.decode(greedy)).toBe(text);
        const stream = tokenizer.stream([], { skipSpecial: false });
        expect(greedy.map((id) => stream.push(id)).join("") + stream.flush()).toBe(text);
      }
    },
  );

  it.each([
    ["test", 304_978],
    ["valid", 249_461],
  ] as const)("WikiText-2 %s: %d tokens", requires(texts), (name, count) => {
    const text = read(texts[name] ?? "");
    const started = performance.now();
    const ids = tokenizer.encode(text);
    console.log(`${text.length} characters in ${(performance.now() - started).toFixed(0)} ms`);
    expect(ids).toHaveLength(count);
    expect(tokenizer.decode(ids)).toBe(text);
  });
});
