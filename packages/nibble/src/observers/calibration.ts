/** Windows of calibration text: N seeded uniform starts of L tokens in one token stream (the protocol of GPTQ and QuaRot). */
import { UsageError } from "../core/errors.js";
import { Philox } from "../core/rng.js";

/**
 * @param ids the whole text, tokenized as one stream
 * @throws UsageError when the text is shorter than one window
 */
export function sampleWindows(
  ids: ArrayLike<number>,
  samples: number,
  seqlen: number,
  seed: number,
): Int32Array[] {
  if (!(Number.isInteger(samples) && samples > 0 && Number.isInteger(seqlen) && seqlen > 0)) {
    throw new UsageError(
      `calibration needs positive whole numbers, got samples ${samples}, seqlen ${seqlen}`,
    );
  }
  if (ids.length < seqlen) {
    throw new UsageError(
      `the calibration text has ${ids.length} tokens, one window needs ${seqlen}`,
      {
        hint: "give a longer text or a smaller --seqlen",
      },
    );
  }
  const rng = new Philox(seed, "calibration");
  return Array.from({ length: samples }, () => {
    const start = Math.floor(rng.uniform() * (ids.length - seqlen + 1));
    return Int32Array.from({ length: seqlen }, (_, i) => ids[start + i] as number);
  });
}
