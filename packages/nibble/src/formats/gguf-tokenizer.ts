/**
 * The tokenizer inside a GGUF file -> tokenizer.json and its companions, so that one tokenizer implementation serves both.
 * Byte-level BPE (`gpt2`) needs the pre-tokenizer that the `pre` key names; SentencePiece BPE (`llama`) has scores
 * instead of merges, from which the merges are rebuilt.
 */
import { FormatError, ModelError } from "../core/errors.js";
import type { SidecarFiles } from "../model/model.js";
import type { GgufFile, GgufValue } from "./gguf.js";

type Json = Record<string, unknown>;

/** tokenizer.ggml.token_type. */
const NORMAL = 1;
const CONTROL = 3;
const USER_DEFINED = 4;

/** Texts that end a turn or a document in some model family; llama.cpp takes them as ends of generation whatever the ids say. */
const END_TEXTS = new Set([
  "<|eot_id|>",
  "<|im_end|>",
  "<|end|>",
  "<|end_of_text|>",
  "<|endoftext|>",
  "<|eom_id|>",
  "<end_of_turn>",
  "<EOT>",
  "</s>",
]);

interface PreTokenizer {
  pre: Json;
  normalizer: Json | null;
  ignoreMerges: boolean;
  /** Where the file has no add_bos_token. */
  addBos: boolean;
}

const byteLevel = (useRegex: boolean): Json => ({
  type: "ByteLevel",
  add_prefix_space: false,
  trim_offsets: true,
  use_regex: useRegex,
});
/** The split of Llama 3, with the digits of `number` kept together. */
const split = (number: string): Json => ({
  type: "Sequence",
  pretokenizers: [
    {
      type: "Split",
      pattern: {
        Regex: `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|${number}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+`,
      },
      behavior: "Isolated",
      invert: false,
    },
    byteLevel(false),
  ],
});

/** Pre-tokenizers by the name in `tokenizer.ggml.pre`. */
function preTokenizer(name: string): PreTokenizer | null {
  const plain = { normalizer: null, ignoreMerges: false, addBos: false };
  switch (name) {
    case "smollm":
    case "starcoder":
    case "codeshell":
    case "command-r":
    case "refact":
      return {
        ...plain,
        pre: {
          type: "Sequence",
          pretokenizers: [{ type: "Digits", individual_digits: true }, byteLevel(true)],
        },
      };
    case "gpt-2":
    case "phi-2":
    case "mpt":
    case "olmo":
      return { ...plain, pre: byteLevel(true) };
    case "llama3":
    case "llama-v3":
    case "llama-bpe":
      return { ...plain, pre: split("\\p{N}{1,3}"), ignoreMerges: true, addBos: true };
    case "dbrx":
    case "smaug-bpe":
      return { ...plain, pre: split("\\p{N}{1,3}") };
    case "qwen2":
    case "deepseek-r1-qwen":
      return { ...plain, pre: split("\\p{N}"), normalizer: { type: "NFC" } };
    default:
      return name.startsWith("jina-") ? { ...plain, pre: byteLevel(true) } : null;
  }
}

export interface GgufTokenizer {
  /** tokenizer.json, tokenizer_config.json, chat_template.jinja as far as the file has them. */
  files: SidecarFiles;
  bosTokenId: number | null;
  /** The end token, ends of turn and message, and all tokens whose text means an end. */
  eosTokenIds: number[];
}

/**
 * Tokenizer files of a GGUF file; no files when it holds no tokenizer.
 * @throws ModelError for a tokenizer or pre-tokenizer that is not known (never guessed: ids would be wrong),
 *   FormatError for lists that contradict one another
 */
