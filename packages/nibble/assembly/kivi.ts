/**
 * KIVI codecs of the cache (arXiv:2402.02750; docs/engine.md, "kivi"): coding of key pages and value rows, and their codes
 * as floats for the exact tiles of attention. Exact class.
 */
import { floatToHalf, halfToFloat, loadHalf4 } from "./math";
import { CODEC_KIVI2 } from "./ops";

// @ts-ignore: decorator
@inline
export function kiviBits(codec: i32): i32 {
  return codec == CODEC_KIVI2 ? 2 : 4;
}

/** Offset of the f16 scales of a plane; the minima stand 2 * headDim bytes further. */
// @ts-ignore: decorator
@inline
export function kiviParameters(codec: i32, headDim: i32): usize {
  return <usize>(headDim * 4 * kiviBits(codec));
}

/** Channels of a block of values. */
// @ts-ignore: decorator
@inline
function kiviBlock(headDim: i32): i32 {
  return (headDim & 63) == 0 ? 64 : 32;
}

/**
 * Codes of 32 values, one byte each, at `codes`: two runs of 16 f32, the second `far` bytes behind the first. f16 scale at
 * `scale`, minimum at `minimum`.
 */
function codeGroup(x: usize, far: usize, bits: i32, scale: usize, minimum: usize, codes: usize): void {
  const levels: f32 = bits == 2 ? 3 : 15;
  let low = load<f32>(x);
  let high = low;
  for (let i: usize = 0; i < 32; i++) {
    const v = load<f32>(x + (i < 16 ? i << 2 : far + ((i - 16) << 2)));
    if (v < low) low = v;
    if (v > high) high = v;
  }
  // + 0: a minimum of -0 and of +0 are the same bits.
  low = low + <f32>0;
  high = high + <f32>0;
  const scaleBits = floatToHalf(min<f32>((high - low) / levels, 65504));
  const minimumBits = floatToHalf(max<f32>(min<f32>(low, 65504), -65504));
  store<u16>(scale, <u16>scaleBits);
  store<u16>(minimum, <u16>minimumBits);
  if (scaleBits == 0) {
    memory.fill(codes, 0, 32);
    return;
  }
  const s = halfToFloat(scaleBits);
  const m = halfToFloat(minimumBits);
  for (let i: usize = 0; i < 32; i++) {
    const v = load<f32>(x + (i < 16 ? i << 2 : far + ((i - 16) << 2)));
    store<u8>(codes + i, <u8>nearest<f32>(max<f32>(min<f32>((v - m) / s, levels), 0)));
  }
}

/** Codes one token's values x [headDim] into row `slot` of a plane. `codes`: headDim bytes of scratch. */
export function storeKiviValue(plane: usize, codec: i32, slot: i32, headDim: i32, x: usize, codes: usize): void {
  const bits = kiviBits(codec);
  let scale = plane + kiviParameters(codec, headDim) + ((<usize>slot) << 1);
  for (let d = 0; d < headDim; d += 32) {
    codeGroup(x + ((<usize>d) << 2), 64, bits, scale, scale + ((<usize>headDim) << 1), codes + d);
    scale += 64;
  }
  const block = kiviBlock(headDim);
  const width = (block * bits) >> 3;
  let to = plane + <usize>((slot * headDim * bits) >> 3);
  for (let d = 0; d < headDim; d += block) {
    for (let i = 0; i < width; i++) {
      let byte: u32 = 0;
      let shift: u32 = 0;
      for (let j = i; j < block; j += width) {
        byte |= <u32>load<u8>(codes + (d + j)) << shift;
        shift += bits;
      }
      store<u8>(to++, <u8>byte);
    }
  }
}

/** Codes a page of exact keys [2][headDim][16]. `codes`: 32 bytes of scratch. */
export function storeKiviKeys(plane: usize, codec: i32, headDim: i32, keys: usize, codes: usize): void {
  const bits = kiviBits(codec);
  const far = (<usize>headDim) << 6;
  const scale = plane + kiviParameters(codec, headDim);
  let to = plane;
  for (let d: usize = 0; d < <usize>headDim; d++) {
    codeGroup(keys + (d << 6), far, bits, scale + (d << 1), scale + ((<usize>headDim + d) << 1), codes);
    const perByte = 8 / bits;
    for (let t = 0; t < 32; t += perByte) {
      let byte: u32 = 0;
      for (let j = 0; j < perByte; j++) byte |= <u32>load<u8>(codes + (t + j)) << (bits * j);
      store<u8>(to++, <u8>byte);
    }
  }
}

/** Four codes of byte `v`'s first byte as floats (2 bits each): masked in place, scaled by powers of two. */
// @ts-ignore: decorator
@inline
function spread2(v: v128): v128 {
  const masked = v128.and(v, i32x4(3, 12, 48, 192));
  return f32x4.mul(f32x4.convert_i32x4_s(masked), f32x4(1, 0.25, 0.0625, 0.015625));
}

