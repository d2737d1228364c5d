/** Name of a numeric format as tables of quantized models give it: "W4A16-INT", "W8A8-FP", "W4A8-INT". */

/** A linear as an artifact's description gives it. */
export interface StoredLinear {
  encoding: string;
  bits?: number;
  table?: unknown;
}

/** Bits of layer weights and of their inputs (16: not quantized), and whether the codes are integers or small floats. */
export function formatName(
  linears: readonly (readonly [string, StoredLinear])[],
  inputs: readonly { bits: number; format?: string | undefined }[],
): string | null {
  const layers = linears.filter(([module]) => /\blayers\.\d+\./.test(module)).map(([, one]) => one);
  const coded = layers.filter(({ bits }) => bits !== undefined);
  if (coded.length === 0) return null;
  const span = (bits: readonly number[]) => {
    const [low, high] = [Math.min(...bits), Math.max(...bits)];
    return low === high ? `${low}` : `${low}-${high}`;
  };
  const isFloat = ({ table }: StoredLinear) => typeof table === "string" && /^fp\d/.test(table);
  const kinds = new Set([
    ...coded.map((one) => (one.encoding === "gint" ? "INT" : isFloat(one) ? "FP" : "other")),
    ...inputs.map(({ format }) => (format === undefined ? "INT" : "FP")),
  ]);
  const [kind] = kinds;
  const suffix = kinds.size === 1 && kind !== "other" ? `-${kind}` : "";
  const weights = span(layers.map(({ bits }) => bits ?? 16));
  return `W${weights}A${inputs.length > 0 ? span(inputs.map(({ bits }) => bits)) : "16"}${suffix}`;
}
