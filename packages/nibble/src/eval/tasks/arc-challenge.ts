/** ARC-Challenge (Clark et al., arXiv:1803.05457): the science questions that retrieval and word statistics fail on. */
import { defineTask, questionAnswer, type TaskItem, textField, textsField } from "./task.js";

/** A row of allenai/ai2_arc: `choices.{text, label}` and the label of the answer (letters or digits). */
export function arcRow(row: Record<string, unknown>): TaskItem {
  const choices = row.choices;
  if (typeof choices !== "object" || choices === null)
    throw new Error('field "choices" is missing');
  const texts = textsField(choices as Record<string, unknown>, "text");
  const labels = textsField(choices as Record<string, unknown>, "label");
  return {
    question: textField(row, "question"),
    choices: texts,
    answer: labels.indexOf(textField(row, "answerKey")),
  };
}

export const arcChallenge = defineTask({
  id: "arc_challenge",
  title: "ARC-Challenge",
  paper: "arXiv:1803.05457",
  metric: "choice-and-norm",
  context: questionAnswer,
  hub: {
    dataset: "allenai/ai2_arc",
    file: "ARC-Challenge/test-00000-of-00001.parquet",
    convert: arcRow,
  },
});
