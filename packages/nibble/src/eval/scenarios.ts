/**
 * Speed as users meet it ("Give Me BF16 or Give Me Death?", arXiv:2411.02355): latency of one stream, throughput of a batch
 * in which every sequence is at another place, over (prompt, generated) lengths of typical uses. Lengths are the paper's
 * divided by 8, for small models on a few cores.
 */
import { nearestName, UsageError } from "../core/errors.js";
import { Philox } from "../core/rng.js";
import { type OpenedModel, openModel } from "../runtime/open.js";
import { generateBatch, greedy } from "./batch-generate.js";
import { type MeasureOptions, openOptions } from "./measure.js";
import { quantiles } from "./statistics.js";

export interface Scenario {
  id: string;
  prompt: number;
  generated: number;
}

const SCENARIOS: readonly Scenario[] = [
  { id: "code completion", prompt: 32, generated: 128 },
  { id: "docstring", prompt: 96, generated: 16 },
  { id: "code fixing", prompt: 128, generated: 128 },
  { id: "retrieval", prompt: 128, generated: 16 },
  { id: "instruction", prompt: 32, generated: 16 },
  { id: "chat", prompt: 64, generated: 32 },
  { id: "summary", prompt: 512, generated: 64 },
];

/** Scenarios by name; all without names. @throws UsageError with the nearest name */
export function chosenScenarios(names?: readonly string[]): readonly Scenario[] {
  if (!names) return SCENARIOS;
  const known = SCENARIOS.map((s) => s.id);
  return names.map((name) => {
    const found = SCENARIOS.find((s) => s.id === name);
    if (found) return found;
    const near = nearestName(name, known);
    throw new UsageError(`unknown scenario "${name}"`, {
      hint: near ? `Did you mean "${near}"?` : `Scenarios: ${known.join(", ")}.`,
    });
  });
}

/** Sequences of the throughput scenario. */
const STREAMS = 8;

export interface ScenarioSpeed {
  model: string;
  scenario: string;
  prompt: number;
  generated: number;
  /** One stream: time to the first token, median time between tokens, whole answer. */
  firstTokenMs: number;
  betweenTokensMs: number;
  totalMs: number;
  /** Batch of `streams`: answers finished and tokens (prompt and generated) handled a second. */
  streams: number;
  answersPerSecond: number;
  tokensPerSecond: number;
}

function prompts(opened: OpenedModel, scenario: Scenario, count: number): number[][] {
  const rng = new Philox(0, `scenario/${scenario.id}`);
  const vocabulary = opened.compiled.config.vocabSize;
  return Array.from({ length: count }, () =>
    Array.from({ length: scenario.prompt }, () => rng.below(vocabulary)),
  );
}

/** Latency of one stream: medians over `rounds` answers. Greedy; end tokens are ignored so that lengths are as asked. */
export async function measureLatency(opened: OpenedModel, scenario: Scenario, rounds = 3) {
  const { runner } = opened;
  const firsts: number[] = [];
  const between: number[] = [];
  const totals: number[] = [];
  for (const [round, prompt] of prompts(opened, scenario, rounds + 1).entries()) {
    runner.tables.truncate(0, 0);
    const started = performance.now();
    await runner.prefill(0, prompt, 0, { logits: true });
    let token = greedy(runner.logits(0));
    let last = performance.now();
    const gaps: number[] = [];
    const first = last - started;
    runner.tables.reserve(0, scenario.prompt + scenario.generated);
    for (let i = 1; i < scenario.generated; i++) {
      await runner.step(
        { tokens: [token], positions: [scenario.prompt + i - 1], sequences: [0] },
        [0],
      );
      token = greedy(runner.logits(0));
      const now = performance.now();
      gaps.push(now - last);
      last = now;
    }
    if (round === 0) continue; // warms code and caches
    firsts.push(first);
    between.push(...gaps);
    totals.push(last - started);
  }
  runner.tables.truncate(0, 0);
  const median = (values: number[]) => quantiles(values, [0.5])[0] as number;
  return {
    firstTokenMs: median(firsts),
    betweenTokensMs: median(between),
    totalMs: median(totals),
  };
}

/** Throughput: `answers` requests are waiting, as many on their way as the model has sequences. */
export async function measureThroughput(opened: OpenedModel, scenario: Scenario, answers: number) {
  const requests = prompts(opened, scenario, answers).map((prompt) => ({
    prompt,
    limit: scenario.generated,
    choose: greedy,
    ends: () => false,
  }));
  const started = performance.now();
  await generateBatch(opened.runner, requests);
  const seconds = (performance.now() - started) / 1000;
  return {
    answersPerSecond: answers / seconds,
    tokensPerSecond: (answers * (scenario.prompt + scenario.generated)) / seconds,
  };
}

/** All scenarios of all models, one model in memory at a time. */
export async function measureScenarios(
  models: string[],
  names: string[],
  options: MeasureOptions,
  scenarios: readonly Scenario[],
): Promise<ScenarioSpeed[]> {
  const out: ScenarioSpeed[] = [];
  const longest = Math.max(...scenarios.map((s) => s.prompt + s.generated));
  for (const [m, model] of models.entries()) {
    const opened = await openModel(
      model,
      openOptions(options, { maxContext: longest, sequences: STREAMS }),
    );
    try {
      for (const [i, scenario] of scenarios.entries()) {
        options.signal?.throwIfAborted();
        options.onProgress?.({
          type: "step",
          stage: `measuring ${names[m]}`,
          item: i,
          total: scenarios.length,
          name: scenario.id,
        });
        out.push({
          model: names[m] as string,
          scenario: scenario.id,
          prompt: scenario.prompt,
          generated: scenario.generated,
          ...(await measureLatency(opened, scenario)),
          streams: STREAMS,
          ...(await measureThroughput(opened, scenario, 2 * STREAMS)),
        });
      }
    } finally {
      await opened.close();
    }
  }
  return out;
}
