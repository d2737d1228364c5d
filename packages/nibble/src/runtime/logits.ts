/** Logits of every position of one sequence, for comparisons with other implementations. */
import type { Runner } from "./runner.js";

/** f32 [ids.length, vocabSize], row-major. The sequence starts in an empty cache slot 0. */
export async function allLogits(
  runner: Runner,
  ids: readonly number[],
  signal?: AbortSignal,
): Promise<Float32Array> {
  const { vocabSize, model, tables } = runner;
  const out = new Float32Array(ids.length * vocabSize);
  const rows = Math.min(model.maxRows, model.maxLogitRows);
  tables.truncate(0, 0);
  tables.reserve(0, ids.length);
  for (let start = 0; start < ids.length; start += rows) {
    signal?.throwIfAborted();
    const chunk = ids.slice(start, start + rows);
    const index = chunk.map((_, i) => i);
    await runner.step(
      {
        tokens: chunk,
        positions: index.map((i) => start + i),
        sequences: new Int32Array(chunk.length),
      },
      index,
    );
    for (const i of index) out.set(runner.logits(i), (start + i) * vocabSize);
  }
  return out;
}
