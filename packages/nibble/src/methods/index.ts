/** The methods that exist. One line each; third parties call `methods.add()`. */
import { Registry } from "../core/registry.js";
import type { Method } from "./contract.js";

export const methods = new Registry<Method>("method");
