import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { VERBS } from "./commands/index.js";
import { runCli } from "./main.js";
import { table } from "./output.js";

/** Runs a command line without a process: exit code and both streams. */
async function nibble(...argv: string[]) {
  const out = { stdout: "", stderr: "" };
  const sink = (name: keyof typeof out) => ({
    write: (text: string) => {
      out[name] += text;
    },
  });
  const streams = { stdout: sink("stdout"), stderr: sink("stderr") };
  const code = await runCli(argv, { streams, environment: {}, signals: false });
  return { code, ...out };
}

describe("command line", () => {
  it("gives help with examples for every verb on stdout", async () => {
    const all = await nibble();
    expect(all.code).toBe(0);
    expect((await nibble("--help")).stdout).toContain("Examples:");
    for (const verb of VERBS) {
      const { code, stdout, stderr } = await nibble(...verb.name.split(" "), "--help");
      expect(code, verb.name).toBe(0);
      expect(stderr).toBe("");
      expect(stdout).toContain(`Usage: nibble ${verb.name}`);
      expect(stdout).toContain("Examples:");
      expect(stdout).toContain("--json");
    }
  });

  it("answers misspelt verbs, options and values with the nearest name and exit code 2", async () => {
    const cases: [string[], string, string][] = [
      [["compres", "m"], 'unknown verb "compres"', 'Did you mean "compress"?'],
      [["eval", "m", "--window", "3"], "unknown option --window", "Did you mean --windows?"],
      [["bench", "m", "--backend", "nativ"], "--backend nativ", 'Did you mean "native"?'],
      [["bench", "m", "--threads", "0"], "--threads 0", ""],
      [["list", "preset"], 'there is no list "preset"', 'Did you mean "presets"?'],
      [["calibrate-kv", "m", "-o", "x", "--preset", "{"], "--preset is no JSON", "--preset '{"],
      [["run", "m", "-p", "x", "--kv", '{"codec":'], "--kv is no JSON", "Quote it as a whole"],
      [["run", "m", "-p", "x", "--kv", '{"codec":"kivy"}'], "error: --kv.codec: codec is", "kivi"],
      [["run", "m", "-p", "x", "--kv", "quarot-kv5"], "unknown KV cache preset", "Did you mean"],
      [["compress", "m", "--preset", "quarot-w4a4kv", "-o", "x"], "unknown preset", "Did you mean"],
      [["compress", "m", "-o", "x"], "what to do is missing", "--preset"],
      [["inspect"], "missing required argument", "--help"],
      [["inspect", "a", "b"], "too many arguments", "--help"],
      [["logits", "m", "--ids", "1,x", "-o", "f"], "no token id", "--ids 1,2,3"],
      [["eval", "m"], "nothing to measure", "--ppl"],
    ];
    for (const [argv, message, hint] of cases) {
      const { code, stdout, stderr } = await nibble(...argv);
      expect(code, argv.join(" ")).toBe(2);
      expect(stdout).toBe("");
      expect(stderr).toContain(message);
      expect(stderr).toContain(hint);
    }
  });

  it("--json gives exactly one document, for results and for errors", async () => {
    const good = await nibble("list", "kv", "--json");
    expect(good.code).toBe(0);
    const document = JSON.parse(good.stdout);
    expect(document).toMatchObject({ ok: true, verb: "list", version: expect.any(String) });
    expect(document.result.kv[0]).toMatchObject({ id: "fp32" });
    expect(good.stdout.trim().split("\n")).toHaveLength(1);

    const bad = await nibble("compress", "m", "-o", "x", "--json", "--presett", "x");
    expect(bad.code).toBe(2);
    expect(bad.stderr).toBe("");
    expect(JSON.parse(bad.stdout)).toMatchObject({
      ok: false,
      verb: "compress",
      error: { code: "usage", message: "unknown option --presett", hint: "Did you mean --preset?" },
    });
    const early = JSON.parse((await nibble("nonsense", "--json")).stdout);
    expect(early).toMatchObject({ ok: false, error: { code: "usage" } });
    expect((await nibble("list", "--json=yaml")).code).toBe(2);
  });

  it("prints a JSON schema that lists the methods", async () => {
    const { code, stdout } = await nibble("recipe", "schema");
    expect(code).toBe(0);
    const schema = JSON.parse(stdout);
    expect(schema.required).toContain("steps");
    expect(stdout).toContain('"gptq"');
  });
});

describe("files", () => {
  let folder: string;
  beforeEach(async () => {
    folder = await mkdtemp(join(tmpdir(), "nibble-cli-"));
  });
  afterEach(async () => {
    await rm(folder, { recursive: true, force: true });
  });

  it("names file, line and column of a wrong recipe", async () => {
    const file = join(folder, "r.yaml");
    await writeFile(file, "version: 1\nsteps:\n  - gptq: { bitz: 3 }\n");
    const { code, stderr } = await nibble("compress", "m", "--recipe", file, "-o", "x");
    expect(code).toBe(2);
    expect(stderr).toContain(`${file}:3:13: unknown key "bitz"`);
    expect(stderr).toContain('Did you mean "bits"?');
  });

  it("refuses to replace a folder that is no artifact", async () => {
    await mkdir(join(folder, "photos"));
    await writeFile(join(folder, "photos", "cat.jpg"), "");
    const target = join(folder, "photos");
    const { code, stderr } = await nibble("compress", "m", "--preset", "none", "-o", target);
    expect(code).toBe(2);
    expect(stderr).toContain("holds other files");
  });

  it("says which file is missing, with exit code 3", async () => {
    const missing = join(folder, "no-such-model");
    for (const argv of [
      ["inspect", missing],
      ["run", missing, "-p", "x"],
      ["eval", "m", "--ppl", join(folder, "no.txt")],
    ]) {
      const { code, stderr } = await nibble(...argv);
      expect(code, argv.join(" ")).toBe(3);
      expect(stderr).toContain("no");
      expect(stderr).not.toContain("internal");
    }
  });
});

describe("tables", () => {
  it("put numbers to the right and texts to the left", () => {
    expect(
      table([
        ["a", "n"],
        ["bb", "1.5"],
        ["c", "20"],
      ]),
    ).toBe("a     n\nbb  1.5\nc    20");
    expect(
      table([
        ["x", "1"],
        ["y", "text"],
      ]),
    ).toBe("x  1\ny  text");
  });
});
