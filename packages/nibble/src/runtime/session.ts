/**
 * A conversation with a model: keeps the tokens that are in the cache, feeds only what is new, streams text as soon as it
 * is certain. One session uses one cache slot; sessions of one opened model may generate at the same time and share runs.
 */
import { UsageError } from "../core/errors.js";
import { type ChatMessage, encodeChat, hasChatTemplate } from "../model/chat-template.js";
import { NgramDrafter } from "./ngram-drafter.js";
import type { OpenedModel } from "./opened.js";
import { Sampler, type SamplingOptions } from "./sampler.js";
import {
  type Drafter,
  SpeculationCounter,
  type SpeculationStats,
  verifyDraft,
} from "./speculate.js";

export interface GenerateOptions extends SamplingOptions {
  /** Most new tokens; default 256. */
  maxTokens?: number;
  /** Texts that end the answer; they are not part of it. */
  stop?: string[];
  /** Feed the prompt as it is, without special tokens that the tokenizer would add. */
  raw?: boolean;
  /** Tokens are drafted ahead and verified together: "ngram" (prompt lookup) or a drafter, e.g. a DraftModel. */
  speculate?: "ngram" | Drafter;
  /** Most tokens of a draft, 1..32; default 4. */
  draftTokens?: number;
  signal?: AbortSignal;
}

export interface GeneratedPiece {
  /** New text; may be empty while a character or a stop text is incomplete. */
  text: string;
  token: number;
}

export type FinishReason = "stop" | "length" | "context";

export interface GenerationSummary {
  text: string;
  tokens: number[];
  promptTokens: number;
  finish: FinishReason;
  prefillSeconds: number;
  decodeSeconds: number;
  /** Generated tokens per second of decoding. */
  tokensPerSecond: number;
  /** Prompt tokens that were not run, since their keys and values were there already. */
  reusedTokens: number;
  /** With `speculate` only. */
  speculation?: SpeculationStats;
}

const MAX_DRAFT = 32;

export class Session {
  readonly #opened: OpenedModel;
  readonly #slot: number;
  /** Tokens whose keys and values are in the cache. */
  #cached: number[] = [];
  #summary: GenerationSummary | null = null;

  constructor(opened: OpenedModel, slot = 0) {
    if (!(slot >= 0 && slot < opened.runner.tables.sequences)) {
      throw new UsageError(
        `cache slot ${slot} does not exist: the model was opened for ${opened.runner.tables.sequences} sequences`,
      );
    }
    this.#opened = opened;
    this.#slot = slot;
  }

  /** What the last generate() did. */
  get summary(): GenerationSummary | null {
    return this.#summary;
  }

  /** Forgets everything. */
  reset(): void {
    this.#cached = [];
    this.#opened.runner.tables.truncate(this.#slot, 0);
  }

  /** Tokens whose keys and values are in the cache. */
  get cachedTokens(): readonly number[] {
    return this.#cached;
  }

