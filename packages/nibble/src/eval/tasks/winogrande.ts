/**
 * WinoGrande (Sakaguchi et al., arXiv:1907.10641), scored as in Trinh and Le (arXiv:1806.02847): each choice is put in
 * the place of the blank and the text behind the blank is scored, so the continuation is the same for all choices.
 */
import { defineTask, textField } from "./task.js";

export const winogrande = defineTask({
  id: "winogrande",
  title: "WinoGrande",
  paper: "arXiv:1907.10641",
  metric: "choice",
  context: (item, choice) =>
    item.question.slice(0, item.question.indexOf("_")) + (item.choices[choice] ?? ""),
  // As the harness does: the text without blanks around it, behind one blank (also before "'s").
  continuation: (item) => ` ${item.question.slice(item.question.indexOf("_") + 1).trim()}`,
  check: (item) => {
    const blank = item.question.indexOf("_");
    if (blank < 0) return 'the question has no blank "_"';
    return item.question.slice(blank + 1).trim() === ""
      ? "there is no text behind the blank"
      : null;
  },
  hub: {
    dataset: "allenai/winogrande",
    file: "winogrande_xl/validation-00000-of-00001.parquet",
    convert: (row) => ({
      question: textField(row, "sentence"),
      choices: [textField(row, "option1"), textField(row, "option2")],
      answer: Number(row.answer) - 1,
    }),
  },
});
