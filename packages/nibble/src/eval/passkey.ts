/**
 * Passkey retrieval (Mohtashami and Jaggi, "Landmark Attention", arXiv:2305.16300): a number is hidden at some depth of a
 * long text without meaning, and asked for at the end. Tells what a quantized cache, or a retention policy, still finds.
 * A trial counts when every token of the number is the model's first guess, that is, when greedy decoding gives it.
 * Prompts run as the cache recipe says (`prefill`): where they see each other exactly, compression comes after the question.
 */
import { UsageError } from "../core/errors.js";
import { Philox } from "../core/rng.js";
import { Runner } from "../runtime/runner.js";
import { argmax } from "../runtime/sampler.js";
import { type Alternative, scoreGroups } from "./batch-score.js";
import { type Heatmap, heatmap } from "./charts/heatmap.js";
import { encodePair, type ScoringModel } from "./zero-shot.js";

const INTRODUCTION =
  "Somewhere in the following text a pass key is hidden. Find it and remember it, you will be asked for it.\n\n";
const FILLER =
  "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. ";
const needle = (key: string) => `The pass key is ${key}. Remember it. ${key} is the pass key. `;
const QUESTION = "\n\nWhat is the pass key? The pass key is";
const DIGITS = 5;

export interface PasskeyOptions {
  /** Tokens of the whole prompt, at most. */
  lengths: number[];
  /** Where the number stands, 0 = at the beginning, 1 = at the end. */
  depths?: number[];
  /** Trials for each length and depth. */
  trials?: number;
  seed?: number;
  onTrial?: (done: number, total: number) => void;
  signal?: AbortSignal;
}

export interface PasskeyCell {
  length: number;
  depth: number;
  trials: number;
  accuracy: number;
}

export interface PasskeyResult {
  accuracy: number;
  trials: number;
  cells: PasskeyCell[];
}

/**
 * Prompt of at most `length` tokens with the key at `depth`.
 * @throws UsageError when the length has no room for the needle
 */
export function passkeyPrompt(
  count: (text: string) => number,
  length: number,
  depth: number,
  key: string,
): string {
  const text = (fillers: number) => {
    const before = Math.round(fillers * depth);
    return (
      INTRODUCTION +
      FILLER.repeat(before) +
      needle(key) +
      FILLER.repeat(fillers - before) +
      QUESTION
    );
  };
  const room = length - count(`${text(0)} ${key}`);
  if (room < 0) {
    throw new UsageError(`a prompt of ${length} tokens has no room for a pass key`, {
      hint: `use at least ${length - room} tokens`,
    });
  }
  const each = count(FILLER.repeat(8)) / 8;
  let fillers = Math.floor(room / each);
  while (fillers > 0 && count(`${text(fillers)} ${key}`) > length) fillers--;
  return text(fillers);
}

/** Accuracy for every length and depth. Uses all cache slots of the model. */
export async function evaluatePasskey(
  model: ScoringModel,
  options: PasskeyOptions,
): Promise<PasskeyResult> {
  const { lengths, depths = [0, 0.25, 0.5, 0.75, 1], trials = 5, seed = 0 } = options;
  const { tokenizer } = model;
  if (!tokenizer)
    throw new UsageError("this model has no tokenizer, so a pass key cannot be hidden in a text");
  const { maxContext } = model.runner.model;
  for (const length of lengths) {
    if (!Number.isInteger(length) || length < 1 || length > maxContext) {
      throw new UsageError(
        `length ${length} is not within the ${maxContext} tokens the model was opened for`,
      );
    }
  }
  if (depths.some((d) => !(d >= 0 && d <= 1)))
    throw new UsageError("depths are numbers from 0 to 1");
  const count = (text: string) => tokenizer.encode(text, { special: true }).length;
  const rng = new Philox(seed, "passkey");
  const groups: Alternative[][] = [];
  const cells: PasskeyCell[] = [];
  for (const length of lengths) {
    for (const depth of depths) {
      cells.push({ length, depth, trials, accuracy: 0 });
      for (let t = 0; t < trials; t++) {
        const key = String(10 ** (DIGITS - 1) + rng.below(9 * 10 ** (DIGITS - 1)));
        groups.push([encodePair(model, passkeyPrompt(count, length, depth, key), ` ${key}`)]);
      }
    }
  }
  const found = await findKeys(model, groups, options);
  for (const [c, cell] of cells.entries()) {
    cell.accuracy = found.slice(c * trials, (c + 1) * trials).filter(Boolean).length / trials;
  }
  return {
    accuracy: cells.reduce((sum, c) => sum + c.accuracy, 0) / cells.length,
    trials: groups.length,
    cells,
  };
}

/** Whether greedy decoding gives the number of each trial. */
async function findKeys(
  { runner }: ScoringModel,
  groups: Alternative[][],
  { onTrial, signal }: PasskeyOptions,
): Promise<boolean[]> {
  let done = 0;
  if (runner instanceof Runner && runner.prefillsAlone) {
    const found: boolean[] = [];
    for (const [trial] of groups) {
      found.push(trial !== undefined && (await answers(runner, trial, signal)));
      onTrial?.(++done, groups.length);
    }
    runner.tables.truncate(0, 0);
    return found;
  }
  const { groups: scores } = await scoreGroups(runner, groups, {
    onGroup: () => onTrial?.(++done, groups.length),
    ...(signal ? { signal } : {}),
  });
  return scores.map(([score]) => score?.greedy === true);
}

/** One trial alone: the prompt at once, the answer token by token until it differs. */
async function answers(
  runner: Runner,
  { ids, from }: Alternative,
  signal: AbortSignal | undefined,
): Promise<boolean> {
  runner.tables.truncate(0, 0);
  await runner.prefill(0, ids.slice(0, from), 0, { logits: true, signal });
  for (let position = from; ; position++) {
    const token = ids[position] as number;
    if (argmax(runner.logits(0)) !== token) return false;
    if (position + 1 === ids.length) return true;
    runner.tables.reserve(0, position + 1);
    await runner.step({ tokens: [token], positions: [position], sequences: [0] }, [0]);
  }
}

/** The picture: depth against length. */
export function passkeyChart(result: PasskeyResult, model: string): string {
  const lengths = [...new Set(result.cells.map((c) => c.length))];
  const depths = [...new Set(result.cells.map((c) => c.depth))];
  const chart: Heatmap = {
    title: `Pass key retrieval: ${model}`,
    subtitle:
      "Share of trials in which the hidden number was named, by length of the text and by where in it the number stood.",
    rows: depths.map((d) => `${(100 * d).toFixed(0)} %`),
    columns: lengths.map(String),
    xLabel: "tokens of the prompt",
    yLabel: "depth",
    valueLabel: "share found",
    range: [0, 1],
    values: depths.map((d) =>
      lengths.map(
        (l) => result.cells.find((c) => c.length === l && c.depth === d)?.accuracy ?? Number.NaN,
      ),
    ),
  };
  return heatmap(chart);
}