export function ggufTokenizer(file: Pick<GgufFile, "name" | "metadata">): GgufTokenizer {
  const reader = new Keys(file.name, file.metadata);
  const model = reader.text("tokenizer.ggml.model");
  if (model === null || model === "none" || model === "no_vocab") {
    return { files: new Map(), bosTokenId: null, eosTokenIds: [] };
  }
  if (model !== "gpt2" && model !== "llama") {
    throw new ModelError(`the tokenizer "${model}" is not supported`, {
      place: `${file.name}, tokenizer.ggml.model`,
      hint: "Supported: gpt2 (byte-level BPE) and llama (SentencePiece BPE).",
    });
  }
  const tokens = reader.texts("tokenizer.ggml.tokens");
  if (!tokens) throw reader.fail("tokenizer.ggml.tokens", "is missing");
  const types = reader.numbers("tokenizer.ggml.token_type") ?? tokens.map(() => NORMAL);
  if (types.length !== tokens.length) {
    throw reader.fail(
      "tokenizer.ggml.token_type",
      `${types.length} types, ${tokens.length} tokens`,
    );
  }
  const spm = model === "llama";
  const special = specialTokens(reader, tokens, spm);
  const added = tokens.flatMap((content, id) =>
    types[id] === CONTROL || types[id] === USER_DEFINED
      ? [
          {
            id,
            content,
            single_word: false,
            lstrip: false,
            rstrip: false,
            normalized: false,
            special: types[id] === CONTROL,
          },
        ]
      : [],
  );
  const body = spm
    ? sentencePiece(reader, tokens, types, special)
    : bytePairs(reader, tokens, special);
  const tokenizerJson = {
    version: "1.0",
    truncation: null,
    padding: null,
    added_tokens: added,
    ...body.json,
    post_processor: template(
      tokens,
      body.addBos ? special.bos : null,
      body.addEos ? special.eos : null,
    ),
  };
  const text = (id: number | null) => (id === null ? null : (tokens[id] ?? null));
  const templates = chatTemplates(file.metadata);
  const [only] = templates;
  const asFile = templates.length === 1 && only?.name === "default";
  const config = {
    tokenizer_class: "PreTrainedTokenizerFast",
    bos_token: text(special.bos),
    eos_token: text(special.eos),
    unk_token: text(special.unknown),
    pad_token: text(special.padding),
    add_bos_token: body.addBos,
    add_eos_token: body.addEos,
    clean_up_tokenization_spaces: false,
    ...(templates.length > 0 && !asFile && { chat_template: templates }),
  };
  const encode = (value: string) => new TextEncoder().encode(value);
  const files: SidecarFiles = new Map([
    ["tokenizer.json", encode(withVocabulary(tokenizerJson, tokens))],
    ["tokenizer_config.json", encode(`${JSON.stringify(config, null, 2)}\n`)],
  ]);
  if (asFile && only) files.set("chat_template.jinja", encode(only.template));
  const ends = [special.eos, special.endOfTurn, special.endOfMessage].filter((id) => id !== null);
  tokens.forEach((token, id) => {
    if (END_TEXTS.has(token)) ends.push(id);
  });
  return { files, bosTokenId: special.bos, eosTokenIds: [...new Set(ends)] };
}

interface Special {
  bos: number | null;
  eos: number | null;
  endOfTurn: number | null;
  endOfMessage: number | null;
  unknown: number | null;
  padding: number | null;
}

function specialTokens(reader: Keys, tokens: readonly string[], spm: boolean): Special {
  const id = (name: string, fallback: number | null): number | null => {
    const key = `tokenizer.ggml.${name}_token_id`;
    const value = reader.number(key) ?? fallback;
    if (value === null || value === -1 || value === 0xffffffff) return null;
    if (value >= tokens.length) throw reader.fail(key, `${value} of ${tokens.length} tokens`);
    return value;
  };
  // For gpt2 the format's own defaults (11) are wrong for nearly every model: absent means none.
  return {
    bos: id("bos", spm ? 1 : null),
    eos: id("eos", spm ? 2 : null),
    endOfTurn: id("eot", null),
    endOfMessage: id("eom", null),
    unknown: id("unknown", spm ? 0 : null),
    padding: id("padding", null),
  };
}

interface Body {
  json: Json;
  addBos: boolean;
  addEos: boolean;
}

