/** The methods that exist. One line each; third parties call `methods.add()`. */
import { Registry } from "../core/registry.js";
import { activations } from "./activations.js";
import type { Method } from "./contract.js";
import { embeddings } from "./embeddings.js";
import { gptq } from "./gptq.js";
import { kv } from "./kv.js";
import { quarot } from "./quarot.js";
import { rtn } from "./rtn.js";

export const methods = new Registry<Method>("method");
methods.add(quarot);
methods.add(rtn);
methods.add(gptq);
methods.add(embeddings);
methods.add(activations);
methods.add(kv);
