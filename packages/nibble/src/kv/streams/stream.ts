/**
 * One run of slots that advance together: the KV heads of a layer, or a single one when the policy decides per head.
 * Regions in slot order: exact sinks, sealed groups, exact tail, exact scratch (drafts that nobody committed yet); keys and
 * values are sealed to different lengths. Slots are live slots: what a policy evicts leaves the order at once, and its
 * cell is reused or its group is freed when nobody is left in it. The order of events is docs/kv-cache.md.
 */
import { ResourceError, UsageError } from "../../core/errors.js";
import type {
  CodecCaps,
  PlaneCodec,
  PlaneName,
  SealInfo,
  StatRequest,
  StreamInfo,
  StreamPolicy,
} from "../contract.js";
import type { TileAttender } from "./attender.js";
import { hadamardHead, type RopeTable, rotate } from "./frame.js";
import type { ByteReader, ByteWriter } from "./image.js";
import { type PlaneSpec, PlaneStore } from "./plane.js";
import { SlotTable } from "./slots.js";
import { Statistics } from "./statistics.js";

export interface StreamSpec {
  info: StreamInfo;
  /** Query heads per KV head. */
  groupHeads: number;
  k: PlaneSpec;
  v: PlaneSpec;
  /** Tokens at the start of the text that stay exact. */
  sinks: number;
  positions: "absolute" | "slot";
  /** Positions that a row sees, by the model's own sliding window; null: all. */
  window: number | null;
  rope: RopeTable;
  stats: StatRequest;
  createPolicy(info: StreamInfo): StreamPolicy;
}

/** Slots that a set of rows looks at in one run, with the form in which they are read. */
export interface TileJob {
  from: number;
  to: number;
  /** Per row: what it sees of all slots. */
  lows: Int32Array;
  highs: Int32Array;
  /** Rows that are sealed already are read as they were before, when the form asks for it. */
  exactKeys: boolean;
  exactValues: boolean;
  /** Place of the queries: their own position (null), or their slot plus this. */
  offset: number | null;
}

interface Plane {
  readonly name: PlaneName;
  readonly caps: CodecCaps;
  store: PlaneStore;
  /** Slots below this are sealed or sinks. */
  sealed: number;
  /** While a piece of several rows runs: exact rows of slots that were sealed for its later rows. */
  ahead: { from: number; rows: Int32Array } | null;
}

/** How a plane is sealed when rows are fed one by one. */
export type SealRhythm =
  /** At once, before the row's own query looks. */
  | { kind: "immediate" }
  /** After each step, all but the newest `lag` rows. */
  | { kind: "lag"; lag: number }
  /** When the tail is full. */
  | { kind: "batch" };

export function sealRhythm({ flush, group, sealTiming }: CodecCaps): SealRhythm {
  const steady = group === 1 && flush.when === flush.keep + 1;
  if (steady && sealTiming === "beforeAttend" && flush.keep === 0) return { kind: "immediate" };
  if (steady && sealTiming === "afterAttend") return { kind: "lag", lag: flush.keep };
  return { kind: "batch" };
}

export class HeadStream {
  readonly spec: StreamSpec;
  readonly policy: StreamPolicy;
  readonly statistics: Statistics;
  readonly k: Plane;
  readonly v: Plane;
  #slots = new SlotTable();
  /** Slots that are no scratch. */
  #committed = 0;
  #sinks = 0;
  /** Tokens the stream has seen. */
  #seen = 0;
  /** Rows of the draft, until it is committed or dropped. */
  #draft = 0;
  #references = new Int32Array(0);
  readonly #width: number;

  constructor(spec: StreamSpec, statistics?: Statistics) {
    this.spec = spec;
    this.policy = spec.createPolicy(spec.info);
    this.k = newPlane("k", spec.k);
    this.v = newPlane("v", spec.v);
    this.#width = spec.info.kvHeads * spec.info.headDim;
    const rows = (caps: CodecCaps) => (caps.stats?.kind === "colMaxProb" ? caps.stats.lastRows : 0);
    const codecRows = Math.max(rows(this.k.caps), rows(this.v.caps));
    this.statistics =
      statistics ?? new Statistics(spec.stats, codecRows, spec.info.kvHeads, spec.groupHeads);
  }

