/** A folder with a random model of two layers and a byte-level tokenizer: whole verbs run on it in a second. */
import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { bufferSource } from "../../src/core/byte-source.js";
import { Philox } from "../../src/core/rng.js";
import { openGguf } from "../../src/formats/gguf.js";
import { ggufTokenizer } from "../../src/formats/gguf-tokenizer.js";
import { parseHfConfig } from "../../src/formats/hf-config.js";
import { saveSafetensors } from "../../src/formats/safetensors-save.js";
import { parameterSpecs } from "../../src/model/roles.js";
import { buildGguf } from "./gguf-builder.js";
import { tinyTokenizer, tinyVocabulary } from "./tiny-tokenizer.js";

/** Writes the model; another seed, other weights. */
export async function tinyFolder(path: string, seed = 1): Promise<void> {
  await mkdir(path, { recursive: true });
  const config = {
    architectures: ["LlamaForCausalLM"],
    model_type: "llama",
    vocab_size: tinyVocabulary().tokens.length,
    hidden_size: 64,
    intermediate_size: 128,
    num_hidden_layers: 2,
    num_attention_heads: 4,
    num_key_value_heads: 2,
    head_dim: 16,
    hidden_act: "silu",
    rms_norm_eps: 1e-5,
    max_position_embeddings: 256,
    rope_theta: 10000,
    tie_word_embeddings: true,
    bos_token_id: 1,
    eos_token_id: 2,
  };
  const rng = new Philox(seed, "tiny-folder");
  const tensors = parameterSpecs(parseHfConfig(config))
    .filter(({ kind }) => kind !== "head")
    .map(({ module, shape, kind }) => {
      const size = shape.reduce((a, b) => a * b, 1);
      const values = Float32Array.from({ length: size }, () =>
        kind === "norm" ? 1 : (rng.uniform() - 0.5) / 2,
      );
      const data = () => new Uint8Array(values.buffer);
      return { name: `${module}.weight`, dtype: "F32" as const, shape, data };
    });
  await saveSafetensors(join(path, "model.safetensors"), tensors);
  await writeFile(join(path, "config.json"), JSON.stringify(config));
  const { files } = ggufTokenizer(await openGguf(bufferSource(buildGguf(tinyTokenizer()), "t")));
  for (const [name, bytes] of files) await writeFile(join(path, name), bytes);
}
