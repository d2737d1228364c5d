// The default model as llama.cpp's own Q4_0 file: block weights Q4_0, tied embedding Q8_0 (what llama-quantize chooses for
// rows that K-quants do not divide), made from any GGUF with nibble's reader and writer.
import { existsSync } from "node:fs";
import { rename, writeFile } from "node:fs/promises";
import { fileSource, openGguf, quantizeGgml, writeGguf } from "../../packages/nibble/dist/index.js";

/** Writes `to` unless it exists. */
export async function makeQ40(from, to) {
  if (existsSync(to)) return;
  const file = await openGguf(await fileSource(from));
  const metadata = new Map(file.metadata);
  metadata.set("general.file_type", { type: "u32", value: 2 });
  const tensors = [...file.tensors.values()].map(({ name, type, ne }) => {
    const plain = ne.length < 2 || name.includes("_norm");
    const target = plain ? "F32" : name === "token_embd.weight" ? "Q8_0" : "Q4_0";
    return {
      name,
      type: target,
      ne,
      async data() {
        if (type === target) return file.readRaw(name);
        const values = await file.readF32(name);
        return target === "F32" ? new Uint8Array(values.buffer) : quantizeGgml(target, values);
      },
    };
  });
  const parts = [];
  await writeGguf({ write: async (bytes) => void parts.push(bytes.slice()) }, metadata, tensors);
  await writeFile(`${to}.tmp`, Buffer.concat(parts));
  await rename(`${to}.tmp`, to);
}
