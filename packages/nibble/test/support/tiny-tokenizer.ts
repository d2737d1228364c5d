/** A byte-level BPE tokenizer of 256 bytes, a few merges and control tokens, as the metadata of a GGUF file. */
import type { Entry } from "./gguf-builder.js";

/** The printable stand-ins of the 256 bytes, in the order GPT-2 gives them. */
export function byteAlphabet(): string[] {
  const printable = (byte: number) =>
    (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
  let next = 256;
  return Array.from({ length: 256 }, (_, byte) =>
    String.fromCharCode(printable(byte) ? byte : next++),
  );
}

const MERGES = ["h e", "l l", "he ll", "hell o", "Ġ w", "Ġw o", "o r", "1 2", "Ċ Ċ"];
export const CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];

/** Tokens: 3 control tokens, 256 bytes, merges, then a user-defined token. */
export function tinyVocabulary(): { tokens: string[]; types: number[] } {
  const merged = MERGES.map((merge) => merge.replace(" ", ""));
  const tokens = [...CONTROL, ...byteAlphabet(), ...merged, "<tool>"];
  const types = tokens.map((_, id) => (id < CONTROL.length ? 3 : id === tokens.length - 1 ? 4 : 1));
  return { tokens, types };
}

/** Metadata of the tokenizer. */
export function tinyTokenizer(extra: Record<string, Entry> = {}): Record<string, Entry> {
  const { tokens, types } = tinyVocabulary();
  return {
    "tokenizer.ggml.model": ["string", "gpt2"],
    "tokenizer.ggml.pre": ["string", "smollm"],
    "tokenizer.ggml.tokens": ["array", "string", tokens],
    "tokenizer.ggml.token_type": ["array", "i32", types],
    "tokenizer.ggml.merges": ["array", "string", MERGES],
    "tokenizer.ggml.bos_token_id": ["u32", 1],
    "tokenizer.ggml.eos_token_id": ["u32", 2],
    "tokenizer.ggml.unknown_token_id": ["u32", 0],
    ...extra,
  };
}

export const CHATML =
  "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}" +
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
