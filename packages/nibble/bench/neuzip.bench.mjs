/**
 * NeuZip decoding on one thread, best of several rounds by processor time (so that other work does not count), and what it saves:
 *   npm run bench -- neuzip [model] [--rounds n] [--elements n]
 * Without a model: normal values. With one: its largest linears, as bf16. `MB/s` counts the floats that come out.
 */
import { parseArgs } from "node:util";
import { NeuzipDecoder, neuzipEncode } from "../dist/encodings/neuzip.js";
import { loadModel } from "../dist/runtime/load-model.js";

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    rounds: { type: "string", default: "5" },
    elements: { type: "string", default: String(4 << 20) },
  },
});

function toBits(floats, type) {
  if (type === "f32") return new Uint32Array(floats.buffer.slice(0));
  const words = new Uint32Array(floats.buffer, floats.byteOffset, floats.length);
  if (type === "bf16")
    return Uint16Array.from(words, (w) => (w + 0x7fff + ((w >>> 16) & 1)) >>> 16);
  return Uint16Array.from(words, (w) => {
    const exponent = ((w >>> 23) & 255) - 112;
    if (exponent <= 0) return (w >>> 16) & 0x8000;
    return ((w >>> 16) & 0x8000) | (Math.min(exponent, 30) << 10) | ((w >>> 13) & 0x3ff);
  });
}

async function tensors() {
  if (positionals.length === 0) {
    const floats = new Float32Array(Number(values.elements));
    let state = 1;
    const uniform = () => {
      state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
      return state / 2 ** 32;
    };
    for (let i = 0; i < floats.length; i++) {
      floats[i] =
        0.02 * Math.sqrt(-2 * Math.log(uniform() + 1e-12)) * Math.cos(2 * Math.PI * uniform());
    }
    return [["normal values", floats]];
  }
  const model = await loadModel(positionals[0]);
  const picked = [...model.parameters.values()]
    .filter(({ spec }) => spec.kind === "linear")
    .sort((a, b) => b.spec.shape[0] * b.spec.shape[1] - a.spec.shape[0] * a.spec.shape[1])
    .slice(0, 4);
  return Promise.all(picked.map(async ({ spec, weight }) => [spec.path, await weight.read()]));
}

for (const [name, floats] of await tensors()) {
  for (const type of ["bf16", "f16", "f32"]) {
    const bits = toBits(floats, type);
    const coded = neuzipEncode(bits, type);
    let best = Infinity;
    let out = bits;
    for (let round = 0; round < Number(values.rounds); round++) {
      const started = process.cpuUsage();
      out = new NeuzipDecoder(coded, name).decode();
      const used = process.cpuUsage(started);
      best = Math.min(best, (used.user + used.system) / 1000);
    }
    if (!out.every((x, i) => x === bits[i])) throw new Error(`${name}: not the same bits`);
    const rate = bits.byteLength / 1e6 / (best / 1000);
    const width = (8 * coded.byteLength) / bits.length;
    console.log(
      `${name} ${type}: ${width.toFixed(2)} bits (ratio ${(bits.byteLength / coded.byteLength).toFixed(3)}), decode ${rate.toFixed(0)} MB/s a thread`,
    );
  }
}
