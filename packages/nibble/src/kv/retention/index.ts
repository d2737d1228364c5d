/** The retention policies that exist. One line each. */
import { Registry } from "../../core/registry.js";
import type { RetentionDefinition } from "../contract.js";
import { all } from "./all.js";
import { h2o } from "./h2o.js";
import { keyformer } from "./keyformer.js";
import { windowRetention } from "./window.js";

export const retentions = new Registry<RetentionDefinition>("retention policy");
retentions.add(all as RetentionDefinition);
retentions.add(windowRetention as RetentionDefinition);
retentions.add(h2o as RetentionDefinition);
retentions.add(keyformer as RetentionDefinition);
