/** Scales and zero points of all groups of a weight, and their assembly to a tensor. */
import { NumericError } from "../../core/errors.js";
import { AffineColumns } from "../../encodings/affine-bytes.js";
import { createGint } from "../../encodings/gint.js";
import { GridFitter } from "../../encodings/grid.js";
import { columnsPerGroup, groupsPerRow, scaleShape } from "../../encodings/groups.js";
import type { PreOp, QuantTensor } from "../../encodings/types.js";
import type { GridOptions } from "./grid-options.js";

/** @throws NumericError naming the tensor when it holds NaN or infinities. */
export function checkFinite(weight: Float32Array, path: string): void {
  for (let i = 0; i < weight.length; i++) {
    const x = weight[i] as number;
    if (x - x !== 0) {
      throw new NumericError(
        `holds the value ${x}`,
        { place: path, hint: "The checkpoint is damaged; quantize another copy." },
        "not-finite",
      );
    }
  }
}

interface ByteColumns {
  scale: AffineColumns;
  zero: AffineColumns | null;
}

export class GroupParams {
  readonly fitter: GridFitter;
  /** Columns of a full group. */
  readonly width: number;
  /** Groups in a row. */
  readonly groups: number;
  /** [n, G], or one entry for "tensor". */
  readonly scale: Float32Array;
  readonly zero: Float32Array;
  readonly #perTensor: boolean;
  /** 8-bit scales and float zeros. */
  readonly #bytes: ByteColumns | null;

  constructor(
    readonly options: GridOptions,
    readonly n: number,
    readonly k: number,
  ) {
    const { scaleType } = options;
    this.fitter = new GridFitter({ ...options, scaleType: scaleType === "u8" ? "f16" : scaleType });
    this.width = columnsPerGroup(k, options.groupSize);
    this.groups = groupsPerRow(k, options.groupSize);
    const [rows, columns] = scaleShape(n, k, options.groupSize);
    this.scale = new Float32Array(rows * columns);
    this.zero = new Float32Array(rows * columns);
    this.#perTensor = options.groupSize === "tensor";
    const floatZero = options.sym === false && options.zero === "float";
    this.#bytes =
      scaleType === "u8"
        ? {
            scale: new AffineColumns(rows, columns),
            zero: floatZero ? new AffineColumns(rows, columns) : null,
          }
        : null;
  }

  /** Distance between the parameters of consecutive rows; 0 when all rows share them. */
  get rowStride(): number {
    return this.#perTensor ? 0 : this.groups;
  }

  /**
   * Fits group g of every row from the columns of `w` [n, k] it covers.
   * @param importance weight of each column's squared error ("hdiag"), or null
   */
  fitGroup(w: Float32Array, g: number, importance: Float64Array | null): void {
    const { fitter, k, width } = this;
    if (this.#perTensor) {
      const spread = importance && repeat(importance, this.n);
      fitter.fit(w, 0, w.length, spread, 0);
      this.scale[0] = fitter.scale;
      this.zero[0] = fitter.zero;
      return;
    }
    const from = g * width;
    const count = Math.min(width, k - from);
    for (let r = 0; r < this.n; r++) {
      fitter.fit(w, r * k + from, count, importance, from);
      this.scale[r * this.groups + g] = fitter.scale;
      this.zero[r * this.groups + g] = fitter.zero;
    }
    if (this.#bytes) this.#storeBytes(this.#bytes, g);
  }

  /** Integer zero points stay; float zeros follow the scales, which change by up to 1/510 of the spread of their column. */
  #storeBytes({ scale, zero }: ByteColumns, g: number): void {
    // Float zeros are kept as offsets while the scales move.
    if (zero) this.#eachRow(g, (p) => (this.zero[p] as number) * (this.scale[p] as number));
    scale.store(this.scale, g);
    if (!zero) return;
    this.#eachRow(g, (p) => (this.zero[p] as number) / (this.scale[p] as number));
    zero.store(this.zero, g);
  }

  #eachRow(g: number, zeroAt: (p: number) => number): void {
    for (let r = 0; r < this.n; r++) {
      const p = r * this.groups + g;
      this.zero[p] = zeroAt(p);
    }
  }

  fitAll(w: Float32Array, importance: Float64Array | null): void {
    for (let g = 0; g < this.groups; g++) this.fitGroup(w, g, importance);
  }

  /** Nearest codes of `w` [n, k] on the fitted grids. */
  encode(w: Float32Array): Uint8Array {
    const codes = new Uint8Array(w.length);
    const { k, width, groups, rowStride } = this;
    for (let r = 0; r < this.n; r++) {
      for (let g = 0; g < groups; g++) {
        const at = r * k + g * width;
        const count = Math.min(width, k - g * width);
        const p = r * rowStride + g;
        const scale = this.scale[p] as number;
        const zero = this.zero[p] as number;
        this.fitter.encode(w, at, count, scale, zero, codes, at);
      }
    }
    return codes;
  }

  /** The tensor with these parameters and codes [n, k], one byte each. */
  toTensor(codes: Uint8Array, pre: PreOp[] = []): QuantTensor {
    const { options, n, k } = this;
    const { bits, groupSize, sym } = options;
    const { scaleType } = this.fitter.rules;
    const zero =
      sym !== false
        ? 2 ** (bits - 1)
        : options.zero === "int"
          ? Uint8Array.from(this.zero)
          : this.zero;
    const affine = this.#bytes && {
      scale: this.#bytes.scale.bytes,
      ...(this.#bytes.zero && { zero: this.#bytes.zero.bytes }),
    };
    const main = createGint({
      ...{ n, k, bits, groupSize, codes, scale: this.scale, scaleType, zero },
      ...(affine && { affine }),
    });
    return { n, k, main, pre, post: [] };
  }
}

function repeat(values: Float64Array, times: number): Float64Array {
  const out = new Float64Array(values.length * times);
  for (let i = 0; i < times; i++) out.set(values, i * values.length);
  return out;
}
