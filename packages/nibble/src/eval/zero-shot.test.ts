import { describe, expect, it } from "vitest";
import { FakeRunner, fakeEncode, fakeModel } from "../../test/support/fake-model.js";
import { arcEasy } from "./tasks/arc-easy.js";
import { boolq } from "./tasks/boolq.js";
import { tasks } from "./tasks/index.js";
import { lambada } from "./tasks/lambada.js";
import type { TaskItem } from "./tasks/task.js";
import { winogrande } from "./tasks/winogrande.js";
import {
  accuracyStderr,
  encodePair,
  encodeTask,
  evaluateTask,
  fitTask,
  judge,
} from "./zero-shot.js";

const item = (question: string, choices: string[], answer = 0): TaskItem => ({
  question,
  choices,
  answer,
});
const likelihood = (logLikelihood: number, greedy = false) => ({
  logLikelihood,
  greedy,
  tokens: 1,
});

describe("prompts", () => {
  it("are those of lm-evaluation-harness", () => {
    const q = item("Why?", ["so", "thus"], 1);
    const prompt = (id: string, it = q) =>
      tasks.get(id).context(it, 1) + tasks.get(id).continuation(it, 1);
    for (const id of ["arc_easy", "arc_challenge", "piqa"]) {
      expect(prompt(id)).toBe("Question: Why?\nAnswer: thus");
    }
    for (const id of ["openbookqa", "hellaswag", "boolq"]) expect(prompt(id)).toBe("Why? thus");
    expect(prompt("social_iqa")).toBe("Q: Why?\nA: thus");
    expect(tasks.get("lambada").continuation(item("a b", ["c"]), 0)).toBe(" c");
  });

  it("winogrande scores the text behind the blank under each choice", () => {
    const q = item("The cup missed the box as _ was small.", ["the cup", "the box"], 1);
    expect(winogrande.context(q, 0)).toBe("The cup missed the box as the cup");
    expect(winogrande.context(q, 1)).toBe("The cup missed the box as the box");
    expect([0, 1].map((c) => winogrande.continuation(q, c))).toEqual([
      " was small.",
      " was small.",
    ]);
  });
});

describe("encodePair", () => {
  const model = fakeModel(new FakeRunner());
  it("splits at the context's own token count, also when a token spans the boundary", () => {
    // "t" + "he" is encoded as [th, e]: the context alone has 1 token, the whole has 2.
    expect(encodePair(model, "t", "he")).toEqual({ ids: [128, 101], from: 1 });
  });
  it("moves blanks at the end of the context to the continuation", () => {
    expect(encodePair(model, "ab ", "c")).toEqual({ ids: fakeEncode("ab c"), from: 2 });
  });
  it("puts the begin-of-text token before an empty context, else end-of-text", () => {
    expect(encodePair(fakeModel(new FakeRunner(), 5), "", "ab")).toEqual({
      ids: [5, 97, 98],
      from: 1,
    });
    expect(encodePair(model, "", "ab")).toEqual({ ids: [2, 97, 98], from: 1 });
  });
  it("says that a model without tokenizer cannot be scored", () => {
    expect(() => encodePair({ ...model, tokenizer: null }, "a", "b")).toThrow(/no tokenizer/);
  });
});

describe("judge", () => {
  it("takes the first of equals", () => {
    const q = item("q", ["aa", "bb"], 1);
    expect(judge(arcEasy, q, [likelihood(-1), likelihood(-1)])).toMatchObject({
      correct: false,
      choice: 0,
    });
  });
  it("accuracyNorm divides by the characters of the choice, code points, without the leading space", () => {
    // -4 / 1 emoji (one code point, two UTF-16 units) < -3 / 1: the emoji loses; by UTF-16 units (-2) it would win.
    const q = item("q", ["🙂", "b"], 1);
    expect(judge(arcEasy, q, [likelihood(-4), likelihood(-3)])).toMatchObject({
      correct: true,
      correctNorm: true,
    });
    const long = item("q", ["a", "abcdefgh"], 1);
    expect(judge(arcEasy, long, [likelihood(-2), likelihood(-9)])).toMatchObject({
      correct: false,
      correctNorm: true,
    });
  });
  it("greedy tasks ask whether every token is the first guess", () => {
    expect(judge(lambada, item("q", ["w"]), [likelihood(-9, true)])).toMatchObject({
      correct: true,
    });
    expect(judge(lambada, item("q", ["w"]), [likelihood(-0.1, false)])).toMatchObject({
      correct: false,
    });
  });
});

describe("evaluateTask", () => {
  const items = Array.from({ length: 12 }, (_, i) =>
    item(`question number ${i} about the thing`, [`the ${i}`, "this one", "x", "other"], i % 4),
  );
  it("gives the same scores whatever the batch", async () => {
    const a = await evaluateTask(
      fakeModel(new FakeRunner({ maxRows: 64, sequences: 6 })),
      arcEasy,
      items,
    );
    const b = await evaluateTask(
      fakeModel(new FakeRunner({ maxRows: 5, sequences: 1 })),
      arcEasy,
      items,
    );
    expect(a.items).toEqual(b.items);
    expect(a).toMatchObject({ n: 12, chance: 0.25, fewShot: 0, truncated: 0 });
    expect(a.stderr).toBeCloseTo(Math.sqrt((a.accuracy * (1 - a.accuracy)) / 11), 12);
    expect(accuracyStderr(1, 1)).toBe(0);
  });
  it("leaves accuracyNorm out where the task has none", async () => {
    const result = await evaluateTask(fakeModel(new FakeRunner()), boolq, [
      item("p\nQuestion: q?\nAnswer:", ["no", "yes"]),
    ]);
    expect(result.accuracyNorm).toBeUndefined();
  });
  it("cuts contexts that are too long from the left and says so", async () => {
    const warnings: string[] = [];
    const model = fakeModel(new FakeRunner({ maxContext: 20 }));
    const groups = encodeTask(model, arcEasy, [items[0] as TaskItem]);
    const truncated = fitTask(groups, model.runner.model.maxContext);
    expect(truncated).toBe(1);
    for (const { ids } of groups[0] ?? []) expect(ids.length).toBe(21);
    const result = await evaluateTask(model, arcEasy, items, {
      onWarning: (line) => warnings.push(line),
    });
    expect(result.truncated).toBe(12);
    expect(warnings).toEqual([expect.stringMatching(/arc_easy: 12 of 12 items exceed 20 tokens/)]);
  });
  it("few-shot examples are seeded, never the item itself, and do not depend on --limit", () => {
    const model = fakeModel(new FakeRunner({ maxContext: 4000 }));
    const shots = { count: 3, seed: 1, pool: items, own: true };
    const all = encodeTask(model, arcEasy, items, shots);
    expect(encodeTask(model, arcEasy, items.slice(0, 5), shots)).toEqual(all.slice(0, 5));
    expect(encodeTask(model, arcEasy, items, { ...shots, seed: 2 })).not.toEqual(all);
    expect(() => encodeTask(model, arcEasy, items, { ...shots, count: 12 })).toThrow(
      /only 12 items/,
    );
  });
});