/** Byte-level BPE. */
function bytePairs(reader: Keys, tokens: readonly string[], special: Special): Body {
  const name = reader.text("tokenizer.ggml.pre");
  if (name === null) {
    throw new ModelError("the file does not say how text is split before tokens are made", {
      place: `${reader.file}, tokenizer.ggml.pre`,
      hint: "It was made by an old converter; convert the model again, or use its Hugging Face folder.",
    });
  }
  const known = preTokenizer(name);
  if (!known) {
    throw new ModelError(`the pre-tokenizer "${name}" is not supported`, {
      place: `${reader.file}, tokenizer.ggml.pre`,
      hint: "Use the model's Hugging Face folder, which carries its own tokenizer.json.",
    });
  }
  const merges = reader.texts("tokenizer.ggml.merges");
  if (!merges) throw reader.fail("tokenizer.ggml.merges", "is missing");
  const pairs = merges.map((merge, i) => {
    const at = merge.indexOf(" ", 1);
    if (at < 0) throw reader.fail("tokenizer.ggml.merges", `merge ${i} is no pair`);
    return [merge.slice(0, at), merge.slice(at + 1)];
  });
  return {
    json: {
      normalizer: known.normalizer,
      pre_tokenizer: known.pre,
      decoder: byteLevel(true),
      model: {
        type: "BPE",
        dropout: null,
        unk_token: special.unknown === null ? null : (tokens[special.unknown] ?? null),
        continuing_subword_prefix: null,
        end_of_word_suffix: null,
        fuse_unk: false,
        byte_fallback: false,
        ignore_merges: known.ignoreMerges,
        vocab: {},
        merges: pairs,
      },
    },
    addBos: reader.flag("tokenizer.ggml.add_bos_token") ?? known.addBos,
    addEos: reader.flag("tokenizer.ggml.add_eos_token") ?? false,
  };
}

/** SentencePiece BPE: a pair may merge when its text is a token; the better score goes first. */
function sentencePiece(
  reader: Keys,
  tokens: readonly string[],
  types: ArrayLike<number>,
  special: Special,
): Body {
  const scores = reader.numbers("tokenizer.ggml.scores");
  if (!scores || scores.length !== tokens.length) {
    throw reader.fail("tokenizer.ggml.scores", "one score per token is expected");
  }
  const ids = new Map(tokens.map((token, id) => [token, id]));
  const pairs: { left: number; right: number; score: number }[] = [];
  tokens.forEach((token, id) => {
    // Control tokens must never come out of ordinary text, bytes only out of the fallback.
    if (types[id] !== NORMAL) return;
    const characters = Array.from(token);
    let left = "";
    for (let i = 0; i + 1 < characters.length; i++) {
      left += characters[i];
      const a = ids.get(left);
      const b = ids.get(token.slice(left.length));
      if (a !== undefined && b !== undefined) {
        pairs.push({ left: a, right: b, score: scores[id] ?? 0 });
      }
    }
  });
  pairs.sort((a, b) => b.score - a.score || a.left - b.left || a.right - b.right);
  const prefix = reader.flag("tokenizer.ggml.add_space_prefix") ?? true;
  const replace = (from: string, content: string) => ({
    type: "Replace",
    pattern: { String: from },
    content,
  });
  return {
    json: {
      normalizer: {
        type: "Sequence",
        normalizers: [...(prefix ? [{ type: "Prepend", prepend: "▁" }] : []), replace(" ", "▁")],
      },
      pre_tokenizer: null,
      decoder: {
        type: "Sequence",
        decoders: [
          replace("▁", " "),
          { type: "ByteFallback" },
          { type: "Fuse" },
          ...(prefix ? [{ type: "Strip", content: " ", start: 1, stop: 0 }] : []),
        ],
      },
      model: {
        type: "BPE",
        dropout: null,
        unk_token: tokens[special.unknown ?? 0] ?? null,
        continuing_subword_prefix: null,
        end_of_word_suffix: null,
        fuse_unk: true,
        byte_fallback: true,
        ignore_merges: false,
        vocab: {},
        merges: pairs.map(({ left, right }) => [tokens[left], tokens[right]]),
      },
    },
    addBos: reader.flag("tokenizer.ggml.add_bos_token") ?? true,
    addEos: reader.flag("tokenizer.ggml.add_eos_token") ?? false,
  };
}

