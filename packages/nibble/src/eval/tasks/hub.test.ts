/** Data sets of the hub, from a server that answers as the hub does; the rows have its columns and are our own texts. */
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { fetchDatasetFile } from "../../hub/dataset.js";
import { gsm8k } from "../generation-task.js";
import { generationItems } from "../measure-generation.js";
import { tasks } from "./index.js";
import { hubItems, loadTaskItems } from "./source.js";
import type { HubSource, Task } from "./task.js";

const golden = (name: string) =>
  readFile(fileURLToPath(new URL(`../../../test/golden/tasks/${name}`, import.meta.url)));
const LAMBADA =
  '{"text": "She looked for her keys\\u2019 ring, \\"here\\" and there, and found the keys"}\n{"text": "one two"}\n';
const FILES: Record<string, () => Promise<Uint8Array>> = {
  "Rowan/hellaswag/resolve/main/data/validation-00000-of-00001.parquet": () =>
    golden("hellaswag.parquet"),
  "google/boolq/resolve/main/data/validation-00000-of-00001.parquet": () => golden("boolq.parquet"),
  "EleutherAI/lambada_openai/resolve/main/data/lambada_test.jsonl": async () =>
    new TextEncoder().encode(LAMBADA),
  "openai/gsm8k/resolve/main/main/test-00000-of-00001.parquet": () => golden("gsm8k.parquet"),
  "openai/gsm8k/resolve/main/main/train-00000-of-00001.parquet": () => golden("gsm8k.parquet"),
};

let server: Server;
let home = "";
let asked = 0;
beforeAll(async () => {
  home = await mkdtemp(join(tmpdir(), "nibble-hub-"));
  server = createServer((request, response) => {
    asked++;
    const file = FILES[request.url?.replace("/datasets/", "") ?? ""];
    if (file) void file().then((bytes) => response.end(bytes));
    else response.writeHead(404).end();
  });
  await new Promise<void>((done) => server.listen(0, "127.0.0.1", done));
});
afterAll(async () => {
  server.close();
  await rm(home, { recursive: true });
});
const fetchDataset = (dataset: string, file: string) =>
  fetchDatasetFile(dataset, file, {
    env: {
      NIBBLE_HOME: home,
      HF_ENDPOINT: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    },
  });

describe("data sets of the hub", () => {
  it("hellaswag: cleaned as the harness does", async () => {
    expect(await loadTaskItems(tasks.get("hellaswag"), { fetchDataset })).toEqual([
      {
        question: "Making tea: A woman fills a kettle at the tap. She",
        choices: [
          "puts it on the stove.",
          "paints it green.",
          "throws it away.",
          "reads it a story.",
        ],
        answer: 0,
      },
      {
        question:
          "Home and Garden: How to sharpen a knife. Wet the stone. Lay the stone in water for ten minutes.",
        choices: [
          " Take it out when no bubbles rise.",
          "Eat the stone.",
          "Sell the knife.. Rest.",
          "Sing.",
        ],
        answer: 2,
      },
    ]);
  });

  it("boolq: passage, question, no and yes", async () => {
    const choices = ["no", "yes"];
    expect(await loadTaskItems(tasks.get("boolq"), { fetchDataset })).toEqual([
      {
        question: "Ducks -- Ducks rest on lakes and ponds.\nQuestion: do ducks float?\nAnswer:",
        choices,
        answer: 1,
      },
      {
        question: "Lead -- Lead is a dense metal.\nQuestion: is lead lighter than cork?\nAnswer:",
        choices,
        answer: 0,
      },
    ]);
  });

  it("lambada: the last word is to be guessed", async () => {
    expect(await loadTaskItems(tasks.get("lambada"), { fetchDataset })).toEqual([
      {
        question: 'She looked for her keys’ ring, "here" and there, and found the',
        choices: ["keys"],
        answer: 0,
      },
      { question: "one", choices: ["two"], answer: 0 },
    ]);
  });

  it("gsm8k: questions and examples, answers with separators and signs", async () => {
    for (const part of ["test", "train"] as const) {
      const items = await generationItems(gsm8k, part, { fetchDataset });
      expect(items.map(({ answer }) => gsm8k.strict(answer))).toEqual(["3000", "-3"]);
      expect(items[0]?.question).toBe("Ann has 3 boxes of 1,000 nails. How many nails?");
    }
  });

  it("are fetched once", async () => {
    const before = asked;
    for (const id of ["hellaswag", "boolq", "lambada"])
      await loadTaskItems(tasks.get(id), { fetchDataset });
    await generationItems(gsm8k, "test", { fetchDataset });
    expect(before).toBe(5);
    expect(asked).toBe(before);
  });

  it.each([
    ["hellaswag", { activity_label: "a", ctx_a: "b", endings: ["c", "d"], label: "" }, /label/],
    ["hellaswag", { activity_label: "a", ctx_a: "b", endings: ["c", "d"], label: "2" }, /range/],
    ["hellaswag", { activity_label: "a", ctx_a: "b", endings: "c", label: "0" }, /endings/],
    ["boolq", { passage: "a", question: "b" }, /answer/],
    ["boolq", { passage: "a", question: " ", answer: true }, /question/],
    ["lambada", { text: "ends with a blank " }, /choice 0 is empty/],
  ])("%s: %j is an error that names the row", async (id, row, message) => {
    const task: Task = tasks.get(id);
    const hub = { ...(task.hub as HubSource), file: "rows.jsonl" };
    const bytes = new TextEncoder().encode(JSON.stringify(row));
    await expect(hubItems(task, hub, bytes)).rejects.toThrow(message);
    await expect(hubItems(task, hub, bytes)).rejects.toThrow(/rows\.jsonl: row 1/);
  });
});
