import { conformanceSuite } from "./conformance.js";
import { wasmBackend } from "./wasm.js";

conformanceSuite(wasmBackend, { exactAttention: true });
