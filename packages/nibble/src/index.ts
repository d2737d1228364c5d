/** The public surface of nibble for Node. The browser's is browser.ts. */
export {
  BackendError,
  FormatError,
  GateError,
  InterruptedError,
  ModelError,
  NibbleError,
  NumericError,
  RecipeError,
  ResourceError,
  UsageError,
} from "./core/errors.js";
export { fileSource } from "./core/file-source.js";
export type { OnProgress, ProgressEvent } from "./core/progress.js";
export { VERSION as version } from "./core/version.js";
export {
  type Alternative,
  type BatchScore,
  type BatchScoreOptions,
  type Likelihood,
  type ScoringRunner,
  scoreGroups,
} from "./eval/batch-score.js";
export {
  encodeStream,
  evaluatePerplexity,
  type PerplexityOptions,
  type PerplexityResult,
} from "./eval/perplexity.js";
export { defineTask, type TaskItem, type TaskMetric } from "./eval/tasks/task.js";
export { quantizeGgml } from "./formats/ggml-quantize.js";
export { openGguf } from "./formats/gguf.js";
export { writeGguf } from "./formats/gguf-write.js";
export type { Backend, BackendId, BackendStatus, Engine } from "./kernels/contract.js";
export { selectBackend } from "./kernels/select.js";
export { defineRetention, type RetentionDefinition } from "./kv/contract.js";
export { KV_PRESET_NAMES, kvPreset } from "./kv/presets.js";
export { retentions } from "./kv/retention/index.js";
export { kvBitsPerElement, kvBytes } from "./kv/size.js";
export { defineMethod, type Method } from "./methods/contract.js";
export { methods } from "./methods/index.js";
export type { KvRecipe, Model } from "./model/model.js";
export { loadRecipe, recipeFromObject } from "./recipe/load.js";
export { presets } from "./recipe/presets.js";
export { type CompressOptions, type CompressResult, compress } from "./recipe/run.js";
export type { Recipe, RecipeInput } from "./recipe/schema.js";
export { type BenchOptions, type BenchResult, benchModel } from "./runtime/bench.js";
export { DraftModel } from "./runtime/draft-model.js";
export { loadModel } from "./runtime/load-model.js";
export { NgramDrafter } from "./runtime/ngram-drafter.js";
export { type OpenedModel, type OpenOptions, openModel } from "./runtime/open.js";
export type { SamplingOptions } from "./runtime/sampler.js";
export {
  createSession,
  type GenerateOptions,
  type GenerationSummary,
  Session,
} from "./runtime/session.js";
export type { Draft, Drafter, SpeculationStats } from "./runtime/speculate.js";
