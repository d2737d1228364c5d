/** What `nibble inspect` shows of a model or a weight file. Reads headers and small files, no weights. */
import { stat } from "node:fs/promises";
import type { ByteFolder } from "../core/byte-source.js";
import { fileFolder, fileSource } from "../core/file-source.js";
import type { OnProgress } from "../core/progress.js";
import { openGguf } from "../formats/gguf.js";
import { openGgufModel } from "../formats/gguf-model.js";
import { openHfFolder } from "../formats/hf-folder.js";
import { isArtifact, loadArtifact, readManifest } from "../formats/nibble-read.js";
import { openSafetensors, openSafetensorsFolder } from "../formats/safetensors.js";
import { resolveModel } from "../hub/resolve.js";
import type { ModelConfig } from "../model/config.js";
import type { SidecarFiles } from "../model/model.js";
import { parameterSpecs } from "../model/roles.js";
import { formatName } from "./format-name.js";

export interface InspectedTensor {
  name: string;
  /** Stored type or encoding: "BF16", "Q4_1", "gint 4 bit, groups of 64". */
  type: string;
  shape: readonly number[];
  bytes: number;
  bitsPerWeight: number;
}

export interface Inspection {
  kind: "nibble" | "huggingface" | "gguf" | "safetensors";
  architecture: string | null;
  /** Of an artifact whose layers are quantized: "W4A16-INT". */
  format: string | null;
  parameters: number;
  bytes: number;
  bitsPerWeight: { linears: number | null; whole: number };
  facts: Record<string, unknown>;
  tensors: InspectedTensor[];
  warnings: string[];
}

/** @throws ModelError, FormatError for what cannot be opened */
export async function inspectModel(
  name: string,
  options: { onProgress?: OnProgress; signal?: AbortSignal } = {},
): Promise<Inspection> {
  const path = await resolveModel(name, options);
  if (!(await stat(path)).isDirectory()) {
    return path.endsWith(".safetensors") ? inspectFile(path) : inspectGguf(path);
  }
  const folder = await fileFolder(path);
  return isArtifact(folder) ? inspectArtifact(folder) : inspectFolder(folder);
}

/** One .safetensors file. */
export async function inspectFile(path: string): Promise<Inspection> {
  const reader = await openSafetensors(await fileSource(path));
  try {
    const tensors = [...reader.tensors.values()].map((entry) =>
      tensor(entry.name, entry.dtype, entry.shape, entry.bytes),
    );
    return summary("safetensors", null, Object.fromEntries(reader.metadata), tensors, []);
  } finally {
    await reader.close();
  }
}

async function inspectFolder(folder: ByteFolder): Promise<Inspection> {
  const { config, source, files } = await openHfFolder(folder);
  await source.close();
  const reader = await openSafetensorsFolder(folder);
  try {
    const tensors = [...(reader?.tensors.values() ?? [])].map((entry) =>
      tensor(entry.name, entry.dtype, entry.shape, entry.bytes),
    );
    return summary(
      "huggingface",
      config,
      configFacts(config, files),
      tensors,
      warningsOf(config, files),
    );
  } finally {
    await reader?.close();
  }
}

async function inspectGguf(path: string): Promise<Inspection> {
  const { config, source, files } = await openGgufModel(await fileSource(path));
  await source.close();
  const file = await openGguf(await fileSource(path));
  try {
    const tensors = [...file.tensors.values()].map((entry) =>
      tensor(entry.name, entry.type, entry.shape, entry.bytes),
    );
    const facts = { ...configFacts(config, files), ggufVersion: file.version };
    return summary("gguf", config, facts, tensors, warningsOf(config, files));
  } finally {
    await file.close();
  }
}

async function inspectArtifact(folder: ByteFolder): Promise<Inspection> {
  const manifest = await readManifest(folder);
  const model = await loadArtifact(folder);
  const { config, files } = model;
  await model.close();
  const reader = await openSafetensorsFolder(folder);
  try {
    const entries = [...(reader?.tensors.values() ?? [])];
    const tensors: InspectedTensor[] = [];
    const parts = new Set<string>();
    for (const [module, stored] of Object.entries(manifest.linears)) {
      const own = entries.filter(
        ({ name }) =>
          name.startsWith(`${module}.`) && !name.endsWith(".weight") && !name.endsWith(".bias"),
      );
      for (const { name } of own) parts.add(name);
      const bytes = own.reduce((sum, entry) => sum + entry.bytes, 0);
      tensors.push(tensor(`${module}.weight`, describeEncoding(stored), stored.shape, bytes));
    }
    for (const entry of entries) {
      if (!parts.has(entry.name))
        tensors.push(tensor(entry.name, entry.dtype, entry.shape, entry.bytes));
    }
    const facts = {
      ...configFacts(config, files),
      formatVersion: manifest.formatVersion,
      writtenBy: `nibble ${manifest.version}, ${manifest.backend}`,
      source: manifest.source.id,
      sourceSha256: manifest.source.sha256,
      transforms:
        manifest.transforms.map(({ op, site }) => `${op} at ${site}`).join(", ") || "none",
      activations: manifest.activations,
      kv: manifest.kv ?? "model default (fp32)",
      recipe: manifest.recipe,
    };
    const inputs = [manifest.activations, ...Object.values(manifest.activationOverrides)].flatMap(
      (sites) => Object.values(sites).filter((one) => one !== null),
    );
    return {
      ...summary("nibble", config, facts, tensors, warningsOf(config, files)),
      format: formatName(Object.entries(manifest.linears), inputs),
    };
  } finally {
    await reader?.close();
  }
}

