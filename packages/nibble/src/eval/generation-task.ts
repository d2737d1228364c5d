/**
 * Tasks whose answer is generated and then read: GSM8K (Cobbe et al., arXiv:2110.14168) with the prompt, stops and answer
 * patterns of lm-evaluation-harness, and self-consistency (Wang et al., arXiv:2203.11171): several sampled solutions, the
 * answer that most of them reach.
 */
import { FormatError, UsageError } from "../core/errors.js";
import type { Definition } from "../core/registry.js";
import { Philox } from "../core/rng.js";
import { Sampler } from "../runtime/sampler.js";
import { type GenerationRequest, generateBatch } from "./batch-generate.js";
import { jsonLines } from "./tasks/items.js";
import { accuracyStderr, type ScoringModel } from "./zero-shot.js";

/** One line: `{"question": string, "answer": string}`; the answer holds the worked solution. */
export interface GenerationItem {
  question: string;
  answer: string;
}

export interface GenerationTask extends Definition {
  readonly paper: string;
  readonly hub: { dataset: string; test: string; train: string };
  prompt(item: GenerationItem): string;
  readonly stops: readonly string[];
  /** Final answer in a text in the required form, or null. */
  strict(text: string): string | null;
  /** The most likely final answer in any text, or null. */
  flexible(text: string): string | null;
}

/** Numbers are compared without separators, currency and a closing point. */
export function normalizeNumber(text: string): string {
  return text.replace(/[,$\s]/g, "").replace(/\.$/, "");
}

export const gsm8k: GenerationTask = {
  id: "gsm8k",
  title: "GSM8K",
  paper: "arXiv:2110.14168",
  hub: {
    dataset: "openai/gsm8k",
    test: "main/test-00000-of-00001.parquet",
    train: "main/train-00000-of-00001.parquet",
  },
  prompt: ({ question }) => `Question: ${question}\nAnswer:`,
  stops: ["Question:", "</s>", "<|im_end|>"],
  strict(text) {
    const found = /#### (-?[0-9.,]+)/.exec(text)?.[1];
    return found === undefined ? null : normalizeNumber(found);
  },
  flexible(text) {
    // The harness' "flexible-extract", which takes a final "..." for the answer too.
    const last = text.match(/-?[$0-9.,]{2,}|-?[0-9]+/g)?.at(-1);
    return last === undefined ? null : normalizeNumber(last);
  },
};

/** Items of a generation task. @throws FormatError naming file and line */
export function parseGenerationItems(
  task: GenerationTask,
  text: string,
  file: string,
): GenerationItem[] {
  const items: GenerationItem[] = [];
  for (const { line, value } of jsonLines(text, file)) {
    const { question, answer } = (value ?? {}) as Partial<GenerationItem>;
    const place = `${file}:${line}`;
    const fault =
      typeof question !== "string" || question.trim() === ""
        ? 'has no text "question"'
        : typeof answer !== "string" || task.strict(answer) === null
          ? 'has no "answer" that ends in "#### number"'
          : null;
    if (fault)
      throw new FormatError(
        fault,
        { place, hint: '{"question": …, "answer": "… #### 42"} a line' },
        "task-data",
      );
    items.push({ question, answer } as GenerationItem);
  }
  if (items.length === 0) throw new FormatError("holds no items", { place: file }, "task-data");
  return items;
}

export interface GenerationOptions {
  /** Worked examples in front, drawn with `seed` from `pool`. */
  fewShot?: number;
  pool?: GenerationItem[];
  /** Solutions a question; above 1 they are sampled and vote. */
  votes?: number;
  temperature?: number;
  topP?: number;
  maxTokens?: number;
  seed?: number;
  onItem?: (done: number, total: number) => void;
  signal?: AbortSignal;
}

export interface GenerationResult {
  /** Share whose voted answer in the required form is right. */
  exactMatch: number;
  stderr: number;
  /** The same with the last number of the text as the answer. */
  flexibleMatch: number;
  n: number;
  fewShot: number;
  votes: number;
  /** Mean share of solutions that agree with the voted answer. */
  agreement: number;
  tokens: number;
  seconds: number;
  items: { text: string; answer: string | null; correct: boolean }[];
}

/** The most frequent answer, the first reached of equals; null when there is none. */
export function vote(answers: (string | null)[]): { answer: string | null; share: number } {
  const counts = new Map<string, number>();
  for (const answer of answers)
    if (answer !== null) counts.set(answer, (counts.get(answer) ?? 0) + 1);
  let winner: string | null = null;
  let most = 0;
  for (const [answer, count] of counts) {
    if (count > most) {
      winner = answer;
      most = count;
    }
  }
  return { answer: winner, share: answers.length > 0 ? most / answers.length : 0 };
}

