/** OpenBookQA (Mihaylov et al., "Can a Suit of Armor Conduct Electricity?", arXiv:1809.02789), without the book. */

import { arcRow } from "./arc-challenge.js";
import { defineTask, textField } from "./task.js";

export const openbookqa = defineTask({
  id: "openbookqa",
  title: "OpenBookQA",
  paper: "arXiv:1809.02789",
  metric: "choice-and-norm",
  context: (item) => item.question,
  hub: {
    dataset: "allenai/openbookqa",
    file: "main/test-00000-of-00001.parquet",
    convert: (row) => arcRow({ ...row, question: textField(row, "question_stem") }),
  },
});
