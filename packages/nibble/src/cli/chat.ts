/** The interactive chat of `nibble run` and `nibble start`. */
import type { ChatMessage } from "../model/chat-template.js";
import type { GenerateOptions, Session } from "../runtime/session.js";
import type { VerbContext } from "./verb.js";

/**
 * Reads lines until an empty one, the end of input or Ctrl-C. A model without a chat template continues each line as text.
 * @returns number of answers
 */
export async function chatLoop(
  context: VerbContext,
  session: Session,
  options: GenerateOptions & { system?: string | undefined },
): Promise<number> {
  const { createInterface } = await import("node:readline/promises");
  const lines = createInterface({ input: process.stdin, output: process.stdout });
  const { system, ...generation } = options;
  context.output.log("chat: an empty line or Ctrl-D ends it");
  if (!session.canChat)
    context.output.log("this model has no chat template: it continues your text");
  const messages: ChatMessage[] = system === undefined ? [] : [{ role: "system", content: system }];
  let answers = 0;
  try {
    for (;;) {
      const line = await lines.question("> ", { signal: context.signal }).catch(() => "");
      if (line.trim() === "") break;
      messages.push({ role: "user", content: line });
      const prompt = session.canChat ? session.encodeChat(messages) : line;
      let answer = "";
      for await (const piece of session.generate(prompt, {
        ...generation,
        signal: context.signal,
      })) {
        answer += piece.text;
        context.output.stream(piece.text);
      }
      context.output.stream("\n");
      if (session.summary?.finish === "context") {
        context.output.log("the context is full: the conversation starts anew");
        messages.length = system === undefined ? 0 : 1;
      } else messages.push({ role: "assistant", content: answer });
      answers++;
    }
  } finally {
    lines.close();
  }
  return answers;
}
