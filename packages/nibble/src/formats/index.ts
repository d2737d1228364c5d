/** The file formats that exist, and which way they go. One entry each. */
import { type Definition, Registry } from "../core/registry.js";

export interface Format extends Definition {
  /** How a user recognises it. */
  readonly files: string;
  readonly reads: boolean;
  readonly writes: boolean;
}

export const formats = new Registry<Format>("format")
  .add({
    id: "nibble",
    title: "nibble artifact: low-bit weights, transforms, cache recipe",
    files: "folder with nibble.json",
    reads: true,
    writes: true,
  })
  .add({
    id: "huggingface",
    title: "Hugging Face checkpoint, unquantized safetensors",
    files: "folder with config.json and model.safetensors",
    reads: true,
    writes: false,
  })
  .add({
    id: "gguf",
    title: "llama.cpp model file, every block type up to IQ4_NL, MXFP4, NVFP4",
    files: "*.gguf",
    reads: true,
    writes: false,
  });
