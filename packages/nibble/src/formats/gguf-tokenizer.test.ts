import { describe, expect, it } from "vitest";
import { buildGguf, type Entry } from "../../test/support/gguf-builder.js";
import { CHATML, tinyTokenizer, tinyVocabulary } from "../../test/support/tiny-tokenizer.js";
import { bufferSource } from "../core/byte-source.js";
import { FormatError, ModelError } from "../core/errors.js";
import { Tokenizer } from "../model/tokenizer.js";
import { openGguf } from "./gguf.js";
import { ggufTokenizer } from "./gguf-tokenizer.js";

const load = async (metadata: Record<string, Entry>) =>
  ggufTokenizer(await openGguf(bufferSource(buildGguf(metadata), "t.gguf")));
const tokenizerOf = async (metadata: Record<string, Entry>) =>
  Tokenizer.fromFiles((await load(metadata)).files);
const json = (files: Map<string, Uint8Array>, name: string) =>
  JSON.parse(new TextDecoder().decode(files.get(name))) as Record<string, unknown>;
const { tokens } = tinyVocabulary();

describe("byte-level BPE", () => {
  it("merges by rank, digits one by one, control tokens from text", async () => {
    const tokenizer = await tokenizerOf(tinyTokenizer());
    const spelled = (text: string) => tokenizer.encode(text).map((id) => tokens[id]);
    expect(spelled("hello world")).toEqual(["hello", "Ġwo", "r", "l", "d"]);
    expect(spelled("12")).toEqual(["1", "2"]); // the merge exists, the pre-tokenizer forbids it
    expect(spelled("<|im_start|>a<tool>")).toEqual(["<|im_start|>", "a", "<tool>"]);
    expect(tokenizer.encode("", { special: true })).toEqual([]);
  });
  it("gpt-2 keeps digits together, llama-bpe adds BOS unless told otherwise", async () => {
    const gpt2 = await tokenizerOf(tinyTokenizer({ "tokenizer.ggml.pre": ["string", "gpt-2"] }));
    expect(gpt2.encode("12").map((id) => tokens[id])).toEqual(["12"]);
    const llama: Record<string, Entry> = { "tokenizer.ggml.pre": ["string", "llama-bpe"] };
    expect((await tokenizerOf(tinyTokenizer({ ...llama }))).encode("a")[0]).toBe(1);
    const off: Record<string, Entry> = {
      ...llama,
      "tokenizer.ggml.add_bos_token": ["bool", false],
      "tokenizer.ggml.add_eos_token": ["bool", true],
    };
    expect((await tokenizerOf(tinyTokenizer(off))).encode("a").at(-1)).toBe(2);
  });
  it("qwen2 normalizes to NFC", async () => {
    const tokenizer = await tokenizerOf(
      tinyTokenizer({ "tokenizer.ggml.pre": ["string", "qwen2"] }),
    );
    expect(tokenizer.decode(tokenizer.encode("e\u0301"))).toBe("\u00e9");
  });
  it("end tokens: eos, eot, and tokens whose text is an end", async () => {
    const { eosTokenIds, bosTokenId } = await load(
      tinyTokenizer({ "tokenizer.ggml.eot_token_id": ["u32", 5] }),
    );
    expect(bosTokenId).toBe(1);
    expect(eosTokenIds).toEqual([2, 5, 0]);
  });
  it("chat templates: one as a file, several as a list", async () => {
    const one = await load(tinyTokenizer({ "tokenizer.chat_template": ["string", CHATML] }));
    expect(new TextDecoder().decode(one.files.get("chat_template.jinja"))).toBe(CHATML);
    const two = await load(
      tinyTokenizer({
        "tokenizer.chat_template": ["string", "a"],
        "tokenizer.chat_template.tool_use": ["string", "b"],
      }),
    );
    expect(two.files.has("chat_template.jinja")).toBe(false);
    expect(json(two.files, "tokenizer_config.json").chat_template).toEqual([
      { name: "default", template: "a" },
      { name: "tool_use", template: "b" },
    ]);
  });
});

