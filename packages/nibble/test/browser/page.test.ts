/**
 * The example page in headless Chromium: opens a model file and continues a text exactly as Node does, with threads
 * (cross-origin isolated) and without.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { fileURLToPath } from "node:url";
import { type Browser, chromium } from "playwright-core";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { openModel } from "../../src/runtime/open.js";
import { createSession } from "../../src/runtime/session.js";
import { requires, smollm2 } from "../model/locate.js";

const PROMPT = "The capital of France is";
const TOKENS = 12;
const server = fileURLToPath(new URL("../../../../examples/browser/serve.mjs", import.meta.url));
const children: ChildProcess[] = [];

/** Starts the example's server on a free port of this machine. */
async function serve(...flags: string[]): Promise<string> {
  const child = spawn(process.execPath, [server, "--port", "0", ...flags], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  children.push(child);
  const [line] = (await once(child.stdout, "data")) as [Buffer];
  return line.toString().trim();
}

describe("the example page", requires({ "the model": smollm2 }), () => {
  let browser: Browser;
  let expected = "";

  beforeAll(async () => {
    browser = await chromium.launch({
      executablePath: process.env.NIBBLE_CHROMIUM ?? "/usr/bin/chromium",
      args: ["--no-sandbox"],
    });
    const opened = await openModel(smollm2 as string, { maxContext: 64 });
    const session = createSession(opened);
    for await (const piece of session.generate(PROMPT, { maxTokens: TOKENS, raw: true }))
      expected += piece.text;
    await opened.close();
  });
  afterAll(async () => {
    await browser?.close();
    for (const child of children) child.kill();
  });

  it.each([
    ["with threads", [], true],
    ["without shared memory", ["--no-isolation"], false],
  ] as const)("%s: the same greedy text as in Node", async (_name, flags, isolated) => {
    const page = await browser.newPage();
    const errors: string[] = [];
    page.on("pageerror", (error) => errors.push(String(error)));
    await page.goto(await serve(...flags));
    expect(await page.evaluate(() => crossOriginIsolated)).toBe(isolated);
    await page.setInputFiles("#files", smollm2 as string);
    await page.waitForSelector("#go:not([disabled])", { timeout: 120_000 });
    const text = await page.evaluate(
      async ([prompt, tokens]) => {
        const { nibblePage } = globalThis as unknown as {
          nibblePage: { generate(prompt: string, tokens: number): Promise<{ text: string }> };
        };
        return (await nibblePage.generate(prompt, tokens)).text;
      },
      [PROMPT, TOKENS] as const,
    );
    expect(errors).toEqual([]);
    expect(text).toBe(expected);
    await page.close();
  });
});
