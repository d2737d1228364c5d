/** `nibble recipe schema`: the JSON schema of recipes, for editors and other programs. */
import { defineVerb } from "../verb.js";

export const recipeSchema = defineVerb({
  name: "recipe schema",
  summary: "print the JSON schema of recipes",
  examples: ["nibble recipe schema > recipe.schema.json"],
  define() {},
  async run() {
    const { recipeJsonSchema } = await import("../../recipe/schema.js");
    const schema = recipeJsonSchema();
    return { result: schema, text: JSON.stringify(schema, null, 2) };
  },
});
