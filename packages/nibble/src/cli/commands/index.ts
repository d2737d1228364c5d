/** The verbs, in the order of the help text. */
import type { Verb } from "../verb.js";
import { bench } from "./bench.js";
import { calibrateKv } from "./calibrate-kv.js";
import { compare } from "./compare.js";
import { compress } from "./compress.js";
import { doctor } from "./doctor.js";
import { evaluate } from "./eval.js";
import { inspect } from "./inspect.js";
import { list } from "./list.js";
import { logits } from "./logits.js";
import { plan } from "./plan.js";
import { pull } from "./pull.js";
import { recipeSchema } from "./recipe.js";
import { run } from "./run.js";
import { sensitivity } from "./sensitivity.js";
import { start } from "./start.js";
import { sweep } from "./sweep.js";

export const VERBS: readonly Verb[] = [
  compress,
  evaluate,
  compare,
  sensitivity,
  sweep,
  run,
  bench,
  inspect,
  plan,
  calibrateKv,
  list,
  pull,
  logits,
  doctor,
  recipeSchema,
  start,
];
