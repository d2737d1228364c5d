/** BoolQ (Clark et al., "BoolQ: Exploring the Surprising Difficulty of Natural Yes/No Questions", arXiv:1905.10044). */
import { defineTask, textField } from "./task.js";

export const boolq = defineTask({
  id: "boolq",
  title: "BoolQ",
  paper: "arXiv:1905.10044",
  metric: "choice",
  context: (item) => item.question,
  hub: {
    dataset: "google/boolq",
    file: "data/validation-00000-of-00001.parquet",
    convert: (row) => {
      const question = `${textField(row, "passage")}\nQuestion: ${textField(row, "question")}?\nAnswer:`;
      if (typeof row.answer !== "boolean") throw new Error('field "answer" is not true or false');
      return { question, choices: ["no", "yes"], answer: row.answer ? 1 : 0 };
    },
  },
});
