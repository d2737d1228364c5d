/** The retention policies that exist. One line each. */
import { Registry } from "../../core/registry.js";
import type { RetentionDefinition } from "../contract.js";
import { all } from "./all.js";

export const retentions = new Registry<RetentionDefinition>("retention policy");
retentions.add(all as RetentionDefinition);