function tensor(
  name: string,
  type: string,
  shape: readonly number[],
  bytes: number,
): InspectedTensor {
  return { name, type, shape, bytes, bitsPerWeight: (bytes * 8) / Math.max(1, size(shape)) };
}

function size(shape: readonly number[]): number {
  return shape.reduce((product, n) => product * n, 1);
}

function summary(
  kind: Inspection["kind"],
  config: ModelConfig | null,
  facts: Record<string, unknown>,
  tensors: InspectedTensor[],
  warnings: string[],
): Inspection {
  const total = (list: readonly InspectedTensor[]) => ({
    bytes: list.reduce((sum, one) => sum + one.bytes, 0),
    count: list.reduce((sum, one) => sum + size(one.shape), 0),
  });
  const specs = config ? parameterSpecs(config).filter((spec) => spec.kind === "linear") : [];
  const linearNames = new Set(specs.map((spec) => `${spec.module}.weight`));
  const isLinear = (name: string) =>
    linearNames.has(name) ||
    /^blk\.\d+\.(attn_(q|k|v|output)|ffn_(gate|up|down)(_exps)?)\.weight$/.test(name);
  const linears = total(config ? tensors.filter(({ name }) => isLinear(name)) : []);
  const whole = total(tensors);
  return {
    kind,
    architecture: config?.architecture ?? null,
    format: null,
    parameters: whole.count,
    bytes: whole.bytes,
    bitsPerWeight: {
      linears: linears.count > 0 ? (linears.bytes * 8) / linears.count : null,
      whole: whole.count > 0 ? (whole.bytes * 8) / whole.count : 0,
    },
    facts: { kind, ...facts },
    tensors,
    warnings,
  };
}

function describeEncoding(stored: object & { encoding: string }): string {
  const { encoding, bits, groupSize } = stored as {
    encoding: string;
    bits?: number;
    groupSize?: unknown;
  };
  const parts = [bits === undefined ? encoding : `${encoding} ${String(bits)} bit`];
  if (typeof groupSize === "number") parts.push(`groups of ${groupSize}`);
  else if (groupSize === "channel") parts.push("one scale a row");
  else if (groupSize !== undefined) parts.push(String(groupSize));
  return parts.join(", ");
}

function configFacts(config: ModelConfig, files: SidecarFiles): Record<string, unknown> {
  const template = templateOf(files);
  return {
    architecture: config.architecture,
    layers: config.numHiddenLayers,
    hiddenSize: config.hiddenSize,
    intermediateSize: config.intermediateSize,
    heads: `${config.numAttentionHeads} (${config.numKeyValueHeads} for keys and values) of ${config.headDim}`,
    vocabulary: config.vocabSize,
    context: config.maxPositionEmbeddings,
    rope: `${config.rope.type}, theta ${config.rope.theta}`,
    tiedEmbeddings: config.tieWordEmbeddings,
    ...(config.experts ? { experts: `${config.experts.perToken} of ${config.experts.count}` } : {}),
    tokenizer: files.has("tokenizer.json") ? "yes" : "none",
    bosTokenId: config.bosTokenId,
    eosTokenIds: config.eosTokenIds.join(", "),
    chatTemplate: template === null ? "none" : `${template.length} characters`,
  };
}

function templateOf(files: SidecarFiles): string | null {
  const text = (name: string) => {
    const bytes = files.get(name);
    return bytes ? new TextDecoder().decode(bytes) : null;
  };
  const own = text("chat_template.jinja");
  if (own !== null) return own;
  const config = text("tokenizer_config.json");
  if (config === null) return null;
  const template = (JSON.parse(config) as { chat_template?: unknown }).chat_template;
  return typeof template === "string" ? template : null;
}

/** What is most often taken for damage by quantization (llama.cpp#7062). */
function warningsOf(config: ModelConfig, files: SidecarFiles): string[] {
  const warnings: string[] = [];
  if (!files.has("tokenizer.json")) {
    warnings.push("no tokenizer.json: the model can only be fed token ids");
  }
  const template = templateOf(files);
  if (template === null && files.has("tokenizer.json")) {
    warnings.push("no chat template: a base model, which completes text and does not chat");
  }
  if (
    template !== null &&
    config.bosTokenId !== null &&
    /\{\{-?\s*bos_token/.test(template) &&
    addsBos(files)
  ) {
    warnings.push("template and tokenizer both add the begin-of-text token");
  }
  return warnings;
}

function addsBos(files: SidecarFiles): boolean {
  const config = files.get("tokenizer_config.json");
  if (!config) return false;
  return (
    (JSON.parse(new TextDecoder().decode(config)) as { add_bos_token?: unknown }).add_bos_token ===
    true
  );
}
