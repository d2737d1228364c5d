/** A text that goes through appendKv and attention of one layer in runs of any size, on any engine. */
import type { Engine, LoadedProgram } from "../contract.js";
import { CONTROL_BYTES, KV_CODEC, LINE, PAGE_TOKENS } from "../ops.js";
import { isKiviCodec, NO_TAIL, planeLines, tailLines } from "../page-layout.js";
import { Lab } from "./lab.js";
import { upload } from "./run.js";

export interface TextShape {
  keyCodec: number;
  valueCodec: number;
  residual?: number;
  heads: number;
  kvHeads: number;
  headDim: number;
  /** Positions a sequence may reach, sequences, rows of a run. */
  tokens: number;
  slots?: number;
  maxRows: number;
}

/** One row: the sequence it belongs to and its q, k and v [(heads + 2 kvHeads) * headDim]. */
export interface TextRow {
  slot: number;
  position: number;
  qkv: Float32Array;
}

export class CacheText {
  readonly shape: TextShape;
  readonly bytes: Uint8Array;
  readonly poolAt: number;
  readonly pageLines: number;
  readonly headLines: number;
  readonly keyLines: number;
  readonly #engine: Engine;
  readonly #program: LoadedProgram;
  readonly #places: { qkv: number; positions: number; sequences: number; dst: number };

  constructor(engine: Engine, shape: TextShape) {
    const { heads, kvHeads, headDim, tokens, slots = 1, maxRows } = shape;
    this.shape = shape;
    const lab = new Lab(1, maxRows);
    const maxPages = Math.ceil(tokens / PAGE_TOKENS);
    this.keyLines = planeLines(shape.keyCodec, headDim);
    this.headLines = this.keyLines + planeLines(shape.valueCodec, headDim);
    this.pageLines = kvHeads * this.headLines;
    const pages = maxPages * slots;
    const residual = shape.residual ?? 0;
    const kivi = isKiviCodec(shape.keyCodec);
    const tailTokens = Math.ceil((residual + lab.maxRows) / 128) * 128;
    const tail = new Uint8Array(slots * kvHeads * tailLines(tailTokens, headDim) * LINE).fill(0xff);
    this.poolAt = lab.place(new Uint8Array(pages * this.pageLines * LINE).fill(0xff));
    const cacheC = lab.builder.cache({
      ...NO_TAIL,
      ...(kivi ? { residual, tailTokens, tailAt: lab.place(tail) } : {}),
      keyCodec: shape.keyCodec,
      valueCodec: shape.valueCodec,
      keyZeroInt: 0,
      valueZeroInt: 0,
      keyClipF: 1,
      valueClipF: 1,
      hadamard: 0,
      queryBits: 32,
      poolAt: this.poolAt,
      pageLines: this.pageLines,
      headLines: this.headLines,
      keyLines: this.keyLines,
      tableAt: lab.place(Int32Array.from({ length: pages }, (_, i) => i)),
      layers: 1,
      maxPages,
      kvHeads,
      headDim,
      pages,
      slots,
    });
    const width = (heads + 2 * kvHeads) * headDim;
    this.#places = {
      qkv: lab.f32Rows("qkv", width, "in"),
      positions: lab.i32Rows("positions", 1, "in"),
      sequences: lab.i32Rows("sequences", 1, "in"),
      dst: lab.f32Rows("dst", heads * headDim, "out"),
    };
    const common = {
      rowsReg: 0,
      positionsAt: this.#places.positions,
      sequencesAt: this.#places.sequences,
      heads,
      kvHeads,
      headDim,
      cacheC,
      layer: 0,
      queryAt: lab.alloc(lab.maxRows * heads * headDim * 4),
      queryScaleAt: -1,
      querySumAt: -1,
    };
    const half = headDim / 2;
    // No rotation: keys are what the rows say.
    const angles = maxPages * PAGE_TOKENS * half;
    lab.emit("appendKv", {
      ...common,
      qkvAt: this.#places.qkv,
      ldQkv: width,
      cosAt: lab.floats(angles, () => 1),
      sinAt: lab.floats(angles, () => 0),
      queryGainAt: -1,
      keyGainAt: -1,
      epsilonF: 0,
    });
    const parts = lab.maxRows * heads * Math.ceil(tokens / 128);
    const partsLines = Math.ceil((parts * (headDim + 2) * 4) / LINE);
    lab.emit("attention", {
      ...common,
      dstAt: this.#places.dst,
      ldDst: heads * headDim,
      softmaxScaleF: Math.fround(1 / Math.sqrt(headDim)),
      slidingWindow: 0,
      partsAt: lab.alloc(partsLines * LINE),
      partsLines,
    });
    this.bytes = upload(engine, lab);
    this.#engine = engine;
    this.#program = engine.load(lab.words(engine.threads));
  }

  /** Attention of the rows of one run, row by row. */
  async run(rows: TextRow[]): Promise<Float32Array[]> {
    const { buffer } = this.bytes;
    const words = new Int32Array(buffer);
    const floats = new Float32Array(buffer);
    const { heads, headDim } = this.shape;
    words[0] = rows.length;
    rows.forEach(({ slot, position, qkv }, m) => {
      words[this.#places.positions * 16 + m] = position;
      words[this.#places.sequences * 16 + m] = slot;
      floats.set(qkv, this.#places.qkv * 16 + m * qkv.length);
    });
    await this.#engine.run(this.#program);
    const width = heads * headDim;
    return rows.map((_, m) => {
      const at = this.#places.dst * 16 + m * width;
      return floats.slice(at, at + width);
    });
  }

  /** Bytes of the keys or values of a head in page `page` (page number = position >> 5 in a single sequence). */
  plane(page: number, head: number, keys: boolean): Uint8Array<ArrayBuffer> {
    const at = this.poolAt + page * this.pageLines + head * this.headLines;
    const first = (keys ? at : at + this.keyLines) * LINE;
    const codec = keys ? this.shape.keyCodec : this.shape.valueCodec;
    return new Uint8Array(
      this.bytes.slice(first, first + planeLines(codec, this.shape.headDim) * LINE),
    );
  }

  /** Everything behind the control block, as it is now. */
  snapshot(): Uint8Array {
    return this.bytes.slice(CONTROL_BYTES);
  }

  dispose(): void {
    this.#program.dispose();
  }
}

export const kiviCodec = (bits: 2 | 4): number => (bits === 2 ? KV_CODEC.kivi2 : KV_CODEC.kivi4);
