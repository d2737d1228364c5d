/** The parts of a build, what each is made from, and which of them are out of date. */
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { hashOf, native, nibble, root } from "./common.mjs";

const script = (name) => join(root, "scripts", name);
const isSource = (file) => !file.endsWith(".test.ts");

/** `from`: sources; `makes`: a file that must exist afterwards (null: the part may be skipped on this machine). */
export const PARTS = {
  wasm: {
    from: [join(nibble, "assembly"), script("build-wasm.mjs")],
    makes: join(nibble, "wasm"),
  },
  ts: {
    from: [
      join(nibble, "src"),
      join(nibble, "package.json"),
      join(root, "tsconfig.base.json"),
      join(nibble, "tsconfig.json"),
      script("build.mjs"),
    ],
    makes: join(nibble, "dist", "cli", "main.js"),
  },
  native: {
    from: [join(native, "src"), join(native, "build.mjs")],
    makes: null,
  },
};

const stampFile = (name) => join(root, "node_modules", ".cache", "nibble-build", `${name}.json`);

/** Identity of a part's sources on this machine: a copied folder or another Node starts afresh. */
export function identity(name) {
  const machine = name === "native" ? `${process.platform} ${process.arch} ` : "";
  return machine + hashOf(PARTS[name].from, isSource);
}

/** Names of the parts that must be built again. */
export function staleParts() {
  return Object.keys(PARTS).filter((name) => {
    const { makes } = PARTS[name];
    if (makes !== null && !existsSync(makes)) return true;
    const stamp = stampFile(name);
    return (
      !existsSync(stamp) || JSON.parse(readFileSync(stamp, "utf8")).identity !== identity(name)
    );
  });
}

/** Remembers that a part was built from these sources. */
export function markBuilt(name, sources) {
  const stamp = stampFile(name);
  mkdirSync(dirname(stamp), { recursive: true });
  writeFileSync(stamp, JSON.stringify({ identity: sources }));
}
