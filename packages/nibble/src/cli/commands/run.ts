/** `nibble run`: completes a prompt, or chats when there is none. */
import { existsSync } from "node:fs";
import { UsageError } from "../../core/errors.js";
import type { OpenedModel } from "../../runtime/open.js";
import { chatLoop } from "../chat.js";
import {
  activationsOption,
  defined,
  type EngineFlags,
  engineOptions,
  integer,
  kvOption,
  number,
  parseKv,
  repeated,
} from "../options.js";
import { defineVerb } from "../verb.js";

interface Options extends EngineFlags {
  prompt?: string;
  tokens: number;
  temperature?: number;
  topK?: number;
  topP?: number;
  minP?: number;
  repetitionPenalty?: number;
  seed: number;
  system?: string;
  stop?: string[];
  raw?: boolean;
  maxContext?: number;
  kv?: string;
  kvCalibration?: string;
  activations?: "f32" | "i8";
  speculate?: string;
  draftTokens?: number;
  promptCache?: string;
}

export const run = defineVerb<Options>({
  name: "run",
  summary: "complete a prompt, or chat",
  examples: [
    'nibble run small -p "The capital of France is" -n 32',
    'nibble run small -p "Once upon a time" --raw --temperature 0.8 --seed 7',
    "nibble run small                       (interactive chat)",
    'nibble run small -p "Repeat: ..." --speculate ngram',
    'nibble run small -p "$(cat manual.txt)" --prompt-cache manual.cache',
  ],
  define(command) {
    command
      .argument("<model>", "model to run")
      .option("-p, --prompt <text>", "prompt (without it: chat)")
      .option("-n, --tokens <n>", "most new tokens", integer("-n", 1), 64)
      .option(
        "--temperature <t>",
        "0 is greedy (default: 0 with -p, else 0.7)",
        number("--temperature", 0),
      )
      .option("--top-k <k>", "sample from the k likeliest tokens", integer("--top-k", 0))
      .option(
        "--top-p <p>",
        "sample from the likeliest tokens that sum to p",
        number("--top-p", 0, 1),
      )
      .option(
        "--min-p <p>",
        "drop tokens less likely than p times the likeliest",
        number("--min-p", 0, 1),
      )
      .option(
        "--repetition-penalty <x>",
        "above 1: repeat less (default: 1)",
        number("--repetition-penalty", 0.01),
      )
      .option("--seed <n>", "seed of the sampling", integer("--seed", 0, 2 ** 32 - 1), 0)
      .option("--system <text>", "system message of the chat")
      .option("--stop <text>", "end at this text; repeatable", repeated)
      .option("--raw", "feed the prompt as it is, without the model's chat template")
      .option("--max-context <n>", "most tokens of prompt and answer", integer("--max-context", 2))
      .option(
        "--speculate <drafter>",
        'draft ahead and verify: "ngram", or a smaller model with the same tokens',
      )
      .option(
        "--draft-tokens <k>",
        "most tokens of a draft (default: 4)",
        integer("--draft-tokens", 1, 32),
      )
      .option(
        "--prompt-cache <file>",
        "begin with the cache in this file if it exists, and write it afterwards",
      );
    kvOption(command);
    activationsOption(command);
    engineOptions(command);
  },
  async run(context, [model = ""], options) {
    const { prompt } = options;
    if (prompt === "") throw new UsageError("the prompt is empty");
    if (prompt === undefined && !context.interactive) {
      throw new UsageError("a prompt is missing", {
        hint: 'Give -p "text"; the chat needs a terminal.',
      });
    }
    if (options.raw && options.system !== undefined) {
      throw new UsageError("--system has no place in a --raw prompt");
    }
    if (options.draftTokens !== undefined && options.speculate === undefined) {
      throw new UsageError("--draft-tokens is for --speculate");
    }
    const [{ openModel }, { createSession }, { DraftModel }] = await Promise.all([
      import("../../runtime/open.js"),
      import("../../runtime/session.js"),
      import("../../runtime/draft-model.js"),
    ]);
    const engine = {
      backend: options.backend,
      log: (line: string) => context.output.log(line),
      signal: context.signal,
      ...defined({ threads: options.threads, maxContext: options.maxContext }),
    };
    const startSeconds = process.uptime();
    const opened = await openModel(model, {
      ...engine,
      ...defined({
        kv: await parseKv(options.kv, options.kvCalibration),
        activations: options.activations,
      }),
    });
    const openedSeconds = process.uptime();
    let draft: OpenedModel | null = null;
    try {
      const session = createSession(opened);
      const { speculate } = options;
      if (speculate !== undefined && speculate !== "ngram") {
        draft = await openModel(speculate, engine);
      }
      const drafter = draft ? new DraftModel(opened, draft) : speculate && ("ngram" as const);
      const decoding = {
        ...(drafter ? { speculate: drafter } : {}),
        ...defined({ draftTokens: options.draftTokens, stop: options.stop }),
      };
      const cacheFile = options.promptCache;
      if (cacheFile !== undefined && existsSync(cacheFile)) {
        const tokens = await session.loadCache(cacheFile);
        context.output.log(`prompt cache: ${tokens} tokens`);
      }
      /** After the work: what was run need not be run again. */
      const saveCache = async () => {
        if (cacheFile !== undefined) await session.saveCache(cacheFile);
      };
      if (prompt === undefined) {
        const answers = await chatLoop(context, session, {
          ...samplingOf(options, 0.7),
          maxTokens: options.tokens,
          system: options.system,
          ...decoding,
        });
        await saveCache();
        return { result: { answers }, text: "" };
      }
      const templated = !options.raw && session.canChat;
      const messages = [
        ...(options.system === undefined
          ? []
          : [{ role: "system" as const, content: options.system }]),
        { role: "user" as const, content: prompt },
      ];
      const input = templated ? session.encodeChat(messages) : prompt;
      let firstTokenSeconds = 0;
      for await (const piece of session.generate(input, {
        ...samplingOf(options, 0),
        maxTokens: options.tokens,
        signal: context.signal,
        ...decoding,
      })) {
        firstTokenSeconds ||= process.uptime();
        context.output.stream(piece.text);
      }
      context.output.stream("\n");
      await saveCache();
      const summary = session.summary;
      if (!summary) throw new Error("a finished generation has a summary");
      context.output.log(
        `${summary.tokens.length} tokens, ${summary.tokensPerSecond.toFixed(1)} tokens/s, prompt ${summary.promptTokens} tokens in ${summary.prefillSeconds.toFixed(2)} s, end: ${summary.finish}`,
      );
      if (summary.reusedTokens > 0) {
        context.output.log(`${summary.reusedTokens} prompt tokens came from the prompt cache`);
      }
      const speculation = summary.speculation;
      if (speculation) {
        context.output.log(
          `speculation: ${speculation.accepted} of ${speculation.drafted} drafted tokens accepted, ${speculation.tokensPerPass.toFixed(2)} tokens a pass`,
        );
      }
      return {
        result: {
          ...summary,
          tokenIds: summary.tokens,
          tokens: summary.tokens.length,
          backend: opened.compiled.engine.backend,
          variant: opened.compiled.engine.variant,
          // Seconds since the process began; what opening spent on what.
          startSeconds,
          loadSeconds: openedSeconds - startSeconds,
          ...opened.times,
          preparedWeights: opened.compiled.prepared,
          firstTokenSeconds,
        },
        text: "",
      };
    } finally {
      await draft?.close();
      await opened.close();
    }
  },
});

function samplingOf(options: Options, temperature: number) {
  return {
    temperature: options.temperature ?? temperature,
    seed: options.seed,
    ...defined({
      topK: options.topK,
      topP: options.topP,
      minP: options.minP,
      repetitionPenalty: options.repetitionPenalty,
    }),
  };
}