  /**
   * A session in the empty slot `slot` that continues from here. Both share their common past in memory.
   * @throws UsageError when the slot is in use
   */
  fork(slot: number): Session {
    const session = new Session(this.#opened, slot);
    this.#opened.runner.tables.fork(this.#slot, slot);
    session.#cached = [...this.#cached];
    return session;
  }

  /**
   * Writes the cache to a file, whole or not at all. Node only.
   * @returns tokens that the file holds: the full pages of 32
   * @throws ResourceError when the file cannot be written
   */
  async saveCache(path: string): Promise<number> {
    const { writePromptCache } = await import("./prompt-cache-file.js");
    const { image } = this.#opened;
    const length = image.savable(this.#slot, this.#cached.length);
    const tokens = this.#cached.slice(0, length);
    const bytes = image.save(this.#slot, length);
    await writePromptCache(path, this.#opened, { tokens, bytes });
    return length;
  }

  /**
   * Replaces the cache by what a file holds; a prompt that begins with those tokens does not run them. Node only.
   * @returns tokens that the cache holds now
   * @throws as readPromptCache, with the session as it was; ResourceError when other sessions hold the room
   */
  async loadCache(path: string): Promise<number> {
    const { openPromptCache } = await import("./prompt-cache-file.js");
    const { tokens, bytes } = await openPromptCache(path, this.#opened);
    this.reset();
    this.#opened.image.load(this.#slot, bytes, tokens.length);
    this.#cached = tokens;
    return tokens.length;
  }

  /** Whether the model knows turns; a base model continues text and has no template. */
  get canChat(): boolean {
    return this.#opened.tokenizer !== null && hasChatTemplate(this.#opened.model.files);
  }

  /**
   * Ids of a chat, ready for generate(). Control tokens that messages spell out stay ordinary text.
   * @throws ModelError for a model without a chat template
   */
  encodeChat(messages: readonly ChatMessage[]): number[] {
    const { tokenizer, model } = this.#opened;
    if (!tokenizer) throw new UsageError("this model has no tokenizer");
    return encodeChat(tokenizer, model.files, messages, { addGenerationPrompt: true }).ids;
  }

  /**
   * Streams the continuation of a prompt (text or token ids). Tokens that the cache already holds are not run again.
   * @throws UsageError for an empty prompt, ResourceError when the prompt exceeds the context
   */
  async *generate(
    prompt: string | number[],
    options: GenerateOptions = {},
  ): AsyncGenerator<GeneratedPiece> {
    const sampler = new Sampler(options);
    const ids =
      typeof prompt === "string" ? this.#encode(prompt, options.raw === true) : Array.from(prompt);
    if (ids.length === 0) throw new UsageError("the prompt is empty");
    const limit = options.maxTokens ?? 256;
    if (!(Number.isInteger(limit) && limit > 0))
      throw new UsageError(`maxTokens is ${limit}, expected an integer > 0`);
    const draftTokens = options.draftTokens ?? 4;
    if (!(Number.isInteger(draftTokens) && draftTokens >= 1 && draftTokens <= MAX_DRAFT))
      throw new UsageError(`draftTokens is ${draftTokens}, expected 1 to ${MAX_DRAFT}`);
    const drafter = options.speculate === "ngram" ? new NgramDrafter() : options.speculate;

    const { scheduler } = this.#opened;
    scheduler.enter();
    try {
      const plan = { sampler, ids, limit, draftTokens, drafter: drafter ?? null };
      yield* this.#generate(plan, options);
    } finally {
      scheduler.leave();
    }
  }

  async *#generate(
    { sampler, ids, limit, draftTokens, drafter }: GenerationPlan,
    options: GenerateOptions,
  ): AsyncGenerator<GeneratedPiece> {
    const { tokenizer, model, compiled, prefixes, runner } = this.#opened;
    const { signal } = options;
    const started = performance.now();
    const reusedTokens = this.#reuse(ids);
    let logits = await this.#feed(ids.slice(reusedTokens), 1, signal);
    prefixes?.publish(this.#slot, this.#cached);
    const prefillSeconds = (performance.now() - started) / 1000;

    const stops = new Set(model.config.eosTokenIds);
    for (const id of tokenizer?.endOfTurnIds ?? []) stops.add(id);
    const decoder = tokenizer?.stream(options.stop ?? []) ?? null;
    const counter = new SpeculationCounter();
    const produced: number[] = [];
    /** Prompt and answer, also those tokens that are chosen and not yet given out. */
    const context = [...ids];
    let text = "";
    let finish: FinishReason = "length";
    const decodeStart = performance.now();
    const first = logits[0] as Float32Array;
    let chosen = drafter
      ? verifyDraft(sampler, { tokens: [] }, [first], context, 0)
      : [sampler.next(first, context)];
    context.push(...chosen);
    let token = chosen[0] as number;
    answer: for (;;) {
      for (token of chosen) {
        if (stops.has(token)) {
          finish = "stop";
          break answer;
        }
        produced.push(token);
        const piece = decoder?.push(token) ?? "";
        text += piece;
        yield { text: piece, token };
        if (decoder?.stopped) {
          finish = "stop";
          break answer;
        }
        if (produced.length >= limit) break answer;
      }
      const position = this.#cached.length;
      if (position >= compiled.maxContext) {
        finish = "context";
        break;
      }
      signal?.throwIfAborted();
      if (!drafter) {
        logits = await this.#feed([token], 1, signal);
        chosen = [sampler.next(logits[0] as Float32Array, sampler.greedy ? [] : context)];
      } else {
        const room = Math.min(
          draftTokens,
          limit - produced.length - 1,
          compiled.maxContext - position - 1,
          Math.min(compiled.maxLogitRows, compiled.maxRows) - 1,
        );
        const draft =
          room > 0
            ? await drafter.propose(context, room, sampler, produced.length)
            : { tokens: [] };
        const fed = [token, ...draft.tokens];
        logits = await this.#feed(fed, fed.length, signal, draft.tokens.length > 0);
        chosen = verifyDraft(sampler, draft, logits, context, produced.length);
        counter.add(draft.tokens.length, chosen.length - 1);
        if (draft.tokens.length > 0) {
          // An end token is never run, so what it comes after is all that stays.
          const end = chosen.findIndex((id) => stops.has(id));
          this.#cached.length = position + (end < 0 ? chosen.length : end + 1);
          this.#opened.runner.keep(this.#slot, this.#cached.length);
        }
      }
      context.push(...chosen);
    }
    // Tokens that were verified but not given out (a stop text came first) leave the cache where it can give them back.
    const end = Math.min(this.#cached.length, ids.length + produced.length);
    if (runner.tables.keepable(this.#slot, end) === end) this.#truncate(end);
    const rest = decoder?.flush() ?? "";
    if (rest) {
      text += rest;
      yield { text: rest, token };
    }
    prefixes?.publish(this.#slot, this.#cached);
    const decodeSeconds = (performance.now() - decodeStart) / 1000;
    this.#summary = {
      text,
      tokens: produced,
      promptTokens: ids.length,
      finish,
      prefillSeconds,
      decodeSeconds,
      tokensPerSecond: produced.length > 1 ? (produced.length - 1) / decodeSeconds : 0,
      reusedTokens,
      ...(drafter ? { speculation: counter.stats } : {}),
    };
  }

  /**
   * Brings the cache to the longest beginning of `ids` that this session, or another one, has run already. At least the
   * last token must run: its logits start the answer.
   */
  #reuse(ids: readonly number[]): number {
    const { prefixes } = this.#opened;
    let shared = 0;
    while (
      shared < ids.length - 1 &&
      shared < this.#cached.length &&
      ids[shared] === this.#cached[shared]
    )
      shared++;
    if (prefixes && prefixes.match(ids) > shared) {
      this.#truncate(0);
      shared = prefixes.adopt(this.#slot, ids);
      this.#cached = ids.slice(0, shared);
      return shared;
    }
    shared = this.#opened.runner.tables.keepable(this.#slot, shared);
    this.#truncate(shared);
    return shared;
  }

  /** Runs tokens after those in the cache. @returns logits of the last `count` of them */
  async #feed(
    tokens: readonly number[],
    count: number,
    signal: AbortSignal | undefined,
    draft = false,
  ): Promise<Float32Array[]> {
    const { runner, scheduler } = this.#opened;
    const from = this.#cached.length;
    runner.tables.reserve(this.#slot, from + tokens.length);
    try {
      const rows = await scheduler.feed({
        slot: this.#slot,
        tokens,
        from,
        logits: count,
        draft,
        signal,
      });
      this.#cached.push(...tokens);
      return rows;
    } catch (error) {
      this.#truncate(runner.tables.keepable(this.#slot, from));
      throw error;
    }
  }

  /** Forgets all but the first `length` tokens. */
  #truncate(length: number): void {
    this.#opened.runner.tables.truncate(this.#slot, length);
    this.#cached.length = length;
  }

  #encode(text: string, raw: boolean): number[] {
    const { tokenizer } = this.#opened;
    if (!tokenizer) {
      throw new UsageError("this model has no tokenizer", {
        hint: "give token ids, or a folder with tokenizer.json",
      });
    }
    return tokenizer.encode(text, { special: !raw });
  }
}

interface GenerationPlan {
  sampler: Sampler;
  ids: number[];
  limit: number;
  draftTokens: number;
  drafter: Drafter | null;
}

export function createSession(opened: OpenedModel, slot = 0): Session {
  return new Session(opened, slot);
}
