/**
 * The addon: a prebuilt one for this platform, else the one `npm run build` made.
 * NIBBLE_NATIVE_BUILD=sanitize loads the one that `node build.mjs --sanitize` made, and nothing else.
 * Throws with the reason when there is neither, or when it does not load.
 */
"use strict";
const { existsSync } = require("node:fs");
const { join } = require("node:path");

const candidates =
  process.env.NIBBLE_NATIVE_BUILD === "sanitize"
    ? [join(__dirname, "build", "sanitize", "nibble.node")]
    : [
        join(__dirname, "prebuilds", `${process.platform}-${process.arch}`, "nibble.node"),
        join(__dirname, "build", "nibble.node"),
      ];
const found = candidates.find((path) => existsSync(path));
if (!found) {
  throw new Error(
    `no native addon for ${process.platform}-${process.arch}: none is prebuilt and none was built (npm run build)`,
  );
}
module.exports = { ...require(found), file: found };
