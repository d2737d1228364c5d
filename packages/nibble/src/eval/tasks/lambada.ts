/** LAMBADA (Paperno et al., "The LAMBADA dataset", arXiv:1606.06031), the text form of OpenAI: guess the last word. */
import { defineTask, textField } from "./task.js";

export const lambada = defineTask({
  id: "lambada",
  title: "LAMBADA",
  paper: "arXiv:1606.06031",
  metric: "greedy",
  context: (item) => item.question,
  check: (item) => (item.choices.length === 1 ? null : "lambada takes one choice: the last word"),
  hub: {
    dataset: "EleutherAI/lambada_openai",
    file: "data/lambada_test.jsonl",
    convert: (row) => {
      const words = textField(row, "text").split(" ");
      const last = words.pop() ?? "";
      return { question: words.join(" "), choices: [last], answer: 0 };
    },
  },
});