describe("SentencePiece BPE", () => {
  const words = ["<unk>", "<s>", "</s>", "<0x0A>", "▁", "a", "b", "ab", "▁ab", "aba", "<", "/s>"];
  const metadata = (extra: Record<string, Entry> = {}): Record<string, Entry> => ({
    "tokenizer.ggml.model": ["string", "llama"],
    "tokenizer.ggml.tokens": ["array", "string", words],
    "tokenizer.ggml.scores": ["array", "f32", [0, 0, 0, 0, -9, -8, -7, -3, -2, -1, -10, -10]],
    "tokenizer.ggml.token_type": ["array", "i32", [2, 3, 3, 6, 1, 1, 1, 1, 1, 1, 1, 1]],
    ...extra,
  });
  it("BOS and blank in front, best score first, bytes for the rest", async () => {
    const tokenizer = await tokenizerOf(metadata());
    const spelled = (text: string) => tokenizer.encode(text).map((id) => words[id]);
    expect(spelled("ab")).toEqual(["<s>", "▁ab"]);
    // "ab" + "a" = "aba" scores better than "▁" + "ab"
    expect(spelled("aba")).toEqual(["<s>", "▁", "aba"]);
    expect(spelled("ab\n")).toEqual(["<s>", "▁ab", "<0x0A>"]);
    expect(tokenizer.decode(tokenizer.encode("ab ab", { special: false }))).toBe("ab ab");
  });
  it("text never merges into a control token", async () => {
    const tokenizer = await tokenizerOf(metadata());
    const ids = tokenizer.encode("</s>", { special: false, parse: false });
    expect(ids.map((id) => words[id])).not.toContain("</s>");
    expect(tokenizer.encode("</s>", { special: false })).toEqual([2]);
  });
  it("without prefix blank and BOS", async () => {
    const tokenizer = await tokenizerOf(
      metadata({
        "tokenizer.ggml.add_space_prefix": ["bool", false],
        "tokenizer.ggml.add_bos_token": ["bool", false],
      }),
    );
    expect(tokenizer.encode("ab").map((id) => words[id])).toEqual(["ab"]);
  });
});

describe("refused", () => {
  it("no tokenizer at all: no files", async () => {
    expect((await load({})).files.size).toBe(0);
    expect((await load({ "tokenizer.ggml.model": ["string", "none"] })).files.size).toBe(0);
  });
  it.each<[string, Record<string, Entry>, RegExp]>([
    ["tokenizer", { "tokenizer.ggml.model": ["string", "bert"] }, /"bert" is not supported/],
    ["pre-tokenizer", { "tokenizer.ggml.pre": ["string", "gpt-9"] }, /"gpt-9" is not supported/],
  ])("%s by name", async (_, extra, message) => {
    const promise = load(tinyTokenizer(extra));
    await expect(promise).rejects.toThrow(ModelError);
    await expect(promise).rejects.toThrow(message);
  });
  it("a missing pre-tokenizer is not guessed", async () => {
    const metadata = tinyTokenizer();
    delete metadata["tokenizer.ggml.pre"];
    await expect(load(metadata)).rejects.toThrow(/does not say how text is split/);
  });
  it.each<[string, Record<string, Entry>]>([
    ["tokens of another type", { "tokenizer.ggml.tokens": ["array", "i32", [1]] }],
    ["too few types", { "tokenizer.ggml.token_type": ["array", "i32", [1]] }],
    ["merge without blank", { "tokenizer.ggml.merges": ["array", "string", ["ab"]] }],
    ["bos beyond the vocabulary", { "tokenizer.ggml.bos_token_id": ["u32", 9999] }],
    ["flag as number", { "tokenizer.ggml.add_bos_token": ["u32", 1] }],
  ])("contradiction: %s", async (_, extra) => {
    await expect(load(tinyTokenizer(extra))).rejects.toThrow(FormatError);
  });
});
