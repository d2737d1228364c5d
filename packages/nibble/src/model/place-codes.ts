/** Places packed codes as panel 32 segments: on the engine's threads where it can, else row by row in TypeScript. */
import type { PackedCodes } from "../encodings/types.js";
import type { Arena } from "../graph/arena.js";
import {
  type CodeSegments,
  PanelWriter,
  panelSlot,
  segmentBytes,
  segmentWidths,
} from "../kernels/panel32.js";

/** Line of each segment, -1 for widths that the codes do not have. */
export interface SegmentPlaces {
  seg8At: number;
  seg4At: number;
  seg2At: number;
  seg1At: number;
}

/**
 * @param parts matrices of equal k and bits, one below the other
 * @param interleaved two parts, gate and up, in alternating half-panels
 */
export function placeCodes(
  arena: Arena,
  parts: readonly PackedCodes[],
  interleaved: boolean,
): SegmentPlaces {
  const places: SegmentPlaces = { seg8At: -1, seg4At: -1, seg2At: -1, seg1At: -1 };
  const [head] = parts;
  if (!head) return places;
  const { bits, cols: k } = head;
  const n = parts.reduce((sum, { rows }) => sum + rows, 0);
  const segments: CodeSegments = {};
  for (const width of segmentWidths(bits)) {
    const bytes = segmentBytes(n, k, width);
    const targetAt = arena.alloc(bytes);
    places[`seg${width}At`] = targetAt;
    const target = arena.u8(targetAt, bytes);
    segments[width] = target;
    if (n % 32 !== 0) target.fill(0);
    if (!arena.pack) continue;
    let first = 0;
    for (const { rows, segments: codes } of parts) {
      const source = codes[width] as Uint8Array; // packed codes have a segment for each set bit
      arena.pack({ source, width, k, targetAt, n, first, rows, interleaved });
      first += rows;
    }
  }
  if (arena.pack) return places;
  const writer = new PanelWriter(segments, k, bits);
  let first = 0;
  for (const codes of parts) {
    for (let r = 0; r < codes.rows; r++) {
      writer.writePacked(panelSlot(first + r, n, interleaved), codes, r);
    }
    first += codes.rows;
  }
  return places;
}
