/** The whole document of `nibble eval --json` on a tiny random model is a function of its inputs. */
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it, vi } from "vitest";
import { runCli } from "../../src/cli/main.js";
import { tinyFolder } from "../support/tiny-folder.js";

let folder = "";
const at = (name: string) => join(folder, name);
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "nibble-eval-"));
  vi.stubEnv("NIBBLE_HOME", at("home"));
  for (const [i, name] of ["a", "b"].entries()) await tinyFolder(at(name), i + 1);
  await writeFile(at("text.txt"), "hello world, here is a hat. ".repeat(12));
  for (const task of ["arc_easy", "piqa"]) {
    const items = Array.from({ length: 4 }, (_, i) =>
      JSON.stringify({
        question: `${task} ${i}: what is it?`,
        choices: ["a hat", "a world", `${i} hells`],
        answer: i % 3,
      }),
    );
    await writeFile(at(`${task}.jsonl`), items.join("\n"));
  }
});
afterAll(async () => {
  vi.unstubAllEnvs();
  await rm(folder, { recursive: true });
});

describe("nibble eval --json", () => {
  it("gives the same bytes for the same seed, on any number of threads", async () => {
    const evaluate = async (threads: string) => {
      let out = "";
      const streams = {
        stdout: {
          write(text: string) {
            out += text;
          },
        },
        stderr: { write() {} },
      };
      const args = ["eval", at("a"), "--json", "--backend", "reference", "--threads", threads];
      const text = ["--ppl", at("text.txt"), "--ctx", "16", "--windows", "2"];
      const questions = ["--tasks", "arc_easy,piqa", "--task-dir", folder, "--few-shot", "2"];
      const rest = ["--reference", at("b"), "--passkey", "200", "--seed", "7"];
      const argv = [...args, ...text, ...questions, ...rest];
      const code = await runCli(argv, { streams, environment: {}, signals: false });
      expect(JSON.parse(out).error).toBeUndefined();
      expect(code).toBe(0);
      return out;
    };
    const first = await evaluate("1");
    expect(Object.keys(JSON.parse(first).result)).toEqual(
      expect.arrayContaining(["perplexity", "kl", "tasks", "passkey"]),
    );
    expect(await evaluate("2")).toBe(first);
  });
});
