/** ARC-Easy (Clark et al., "Think you have Solved Question Answering?", arXiv:1803.05457): grade-school science. */
import { arcRow } from "./arc-challenge.js";
import { defineTask, questionAnswer } from "./task.js";

export const arcEasy = defineTask({
  id: "arc_easy",
  title: "ARC-Easy",
  paper: "arXiv:1803.05457",
  metric: "choice-and-norm",
  context: questionAnswer,
  hub: {
    dataset: "allenai/ai2_arc",
    file: "ARC-Easy/test-00000-of-00001.parquet",
    convert: arcRow,
  },
});