type GeneratingModel = ScoringModel & {
  readonly tokenizer: {
    decode(ids: number[]): string;
    readonly endOfTurnIds?: readonly number[];
  } | null;
};

export async function evaluateGeneration(
  model: GeneratingModel,
  task: GenerationTask,
  items: GenerationItem[],
  options: GenerationOptions = {},
): Promise<GenerationResult> {
  const { fewShot = 5, pool = [], votes = 1, maxTokens = 256, seed = 0 } = options;
  const { tokenizer } = model;
  if (!tokenizer) throw new UsageError("this model has no tokenizer, so it cannot answer");
  if (items.length === 0) throw new UsageError(`${task.id} has no items`);
  if (!(Number.isInteger(votes) && votes >= 1))
    throw new UsageError(`votes is ${votes}, expected an integer >= 1`);
  if (pool.length < fewShot)
    throw new UsageError(`${fewShot} examples are wanted, the pool has ${pool.length}`);
  const rng = new Philox(seed, `few-shot/${task.id}`);
  const shots = Array.from(
    rng.permutation(pool.length).slice(0, fewShot),
    (i) => pool[i] as GenerationItem,
  );
  const prefix = shots.map((shot) => `${task.prompt(shot)} ${shot.answer}\n\n`).join("");
  const ends = new Set([...model.model.config.eosTokenIds, ...(tokenizer.endOfTurnIds ?? [])]);
  const maxPrompt = model.runner.model.maxContext - maxTokens;

  const textOf = (tokens: number[]) => {
    const last = tokens[tokens.length - 1];
    const text = tokenizer.decode(
      last !== undefined && ends.has(last) ? tokens.slice(0, -1) : tokens,
    );
    const cut = Math.min(
      ...task.stops.map((stop) => text.indexOf(stop)).filter((at) => at >= 0),
      text.length,
    );
    return { text: text.slice(0, cut), stopped: cut < text.length };
  };
  const requests = items.flatMap((item, i): GenerationRequest[] => {
    const prompt = tokenizer.encode(prefix + task.prompt(item), { special: true });
    if (prompt.length > maxPrompt) {
      throw new UsageError(
        `${task.id}, question ${i + 1}: a prompt of ${prompt.length} tokens leaves no room for ${maxTokens} more`,
        {
          hint: "use fewer examples, or fewer tokens for the answer",
        },
      );
    }
    return Array.from({ length: votes }, (_, v) => {
      const sampler = new Sampler(
        votes === 1
          ? { temperature: 0 }
          : {
              temperature: options.temperature ?? 0.7,
              topP: options.topP ?? 0.95,
              seed: new Philox(seed, `${task.id}/${i}/${v}`).uint32(),
            },
      );
      return {
        prompt,
        limit: maxTokens,
        choose: (logits) => sampler.next(sampler.greedy ? logits : logits.slice(), []),
        // Decoding everything at every token would be quadratic; a stop text lies in the last few tokens.
        ends: (tokens) =>
          ends.has(tokens[tokens.length - 1] as number) ||
          task.stops.some((stop) => tokenizer.decode(tokens.slice(-16)).includes(stop)),
      };
    });
  });
  const started = performance.now();
  let done = 0;
  const outputs = await generateBatch(model.runner, requests, {
    onDone: () => options.onItem?.(Math.floor(++done / votes), items.length),
    ...(options.signal ? { signal: options.signal } : {}),
  });
  let agreement = 0;
  let flexible = 0;
  const judged = items.map((item, i) => {
    const texts = outputs.slice(i * votes, (i + 1) * votes).map((tokens) => textOf(tokens).text);
    const right = task.strict(item.answer);
    const strict = vote(texts.map((t) => task.strict(t)));
    const loose = vote(texts.map((t) => task.flexible(t)));
    agreement += loose.share / items.length;
    if (loose.answer === right) flexible++;
    return { text: texts[0] ?? "", answer: strict.answer, correct: strict.answer === right };
  });
  const exactMatch = judged.filter((j) => j.correct).length / items.length;
  return {
    exactMatch,
    stderr: accuracyStderr(exactMatch, items.length),
    flexibleMatch: flexible / items.length,
    n: items.length,
    fewShot,
    votes,
    agreement,
    tokens: outputs.reduce((sum, tokens) => sum + tokens.length, 0),
    seconds: (performance.now() - started) / 1000,
    items: judged,
  };
}
