/** The tasks that `nibble eval --tasks` knows. One line a task. */
import { Registry } from "../../core/registry.js";
import { arcChallenge } from "./arc-challenge.js";
import { arcEasy } from "./arc-easy.js";
import { boolq } from "./boolq.js";
import { hellaswag } from "./hellaswag.js";
import { lambada } from "./lambada.js";
import { openbookqa } from "./openbookqa.js";
import { piqa } from "./piqa.js";
import { socialIqa } from "./social-iqa.js";
import type { Task } from "./task.js";
import { winogrande } from "./winogrande.js";

export const tasks = new Registry<Task>("task")
  .add(arcEasy)
  .add(arcChallenge)
  .add(piqa)
  .add(openbookqa)
  .add(hellaswag)
  .add(winogrande)
  .add(socialIqa)
  .add(boolq)
  .add(lambada);
