/** Social IQa (Sap et al., "SocialIQA: Commonsense Reasoning about Social Interactions", arXiv:1904.09728). */
import { defineTask } from "./task.js";

export const socialIqa = defineTask({
  id: "social_iqa",
  title: "Social IQa",
  paper: "arXiv:1904.09728",
  metric: "choice-and-norm",
  context: (item) => `Q: ${item.question}\nA:`,
});
