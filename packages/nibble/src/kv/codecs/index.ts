/** The cache codecs that exist. One line each. */
import { Registry } from "../../core/registry.js";
import type { KvCodecDefinition } from "../contract.js";
import { fp16, fp32 } from "./fp.js";
import { gearOver } from "./gear.js";
import { int4Token, int8Token } from "./int-token.js";
import { kivi } from "./kivi.js";
import { kvquant } from "./kvquant.js";
import { qaq } from "./qaq.js";

export const kvCodecs = new Registry<KvCodecDefinition>("cache codec");
kvCodecs.add(fp32 as KvCodecDefinition);
kvCodecs.add(fp16 as KvCodecDefinition);
kvCodecs.add(int8Token as KvCodecDefinition);
kvCodecs.add(int4Token as KvCodecDefinition);
kvCodecs.add(kivi as KvCodecDefinition);
kvCodecs.add(kvquant as KvCodecDefinition);
kvCodecs.add(qaq as KvCodecDefinition);
kvCodecs.add(gearOver([...kvCodecs]) as KvCodecDefinition);
