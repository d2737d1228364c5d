/**
 * Text <-> token ids, over the parts of @huggingface/tokenizers (normalizer, pre-tokenizer, model, decoder). What is done
 * here: finding added tokens in text, remembering the ids of pieces, which makes long texts several times faster with the same
 * ids, and keeping control tokens out of text that must not contain any.
 */
import { Tokenizer as Library } from "@huggingface/tokenizers";
import { jsonObject, utf8 } from "../core/byte-source.js";
import { FormatError, ModelError, NibbleError } from "../core/errors.js";
import type { SidecarFiles } from "./model.js";
import { StreamDecoder, type StreamOptions } from "./stream-decoder.js";
import { readTokenizerJson } from "./tokenizer-json.js";

type Json = Record<string, unknown>;

export interface EncodeOptions {
  /** Add the tokens that the tokenizer puts around every text (BOS, EOS), if it does so. Default true. */
  special?: boolean;
  /** Take control tokens spelled out in the text as such. Default true; false makes them ordinary text. */
  parse?: boolean;
  /** A character that is dropped; where it stands inside the spelling of a control token, that is ordinary text. */
  guard?: string;
}

interface AddedToken {
  id: number;
  content: string;
  special: boolean;
  singleWord: boolean;
  lstrip: boolean;
  rstrip: boolean;
  normalized: boolean;
}

/** Ends of a turn: generation stops there whatever the end token of the config is. */
const TURN_ENDS = ["<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>"];
/** Pieces whose ids are remembered; beyond that the memory is emptied. */
const MAX_PIECES = 200_000;
const MAX_PIECE_LENGTH = 64;
/** No vocabulary is larger; ids are array indices in the library. */
const MAX_ID = 1 << 24;

export class Tokenizer {
  /** First token of a text, if the tokenizer names one. */
  readonly bosTokenId: number | null;
  readonly eosTokenId: number | null;
  /** The end token and every token that ends a turn. */
  readonly endOfTurnIds: readonly number[];
  /** Control tokens by their spelling. */
  readonly specialTokens: ReadonlyMap<string, number>;
  /** Tokens put before and after every text by `special`. */
  readonly prefixIds: readonly number[];
  readonly suffixIds: readonly number[];

  readonly #library: Library;
  readonly #added = new Map<string, AddedToken>();
  readonly #specialIds: Set<number>;
  readonly #raw: Splitter;
  readonly #rawPlain: Splitter;
  readonly #normalized: Splitter;
  readonly #normalizedPlain: Splitter;
  readonly #pieces = new Map<string, readonly number[]>();

