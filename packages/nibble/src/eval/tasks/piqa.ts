/** PIQA (Bisk et al., "PIQA: Reasoning about Physical Commonsense in Natural Language", arXiv:1911.11641). */
import { defineTask, questionAnswer } from "./task.js";

export const piqa = defineTask({
  id: "piqa",
  title: "PIQA",
  paper: "arXiv:1911.11641",
  metric: "choice-and-norm",
  context: questionAnswer,
});
