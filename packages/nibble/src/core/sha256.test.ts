import { createHash } from "node:crypto";
import fc from "fast-check";
import { expect, it } from "vitest";
import { PlainSha256, sha256 } from "./sha256.js";

it("known digests of nothing and of abc", () => {
  const empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
  expect(new PlainSha256().digest()).toBe(empty);
  expect(sha256().digest()).toBe(empty);
});

it("plain and native agree for any bytes in any pieces", () => {
  fc.assert(
    fc.property(fc.array(fc.uint8Array({ maxLength: 200 }), { maxLength: 6 }), (parts) => {
      const plain = new PlainSha256();
      const host = sha256();
      const node = createHash("sha256");
      for (const part of parts) {
        plain.update(part);
        host.update(part);
        node.update(part);
      }
      const expected = node.digest("hex");
      expect(plain.digest()).toBe(expected);
      expect(host.digest()).toBe(expected);
    }),
  );
});