  /**
   * @param json tokenizer.json
   * @param config tokenizer_config.json, {} if there is none
   * @param vocabulary what model.vocab of a BPE tokenizer holds, where `json` has it empty
   * @throws ModelError for parts that the library does not know, FormatError for a file that makes no sense
   */
  constructor(json: Json, config: Json = {}, vocabulary: Map<string, number> | null = null) {
    const added = checkTokenizer(json);
    for (const name of ["remove_space", "do_lowercase_and_remove_accent"]) {
      if (config[name] === true) {
        throw new ModelError(`${name} is not supported`, { place: "tokenizer_config.json" });
      }
    }
    this.#library = guarded(() => new Library({ added_tokens: [], ...json }, config));
    if (vocabulary && this.#library.model) fillModel(this.#library.model, vocabulary);
    const { normalizer } = this.#library;
    const raw: AddedToken[] = [];
    const normalized: AddedToken[] = [];
    for (const token of added) {
      this.#added.set(token.content, token);
      if (token.normalized && normalizer) {
        const content = guarded(() => normalizer.normalize(token.content));
        this.#added.set(content, token);
        normalized.push({ ...token, content });
      } else raw.push(token);
    }
    const plain = (list: AddedToken[]) => new Splitter(list.filter((token) => !token.special));
    this.#raw = new Splitter(raw);
    this.#rawPlain = plain(raw);
    this.#normalized = new Splitter(normalized);
    this.#normalizedPlain = plain(normalized);
    const special = added.filter((token) => token.special);
    this.specialTokens = new Map(special.map((token) => [token.content, token.id]));
    this.#specialIds = new Set(special.map((token) => token.id));
    const id = (name: string) => {
      const text = tokenText(config[name]);
      return text === null ? null : (this.tokenId(text) ?? null);
    };
    this.bosTokenId = id("bos_token");
    this.eosTokenId = id("eos_token");
    const ends = TURN_ENDS.map((text) => this.specialTokens.get(text));
    this.endOfTurnIds = [
      ...new Set([this.eosTokenId, ...ends].filter((end) => typeof end === "number")),
    ];
    [this.prefixIds, this.suffixIds] = this.#around();
  }

  /**
   * From the files beside a model's weights.
   * @throws ModelError when there is no tokenizer.json
   */
  static fromFiles(files: SidecarFiles): Tokenizer {
    const bytes = files.get("tokenizer.json");
    if (!bytes) {
      throw new ModelError("the model has no tokenizer.json", {
        hint: "Put the tokenizer files of the original model beside its weights.",
      });
    }
    const config = tokenizerConfig(files);
    const read = readTokenizerJson(utf8(bytes, "tokenizer.json"), MAX_ID);
    if (read) return new Tokenizer({ ...read.json }, config, read.vocabulary);
    return new Tokenizer(jsonObject(bytes, "tokenizer.json"), config);
  }

  /** Ids of a text. The same text gives the same ids whatever was encoded before. */
  encode(text: string, options: EncodeOptions = {}): number[] {
    const { special = true, parse = true, guard = "" } = options;
    const ids: number[] = special ? [...this.prefixIds] : [];
    guarded(() => {
      const splitter = parse ? this.#raw : this.#rawPlain;
      splitter.split(text).forEach((section, index) => {
        if (typeof section !== "string") ids.push(section.id);
        else this.#encodeSection(section, index, parse, guard, ids);
      });
    });
    if (special) ids.push(...this.suffixIds);
    return ids;
  }

  /** Text of ids. Ids without a token (padding of the vocabulary) give nothing. */
  decode(ids: Iterable<number>, options: { skipSpecial?: boolean } = {}): string {
    const vocab = this.#library.model?.vocab ?? [];
    const tokens: string[] = [];
    for (const id of ids) {
      if (options.skipSpecial && this.#specialIds.has(id)) continue;
      const token = vocab[id];
      if (token !== undefined) tokens.push(token);
    }
    if (tokens.length === 0) return "";
    const { decoder } = this.#library;
    return guarded(() => (decoder ? decoder.decode(tokens) : tokens.join("")));
  }

  /** A decoder for ids that come one by one; see StreamDecoder. */
  stream(stop: readonly string[] = [], options: StreamOptions = {}): StreamDecoder {
    return new StreamDecoder(
      (ids, skipSpecial) => this.decode(ids, { skipSpecial }),
      stop,
      options,
    );
  }

  tokenId(token: string): number | undefined {
    return this.#added.get(token)?.id ?? this.#library.model?.tokens_to_ids.get(token);
  }

  /** A token as its vocabulary spells it (byte-level: in the byte alphabet). */
  token(id: number): string | undefined {
    return this.#library.model?.vocab[id];
  }

  /** One more than the largest id with a token. */
  get vocabSize(): number {
    return this.#library.model?.vocab.length ?? 0;
  }

  /** Whether encoding puts the BOS token in front by itself. */
  get addsBos(): boolean {
    return this.bosTokenId !== null && this.prefixIds.includes(this.bosTokenId);
  }

  #encodeSection(text: string, index: number, parse: boolean, guard: string, ids: number[]): void {
    const { normalizer, pre_tokenizer: pre, model } = this.#library;
    const normal = normalizer ? normalizer.normalize(text) : text;
    if (normal.length === 0) return;
    const splitter = parse ? this.#normalized : this.#normalizedPlain;
    for (const part of splitter.split(normal)) {
      if (typeof part !== "string") {
        ids.push(part.id);
        continue;
      }
      const plain = guard ? part.replaceAll(guard, "") : part;
      if (plain.length === 0) continue;
      const pieces = pre ? pre.pre_tokenize(plain, { section_index: index }) : [plain];
      const first = ids.length;
      for (const piece of pieces) {
        for (const id of this.#idsOf(piece)) {
          // Neighbouring unknowns become one where the model says so, across pieces too.
          const unknown = model?.fuse_unk && id === model.unk_token_id;
          if (unknown && ids.length > first && ids.at(-1) === id) continue;
          ids.push(id);
        }
      }
    }
  }

  /** Ids of a pre-tokenized piece. */
  #idsOf(piece: string): readonly number[] {
    const known = this.#pieces.get(piece);
    if (known) return known;
    const { model } = this.#library;
    const ids = (model?.encode([piece]) ?? []).map((token: string) => {
      const id = model?.tokens_to_ids.get(token) ?? model?.unk_token_id;
      if (id === undefined) {
        throw new FormatError(`there is no token for ${JSON.stringify(piece)}`, {
          place: "tokenizer.json",
        });
      }
      return id;
    });
    if (piece.length <= MAX_PIECE_LENGTH) {
      if (this.#pieces.size >= MAX_PIECES) this.#pieces.clear();
      this.#pieces.set(piece, ids);
    }
    return ids;
  }

  /** What the post-processor puts around the tokens of a text. */
  #around(): [number[], number[]] {
    const post = this.#library.post_processor;
    if (!post) return [[], []];
    const mark = "\u{10FFFF}";
    const { tokens } = guarded(() => post.post_process([mark], null, true));
    const at = tokens.indexOf(mark);
    const idOf = (token: string) => {
      const id = this.tokenId(token);
      if (id === undefined) {
        throw new FormatError(`the post-processor adds ${token}, which is no token`, {
          place: "tokenizer.json",
        });
      }
      return id;
    };
    return [tokens.slice(0, at).map(idOf), tokens.slice(at + 1).map(idOf)];
  }
}

