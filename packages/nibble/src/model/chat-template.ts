/**
 * Chat messages -> prompt, by the model's own Jinja template. Control tokens that stand spelled out in messages stay ordinary
 * text in `encodeChat`: nobody can end a turn or become the system by typing. `renderChat` gives plain text,
 * where that difference is lost; use it for display and for trusted messages.
 */
import { Template } from "@huggingface/jinja";
import { utf8 } from "../core/byte-source.js";
import { FormatError, ModelError, UsageError } from "../core/errors.js";
import type { SidecarFiles } from "./model.js";
import { type Tokenizer, tokenizerConfig, tokenText } from "./tokenizer.js";

export interface ChatMessage {
  role: string;
  content: unknown;
  /** tool_calls, name, tool_call_id … as the template knows them. */
  [key: string]: unknown;
}

export interface ChatOptions {
  /** End with the opening of the assistant's turn. */
  addGenerationPrompt?: boolean;
  tools?: unknown[];
  documents?: unknown[];
  /** Further template variables, e.g. enable_thinking. */
  variables?: Record<string, unknown>;
}

export interface EncodedChat {
  ids: number[];
  text: string;
  /** Things a user should know, e.g. a template that begins with two BOS tokens. */
  warnings: string[];
}

/** Templates that know tools carry this name in files with several. */
const TOOL_TEMPLATE = "tool_use";

/** Whether the model has a chat template at all; base models have none. */
export function hasChatTemplate(files: SidecarFiles): boolean {
  return findTemplate(files, false) !== null;
}

/**
 * Text of a conversation. Encode it with `special: false`: the template writes BOS itself.
 * @throws ModelError for a model without template, UsageError when the template refuses the messages
 */
export function renderChat(
  files: SidecarFiles,
  messages: readonly ChatMessage[],
  options: ChatOptions = {},
): string {
  const { tools, documents, variables, addGenerationPrompt = false } = options;
  const source = findTemplate(files, tools !== undefined);
  if (source === null) {
    throw new ModelError("the model has no chat template; it is a base model", {
      hint: "Use --raw to continue a text, or the instruct variant of the model.",
    });
  }
  let template: Template;
  try {
    template = new Template(source);
  } catch (cause) {
    throw new FormatError(`the chat template does not parse: ${(cause as Error).message}`, {
      place: "chat template",
      cause,
    });
  }
  const config = tokenizerConfig(files);
  const names = ["bos_token", "eos_token", "unk_token", "pad_token"] as const;
  const tokens = names.flatMap((name) => {
    const text = tokenText(config[name]);
    return text === null ? [] : [[name, text] as const];
  });
  try {
    return template.render({
      ...Object.fromEntries(tokens),
      messages,
      add_generation_prompt: addGenerationPrompt,
      ...(tools && { tools }),
      ...(documents && { documents }),
      ...variables,
    });
  } catch (cause) {
    throw new UsageError(`the chat template refuses the messages: ${(cause as Error).message}`, {
      place: "chat template",
      hint: "Check the order of roles and what each message holds.",
      cause,
    });
  }
}

/**
 * Ids of a conversation.
 * @param options.trusted take control tokens spelled out in messages as such (default false)
 */
export function encodeChat(
  tokenizer: Tokenizer,
  files: SidecarFiles,
  messages: readonly ChatMessage[],
  options: ChatOptions & { trusted?: boolean } = {},
): EncodedChat {
  const { trusted = false, ...rest } = options;
  if (trusted) {
    const text = renderChat(files, messages, rest);
    const ids = tokenizer.encode(text, { special: false });
    return { ids, text, warnings: warningsOf(tokenizer, ids) };
  }
  const guard = unusedCharacter(
    JSON.stringify([messages, rest]) + (findTemplate(files, false) ?? ""),
  );
  const protect = protector([...tokenizer.specialTokens.keys()], guard);
  const text = renderChat(files, protect(messages) as ChatMessage[], protect(rest) as ChatOptions);
  const ids = tokenizer.encode(text, { special: false, guard });
  return { ids, text: text.replaceAll(guard, ""), warnings: warningsOf(tokenizer, ids) };
}

/** A note when a prompt begins with two BOS tokens, which models are never trained on; null otherwise. */
export function doubleBos(tokenizer: Tokenizer, ids: readonly number[]): string | null {
  const bos = tokenizer.bosTokenId;
  if (bos === null || ids[0] !== bos || ids[1] !== bos) return null;
  return `the prompt begins with ${tokenizer.token(bos)} twice: it holds the token that the tokenizer adds by itself`;
}

function warningsOf(tokenizer: Tokenizer, ids: readonly number[]): string[] {
  const double = doubleBos(tokenizer, ids);
  return double === null ? [] : [double];
}

/** Source of the template: chat_template.jinja, else tokenizer_config.json (one, or a list with names). */
function findTemplate(files: SidecarFiles, forTools: boolean): string | null {
  const file = files.get("chat_template.jinja");
  if (file) return utf8(file, "chat_template.jinja");
  const value = tokenizerConfig(files).chat_template;
  if (value === undefined || value === null) return null;
  if (typeof value === "string") return value;
  if (!Array.isArray(value)) {
    throw new FormatError("chat_template is neither text nor a list", {
      place: "tokenizer_config.json",
    });
  }
  const named = new Map<unknown, unknown>(
    value.map((entry: { name?: unknown; template?: unknown } | null) => [
      entry?.name,
      entry?.template,
    ]),
  );
  const found = (forTools ? named.get(TOOL_TEMPLATE) : undefined) ?? named.get("default");
  if (typeof found === "string") return found;
  throw new FormatError("chat_template has no entry named default", {
    place: "tokenizer_config.json",
  });
}

/** A private-use character that a text does not contain. */
function unusedCharacter(text: string): string {
  for (let code = 0xe000; code <= 0xf8ff; code++) {
    const char = String.fromCharCode(code);
    if (!text.includes(char)) return char;
  }
  throw new UsageError("the messages contain every private-use character");
}

/** Copies a value with `guard` between all characters of every control token spelled out in its strings. */
function protector(spellings: readonly string[], guard: string): (value: unknown) => unknown {
  const pattern = new RegExp(
    spellings
      .filter((text) => text.length > 0)
      .sort((a, b) => b.length - a.length)
      .map((text) => text.replace(/[\\^$.*+?()[\]{}|/-]/g, "\\$&"))
      .join("|") || "(?!)",
    "g",
  );
  const protect = (value: unknown): unknown => {
    if (typeof value === "string") {
      return value.replace(pattern, (spelled) => Array.from(spelled).join(guard));
    }
    if (Array.isArray(value)) return value.map(protect);
    if (typeof value !== "object" || value === null) return value;
    return Object.fromEntries(Object.entries(value).map(([key, entry]) => [key, protect(entry)]));
  };
  return protect;
}
