import { describe, expect, it } from "vitest";
import { exampleText, fewShotPrefix } from "./few-shot.js";
import { cleanHellaswag } from "./hellaswag.js";
import { tasks } from "./index.js";
import { parseItems } from "./items.js";
import type { Task } from "./task.js";

const arc = tasks.get("arc_easy");
const good = '{"question": "q", "choices": ["a", "b"], "answer": 1}';

describe("parseItems", () => {
  it("reads items, skips blank lines and a byte order mark, takes the first `limit`", () => {
    const text = `\uFEFF${good}\n\n${good}\r\n${good}\n`;
    expect(parseItems(arc, text, "f.jsonl")).toHaveLength(3);
    expect(parseItems(arc, text, "f.jsonl", 2)).toEqual([
      { question: "q", choices: ["a", "b"], answer: 1 },
      { question: "q", choices: ["a", "b"], answer: 1 },
    ]);
  });

  it.each([
    ["not json", /^f\.jsonl:2: is not valid JSON/],
    ['{"question": "q"', /^f\.jsonl:2: is not valid JSON/],
    ["[1]", /^f\.jsonl:2: is not a JSON object/],
    ['{"choices": ["a", "b"], "answer": 1}', /has no text "question"/],
    ['{"question": "q", "answer": 1}', /has no list "choices"/],
    ['{"question": "q", "choices": [], "answer": 0}', /has no list "choices"/],
    ['{"question": "q", "choices": ["a", " "], "answer": 0}', /^f\.jsonl:2: choice 1 is empty/],
    ['{"question": "q", "choices": ["a", 3], "answer": 0}', /choice 1 is not a text/],
    ['{"question": "q", "choices": ["a", "b"]}', /^f\.jsonl:2: has no "answer"/],
    ['{"question": "q", "choices": ["a", "b"], "answer": "1"}', /answer is "1", expected an index/],
    [
      '{"question": "q", "choices": ["a", "b"], "answer": 2}',
      /answer 2 is out of range: there are 2/,
    ],
    ['{"question": "q", "choices": ["a", "b"], "answer": -1}', /out of range/],
    ['{"question": "q", "choices": ["a"], "answer": 0}', /has one choice/],
  ])("names file and line of %s", (bad, message) => {
    for (const limit of [undefined, 1]) {
      expect(() => parseItems(arc, `${good}\n${bad}\n`, "f.jsonl", limit)).toThrow(message);
    }
  });

  it("asks the task about what only it knows", () => {
    expect(() => parseItems(tasks.get("winogrande"), good, "w.jsonl")).toThrow(
      /w\.jsonl:1: the question has no blank/,
    );
    expect(() => parseItems(tasks.get("lambada"), good, "l.jsonl")).toThrow(
      /one choice: the last word/,
    );
  });

  it("refuses an empty file", () => {
    expect(() => parseItems(arc, "\n \n", "e.jsonl")).toThrow(/e\.jsonl: holds no items/);
  });
});

describe("few-shot", () => {
  it("puts solved examples in front, separated by blank lines", () => {
    const pool = parseItems(arc, `${good}\n${good}`, "f");
    expect(fewShotPrefix(arc, 0, { count: 1, seed: 0, pool, own: true })).toBe(
      "Question: q\nAnswer: b\n\n",
    );
    expect(fewShotPrefix(arc, 0, undefined)).toBe("");
    const sentence = { question: "It is _ here.", choices: ["hot", "cold"], answer: 1 };
    expect(exampleText(tasks.get("winogrande"), sentence)).toBe("It is cold here.");
  });
});

describe("winogrande", () => {
  it("scores the text behind the blank, stripped and after one blank, under each choice", () => {
    const task = tasks.get("winogrande") as Task;
    const item = { question: "Ann met Bo at _'s house. ", choices: ["Ann", "Bo"], answer: 1 };
    expect([task.context(item, 0), task.continuation(item, 0)]).toEqual([
      "Ann met Bo at Ann",
      " 's house.",
    ]);
    expect([task.context(item, 1), task.continuation(item, 1)]).toEqual([
      "Ann met Bo at Bo",
      " 's house.",
    ]);
  });
});

describe("rows of the hub", () => {
  const convert = (id: string, row: Record<string, unknown>) =>
    (tasks.get(id) as Task).hub?.convert(row);
  it("become items", () => {
    expect(
      convert("arc_easy", {
        question: "q",
        choices: { text: ["x", "y"], label: ["A", "B"] },
        answerKey: "B",
      }),
    ).toEqual({ question: "q", choices: ["x", "y"], answer: 1 });
    expect(
      convert("openbookqa", {
        question_stem: "q",
        choices: { text: ["x", "y"], label: ["A", "B"] },
        answerKey: "A",
      }),
    ).toEqual({ question: "q", choices: ["x", "y"], answer: 0 });
    expect(
      convert("hellaswag", {
        activity_label: "Baking",
        ctx_a: "A man  stands.",
        ctx_b: "the MAN",
        endings: ["[step] mixes.", "leaves [title] Done"],
        label: "1",
      }),
    ).toEqual({
      question: "Baking: A man stands. The man",
      choices: [" mixes.", "leaves. Done"],
      answer: 1,
    });
    expect(convert("boolq", { passage: "P.", question: "is it", answer: true })).toEqual({
      question: "P.\nQuestion: is it?\nAnswer:",
      choices: ["no", "yes"],
      answer: 1,
    });
    expect(convert("lambada", { text: "one two  three" })).toEqual({
      question: "one two ",
      choices: ["three"],
      answer: 0,
    });
    expect(
      convert("winogrande", { sentence: "a _ b", option1: "x", option2: "y", answer: "2" }),
    ).toEqual({
      question: "a _ b",
      choices: ["x", "y"],
      answer: 1,
    });
  });
  it("say which field is wrong", () => {
    expect(() => convert("boolq", { question: "q" })).toThrow(/field "passage"/);
    expect(() => convert("arc_easy", { question: "q" })).toThrow(/field "choices"/);
  });
  it("are cleaned like the harness does", () => {
    expect(cleanHellaswag(" a [title] b [x] c  d ")).toBe("a. b c d");
  });
});