/** Codes of half-panel `half` of a key page as f32 [headDim][16]. */
export function kiviKeysAsFloat(plane: usize, codec: i32, half: i32, headDim: i32, out: usize): void {
  const none = i32x4.splat(0);
  if (kiviBits(codec) == 2) {
    let at = plane + ((<usize>half) << 2);
    for (let d = 0; d < headDim; d++) {
      const v = v128.load32_zero(at);
      v128.store(out, spread2(i8x16.shuffle(v, none, 0, 16, 16, 16, 0, 16, 16, 16, 0, 16, 16, 16, 0, 16, 16, 16)));
      v128.store(out, spread2(i8x16.shuffle(v, none, 1, 16, 16, 16, 1, 16, 16, 16, 1, 16, 16, 16, 1, 16, 16, 16)), 16);
      v128.store(out, spread2(i8x16.shuffle(v, none, 2, 16, 16, 16, 2, 16, 16, 16, 2, 16, 16, 16, 2, 16, 16, 16)), 32);
      v128.store(out, spread2(i8x16.shuffle(v, none, 3, 16, 16, 16, 3, 16, 16, 16, 3, 16, 16, 16, 3, 16, 16, 16)), 48);
      at += 8;
      out += 64;
    }
    return;
  }
  const mask = i8x16.splat(15);
  let at = plane + ((<usize>half) << 3);
  for (let d = 0; d < headDim; d++) {
    const v = v128.load64_zero(at);
    const low = v128.and(v, mask);
    const high = v128.and(i8x16.shr_u(v, 4), mask);
    const codes = i8x16.shuffle(low, high, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const a = i16x8.extend_low_i8x16_u(codes);
    const b = i16x8.extend_high_i8x16_u(codes);
    v128.store(out, f32x4.convert_i32x4_s(i32x4.extend_low_i16x8_u(a)));
    v128.store(out, f32x4.convert_i32x4_s(i32x4.extend_high_i16x8_u(a)), 16);
    v128.store(out, f32x4.convert_i32x4_s(i32x4.extend_low_i16x8_u(b)), 32);
    v128.store(out, f32x4.convert_i32x4_s(i32x4.extend_high_i16x8_u(b)), 48);
    at += 16;
    out += 64;
  }
}

/** Codes of row `slot` of a value plane as f32 [headDim]. */
export function kiviValueAsFloat(plane: usize, codec: i32, slot: i32, headDim: i32, out: usize): void {
  const bits = kiviBits(codec);
  const block = kiviBlock(headDim);
  const width = (<usize>(block * bits)) >> 3;
  const mask = i32x4.splat(bits == 2 ? 3 : 15);
  let at = plane + <usize>((slot * headDim * bits) >> 3);
  for (let d = 0; d < headDim; d += block) {
    for (let i: usize = 0; i < width; i += 4) {
      const v = i32x4.extend_low_i16x8_u(i16x8.extend_low_i8x16_u(v128.load32_zero(at + i)));
      const to = out + (i << 2);
      v128.store(to, f32x4.convert_i32x4_s(v128.and(v, mask)));
      if (bits == 4) {
        v128.store(to + (width << 2), f32x4.convert_i32x4_s(i32x4.shr_u(v, 4)));
      } else {
        v128.store(to + (width << 2), f32x4.convert_i32x4_s(v128.and(i32x4.shr_u(v, 2), mask)));
        v128.store(to + (width << 3), f32x4.convert_i32x4_s(v128.and(i32x4.shr_u(v, 4), mask)));
        v128.store(to + width * 12, f32x4.convert_i32x4_s(i32x4.shr_u(v, 6)));
      }
    }
    at += width;
    out += (<usize>block) << 2;
  }
}

/** folded = q * scales, four at a time (f16 scales). */
export function foldQuery(q: usize, scales: usize, headDim: i32, folded: usize): void {
  for (let d: usize = 0; d < <usize>headDim; d += 4) {
    v128.store(folded + (d << 2), f32x4.mul(v128.load(q + (d << 2)), loadHalf4(scales + (d << 1))));
  }
}

/** w[from..to) = e * scales (f16), whole vectors around it; what stands beside the range is never read. */
export function weighCodes(e: usize, scales: usize, from: i32, to: i32, w: usize): void {
  for (let t = <usize>(from & ~3); t < <usize>to; t += 4) {
    v128.store(w + (t << 2), f32x4.mul(v128.load(e + (t << 2)), loadHalf4(scales + (t << 1))));
  }
}

/** Lanes from..to - 1 (of four that begin at t) of x, 0 elsewhere. */
// @ts-ignore: decorator
@inline
export function keepLanes(x: v128, t: i32, from: i32, to: i32): v128 {
  const at = i32x4.add(i32x4.splat(t), i32x4(0, 1, 2, 3));
  const inside = v128.and(i32x4.ge_s(at, i32x4.splat(from)), i32x4.lt_s(at, i32x4.splat(to)));
  return v128.and(x, inside);
}