/** Does what the library does with a vocabulary when it makes a BPE model, added tokens last. */
function fillModel(model: NonNullable<Library["model"]>, vocabulary: Map<string, number>): void {
  const added = [...model.tokens_to_ids];
  const { unk_token: unknown } = model;
  model.unk_token_id = unknown == null ? undefined : vocabulary.get(unknown);
  model.vocab = new Array<string>(vocabulary.size);
  for (const [token, id] of vocabulary) model.vocab[id] = token;
  for (const [token, id] of added) {
    vocabulary.set(token, id);
    model.vocab[id] = token;
  }
  model.tokens_to_ids = vocabulary;
}

/** tokenizer_config.json, with special tokens of special_tokens_map.json where it has none. */
export function tokenizerConfig(files: SidecarFiles): Json {
  const read = (name: string): Json => {
    const bytes = files.get(name);
    return bytes ? jsonObject(bytes, name) : {};
  };
  return { ...read("special_tokens_map.json"), ...read("tokenizer_config.json") };
}

/** Text of a token that configs give as a string, as {content} or not at all. */
export function tokenText(value: unknown): string | null {
  const text = typeof value === "object" && value !== null ? (value as Json).content : value;
  return typeof text === "string" ? text : null;
}

/** Finds added tokens in text: at each place the longest. */
class Splitter {
  readonly #pattern: RegExp | null;
  readonly #tokens: Map<string, AddedToken>;

  constructor(tokens: readonly AddedToken[]) {
    this.#tokens = new Map(tokens.map((token) => [token.content, token]));
    const spellings = [...this.#tokens.keys()]
      .filter((text) => text.length > 0)
      .sort((a, b) => b.length - a.length)
      .map((text) => text.replace(/[\\^$.*+?()[\]{}|/-]/g, "\\$&"));
    this.#pattern = spellings.length > 0 ? new RegExp(spellings.join("|"), "g") : null;
  }

  /** The text as sections and tokens, in order, without empty sections. */
  split(text: string): (string | AddedToken)[] {
    if (!this.#pattern) return text.length > 0 ? [text] : [];
    const parts: (string | AddedToken)[] = [];
    let from = 0;
    const push = (section: string) => {
      const before = parts.at(-1);
      // A token may take the blanks next to it.
      const own = typeof before === "object" && before.rstrip ? section.trimStart() : section;
      if (own.length > 0) parts.push(own);
    };
    for (const match of text.matchAll(this.#pattern)) {
      const token = this.#tokens.get(match[0]) as AddedToken; // the pattern holds only these
      const end = match.index + match[0].length;
      if (token.singleWord && (isWord(text, match.index - 1) || isWord(text, end))) continue;
      const section = text.slice(from, match.index);
      push(token.lstrip ? section.trimEnd() : section);
      parts.push(token);
      from = end;
    }
    push(text.slice(from));
    return parts;
  }
}

/** Whether the character at an index belongs to a word. */
function isWord(text: string, index: number): boolean {
  const char = text[index];
  return char !== undefined && /[\p{L}\p{N}_]/u.test(char);
}

/** Checks what the library would trip over, and gives the added tokens. */
function checkTokenizer(json: Json): AddedToken[] {
  const fail = (message: string) => new FormatError(message, { place: "tokenizer.json" });
  const isId = (id: unknown): id is number =>
    Number.isInteger(id) && (id as number) >= 0 && (id as number) < MAX_ID;
  const model = json.model as Json | null | undefined;
  if (typeof model !== "object" || model === null) throw fail("model is missing");
  const vocab = model.vocab;
  if (typeof vocab !== "object" || vocab === null) throw fail("model.vocab is missing");
  if (!Array.isArray(vocab)) {
    const wrong = Object.values(vocab).findIndex((id) => !isId(id));
    if (wrong >= 0) {
      const [token, id] = Object.entries(vocab)[wrong] as [string, unknown];
      throw fail(`token ${JSON.stringify(token)} has the id ${JSON.stringify(id)}`);
    }
  }
  const list = json.added_tokens ?? [];
  if (!Array.isArray(list)) throw fail("added_tokens is no list");
  return list.map((entry: Json | null) => {
    const { id, content } = entry ?? {};
    if (!isId(id) || typeof content !== "string") throw fail("an added token has no id or content");
    const special = entry?.special === true;
    return {
      id,
      content,
      special,
      singleWord: entry?.single_word === true,
      lstrip: entry?.lstrip === true,
      rstrip: entry?.rstrip === true,
      normalized: typeof entry?.normalized === "boolean" ? entry.normalized : !special,
    };
  });
}

/** Runs a call into the library; whatever it throws becomes a typed error. */
function guarded<T>(call: () => T): T {
  try {
    return call();
  } catch (cause) {
    if (cause instanceof NibbleError) throw cause;
    throw new ModelError(`the tokenizer cannot be used: ${(cause as Error).message}`, {
      place: "tokenizer.json",
      cause,
    });
  }
}
