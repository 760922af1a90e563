// Gymnasium's CartPole-v1: the same equations (Barto, Sutton and Anderson 1983), bounds, rewards and limit of steps.

export const LIMITS = { position: 2.4, angle: (12 * 2 * Math.PI) / 360, steps: 500 };
export const POLE = 1.0; // length, in metres

const GRAVITY = 9.8;
const POLE_MASS = 0.1;
const TOTAL_MASS = 1.1;
const HALF_POLE = 0.5;
const FORCE = 10.0;
const SECONDS = 0.02; // of a step

export class CartPole {
  // random() gives numbers in [0, 1).
  constructor(random = Math.random) {
    this.random = random;
    this.reset();
  }

  reset() {
    // position, velocity, angle (to the right), angular velocity
    this.state = Array.from({ length: 4 }, () => this.random() * 0.1 - 0.05);
    this.steps = 0;
    this.over = false;
  }

  // action: 0 pushes to the left, 1 to the right. Each step earns 1.
  step(action) {
    let [position, velocity, angle, spin] = this.state;
    const force = action === 1 ? FORCE : -FORCE;
    const sine = Math.sin(angle);
    const cosine = Math.cos(angle);
    const push = (force + POLE_MASS * HALF_POLE * spin * spin * sine) / TOTAL_MASS;
    const turn = (GRAVITY * sine - cosine * push) / (HALF_POLE * (4 / 3 - (POLE_MASS * cosine * cosine) / TOTAL_MASS));
    const acceleration = push - (POLE_MASS * HALF_POLE * turn * cosine) / TOTAL_MASS;
    position += SECONDS * velocity;
    velocity += SECONDS * acceleration;
    angle += SECONDS * spin;
    spin += SECONDS * turn;
    this.state = [position, velocity, angle, spin];
    this.steps += 1;
    const fallen = Math.abs(position) > LIMITS.position || Math.abs(angle) > LIMITS.angle;
    this.over = fallen || this.steps >= LIMITS.steps;
  }
}
