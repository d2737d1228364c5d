/**
 * HellaSwag (Zellers et al., "Can a Machine Really Finish Your Sentence?", arXiv:1905.07830). Items of a task file are
 * already cleaned; rows of the hub are cleaned here as the harness does.
 */
import { defineTask, textField, textsField } from "./task.js";

/** Takes the marks out that WikiHow pages left in the text. */
export function cleanHellaswag(text: string): string {
  return text
    .trim()
    .replaceAll(" [title]", ". ")
    .replace(/\[.*?\]/g, "")
    .replaceAll("  ", " ");
}

/** First letter large, all others small. */
function capitalize(text: string): string {
  return text.slice(0, 1).toUpperCase() + text.slice(1).toLowerCase();
}

/** The label is a digit as text; splits without answers have an empty one. */
function labelOf(row: Record<string, unknown>): number {
  const label = textField(row, "label");
  if (!/^\d$/.test(label)) throw new Error(`field "label" is "${label}", expected a digit`);
  return Number(label);
}

export const hellaswag = defineTask({
  id: "hellaswag",
  title: "HellaSwag",
  paper: "arXiv:1905.07830",
  metric: "choice-and-norm",
  context: (item) => item.question,
  hub: {
    dataset: "Rowan/hellaswag",
    file: "data/validation-00000-of-00001.parquet",
    convert: (row) => {
      const b = typeof row.ctx_b === "string" ? row.ctx_b : "";
      const text = `${textField(row, "activity_label")}: ${textField(row, "ctx_a")} ${capitalize(b)}`;
      return {
        question: cleanHellaswag(text),
        choices: textsField(row, "endings").map(cleanHellaswag),
        answer: labelOf(row),
      };
    },
  },
});
