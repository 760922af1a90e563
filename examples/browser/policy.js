// policy.onnx, as policy-distill export_student writes it: raw observations in, actions that the environment accepts out.

import * as ort from "./node_modules/onnxruntime-web/dist/ort.wasm.bundle.min.mjs";

ort.env.wasm.numThreads = 1; // a small network is slower on several, and threads need special headers

export async function loadPolicy(url) {
  const response = await fetch(url);
  if (!response.ok) {
    throw new Error(`${url} is not there (${response.status}); export a student and copy it here`);
  }
  const session = await ort.InferenceSession.create(new Uint8Array(await response.arrayBuffer()));
  if (session.inputNames.length !== 1) {
    throw new Error(`the policy has the inputs ${session.inputNames.join(", ")}; this page gives it one observation`);
  }
  const [input] = session.inputNames;
  const [action] = session.outputNames; // outputs come in a fixed order: the action is the first
  return async (observation) => {
    const tensor = new ort.Tensor("float32", Float32Array.from(observation), [1, observation.length]);
    const outputs = await session.run({ [input]: tensor });
    return Number(outputs[action].data[0]); // int64 arrives as BigInt
  };
}
