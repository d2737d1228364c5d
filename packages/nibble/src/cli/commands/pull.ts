/** `nibble pull`: fetches a model from the hub into the cache that Python tools share. */
import { defineVerb } from "../verb.js";

export const pull = defineVerb({
  name: "pull",
  summary: "fetch a model",
  examples: ["nibble pull smollm2-135m", "nibble pull HuggingFaceTB/SmolLM2-135M-Instruct@main"],
  define(command) {
    command.argument("<model>", "org/name[@revision] on the hub, or an alias");
  },
  async run({ onProgress, signal }, [model = ""]) {
    const { resolveModel } = await import("../../hub/resolve.js");
    const path = await resolveModel(model, { onProgress, signal });
    return { result: { path }, text: path };
  },
});
