import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { tasks } from "./index.js";
import { loadTaskItems } from "./source.js";

const golden = fileURLToPath(new URL("../../../test/golden/tasks/arc.parquet", import.meta.url));
const arc = tasks.get("arc_easy");
let folder = "";
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "nibble-tasks-"));
});
afterAll(() => rm(folder, { recursive: true }));

describe("loadTaskItems", () => {
  it("prefers the task folder", async () => {
    await writeFile(
      join(folder, "arc_easy.jsonl"),
      '{"question":"q","choices":["a","b"],"answer":0}\n',
    );
    const fetchDataset = () => Promise.reject(new Error("not asked"));
    expect(await loadTaskItems(arc, { taskDir: folder, fetchDataset })).toHaveLength(1);
  });

  it("reads parquet of the hub (file written by pyarrow)", async () => {
    const asked: string[] = [];
    const items = await loadTaskItems(tasks.get("arc_challenge"), {
      taskDir: folder,
      fetchDataset: async (dataset, file) => {
        asked.push(`${dataset}:${file}`);
        return readFile(golden);
      },
    });
    expect(asked).toEqual(["allenai/ai2_arc:ARC-Challenge/test-00000-of-00001.parquet"]);
    expect(items).toEqual([
      { question: "Which is a planet?", choices: ["Mars", "a cat"], answer: 0 },
      { question: "Which “word” is a colour?", choices: ["up", "red", "two"], answer: 1 },
    ]);
  });

  it("reads JSON lines of the hub and names the row that is wrong", async () => {
    const fetchDataset = async () => new TextEncoder().encode('{"text": "a b c"}\n{"text": 4}\n');
    await expect(loadTaskItems(tasks.get("lambada"), { fetchDataset })).rejects.toThrow(
      /lambada_test\.jsonl: row 2: field "text" is not a text/,
    );
  });

  it("refuses bytes that are no parquet", async () => {
    const fetchDataset = async () => new Uint8Array(40);
    await expect(loadTaskItems(tasks.get("boolq"), { fetchDataset })).rejects.toMatchObject({
      code: "task-data",
    });
  });

  it("says where to put a file that neither place has", async () => {
    await expect(loadTaskItems(tasks.get("social_iqa"), { taskDir: folder })).rejects.toMatchObject(
      {
        code: "task-missing",
        hint: expect.stringContaining("social_iqa.jsonl"),
      },
    );
  });
});
