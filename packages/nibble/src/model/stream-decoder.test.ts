import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { StreamDecoder } from "./stream-decoder.js";

/** One id per UTF-8 byte; 256 is a control token. */
const decode = (ids: readonly number[], skipSpecial: boolean): string => {
  const parts: string[] = [];
  let bytes: number[] = [];
  const end = () => {
    parts.push(new TextDecoder("utf-8", { ignoreBOM: true }).decode(Uint8Array.from(bytes)));
    bytes = [];
  };
  for (const id of ids) {
    if (id < 256) bytes.push(id);
    else if (!skipSpecial) {
      end();
      parts.push("<end>");
    }
  }
  end();
  return parts.join("");
};
const make = (stop: string[] = [], skipSpecial = true) =>
  new StreamDecoder(decode, stop, { skipSpecial });
const bytes = (text: string) => [...new TextEncoder().encode(text)];

/** All pieces and the rest. */
function all(decoder: StreamDecoder, ids: readonly number[]): string {
  return ids.map((id) => decoder.push(id)).join("") + decoder.flush();
}

describe("whole characters", () => {
  it("an emoji comes out with its last byte", () => {
    const decoder = make();
    const pieces = bytes("a🚀b").map((id) => decoder.push(id));
    expect(pieces).toEqual(["a", "", "", "", "🚀", "b"]);
  });
  it("a half character comes out at the end as U+FFFD", () => {
    expect(all(make(), bytes("é").slice(0, 1))).toBe("\uFFFD");
  });
  it("control tokens are left out or spelled, as asked", () => {
    expect(all(make(), [104, 256, 105])).toBe("hi");
    expect(all(make([], false), [104, 256, 105])).toBe("h<end>i");
    expect(all(make(), [256, 256])).toBe("");
  });
  it("pieces joined equal the whole, for any text and any bytes", () => {
    const ids = fc.oneof(
      fc.string({ unit: "binary" }).map(bytes),
      fc.array(fc.integer({ min: 0, max: 256 })),
    );
    fc.assert(
      fc.property(ids, fc.boolean(), (list, skip) => {
        expect(all(make([], skip), list)).toBe(decode(list, skip));
      }),
      { numRuns: 500 },
    );
  });
  it("a decoder that strips the first blank keeps the others", () => {
    const words = [" one", " two", " three"];
    const strip = (ids: readonly number[]) =>
      ids
        .map((id) => words[id])
        .join("")
        .replace(/^ /, "");
    const decoder = new StreamDecoder(strip, [], {});
    expect([0, 1, 2].map((id) => decoder.push(id))).toEqual(["one", " two", " three"]);
  });
});

describe("stop texts", () => {
  it("are cut off, beginnings of them held back until decided", () => {
    const decoder = make(["\n\nUser:"]);
    expect(
      bytes("ok\n\n")
        .map((id) => decoder.push(id))
        .join(""),
    ).toBe("ok");
    expect(
      bytes("x")
        .map((id) => decoder.push(id))
        .join(""),
    ).toBe("\n\nx");
    expect(
      bytes("\n\nUser: no")
        .map((id) => decoder.push(id))
        .join(""),
    ).toBe("");
    expect(decoder.stopped).toBe("\n\nUser:");
    expect(decoder.flush()).toBe("");
  });
  it("held text comes out at the end", () => {
    expect(all(make(["stop"]), bytes("a sto"))).toBe("a sto");
  });
  it("the earliest of several counts", () => {
    const decoder = make(["cd", "bc"]);
    expect(all(decoder, bytes("abcd"))).toBe("a");
    expect(decoder.stopped).toBe("bc");
  });
  it("output is the text before the first stop, for any texts", () => {
    const text = fc.string({ unit: fc.constantFrom("a", "b", "c", "é"), maxLength: 30 });
    const stop = fc.string({ unit: fc.constantFrom("a", "b", "é"), minLength: 1, maxLength: 4 });
    fc.assert(
      fc.property(text, fc.array(stop, { maxLength: 3 }), (whole, stops) => {
        // Byte by byte: the stop that is complete first wins, so cut at the earliest end.
        let cut = whole;
        for (let n = 1; n <= whole.length; n++) {
          const found = stops.map((s) => whole.slice(0, n).indexOf(s)).filter((at) => at >= 0);
          if (found.length > 0) {
            cut = whole.slice(0, Math.min(...found));
            break;
          }
        }
        expect(all(make(stops), bytes(whole))).toBe(cut);
      }),
      { numRuns: 500 },
    );
  });
});
