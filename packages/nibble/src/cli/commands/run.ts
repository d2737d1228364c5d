/** `nibble run`: completes a prompt, or chats when there is none. */
import { UsageError } from "../../core/errors.js";
import {
  defined,
  type EngineFlags,
  engineOptions,
  integer,
  kvOption,
  number,
  parseKv,
  repeated,
} from "../options.js";
import { defineVerb, type VerbContext } from "../verb.js";

interface Options extends EngineFlags {
  prompt?: string;
  tokens: number;
  temperature?: number;
  topK?: number;
  topP?: number;
  seed: number;
  system?: string;
  stop?: string[];
  raw?: boolean;
  maxContext?: number;
  kv?: string;
}

export const run = defineVerb<Options>({
  name: "run",
  summary: "complete a prompt, or chat",
  examples: [
    'nibble run small -p "The capital of France is" -n 32',
    'nibble run small -p "Once upon a time" --raw --temperature 0.8 --seed 7',
    "nibble run small                       (interactive chat)",
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
      .option("--seed <n>", "seed of the sampling", integer("--seed", 0, 2 ** 32 - 1), 0)
      .option("--system <text>", "system message of the chat")
      .option("--stop <text>", "end at this text; repeatable", repeated)
      .option("--raw", "feed the prompt as it is, without the model's chat template")
      .option("--max-context <n>", "most tokens of prompt and answer", integer("--max-context", 2));
    kvOption(command);
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
    const { openModel } = await import("../../runtime/open.js");
    const { createSession } = await import("../../runtime/session.js");
    const opened = await openModel(model, {
      backend: options.backend,
      log: (line) => context.output.log(line),
      signal: context.signal,
      ...defined({
        threads: options.threads,
        kv: await parseKv(options.kv),
        maxContext: options.maxContext,
      }),
    });
    try {
      const session = createSession(opened);
      if (prompt === undefined) return await chat(context, session, options);
      const sampling = samplingOf(options, 0);
      const templated = !options.raw && hasTemplate(opened.model.files);
      const messages = [
        ...(options.system === undefined
          ? []
          : [{ role: "system" as const, content: options.system }]),
        { role: "user" as const, content: prompt },
      ];
      const text = templated ? session.renderChat(messages) : prompt;
      for await (const piece of session.generate(text, {
        ...sampling,
        maxTokens: options.tokens,
        raw: templated,
        signal: context.signal,
        ...defined({ stop: options.stop }),
      })) {
        context.output.stream(piece.text);
      }
      context.output.stream("\n");
      const summary = session.summary;
      if (!summary) throw new Error("a finished generation has a summary");
      context.output.log(
        `${summary.tokens.length} tokens, ${summary.tokensPerSecond.toFixed(1)} tokens/s, prompt ${summary.promptTokens} tokens in ${summary.prefillSeconds.toFixed(2)} s, end: ${summary.finish}`,
      );
      return {
        result: {
          ...summary,
          tokenIds: summary.tokens,
          tokens: summary.tokens.length,
          backend: opened.compiled.engine.backend,
          variant: opened.compiled.engine.variant,
        },
        text: "",
      };
    } finally {
      await opened.close();
    }
  },
});

function samplingOf(options: Options, temperature: number) {
  return {
    temperature: options.temperature ?? temperature,
    seed: options.seed,
    ...defined({ topK: options.topK, topP: options.topP }),
  };
}

/** Base models have no template: their prompt is fed as it is. */
function hasTemplate(files: ReadonlyMap<string, Uint8Array>): boolean {
  if (files.has("chat_template.jinja")) return true;
  const config = files.get("tokenizer_config.json");
  return config !== undefined && new TextDecoder().decode(config).includes('"chat_template"');
}

type Session = ReturnType<typeof import("../../runtime/session.js").createSession>;
type Message = Parameters<Session["renderChat"]>[0][number];

/** Reads lines until the end of input or Ctrl-C at the prompt; Ctrl-C while an answer is written ends the answer. */
async function chat(context: VerbContext, session: Session, options: Options) {
  const { createInterface } = await import("node:readline/promises");
  const lines = createInterface({ input: process.stdin, output: process.stdout });
  context.output.log("chat: an empty line or Ctrl-D ends it");
  const messages: Message[] =
    options.system === undefined ? [] : [{ role: "system", content: options.system }];
  let answers = 0;
  try {
    for (;;) {
      const line = await lines.question("> ", { signal: context.signal }).catch(() => "");
      if (line.trim() === "") break;
      messages.push({ role: "user", content: line });
      let answer = "";
      for await (const piece of session.generate(session.renderChat(messages), {
        ...samplingOf(options, 0.7),
        maxTokens: options.tokens,
        raw: true,
        signal: context.signal,
        ...defined({ stop: options.stop }),
      })) {
        answer += piece.text;
        context.output.stream(piece.text);
      }
      context.output.stream("\n");
      messages.push({ role: "assistant", content: answer });
      answers++;
    }
  } finally {
    lines.close();
  }
  return { result: { answers }, text: "" };
}
