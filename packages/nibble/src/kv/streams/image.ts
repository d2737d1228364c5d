/**
 * The bytes of one managed sequence, for files: slots, sealed groups as they are, exact rows, and what policies and
 * statistics remember. Little endian; every length is checked before anything is touched.
 */
import { FormatError } from "../../core/errors.js";
import type { SequenceImage } from "../flat-image.js";
import type { LayerState } from "./layer.js";
import type { ManagedCache } from "./managed.js";

export class ByteWriter {
  #bytes = new Uint8Array(1024);
  #used = 0;

  integer(value: number): void {
    new DataView(this.#room(4).buffer).setInt32(this.#used - 4, value, true);
  }
  bytes(value: Uint8Array): void {
    this.integer(value.length);
    const start = this.#used;
    this.#room(value.length).set(value, start);
  }
  floats(value: Float32Array): void {
    this.bytes(new Uint8Array(value.slice().buffer));
  }
  finish(): Uint8Array {
    return this.#bytes.slice(0, this.#used);
  }

  #room(count: number): Uint8Array<ArrayBuffer> {
    const end = this.#used + count;
    if (end > this.#bytes.length) {
      const larger = new Uint8Array(Math.max(end, 2 * this.#bytes.length));
      larger.set(this.#bytes.subarray(0, this.#used));
      this.#bytes = larger;
    }
    this.#used = end;
    return this.#bytes;
  }
}

export class ByteReader {
  readonly #view: DataView;
  #at = 0;

  constructor(bytes: Uint8Array) {
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  /** @throws FormatError unless the next integer is one of low..high */
  integer(low: number, high: number): number {
    this.#need(4);
    const value = this.#view.getInt32(this.#at, true);
    this.#at += 4;
    if (value < low || value > high) damaged(`${value} where ${low}..${high} is expected`);
    return value;
  }
  /** @param length what it must be; absent: any */
  bytes(length?: number): Uint8Array {
    const count = this.integer(length ?? 0, length ?? this.#view.byteLength);
    this.#need(count);
    const start = this.#view.byteOffset + this.#at;
    this.#at += count;
    return new Uint8Array(this.#view.buffer, start, count).slice();
  }
  /** @throws FormatError unless all of them are finite */
  floats(length: number): Float32Array {
    const values = new Float32Array(this.bytes(length * 4).buffer);
    if (!values.every(Number.isFinite)) damaged("it holds numbers that are not finite");
    return values;
  }
  end(): void {
    if (this.#at !== this.#view.byteLength) damaged("it has bytes behind its end");
  }

  #need(count: number): void {
    if (this.#at + count > this.#view.byteLength) damaged("it ends too early");
  }
}

function damaged(what: string): never {
  throw new FormatError(`the saved cache is damaged or of another cache recipe: ${what}`);
}

export class ManagedImage implements SequenceImage {
  readonly #cache: ManagedCache;

  constructor(cache: ManagedCache) {
    this.#cache = cache;
  }

  /** A sequence is saved as it stands or not at all: what it was before is gone. */
  savable(slot: number, length: number): number {
    return this.#cache.length(slot) === length ? length : 0;
  }

  save(slot: number, length: number): Uint8Array {
    const writer = new ByteWriter();
    if (length > 0) {
      writer.integer(this.#cache.promptLength(slot));
      for (const layer of this.#cache.layers(slot)) {
        for (const stream of layer.streams) stream.save(writer);
      }
    }
    return writer.finish();
  }

  check(bytes: Uint8Array, length: number): void {
    const { layers, drop } = this.#read(bytes, length);
    drop(layers);
  }

  load(slot: number, bytes: Uint8Array, length: number): void {
    if (length === 0) return;
    const { layers, promptLength } = this.#read(bytes, length);
    this.#cache.adopt(slot, layers, promptLength);
  }

  #read(bytes: Uint8Array, length: number) {
    let promptLength = 0;
    const layers: LayerState[] = length > 0 ? this.#cache.newLayers() : [];
    const drop = (made: LayerState[]) => {
      for (const { streams } of made) for (const stream of streams) stream.dispose();
    };
    try {
      const reader = new ByteReader(bytes);
      if (length > 0) promptLength = reader.integer(0, 2 ** 31 - 1);
      for (const layer of layers) for (const stream of layer.streams) stream.load(reader, length);
      reader.end();
    } catch (error) {
      drop(layers);
      throw error;
    }
    return { layers, promptLength, drop };
  }
}
