/**
 * The entry of a linear in nibble.json (`linears.<module>`): the fields of a QuantTensor without buffers. Strict: an unknown
 * key or an impossible size is a FormatError before any tensor is touched.
 */
import { z } from "zod";
import { FormatError } from "../core/errors.js";
import { TABLE_NAMES } from "./tables.js";

const dimension = z.int().min(1).max(0x7fffffff);
const bits = z.int().min(1).max(8);
const floatType = z.enum(["f32", "f16", "bf16"]);
/** "u8": 8-bit codes, one (low, step) a group of columns (encodings/affine-bytes.ts). */
const groupFloat = z.union([floatType, z.literal("u8")]);
const groupSize = z.union([dimension, z.enum(["channel", "tensor"])]);

const common = {
  /** [n, k] = [out, in] */
  shape: z.tuple([dimension, dimension]),
  csr: z
    .strictObject({ entries: z.int().min(0), columns: z.enum(["u16", "u32"]), values: floatType })
    .optional(),
  lowRank: z
    .array(z.strictObject({ rank: dimension, a: floatType, b: floatType, alpha: z.number() }))
    .optional(),
  pre: z.array(
    z.discriminatedUnion("op", [
      z.strictObject({ op: z.literal("scale"), type: floatType }),
      z.strictObject({ op: z.literal("perm") }),
    ]),
  ),
  post: z.array(z.strictObject({ op: z.literal("layernorm") })),
};

const gint = z.strictObject({
  encoding: z.literal("gint"),
  ...common,
  bits,
  groupSize,
  scale: groupFloat,
  /** Integer zero points; a constant; or float zeros of a type. */
  zero: z.union([
    z.literal("int"),
    z.strictObject({ const: z.number() }),
    z.strictObject({ float: groupFloat }),
  ]),
  /** Bits of integer zero points where they differ from `bits`. */
  zeroBits: bits.optional(),
});

const lut = z.strictObject({
  encoding: z.literal("lut"),
  ...common,
  bits,
  groupSize,
  table: z.union([
    z.enum(TABLE_NAMES as [string, ...string[]]),
    z.strictObject({
      rowsPerTile: dimension,
      colsPerTile: dimension,
      classes: z.union([z.literal(1), z.literal(2)]),
      values: floatType,
      additive: z.boolean().optional(),
    }),
  ]),
  scale: z.union([floatType, z.literal("dq8")]).optional(),
  scaleNegative: floatType.optional(),
});

const dense = z.strictObject({
  encoding: z.literal("dense"),
  ...common,
  type: floatType,
  codec: z.strictObject({ id: z.enum(["neuzip", "bitmap"]), bytes: z.int().min(0) }).optional(),
});

const ENCODINGS = [gint, lut, dense] as const;
export const tensorDescriptionSchema = z.discriminatedUnion("encoding", ENCODINGS);
export type TensorDescription = z.infer<typeof tensorDescriptionSchema>;

/**
 * @throws FormatError naming the module and the offending key; code "encoding" for an encoding that this version does not
 *   have, vector codes ("vq") among them
 */
export function parseDescription(module: string, json: unknown): TensorDescription {
  const encoding = (json as { encoding?: unknown } | null)?.encoding;
  const known: string[] = ENCODINGS.map((one) => one.shape.encoding.value);
  if (typeof encoding === "string" && !known.includes(encoding)) {
    throw new FormatError(
      `the encoding "${encoding}" is not one of ${known.join(", ")}`,
      {
        place: `linears.${module}.encoding`,
        hint: "Open the artifact with the version of nibble that wrote it, or a newer one.",
      },
      "encoding",
    );
  }
  const parsed = tensorDescriptionSchema.safeParse(json);
  if (parsed.success) return parsed.data;
  const issue = parsed.error.issues[0];
  const path = issue?.path.length ? `.${issue.path.join(".")}` : "";
  throw new FormatError(issue?.message ?? "not a tensor description", {
    place: `linears.${module}${path}`,
    hint: "The artifact is damaged, or was written by a newer version.",
  });
}
