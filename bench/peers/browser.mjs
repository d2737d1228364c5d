// nibble and wllama in headless Chromium, each in a page of its own, cross-origin isolated, served from this machine only.
import { readdirSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { extname, join, normalize, sep } from "node:path";
import { fileURLToPath } from "node:url";
import { chromium } from "playwright-core";
import { here } from "./install.mjs";

const nibble = fileURLToPath(new URL("../../packages/nibble/", import.meta.url));
const TYPES = { ".js": "text/javascript", ".mjs": "text/javascript", ".wasm": "application/wasm" };

/** Prefix -> folder. */
async function serve(folders, gguf) {
  const server = createServer(async (request, response) => {
    const path = decodeURIComponent(new URL(request.url, "http://localhost").pathname);
    const headers = {
      "Cross-Origin-Opener-Policy": "same-origin",
      "Cross-Origin-Embedder-Policy": "require-corp",
      "Content-Type": TYPES[extname(path)] ?? "application/octet-stream",
    };
    if (path === "/") {
      return response
        .writeHead(200, { ...headers, "Content-Type": "text/html" })
        .end("<!doctype html>");
    }
    const [, prefix, ...rest] = path.split("/");
    const folder = folders[prefix];
    const file = path === "/model.gguf" ? gguf : folder && normalize(join(folder, ...rest));
    if (!file || (folder && !file.startsWith(folder + sep))) return response.writeHead(404).end();
    try {
      response.writeHead(200, headers).end(await readFile(file));
    } catch {
      response.writeHead(404).end();
    }
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  return { url: `http://127.0.0.1:${server.address().port}/`, close: () => server.close() };
}

/** In the page of nibble. */
async function loadNibble({ names, kv, threads, maxContext }) {
  const lib = await import("/nibble/browser/nibble.js");
  const files = await Promise.all(
    names.map(async (name) => new File([await (await fetch(`/artifact/${name}`)).blob()], name)),
  );
  const model = await lib.modelFromFiles(files);
  const opened = await lib.openLoaded(model, { threads, kv, maxContext });
  globalThis.measure = (options) =>
    lib.benchModel(opened, { rounds: 1, warmup: false, ...options });
  return opened.compiled.engine.variant;
}

/** In the page of wllama. */
async function loadWllama({ threads, maxContext }) {
  const { Wllama } = await import("/wllama/index.js");
  const quiet = { debug() {}, log() {}, warn() {}, error() {} };
  const wllama = new Wllama(
    { default: "/wllama/wasm/wllama.wasm" },
    { logger: quiet, suppressNativeLog: true },
  );
  wllama.setCompat(null);
  const blob = await (await fetch("/model.gguf")).blob();
  await wllama.loadModel([blob], {
    n_ctx: maxContext,
    n_batch: 512,
    n_ubatch: 512,
    n_threads: threads,
    n_gpu_layers: 0,
    seed: 1,
  });
  // Every word begins a token; which ones hardly matters.
  const words = ["river", "stone", "light", "paper", "house", "music", "green", "water"];
  globalThis.measure = async ({ prefill = 0, decode = 0 }) => {
    const length = prefill || 1;
    const prompt = Array.from({ length }, (_, i) => ` ${words[(i * i + Date.now()) % 8]}`).join("");
    const { timings } = await wllama.createCompletion({
      prompt,
      max_tokens: Math.max(decode, 1),
      temperature: 0,
      ignore_eos: true,
      cache_prompt: false,
    });
    return timings;
  };
  return `${wllama.isMultithread() ? "multi" : "single"}-thread, llama.cpp ${Wllama.getLibllamaVersion()}`;
}

/** @returns { nibble, wllama: { variant, measure(case) => tokens per second }, close } */
export async function openBrowsers({ gguf, artifact, threads, kv, maxContext }) {
  const folders = {
    nibble: join(nibble, "dist"),
    wasm: join(nibble, "wasm"),
    wllama: join(here, "node_modules", "@wllama", "wllama", "esm"),
    artifact,
  };
  const server = await serve(folders, gguf);
  const browser = await chromium.launch({
    executablePath: process.env.NIBBLE_CHROMIUM ?? "/usr/bin/chromium",
    args: ["--no-sandbox"],
  });
  const open = async (load, options) => {
    const page = await (await browser.newContext()).newPage();
    await page.goto(server.url);
    const variant = await page.evaluate(load, options);
    return { page, variant };
  };
  const names = readdirSync(artifact).filter((name) =>
    /\.(json|safetensors|jinja|txt|model)$/.test(name),
  );
  const ours = await open(loadNibble, { names, kv, threads, maxContext });
  const theirs = await open(loadWllama, { threads, maxContext });
  return {
    nibble: {
      variant: ours.variant,
      async measure({ prefill = 0, decode = 0 }) {
        const result = await ours.page.evaluate((options) => globalThis.measure(options), {
          prefill,
          decode,
        });
        return prefill > 0 ? result.prefillTokensPerSecond : result.decodeTokensPerSecond;
      },
    },
    wllama: {
      variant: theirs.variant,
      async measure({ prefill = 0, decode = 0 }) {
        const timings = await theirs.page.evaluate((options) => globalThis.measure(options), {
          prefill,
          decode,
        });
        return prefill > 0 ? timings.prompt_per_second : timings.predicted_per_second;
      },
    },
    async close() {
      await browser.close();
      server.close();
    },
  };
}
