/**
 * Reading tokenizer.json: its vocabulary goes straight from the text into a map. JSON.parse would make an object of tens of
 * thousands of keys first, which takes most of the time of opening a tokenizer.
 */

export interface TokenizerJson {
  /** The text as JSON.parse gives it, with an empty model.vocab. */
  json: { model: object };
  /** What model.vocab holds: token -> id, in the order of the text. */
  vocabulary: Map<string, number>;
}

const QUOTE = 34;
const BACKSLASH = 92;

/**
 * @param maxId ids are below
 * @returns null unless the model is BPE and its vocabulary an object of tokens with an id each: JSON.parse then says what it is
 */
export function readTokenizerJson(text: string, maxId: number): TokenizerJson | null {
  const model = findKey(text, skipSpace(text, 0), "model");
  const from = model < 0 ? -1 : findKey(text, model, "vocab");
  if (from < 0 || text[from] !== "{") return null;
  const vocabulary = new Map<string, number>();
  let used = new Uint8Array(1 << 17);
  let count = 0;
  let at = skipSpace(text, from + 1);
  if (text[at] === "}") return null;
  for (;;) {
    const end = stringEnd(text, at);
    if (end < 0) return null;
    const token = stringAt(text, at, end);
    if (token === null) return null;
    at = skipSpace(text, end);
    if (text[at] !== ":") return null;
    at = skipSpace(text, at + 1);
    const digits = at;
    let id = 0;
    for (let c = text.charCodeAt(at); c >= 48 && c <= 57; c = text.charCodeAt(++at))
      id = id * 10 + c - 48;
    const length = at - digits;
    // 007 is no JSON; a token or an id that stands twice is left to JSON.parse, whose order decides.
    if (length === 0 || (length > 1 && text[digits] === "0") || id >= maxId) return null;
    if (id >= used.length) {
      const larger = new Uint8Array(Math.min(maxId, 2 * id));
      larger.set(used);
      used = larger;
    }
    if (used[id] === 1) return null;
    used[id] = 1;
    vocabulary.set(token, id);
    if (vocabulary.size !== ++count) return null;
    at = skipSpace(text, at);
    if (text[at] === "}") break;
    if (text[at] !== ",") return null;
    at = skipSpace(text, at + 1);
  }
  // A key that stands twice may have been found in the wrong place: JSON.parse keeps the last, so then the mark is gone.
  const mark = "nibble.vocabulary";
  const rest = `${text.slice(0, from)}{"${mark}":0}${text.slice(at + 1)}`;
  let json: { model: { vocab?: unknown; type?: unknown } | null };
  try {
    json = JSON.parse(rest);
  } catch {
    return null;
  }
  const { model: parsed } = json;
  if (typeof parsed !== "object" || parsed === null) return null;
  const { vocab, type } = parsed;
  if (type !== "BPE" || typeof vocab !== "object" || vocab === null) return null;
  if (Object.keys(vocab).join() !== mark) return null;
  return { json: { ...json, model: { ...parsed, vocab: {} } }, vocabulary };
}

/** Where the value of a key of the object at `at` begins, or -1. */
function findKey(text: string, at: number, key: string): number {
  if (text[at] !== "{") return -1;
  let i = skipSpace(text, at + 1);
  while (text.charCodeAt(i) === QUOTE) {
    const end = stringEnd(text, i);
    if (end < 0) return -1;
    const found = stringAt(text, i, end) === key;
    i = skipSpace(text, end);
    if (text[i] !== ":") return -1;
    i = skipSpace(text, i + 1);
    if (found) return i;
    i = skipSpace(text, valueEnd(text, i));
    if (text[i] !== ",") return -1;
    i = skipSpace(text, i + 1);
  }
  return -1;
}

function skipSpace(text: string, at: number): number {
  let i = at;
  for (let c = text.charCodeAt(i); c === 32 || c === 10 || c === 13 || c === 9; )
    c = text.charCodeAt(++i);
  return i;
}

/** Behind the closing quote of the string at `at`, or -1. */
function stringEnd(text: string, at: number): number {
  if (text.charCodeAt(at) !== QUOTE) return -1;
  let end = text.indexOf('"', at + 1);
  while (end >= 0) {
    let slashes = 0;
    while (text.charCodeAt(end - 1 - slashes) === BACKSLASH) slashes++;
    if (slashes % 2 === 0) return end + 1;
    end = text.indexOf('"', end + 1);
  }
  return -1;
}

/** The string at [at, end), quotes included; null when it is no JSON string. */
function stringAt(text: string, at: number, end: number): string | null {
  for (let i = at + 1; i < end - 1; i++) {
    const c = text.charCodeAt(i);
    if (c < 32) return null;
    if (c !== BACKSLASH) continue;
    try {
      return JSON.parse(text.slice(at, end)) as string;
    } catch {
      return null;
    }
  }
  return text.slice(at + 1, end - 1);
}

/** Behind the value at `at`, taking for granted that it is JSON. */
function valueEnd(text: string, at: number): number {
  let depth = 0;
  for (let i = at; i < text.length; i++) {
    const c = text[i];
    if (c === '"') {
      const end = stringEnd(text, i);
      if (end < 0) return text.length;
      i = end - 1;
    } else if (c === "{" || c === "[") depth++;
    else if (c === "}" || c === "]") {
      if (depth === 0) return i;
      depth--;
    } else if (c === "," && depth === 0) return i;
  }
  return text.length;
}
