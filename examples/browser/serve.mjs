#!/usr/bin/env node
import { readFile } from "node:fs/promises";
// Serves the example page and nibble's browser build on this machine only, cross-origin isolated so that threads work.
//   node examples/browser/serve.mjs [--port 8137] [--no-isolation]
import { createServer } from "node:http";
import { dirname, extname, join, normalize, sep } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

const here = dirname(fileURLToPath(import.meta.url));
const dist = join(here, "../../packages/nibble");
const TYPES = {
  ".html": "text/html",
  ".js": "text/javascript",
  ".mjs": "text/javascript",
  ".wasm": "application/wasm",
  ".json": "application/json",
};
const { values } = parseArgs({
  options: {
    port: { type: "string", default: "8137" },
    "no-isolation": { type: "boolean", default: false },
  },
});

/** /nibble/… is the package's dist, /wasm/… its kernels, /modules/… its dependencies; the rest is this folder. */
function locate(path) {
  if (path.startsWith("/nibble/")) return [join(dist, "dist"), path.slice(8)];
  if (path.startsWith("/wasm/")) return [join(dist, "wasm"), path.slice(6)];
  return [here, path === "/" ? "index.html" : path.slice(1)];
}

const server = createServer(async (request, response) => {
  const path = decodeURIComponent(new URL(request.url, "http://localhost").pathname);
  const [root, name] = locate(path);
  const file = normalize(join(root, name));
  if (!file.startsWith(root + sep)) return void response.writeHead(403).end();
  try {
    const body = await readFile(file);
    const isolation = values["no-isolation"]
      ? {}
      : {
          "Cross-Origin-Opener-Policy": "same-origin",
          "Cross-Origin-Embedder-Policy": "require-corp",
        };
    response
      .writeHead(200, {
        "Content-Type": TYPES[extname(file)] ?? "application/octet-stream",
        ...isolation,
      })
      .end(body);
  } catch {
    response.writeHead(404).end("not found");
  }
});
server.listen(Number(values.port), "127.0.0.1", () =>
  console.log(`http://127.0.0.1:${server.address().port}/`),
);
