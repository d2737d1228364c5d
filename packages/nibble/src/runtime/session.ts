/**
 * A conversation with a model: keeps the tokens that are in the cache, feeds only what is new, streams text as soon as it
 * is certain. One session uses one cache slot; sessions of one opened model take turns.
 */
import { UsageError } from "../core/errors.js";
import { type ChatMessage, encodeChat, hasChatTemplate } from "../model/chat-template.js";
import type { OpenedModel } from "./opened.js";
import { Sampler, type SamplingOptions } from "./sampler.js";

export interface GenerateOptions extends SamplingOptions {
  /** Most new tokens; default 256. */
  maxTokens?: number;
  /** Texts that end the answer; they are not part of it. */
  stop?: string[];
  /** Feed the prompt as it is, without special tokens that the tokenizer would add. */
  raw?: boolean;
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
}

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
    const { runner, tokenizer, model, compiled } = this.#opened;
    const sampler = new Sampler(options);
    const ids =
      typeof prompt === "string" ? this.#encode(prompt, options.raw === true) : Array.from(prompt);
    if (ids.length === 0) throw new UsageError("the prompt is empty");
    const limit = options.maxTokens ?? 256;
    if (!(Number.isInteger(limit) && limit > 0))
      throw new UsageError(`maxTokens is ${limit}, expected an integer > 0`);

    const started = performance.now();
    // At least the last prompt token must run: its logits start the answer.
    let shared = 0;
    while (
      shared < ids.length - 1 &&
      shared < this.#cached.length &&
      ids[shared] === this.#cached[shared]
    )
      shared++;
    shared = runner.tables.keepable(this.#slot, shared);
    runner.tables.truncate(this.#slot, shared);
    this.#cached.length = shared;
    await runner.prefill(this.#slot, ids.slice(shared), shared, {
      logits: true,
      signal: options.signal,
    });
    this.#cached = ids.slice();
    const prefillSeconds = (performance.now() - started) / 1000;

    const stops = new Set(model.config.eosTokenIds);
    for (const id of tokenizer?.endOfTurnIds ?? []) stops.add(id);
    const decoder = tokenizer?.stream(options.stop ?? []) ?? null;
    const produced: number[] = [];
    let text = "";
    let finish: FinishReason = "length";
    const decodeStart = performance.now();
    let token = sampler.next(this.#copyLogits(sampler), [...ids]);
    for (;;) {
      if (stops.has(token)) {
        finish = "stop";
        break;
      }
      produced.push(token);
      const piece = decoder?.push(token) ?? "";
      text += piece;
      yield { text: piece, token };
      if (decoder?.stopped) {
        finish = "stop";
        break;
      }
      if (produced.length >= limit) break;
      const position = this.#cached.length;
      if (position >= compiled.maxContext) {
        finish = "context";
        break;
      }
      options.signal?.throwIfAborted();
      runner.tables.reserve(this.#slot, position + 1);
      await runner.step({ tokens: [token], positions: [position], sequences: [this.#slot] }, [0]);
      this.#cached.push(token);
      token = sampler.next(this.#copyLogits(sampler), sampler.greedy ? [] : [...ids, ...produced]);
    }
    const rest = decoder?.flush() ?? "";
    if (rest) {
      text += rest;
      yield { text: rest, token };
    }
    const decodeSeconds = (performance.now() - decodeStart) / 1000;
    this.#summary = {
      text,
      tokens: produced,
      promptTokens: ids.length,
      finish,
      prefillSeconds,
      decodeSeconds,
      tokensPerSecond: produced.length > 1 ? (produced.length - 1) / decodeSeconds : 0,
    };
  }

  /** The sampler may change what it is given; greedy only looks. */
  #copyLogits(sampler: Sampler): Float32Array {
    const logits = this.#opened.runner.logits(0);
    return sampler.greedy ? logits : logits.slice();
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

export function createSession(opened: OpenedModel, slot = 0): Session {
  return new Session(opened, slot);
}
