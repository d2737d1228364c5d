/** Keeps every token: the ordinary cache. */
import { z } from "zod";
import { defineRetention } from "../contract.js";

export const all = defineRetention({
  id: "all",
  title: "Every token",
  paper: "",
  summary: "Keeps every token.",
  options: z.strictObject({}),
  granularity: "layer",
  positions: "absolute",
  prefixShareable: true,
  stats: () => ({ kind: "none" }),
  create: () => ({
    capacity: () => null,
    snapshot: () => new Uint8Array(0),
    restore: () => {},
    bytes: 0,
  }),
});
