"use strict";
/* The explorer page's arithmetic: the law of locking as syncattn/backends/eager.py has it, in float64.

   Nothing here draws or touches the page, so that the tests can hold it to the library in any JavaScript
   engine. Matrices are flat Float64Arrays, row i = receiver, column j = sender. Names are the library's. */
const SyncattnArithmetic = (() => {
  const WEAKEST = 1e-10, STRONGEST = 1e15, NARROWEST = 1e30; // the bounds of backends/call.py

  /* Numbers written as base64 of little-endian "f4" or "f8": nothing is lost, float32 are float64 here. */
  function numbers(packed) {
    const view = new DataView(bytes(packed.data).buffer);
    const size = packed.kind === "f8" ? 8 : 4;
    const found = new Float64Array(view.byteLength / size);
    for (let n = 0; n < found.length; n++) {
      found[n] = size === 8 ? view.getFloat64(8 * n, true) : view.getFloat32(4 * n, true);
    }
    return found;
  }

  function bytes(text) {
    const raw = atob(text);
    const found = new Uint8Array(raw.length);
    for (let n = 0; n < raw.length; n++) found[n] = raw.charCodeAt(n);
    return found;
  }

  /* D (N M), the sum of squared differences of receive (N m) and send (M m). */
  function squaredDetuning(receive, send, freqDim) {
    const queries = receive.length / freqDim, keys = send.length / freqDim;
    const found = new Float64Array(queries * keys);
    for (let i = 0; i < queries; i++) {
      for (let j = 0; j < keys; j++) {
        let sum = 0;
        for (let c = 0; c < freqDim; c++) {
          const difference = receive[i * freqDim + c] - send[j * freqDim + c];
          sum += difference * difference;
        }
        found[i * keys + j] = sum;
      }
    }
    return found;
  }

  /* Which pairs may exchange information (N N), 1 or 0. `mask`: bits, row by row, highest first; or null. */
  function allowedPairs(tokens, causal, selfCoupling, mask) {
    const packed = mask === null ? null : bytes(mask);
    const found = new Uint8Array(tokens * tokens);
    for (let i = 0; i < tokens; i++) {
      for (let j = 0; j < tokens; j++) {
        const n = i * tokens + j;
        const seen = packed === null || (packed[n >> 3] >> (7 - (n & 7))) & 1;
        found[n] = seen && !(causal && j > i) && (selfCoupling || j !== i) ? 1 : 0;
      }
    }
    return found;
  }

  function synchronizationOf(margin, edge) {
    return edge === 0 ? Math.sqrt(margin) : margin / (Math.sqrt(margin + edge * edge) + edge);
  }

  function strengthOf(margin, power, edge) {
    if (power === 2 && edge === 0) return margin;
    const sync = synchronizationOf(margin, edge);
    return power === 1 ? sync : Math.pow(sync, power);
  }

  function marginOf(detuning, kappa, bandwidth) {
    return Math.exp(-2 * bandwidth * detuning) - detuning / kappa / kappa;
  }

  /* The k allowed senders of a row that are nearest, the earlier one on a tie; the others are not allowed. */
  function keepNearest(detuning, allowed, start, keys, k) {
    const order = [];
    for (let j = 0; j < keys; j++) if (allowed[start + j]) order.push(j);
    order.sort((a, b) => detuning[start + a] - detuning[start + b] || a - b);
    for (const j of order.slice(k)) allowed[start + j] = 0;
  }

  /* One head: from D and who may listen to whom to F, S and P.

     kappa: one for each row, before the factor. options: bandwidth, frame, power, edge, eps, topK (or null).
     factors: coupling and bandwidth, what the sliders say.
     detuning is in the head's frame; margin NaN where a pair is not allowed; nearest: each row's D that the
     frame counts from, 0 in the absolute one; locked: how many pairs of a row lock. */
  function synchronize(detuning, allowed, kappa, options, factors) {
    const queries = kappa.length, keys = detuning.length / queries;
    const open = Uint8Array.from(allowed);
    const found = {
      detuning: new Float64Array(detuning.length), margin: new Float64Array(detuning.length).fill(NaN),
      sync: new Float64Array(detuning.length), weight: new Float64Array(detuning.length),
      kappa: new Float64Array(queries), nearest: new Float64Array(queries),
      locked: new Int32Array(queries), allowed: new Int32Array(queries),
      bandwidth: Math.min(options.bandwidth * factors.bandwidth, NARROWEST), pairs: open,
    };
    for (let i = 0; i < queries; i++) {
      const start = i * keys;
      found.kappa[i] = Math.min(Math.max(kappa[i] * factors.coupling, WEAKEST), STRONGEST);
      for (let j = 0; j < keys; j++) found.allowed[i] += allowed[start + j];
      if (options.topK !== null) keepNearest(detuning, open, start, keys, options.topK);
      let nearest = Infinity;
      for (let j = 0; j < keys; j++) if (open[start + j]) nearest = Math.min(nearest, detuning[start + j]);
      if (options.frame === "nearest" && nearest < Infinity) found.nearest[i] = nearest;
      weighRow(found, detuning, start, keys, i, options);
    }
    return found;
  }

  function weighRow(found, detuning, start, keys, i, options) {
    let total = 0;
    for (let n = start; n < start + keys; n++) {
      found.detuning[n] = detuning[n] - found.nearest[i];
      if (!found.pairs[n]) continue;
      const margin = marginOf(found.detuning[n], found.kappa[i], found.bandwidth);
      found.margin[n] = margin;
      if (margin <= 0) continue;
      found.sync[n] = synchronizationOf(margin, options.edge);
      found.weight[n] = strengthOf(margin, options.power, options.edge);
      found.locked[i] += 1;
      total += found.weight[n];
    }
    if (total === 0) return; // a row without lock is 0
    for (let n = start; n < start + keys; n++) found.weight[n] /= total + options.eps;
  }

  /* Density, the share of the allowed pairs that lock, and partners, how many senders a row locks with. */
  function summary(found) {
    let locked = 0, allowed = 0;
    for (let i = 0; i < found.locked.length; i++) {
      locked += found.locked[i];
      allowed += found.allowed[i];
    }
    return { density: allowed ? locked / allowed : 0, partners: locked / Math.max(found.locked.length, 1) };
  }

  /* The mean weight that rows give the sender d places before them, for d = 0, 1, ...: over the rows that
     may listen to it; and the share of those that lock with it. */
  function byDistance(found, tokens) {
    const [weight, locked, count] = [0, 0, 0].map(() => new Float64Array(tokens));
    for (let i = 0; i < tokens; i++) {
      for (let j = 0; j < tokens; j++) {
        const n = i * tokens + j, d = Math.abs(i - j);
        if (!found.pairs[n]) continue;
        count[d] += 1;
        weight[d] += found.weight[n];
        locked[d] += found.margin[n] > 0 ? 1 : 0;
      }
    }
    return {
      weight: weight.map((sum, d) => (count[d] ? sum / count[d] : 0)),
      locked: locked.map((sum, d) => (count[d] ? sum / count[d] : 0)),
    };
  }

  /* W0, the principal branch of the Lambert W function, of x >= 0: Halley's iteration. */
  function lambertW0(x) {
    if (x === 0) return 0;
    let w = x < 3 ? Math.log1p(x) * 0.75 : Math.log(x) - Math.log(Math.log(x));
    for (let n = 0; n < 50; n++) {
      // w exp(w) = x, divided by exp(w): a large x does not overflow
      const error = w - x * Math.exp(-w);
      const step = error / (w + 1 - ((w + 2) * error) / (2 * w + 2));
      w -= step;
      if (Math.abs(step) <= 1e-16 * Math.max(1, Math.abs(w))) break;
    }
    return w;
  }

  /* rho, the largest sqrt(D) that locks. */
  function lockingRadius(kappa, bandwidth) {
    return Math.sqrt(lambertW0(2 * bandwidth * kappa * kappa) / (2 * bandwidth));
  }

  /* The mean of exp(i t) over the `seen` tokens, for each of the p phases; and r, the mean size of these. */
  function orderParameter(phase, phaseDim, seen) {
    const arrows = [];
    let r = 0;
    for (let c = 0; c < phaseDim; c++) {
      let x = 0, y = 0, count = 0;
      for (let j = 0; j < seen.length; j++) {
        if (!seen[j]) continue;
        x += Math.cos(phase[j * phaseDim + c]);
        y += Math.sin(phase[j * phaseDim + c]);
        count += 1;
      }
      arrows.push(count ? [x / count, y / count] : [1, 0]);
      r += Math.hypot(...arrows[c]) / phaseDim;
    }
    return { r, arrows };
  }

  /* Where a locked pair comes to rest: cos of it is S / J, with no edge. */
  function restAngle(detuning, kappa, bandwidth) {
    const pull = kappa * Math.exp(-bandwidth * detuning);
    return Math.asin(Math.min(1, Math.sqrt(Math.max(detuning, 0)) / pull));
  }

  /* Kuramoto's equation of a pair, psi' = sqrt(D) - kappa J sin psi, after one Runge-Kutta step. */
  function pairStep(psi, detuning, kappa, bandwidth, step) {
    const force = Math.sqrt(Math.max(detuning, 0)), pull = kappa * Math.exp(-bandwidth * detuning);
    const slope = (at) => force - pull * Math.sin(at);
    const first = slope(psi);
    const second = slope(psi + (step / 2) * first);
    const third = slope(psi + (step / 2) * second);
    const fourth = slope(psi + step * third);
    return psi + (step / 6) * (first + 2 * (second + third) + fourth);
  }

  return {
    allowedPairs, byDistance, lambertW0, lockingRadius, marginOf, numbers, orderParameter, pairStep,
    restAngle, squaredDetuning, summary, synchronize,
  };
})();
if (typeof module !== "undefined") module.exports = SyncattnArithmetic;
