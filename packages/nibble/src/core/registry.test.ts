import { expect, it } from "vitest";
import { Registry } from "./registry.js";

const registry = () =>
  new Registry("method").add({ id: "gptq", title: "GPTQ" }).add({ id: "quarot", title: "QuaRot" });

it("finds entries and lists them in order", () => {
  expect(registry().get("quarot").title).toBe("QuaRot");
  expect(registry().ids()).toEqual(["gptq", "quarot"]);
  expect([...registry()].map((entry) => entry.title)).toEqual(["GPTQ", "QuaRot"]);
});

it("refuses a duplicate id and names both entries", () => {
  expect(() => registry().add({ id: "gptq", title: "Other" })).toThrow(/"GPTQ" and "Other"/);
});

it("names the nearest id of a misspelt one", () => {
  expect(() => registry().get("quarrot")).toThrow(
    expect.objectContaining({ code: "unknown-method", hint: 'Did you mean "quarot"?' }),
  );
});
