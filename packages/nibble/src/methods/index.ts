/** The methods that exist. One line each; third parties call `methods.add()`. */
import { Registry } from "../core/registry.js";
import { activations } from "./activations.js";
import type { Method } from "./contract.js";
import { kv } from "./kv.js";

export const methods = new Registry<Method>("method");
methods.add(activations);
methods.add(kv);