  /** Live slots, scratch included. */
  get length(): number {
    return this.#slots.length;
  }
  get committed(): number {
    return this.#committed;
  }
  get seen(): number {
    return this.#seen;
  }
  /** Slots that keep their exact keys or values for the newest token. */
  get #hold(): number {
    return this.policy.preAppend ? 1 : 0;
  }

  position(slot: number): number {
    return this.#slots.get("position", slot);
  }

  /**
   * Adds rows behind the others: keys [rows, width] as the cache holds them (rotated and transformed), values, positions
   * in the text. Scratch rows can be taken back; nothing is done with them until they are committed.
   */
  append(
    keys: Float32Array,
    values: Float32Array,
    positions: ArrayLike<number>,
    options: { scratch?: boolean } = {},
  ): void {
    if (this.#draft > 0) {
      throw new UsageError("a draft is waiting: commit it or roll it back first");
    }
    for (let i = 0; i < positions.length; i++) {
      const at = i * this.#width;
      const [k, v] = [this.k.store.add(keys, at), this.v.store.add(values, at)];
      this.#slots.push(positions[i] as number, k, v);
      if (options.scratch) this.#draft++;
      else this.#accept(positions[i] as number);
    }
  }

  /** Replaces the newest slot by a weighted sum of itself and a row, which gives it its position. */
  merge(
    key: Float32Array,
    value: Float32Array,
    position: number,
    weights: { oldWeight: number; newWeight: number },
  ): void {
    const slot = this.#committed - 1;
    if (slot < 0) throw new UsageError("there is no slot to merge into");
    for (const [plane, row] of [
      [this.k, key],
      [this.v, value],
    ] as const) {
      const target = plane.store.exact(this.#slots.get(plane.name, slot));
      for (let d = 0; d < this.#width; d++) {
        target[d] =
          (target[d] as number) * weights.oldWeight + (row[d] as number) * weights.newWeight;
      }
    }
    this.#slots.set("position", slot, position);
    this.#seen++;
  }

  #accept(position: number): void {
    this.#committed++;
    this.#seen++;
    if (position < this.spec.sinks && this.#sinks === this.#committed - 1) {
      this.#sinks++;
      this.k.sealed = Math.max(this.k.sealed, this.#sinks);
      this.v.sealed = Math.max(this.v.sealed, this.#sinks);
    }
  }

  // ---- attention ------------------------------------------------------------------------------------------------------

  /**
   * What the newest `rows` rows look at, cut into tiles. Row i sees every slot up to its own.
   * @param positions places of the rows in the text
   */
  jobs(rows: number, positions: ArrayLike<number>, tileSlots: number): TileJob[] {
    const base = this.length - rows;
    const { window } = this.spec;
    const lows = new Int32Array(rows);
    const highs = new Int32Array(rows);
    const keyEnd = new Int32Array(rows);
    const valueEnd = new Int32Array(rows);
    for (let i = 0; i < rows; i++) {
      const own = base + i;
      lows[i] = window === null ? 0 : this.#firstAfter((positions[i] as number) - window);
      highs[i] = own + 1;
      keyEnd[i] = this.#sealedFor(this.k, own);
      valueEnd[i] = this.#sealedFor(this.v, own);
    }
    const bound = (f: (i: number) => number) =>
      Int32Array.from({ length: rows }, (_, i) =>
        Math.min(Math.max(f(i), lows[i] as number), highs[i] as number),
      );
    const first = bound((i) => Math.min(keyEnd[i] as number, valueEnd[i] as number));
    const second = bound((i) => Math.max(keyEnd[i] as number, valueEnd[i] as number));
    const keysFirst = this.k.ahead !== null && (keyEnd[0] as number) <= (valueEnd[0] as number);
    const jobs: TileJob[] = [];
    this.#cut(jobs, lows, first, false, false, tileSlots);
    if (this.k.ahead || this.v.ahead) {
      this.#cut(jobs, first, second, keysFirst, !keysFirst, tileSlots);
      this.#cut(jobs, second, highs, true, true, tileSlots);
    }
    return jobs;
  }

  /** End of the slots that are read sealed by the row at slot `own`, while a piece runs; else everything is as it is. */
  #sealedFor({ ahead, caps }: Plane, own: number): number {
    if (!ahead) return own + 1;
    return Math.max(ahead.from, Math.min(own - caps.flush.keep, ahead.from + ahead.rows.length));
  }

  #cut(
    jobs: TileJob[],
    lows: Int32Array,
    highs: Int32Array,
    exactKeys: boolean,
    exactValues: boolean,
    tileSlots: number,
  ): void {
    let start = Number.POSITIVE_INFINITY;
    let end = 0;
    for (let i = 0; i < lows.length; i++) {
      if ((lows[i] as number) >= (highs[i] as number)) continue;
      start = Math.min(start, lows[i] as number);
      end = Math.max(end, highs[i] as number);
    }
    const spans = this.spec.positions === "slot" && this.k.caps.keyFrame === "post";
    // Tiles begin at multiples of their size, so that chunks do too.
    for (let from = start; from < end; ) {
      let to = Math.min(end, from - (from % tileSlots) + tileSlots);
      let offset: number | null = this.spec.positions === "slot" ? 0 : null;
      if (spans) {
        offset = this.position(from) - from;
        let next = from + 1;
        while (next < to && this.position(next) - next === offset) next++;
        to = next;
      }
      jobs.push({ from, to, lows, highs, exactKeys, exactValues, offset });
      from = to;
    }
  }

  /** First slot whose position is beyond `position`; slots are in order of position. */
  #firstAfter(position: number): number {
    let [low, high] = [0, this.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.position(middle) > position) high = middle;
      else low = middle + 1;
    }
    return low;
  }

  /** Decodes the slots of a job into the attender, with what each row sees of them. */
  fill(job: TileJob, rows: number, attender: TileAttender): void {
    const { kvHead, kvHeads, headDim } = this.spec.info;
    const { from, to, lows, highs } = job;
    const n = to - from;
    if (this.#references.length < n) this.#references = new Int32Array(n);
    for (const [plane, target, exact] of [
      [this.k, attender.keys, job.exactKeys],
      [this.v, attender.values, job.exactValues],
    ] as const) {
      this.#slots.gather(plane.name, from, to, this.#references);
      if (exact && plane.ahead) {
        const { from: start, rows: exactRows } = plane.ahead;
        for (let t = Math.max(from, start); t < Math.min(to, start + exactRows.length); t++) {
          this.#references[t - from] = exactRows[t - start] as number;
        }
      }
      for (let head = 0; head < kvHeads; head++) {
        const at = (kvHead + head) * attender.slots * headDim;
        const out = target.subarray(at, at + n * headDim);
        plane.store.read(head, this.#references, n, out);
        if (plane.name === "k" && plane.caps.keyFrame === "pre") this.#rotateTile(out, from, n);
      }
    }
    for (let m = 0; m < rows; m++) {
      const low = Math.min(Math.max((lows[m] as number) - from, 0), n);
      const high = Math.max(Math.min((highs[m] as number) - from, n), low);
      for (let head = 0; head < kvHeads; head++) {
        const at = (m * attender.kvHeads + kvHead + head) * 2;
        attender.ranges[at] = low;
        attender.ranges[at + 1] = high;
      }
    }
  }

  #rotateTile(keys: Float32Array, from: number, n: number): void {
    const { headDim } = this.spec.info;
    for (let t = 0; t < n; t++) {
      const place = this.spec.positions === "slot" ? from + t : this.position(from + t);
      rotate(keys, t * headDim, keys, t * headDim, this.spec.rope, place);
    }
  }

  // ---- drafts -----------------------------------------------------------------------------------------------------------

  /** Accepts the first n rows of a draft, or the rows of a path through it (ascending); the others are dropped. */
  accept(kept: number | Int32Array): Int32Array {
    const rows =
      typeof kept === "number" ? Int32Array.from({ length: kept }, (_, i) => i) : kept.slice();
    const wrong = rows.some(
      (row, i) => row >= this.#draft || row < 0 || row <= (rows[i - 1] ?? -1),
    );
    if (wrong) throw new UsageError(`the draft has ${this.#draft} rows, not all of [${rows}]`);
    const stays = new Set(rows);
    this.#drop(
      Int32Array.from({ length: this.#draft }, (_, i) => i)
        .filter((i) => !stays.has(i))
        .map((i) => this.#committed + i),
    );
    this.#draft = 0;
    for (const _ of rows) this.#accept(this.position(this.#committed));
    return rows;
  }

  /** Drops the draft; everything else is as if it had never been. */
  rollback(): void {
    this.#drop(Int32Array.from({ length: this.#draft }, (_, i) => this.#committed + i));
    this.#draft = 0;
  }

  // ---- retention --------------------------------------------------------------------------------------------------------

  /** Drops live slots (ascending), the policy being told of each, and closes holes when there are too many. */
  evict(slots: Int32Array): void {
    if (this.policy.onEvict) {
      for (const slot of slots) this.policy.onEvict(this.#seenKey(slot), this.#row(this.v, slot));
    }
    this.statistics.remove(slots);
    for (const slot of slots) {
      if (slot >= this.#committed) throw new UsageError("a policy may only evict committed slots");
    }
    const below = (end: number) => slots.filter((slot) => slot < end).length;
    const [sinks, keys, values] = [below(this.#sinks), below(this.k.sealed), below(this.v.sealed)];
    this.#drop(slots);
    this.#committed -= slots.length;
    this.#sinks -= sinks;
    this.k.sealed -= keys;
    this.v.sealed -= values;
    this.#close(this.k);
    this.#close(this.v);
  }

  /** Keeps slots of positions below `length`. What was sealed stays sealed. */
  truncate(length: number): void {
    this.rollback();
    let first = this.#committed;
    while (first > 0 && this.position(first - 1) >= length) first--;
    this.#drop(Int32Array.from({ length: this.#committed - first }, (_, i) => first + i));
    this.#committed = first;
    this.#sinks = Math.min(this.#sinks, first);
    this.k.sealed = Math.min(this.k.sealed, first);
    this.v.sealed = Math.min(this.v.sealed, first);
    this.#seen = Math.min(this.#seen, length);
    this.statistics.truncate(first);
  }

  #drop(slots: Int32Array): void {
    for (const slot of slots) {
      this.k.store.release(this.#slots.get("k", slot));
      this.v.store.release(this.#slots.get("v", slot));
    }
    this.#slots.remove(slots);
  }

  /** Above half of the cells unused: moves single tokens together, or codes the rows of groups anew. */
  #close(plane: Plane): void {
    const { store, caps } = plane;
    if (!(store.holes > 0.5)) return;
    const from = this.#sinks;
    const n = plane.sealed - from;
    if (caps.group === 1) {
      const cells = new Int32Array(n);
      this.#slots.gather(plane.name, from, plane.sealed, cells);
      store.compact(cells);
      cells.forEach((cell, i) => {
        this.#slots.set(plane.name, from + i, cell);
      });
      return;
    }
    for (let slot = from; slot < plane.sealed; slot++) {
      const row = this.#row(plane, slot);
      store.release(this.#slots.get(plane.name, slot));
      this.#slots.set(plane.name, slot, store.add(row, 0));
    }
    plane.sealed = from;
    this.#seal(plane, n - (n % caps.group), this.#seen);
  }

  /** One slot as it is stored [width]. */
  #row(plane: Plane, slot: number): Float32Array {
    const { headDim, kvHeads } = this.spec.info;
    const row = new Float32Array(this.#width);
    const reference = Int32Array.of(this.#slots.get(plane.name, slot));
    for (let head = 0; head < kvHeads; head++) {
      plane.store.read(head, reference, 1, row.subarray(head * headDim, (head + 1) * headDim));
    }
    return row;
  }

  /** A key as attention sees it, without the transform that queries share. */
  #seenKey(slot: number): Float32Array {
    const { headDim } = this.spec.info;
    const row = this.#row(this.k, slot);
    const place = this.spec.positions === "slot" ? slot : this.position(slot);
    for (let at = 0; at < row.length; at += headDim) {
      if (this.k.caps.keyFrame === "pre") rotate(row, at, row, at, this.spec.rope, place);
      if (this.k.caps.headTransform) hadamardHead(row, at, headDim);
    }
    return row;
  }

  // ---- sealing ------------------------------------------------------------------------------------------------------------

  /** Seals what the flush rules of the planes with this timing say; null: both. */
  seal(timing: CodecCaps["sealTiming"] | null = null): void {
    for (const plane of [this.k, this.v]) {
      if (timing !== null && plane.caps.sealTiming !== timing) continue;
      const { flush, group } = plane.caps;
      for (;;) {
        const tail = this.#committed - this.#hold - plane.sealed;
        if (tail < flush.when) break;
        let take = flush.take === 0 ? tail - flush.keep : Math.min(flush.take, tail);
        take -= take % group;
        if (take <= 0) break;
        this.#seal(plane, take, this.#seen);
      }
    }
  }

  /** Rows that may be appended before a plane that seals in batches does so; at least 1. */
  rowsUntilSeal(): number {
    let rows = Number.POSITIVE_INFINITY;
    for (const { caps, sealed } of [this.k, this.v]) {
      if (sealRhythm(caps).kind !== "batch") continue;
      const sinksToCome = Math.max(0, this.spec.sinks - this.#seen);
      rows = Math.min(rows, sinksToCome + caps.flush.when - (this.#committed - sealed));
    }
    return Math.max(1, rows);
  }

  /**
   * Before a piece of rows, just appended, that counts as fed one by one: seals what will be sealed by its end and keeps
   * the exact rows, because earlier rows of the piece still see them.
   */
  sealAhead(rows: number): void {
    for (const plane of [this.k, this.v]) {
      const rhythm = sealRhythm(plane.caps);
      if (rhythm.kind !== "lag") continue;
      const from = plane.sealed;
      const end = Math.max(from, this.#committed - rhythm.lag);
      const exact = new Int32Array(end - from);
      this.#slots.gather(plane.name, from, end, exact);
      plane.ahead = { from, rows: exact };
      for (let slot = from; slot < end; slot++) {
        // Sealed after the step of the row `lag` behind it, when that many tokens had been seen.
        const later = this.#committed - 1 - (slot + rhythm.lag);
        this.#seal(plane, 1, this.#seen - Math.min(later, rows), true);
      }
    }
  }

  /** After the piece: gives the exact rows back. */
  forgetAhead(): void {
    for (const plane of [this.k, this.v]) {
      for (const row of plane.ahead?.rows ?? []) plane.store.release(row);
      plane.ahead = null;
    }
  }

  #seal(plane: Plane, take: number, seen: number, keepRows = false): void {
    const { group } = plane.caps;
    const rows = new Int32Array(group);
    for (let done = 0; done < take; done += group) {
      const first = plane.sealed;
      this.#slots.gather(plane.name, first, first + group, rows);
      const info = (head: number): SealInfo => ({
        firstSlot: this.position(first),
        length: seen,
        attention: this.statistics.recentMax(head, first, group),
      });
      const cell = plane.store.seal(rows, info);
      for (let i = 0; i < group; i++) {
        if (!keepRows) plane.store.release(rows[i] as number);
        this.#slots.set(plane.name, first + i, cell + i);
      }
      plane.sealed += group;
    }
  }

  // ---- life ---------------------------------------------------------------------------------------------------------------

  /** A stream with the same contents that shares every page. */
  fork(): HeadStream {
    if (this.#draft > 0)
      throw new UsageError("a draft is waiting: commit it or roll it back first");
    const copy = new HeadStream(this.spec, this.statistics.fork());
    copy.policy.restore(this.policy.snapshot());
    copy.k.store = this.k.store.fork();
    copy.v.store = this.v.store.fork();
    copy.k.sealed = this.k.sealed;
    copy.v.sealed = this.v.sealed;
    copy.#slots = this.#slots.fork(Math.min(this.k.sealed, this.v.sealed));
    copy.#committed = this.#committed;
    copy.#sinks = this.#sinks;
    copy.#seen = this.#seen;
    return copy;
  }

  /** Writes everything but a draft. */
  save(writer: ByteWriter): void {
    const slots = this.#committed;
    for (const n of [this.#seen, slots, this.#sinks, this.k.sealed, this.v.sealed]) {
      writer.integer(n);
    }
    for (let slot = 0; slot < slots; slot++) writer.integer(this.position(slot));
    for (const plane of [this.k, this.v]) {
      for (let slot = 0; slot < slots; slot++) {
        if (slot < this.#sinks || slot >= plane.sealed) {
          writer.floats(plane.store.exact(this.#slots.get(plane.name, slot)));
        }
      }
      const cells = new Int32Array(plane.sealed - this.#sinks);
      this.#slots.gather(plane.name, this.#sinks, plane.sealed, cells);
      plane.store.save(cells, writer);
    }
    writer.bytes(this.policy.snapshot());
    const recent = this.statistics.recentRows;
    for (const rows of recent) {
      writer.integer(rows.length);
      for (const row of rows) {
        writer.integer(row.length);
        writer.floats(row);
      }
    }
  }

  /** Fills this empty stream with what save() wrote of `seen` tokens. @throws FormatError */
  load(reader: ByteReader, seen: number): void {
    this.#seen = reader.integer(seen, seen);
    const slots = reader.integer(0, seen);
    const sinks = reader.integer(0, Math.min(slots, this.spec.sinks));
    const sealed = { k: reader.integer(sinks, slots), v: reader.integer(sinks, slots) };
    const positions: number[] = [];
    for (let slot = 0; slot < slots; slot++) {
      positions.push(reader.integer((positions.at(-1) ?? -1) + 1, seen - 1));
    }
    const references = (plane: Plane): number[] => {
      const rows: number[] = [];
      const end = sealed[plane.name];
      for (let i = 0; i < slots - (end - sinks); i++) {
        rows.push(plane.store.add(reader.floats(this.#width), 0));
      }
      const cells = plane.store.load(end - sinks, reader);
      return [...rows.slice(0, sinks), ...cells, ...rows.slice(sinks)];
    };
    const [keys, values] = [references(this.k), references(this.v)];
    positions.forEach((position, slot) => {
      this.#slots.push(position, keys[slot] as number, values[slot] as number);
    });
    this.policy.restore(reader.bytes());
    const recent = this.statistics.recentRows.map(() =>
      Array.from({ length: reader.integer(0, this.statistics.depth) }, () =>
        reader.floats(reader.integer(0, slots)),
      ),
    );
    this.statistics.restoreRecent(recent);
    this.#committed = slots;
    this.#sinks = sinks;
    this.k.sealed = sealed.k;
    this.v.sealed = sealed.v;
    this.check();
  }

  /** Gives every page back. The stream is of no more use. */
  dispose(): void {
    this.k.store.clear();
    this.v.store.clear();
  }

  /** Bytes of exact rows, lists and policy state; pages are counted by their pool. */
  get privateBytes(): number {
    const { k, v } = this;
    return (
      k.store.rowBytes +
      v.store.rowBytes +
      k.store.metaBytes +
      v.store.metaBytes +
      this.#slots.ownBytes +
      this.policy.bytes +
      this.statistics.bytes
    );
  }
  get sharedSlots(): { key: object; bytes: number } | null {
    return this.#slots.shared;
  }

  /** @throws ResourceError when the bookkeeping disagrees with itself: for tests and after restoring */
  check(): void {
    const fail = (what: string): never => {
      throw new ResourceError(`a cache stream is damaged: ${what}`, {}, "kv-stream");
    };
    for (const plane of [this.k, this.v]) {
      const seen = new Set<number>();
      for (let slot = 0; slot < this.length; slot++) {
        const reference = this.#slots.get(plane.name, slot);
        if (seen.has(reference)) fail(`two slots share place ${reference}`);
        seen.add(reference);
        const sealed = slot >= this.#sinks && slot < plane.sealed;
        if (reference >= 0 !== sealed) fail(`slot ${slot} is on the wrong side of the seal`);
        if (slot > 0 && this.position(slot) <= this.position(slot - 1)) fail("order of positions");
      }
    }
    if (this.#committed + this.#draft !== this.length) fail("slots that belong to nobody");
  }
}

function newPlane(name: PlaneName, spec: PlaneSpec): Plane {
  const { caps } = spec.codecs[0] as PlaneCodec;
  return { name, caps, store: new PlaneStore(spec), sealed: 0, ahead: null };
}
