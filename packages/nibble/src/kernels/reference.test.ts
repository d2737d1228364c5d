import { conformanceSuite } from "./conformance.js";
import { referenceBackend } from "./reference.js";

conformanceSuite(referenceBackend, { exactAttention: true, programs: 20 });
