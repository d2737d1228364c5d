import { expect, it } from "vitest";
import { completeKv } from "./recipe.js";

it("a value that an option cannot have is answered with those that it can", () => {
  const wrong = { k: { codec: "fp16" }, v: { codec: "kivi", bits: 9 } };
  expect(() => completeKv(wrong)).toThrow("kv.v.bits: expected one of 2, 4, 8");
  const zero = { k: { codec: "int4-token", zero: "half" }, v: { codec: "fp16" } };
  // A recipe of plain JavaScript, against its type.
  expect(() => completeKv(zero as never)).toThrow("kv.k.zero: expected one of float, int");
  const recent = {
    ...{ k: { codec: "fp16" }, v: { codec: "fp16" } },
    retention: { type: "window", recent: -5 },
  };
  expect(() => completeKv(recent)).toThrow("kv.retention.recent: Too small");
});