/**
 * JSON text with the vocabulary in its (empty) place: an object of all tokens would take longer to build than everything
 * else. Inside a string the quotes of the place would be escaped, so it is found only once.
 */
function withVocabulary(json: Json, tokens: readonly string[]): string {
  const entries = tokens.map((token, id) => `${JSON.stringify(token)}:${id}`);
  return JSON.stringify(json).replace('"vocab":{}', () => `"vocab":{${entries.join(",")}}`);
}

/** Post-processor that puts `bos` in front and `eos` behind. */
function template(tokens: readonly string[], bos: number | null, eos: number | null): Json | null {
  if (bos === null && eos === null) return null;
  const item = (id: number | null) =>
    id === null ? [] : [{ SpecialToken: { id: tokens[id], type_id: 0 } }];
  const sequence = (id: string) => ({ Sequence: { id, type_id: 0 } });
  return {
    type: "TemplateProcessing",
    single: [...item(bos), sequence("A"), ...item(eos)],
    pair: [...item(bos), sequence("A"), ...item(eos), ...item(bos), sequence("B"), ...item(eos)],
    special_tokens: Object.fromEntries(
      [bos, eos].flatMap((id) =>
        id === null ? [] : [[tokens[id], { id: tokens[id], ids: [id], tokens: [tokens[id]] }]],
      ),
    ),
  };
}

/** `tokenizer.chat_template` and its named sisters. */
function chatTemplates(metadata: GgufFile["metadata"]): { name: string; template: string }[] {
  const base = "tokenizer.chat_template";
  return [...metadata].flatMap(([key, { value }]) => {
    if (typeof value !== "string") return [];
    if (key === base) return [{ name: "default", template: value }];
    return key.startsWith(`${base}.`)
      ? [{ name: key.slice(base.length + 1), template: value }]
      : [];
  });
}

/** Typed access to metadata. A key of another type is an error, never ignored. */
export class Keys {
  constructor(
    readonly file: string,
    private readonly metadata: ReadonlyMap<string, GgufValue>,
  ) {}

  text(key: string): string | null {
    return this.#of(key, (value) => (typeof value === "string" ? value : undefined));
  }

  number(key: string): number | null {
    return this.#of(key, (value) => {
      const number = typeof value === "bigint" ? Number(value) : value;
      return typeof number === "number" ? number : undefined;
    });
  }

  flag(key: string): boolean | null {
    return this.#of(key, (value) => (typeof value === "boolean" ? value : undefined));
  }

  texts(key: string): string[] | null {
    return this.#of(key, (value) =>
      Array.isArray(value) && this.metadata.get(key)?.element === "string"
        ? (value as string[])
        : undefined,
    );
  }

  numbers(key: string): ArrayLike<number> | null {
    return this.#of(key, (value) => {
      if (typeof value !== "object" || Array.isArray(value)) return undefined;
      if (value instanceof BigUint64Array || value instanceof BigInt64Array) {
        return Array.from(value as Iterable<bigint>, Number);
      }
      return value;
    });
  }

  isArray(key: string): boolean {
    return this.metadata.get(key)?.type === "array";
  }

  fail(key: string, message: string): FormatError {
    return new FormatError(message, { place: `${this.file}, ${key}` });
  }

  #of<T>(key: string, take: (value: GgufValue["value"]) => T | undefined): T | null {
    const entry = this.metadata.get(key);
    if (!entry) return null;
    const value = take(entry.value);
    if (value === undefined) {
      throw this.fail(
        key,
        `is of the unexpected type ${entry.element ?? ""} ${entry.type}`.replace("  ", " "),
      );
    }
    return value;
  }
}
