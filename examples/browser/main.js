// Plays CartPole with policy.onnx. ?seed=1 repeats the same starts, ?fast=1 plays without pauses.

import { CartPole, LIMITS, POLE } from "./cartpole.js";
import { loadPolicy } from "./policy.js";

const options = new URLSearchParams(location.search);
const element = (id) => document.getElementById(id);
const canvas = element("world");
const pause = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));
const STEP = 20; // milliseconds

// A generator of random numbers with a seed (mulberry32).
function seeded(seed) {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let mixed = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296;
  };
}

function draw(world) {
  const context = canvas.getContext("2d");
  const metre = canvas.width / (2.2 * LIMITS.position);
  const ground = canvas.height * 0.78;
  const [position, , angle] = world.state;
  const x = canvas.width / 2 + position * metre;
  context.clearRect(0, 0, canvas.width, canvas.height);
  context.fillStyle = "#c9d1dc";
  context.fillRect(0, ground, canvas.width, 2);
  for (const bound of [-1, 1]) {
    context.fillRect(canvas.width / 2 + bound * LIMITS.position * metre - 1, ground - 12, 2, 26);
  }
  context.fillStyle = "#26323f";
  context.beginPath();
  context.roundRect(x - 0.25 * metre, ground - 0.3 * metre, 0.5 * metre, 0.3 * metre, 6);
  context.fill();
  context.strokeStyle = "#d9822b";
  context.lineWidth = 10;
  context.lineCap = "round";
  context.beginPath();
  context.moveTo(x, ground - 0.3 * metre);
  context.lineTo(x + Math.sin(angle) * POLE * metre, ground - 0.3 * metre - Math.cos(angle) * POLE * metre);
  context.stroke();
}

async function main() {
  const act = await loadPolicy(options.get("policy") ?? "policy.onnx");
  const world = new CartPole(options.has("seed") ? seeded(Number(options.get("seed"))) : Math.random);
  const returns = [];
  let restart = false;
  element("reset").addEventListener("click", () => (restart = true));
  element("message").textContent = "The policy acts 50 times a second.";
  while (true) {
    restart = false;
    world.reset();
    while (!world.over && !restart) {
      const began = performance.now();
      world.step(await act(world.state));
      element("score").textContent = world.steps;
      if (!options.has("fast") || world.over) {
        draw(world);
        await pause(Math.max(0, STEP - (performance.now() - began)));
      }
    }
    if (!restart) {
      returns.push(world.steps);
      element("returns").textContent = returns.slice(-5).join(", ");
      await pause(800);
    }
  }
}

main().catch((error) => {
  element("message").textContent = `It cannot play: ${error.message}`;
});
