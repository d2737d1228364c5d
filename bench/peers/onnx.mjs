// onnxruntime-node's MatMulNBits (4 bit, accuracy level 4: 8-bit activations) as a model of one node, written here byte by
// byte: https://onnx.ai/onnx/repo-docs/IR.html, fields of onnx.proto3.
import { InferenceSession, Tensor } from "onnxruntime-node";

const FLOAT = 1;
const UINT8 = 2;

function varint(value) {
  const out = [];
  let rest = BigInt(value);
  do {
    const byte = Number(rest & 127n);
    rest >>= 7n;
    out.push(rest > 0n ? byte | 128 : byte);
  } while (rest > 0n);
  return Buffer.from(out);
}
/** A field: numbers as varints, everything else length-delimited. */
function field(number, value) {
  if (typeof value === "number") return Buffer.concat([varint(number << 3), varint(value)]);
  const bytes = typeof value === "string" ? Buffer.from(value) : value;
  return Buffer.concat([varint((number << 3) | 2), varint(bytes.length), bytes]);
}
const message = (...fields) => Buffer.concat(fields);

const attribute = (name, value) => message(field(1, name), field(3, value), field(20, 2));
const tensor = (name, type, dims, bytes) =>
  message(...dims.map((dim) => field(1, dim)), field(2, type), field(8, name), field(9, bytes));
function valueInfo(name, dims) {
  const shape = message(
    ...dims.map((dim) => field(1, typeof dim === "string" ? field(2, dim) : field(1, dim))),
  );
  return message(field(1, name), field(2, field(1, message(field(1, FLOAT), field(2, shape)))));
}

/** The bytes of a model y = x W^T with W [n, k] in 4 bits, random codes. */
function matMulNBits(n, k, block) {
  const blocks = Math.ceil(k / block);
  const codes = Buffer.alloc((n * blocks * block) / 2);
  for (let i = 0; i < codes.length; i += 4) codes.writeInt32LE(Math.imul(i + 1, 2654435761 | 0), i);
  const scales = Buffer.from(new Float32Array(n * blocks).fill(0.01).buffer);
  const node = message(
    ...["x", "w", "s"].map((name) => field(1, name)),
    field(2, "y"),
    field(4, "MatMulNBits"),
    ...Object.entries({ K: k, N: n, bits: 4, block_size: block, accuracy_level: 4 }).map(
      ([name, value]) => field(5, attribute(name, value)),
    ),
    field(7, "com.microsoft"),
  );
  const graph = message(
    field(1, node),
    field(2, "g"),
    field(5, tensor("w", UINT8, [n, blocks, block / 2], codes)),
    field(5, tensor("s", FLOAT, [n * blocks], scales)),
    field(11, valueInfo("x", ["m", k])),
    field(12, valueInfo("y", ["m", n])),
  );
  return message(
    field(1, 8),
    field(7, graph),
    field(8, message(field(1, ""), field(2, 17))),
    field(8, message(field(1, "com.microsoft"), field(2, 1))),
  );
}

/** One product of `rows` rows; `copies` sessions take turns, so that weights come from memory. */
export async function openMatMul({ threads, rows, n, k, block, copies = 1 }) {
  const bytes = matMulNBits(n, k, block);
  const sessions = [];
  for (let i = 0; i < copies; i++) {
    sessions.push(
      await InferenceSession.create(bytes, { intraOpNumThreads: threads, interOpNumThreads: 1 }),
    );
  }
  const x = new Float32Array(rows * k).map((_, i) => ((i * 37) % 255) / 127 - 1);
  const feeds = { x: new Tensor("float32", x, [rows, k]) };
  let turn = 0;
  return {
    /** Seconds of one product. */
    async run() {
      const session = sessions[turn++ % sessions.length];
      const started = performance.now();
      await session.run(feeds);
      return (performance.now() - started) / 1000;
    },
    async close() {
      for (const session of sessions) await session.release();
    },
  };
}
