"use strict";
/* The pictures of one head and one token. `view` holds what is shown: data, count, state (layer, head,
   token), found (of the head, by arithmetic.js), one (what it was found from), and name(token). */
const SyncattnPictures = (view) => {
  const A = SyncattnArithmetic, D = SyncattnDrawing, short = D.short;
  const at = (id) => document.getElementById(id);
  const layerOf = () => view.data.layers[view.state.layer];
  const headOf = () => layerOf().heads[view.state.head];
  const pairOf = (j) => view.state.token * view.count + j;
  const isLocked = (j) => view.found.margin[pairOf(j)] > 0;
  const weightOf = (j) => view.found.weight[pairOf(j)];

  /* From the token's place on the diagonal along its row, and down to whom it hears. */
  function cross() {
    const i = view.state.token, size = 1000 / view.count, parts = [], middle = (n) => (n + 0.5) * size;
    for (let j = 0; j < view.count; j++) {
      const w = weightOf(j);
      if (!(w > 0) || j === i) continue;
      parts.push(D.link(middle(j), middle(i), middle(j), middle(j), 1 + 14 * w, 0.25 + 0.6 * w));
    }
    parts.push(`<rect class="row" x="0" y="${i * size}" width="1000" height="${size}"/>`);
    parts.push(D.circle(middle(i), middle(i), 9, "dot-pick"));
    D.put("cross", 1000, 1000, parts, "");
  }

  /* The frequencies in the head's two principal coordinates. */
  function plane() {
    const { token: i } = view.state, { found, one, count } = view, m = layerOf().freqDim, size = 360;
    const along = (points, n) => headOf().plane.map(
      (axis) => axis.reduce((sum, a, c) => sum + a * points[n * m + c], 0));
    const rho = A.lockingRadius(found.kappa[i], found.bandwidth);
    const radius = Math.sqrt(rho * rho + found.nearest[i]);
    const mine = along(one.receive, i);
    const senders = Array.from({ length: count }, (_, j) => along(one.send, j));
    const [middle, reach] = extent(mine, senders, 2.2 * Math.max(radius, 1e-9));
    const scale = size / 2 / reach;
    const to = ([x, y]) => [size / 2 + (x - middle[0]) * scale, size / 2 - (y - middle[1]) * scale];
    const [x0, y0] = to(mine), free = [], locked = [];
    let inside = 0, seen = 0;
    senders.forEach((point, j) => {
      if (!found.pairs[pairOf(j)]) return;
      const [x, y] = to(point), w = weightOf(j);
      seen += 1;
      if (x < 0 || x > size || y < 0 || y > size) return;
      inside += 1;
      if (!(w > 0)) { free.push(D.circle(x, y, 3.5, "dot-free", `${view.name(j)}, not locked`)); return; }
      locked.push(D.link(x0, y0, x, y, 0.6 + 8 * w, 0.6));
      locked.push(D.circle(x, y, 5, "dot-lock", `${view.name(j)}, weight ${short(w)}`));
      if (w > 0.08) locked.push(D.write(x, y - 8, view.data.labels[j], "middle", "strong"));
    });
    const parts = [D.circle(x0, y0, radius * scale, "ring"), ...free, ...locked];
    parts.push(D.circle(x0, y0, 6, "dot-pick", view.name(i)));
    parts.push(D.write(x0, y0 + 18, view.data.labels[i], "middle", "strong"));
    D.put("plane", size, size, parts, `Frequencies around token ${view.name(i)}: ${found.locked[i]} of `
      + `${found.allowed[i]} senders lock, within a locking radius of ${short(radius)}`);
    const from = layerOf().frame === "nearest" ? ", counted from the nearest sender on" : "";
    at("plane-note").textContent = `Two principal coordinates of ${m} (${Math.round(100 * headOf().share)} % `
      + `of the variance). Dashed: the locking radius, ${short(radius)}${from}. Seen from here, points look `
      + `nearer than they are. ${inside} of ${seen} senders are in the picture.`;
  }

  /* What part of the plane is drawn, its middle and half its width: around the token, or all of it. */
  function extent(mine, senders, near) {
    const all = senders.concat([mine]);
    const low = [0, 1].map((c) => Math.min(...all.map((p) => p[c])));
    const high = [0, 1].map((c) => Math.max(...all.map((p) => p[c])));
    const whole = 0.54 * Math.max(high[0] - low[0], high[1] - low[1], 1e-9);
    if (at("near").checked && near <= 1.5 * whole) return [mine, near];
    return [[0, 1].map((c) => (low[c] + high[c]) / 2), whole];
  }

  /* F against D: the law as a curve, and the pairs as dots on it. */
  function margin() {
    const { token: i } = view.state, { found } = view, kappa = found.kappa[i], alpha = found.bandwidth;
    const width = 360, height = 260, left = 34, foot = 28, top = 10, floor = -1;
    const rho2 = A.lockingRadius(kappa, alpha) ** 2, right = 2.5 * Math.max(rho2, 1e-300);
    const X = (d) => left + (d / right) * (width - left - 8);
    const Y = (f) => top + ((1 - f) / (1 - floor)) * (height - top - foot);
    const grid = Array.from({ length: 121 }, (_, n) => (n / 120) * right);
    const parts = [D.line(left, Y(0), width - 8, Y(0), "axis")];
    parts.push(D.line(left, top, left, height - foot, "axis"));
    for (const f of [-1, -0.5, 0, 0.5, 1]) parts.push(D.write(left - 5, Y(f) + 4, String(f), "end"));
    parts.push(D.write(X(0), height - 10, "0", "start"));
    for (const n of [1, 2]) parts.push(D.write(X(n * rho2), height - 10, short(n * rho2)));
    parts.push(D.write(width - 8, height - 10, "D", "end"), D.write(left + 6, Y(-0.85), "F", "start"));
    parts.push(D.line(X(rho2), top, X(rho2), height - foot, "ring"));
    parts.push(D.write(X(rho2) + 5, top + 8, "locks up to here", "start"));
    parts.push(D.path(grid.map((d) => [X(d), Y(Math.max(A.marginOf(d, kappa, alpha), floor))]), "curve"));
    parts.push(D.path(grid.map((d) => [X(d), Y(Math.exp(-2 * alpha * d))]), "curve soft-line"));
    let beyond = 0;
    for (let j = 0; j < view.count; j++) {
      const detuning = found.detuning[pairOf(j)], f = found.margin[pairOf(j)];
      if (!found.pairs[pairOf(j)]) continue;
      if (detuning > right || f < floor) { beyond += 1; continue; }
      const said = `${view.name(j)}: D ${short(detuning)}, F ${short(f)}`;
      parts.push(D.circle(X(detuning), Y(f), f > 0 ? 5 : 4, f > 0 ? "dot-lock" : "dot-free", said));
    }
    D.put("margin", width, height, parts,
      `Margin of token ${view.name(i)} with each sender: ${found.locked[i]} above 0`);
    const nearest = found.nearest[i];
    const from = nearest > 0 ? ` D is counted from the nearest sender, ${short(nearest)}.` : "";
    at("margin-note").textContent =
      `Filled: locked. Dashed grey: exp(-2 alpha D). ${beyond} pairs are further out.${from}`;
  }

  /* The phases that the token sees, their mean as an arrow. */
  function phases() {
    const { token: i } = view.state, { one } = view, p = layerOf().phaseDim;
    const size = 300, c = size / 2, R = 120;
    if (!one.phase) {
      D.put("phases", 360, 40, [D.write(180, 24, "This layer has no order parameter: r = 1.")], "r = 1");
      at("phases-note").textContent = "";
      return;
    }
    const masked = headOf().mask !== null;
    const seen = Array.from({ length: view.count }, (_, j) =>
      !(layerOf().causal && j > i) && (!masked || j === i || one.allowed[pairOf(j)] > 0));
    const { r, arrows } = A.orderParameter(one.phase, p, seen);
    const parts = [D.circle(c, c, R, "faint"), D.line(c - R, c, c + R, c, "faint")];
    parts.push(D.line(c, c - R, c, c + R, "faint"));
    seen.forEach((is, j) => {
      if (!is || j === i) return;
      const [x, y] = D.around(R, c, one.phase[j * p]);
      parts.push(D.circle(x, y, 4, isLocked(j) ? "dot-lock" : "dot-free", view.name(j)));
    });
    parts.push(D.circle(...D.around(R, c, one.phase[i * p]), 6, "dot-pick", view.name(i)));
    arrows.forEach(([x, y], n) =>
      parts.push(D.line(c, c, c + R * x, c - R * y, "arrow", n ? 'opacity="0.35"' : "")));
    parts.push(D.write(c, size - 8, `r = ${r.toFixed(3)}`, "middle", "strong"));
    D.put("phases", size, size, parts,
      `Phases of the tokens that token ${view.name(i)} sees; order parameter ${r.toFixed(3)}`);
    const first = p > 1 ? ` (the first of ${p} phases as dots; r is the mean over them)` : "";
    at("phases-note").textContent = `The arrow is the mean of all phases that the token sees${first}; `
      + `its length r scales the coupling: kappa = K r = ${short(view.found.kappa[i])}.`;
  }

  /* The chosen token's nearest senders, each alone with it. motion: {senders, psi, time}, or null at rest. */
  function pairs(motion) {
    const { token: i } = view.state, { found } = view, size = 300, c = size / 2, R = 120;
    const parts = [D.circle(c, c, R, "faint"), D.line(c, c, c + R, c, "faint")];
    parts.push(D.circle(c + R, c, 7, "dot-pick", view.name(i)));
    const shown = motion ? motion.senders : nearestSenders();
    shown.filter(isLocked).forEach((j) => {
      const rest = A.restAngle(found.detuning[pairOf(j)], found.kappa[i], found.bandwidth);
      parts.push(D.line(...D.around(R - 2, c, rest), ...D.around(R + 10, c, rest), "tick"));
    });
    if (motion) shown.forEach((j, n) => {
      const [x, y] = D.around(R - 4 - 3 * (n % 8), c, motion.psi[n]);
      if (isLocked(j)) parts.push(D.link(c, c, x, y, 1 + 6 * weightOf(j), 0.35));
      parts.push(D.circle(x, y, 5, isLocked(j) ? "dot-lock" : "dot-free", view.name(j)));
    });
    const locked = shown.filter(isLocked).length, drifting = shown.length - locked;
    const time = motion ? `time ${motion.time.toFixed(1)} / kappa` : "Run sets them off";
    parts.push(D.write(c, size - 8, time, "middle", "strong"));
    D.put("pairs", size, size, parts, `${locked} locked pairs settle, ${drifting} drift`);
    at("pairs-note").textContent = "Each of the nearest senders alone with the token: psi' = sqrt(D) - kappa "
      + "J sin psi, the equation whose rest gives S. Filled ones settle at the marks, the others turn. "
      + `Here: ${locked} and ${drifting}.`;
  }

  function nearestSenders() {
    const senders = [];
    for (let j = 0; j < view.count; j++) {
      if (view.found.pairs[pairOf(j)] && j !== view.state.token) senders.push(j);
    }
    senders.sort((a, b) => view.found.detuning[pairOf(a)] - view.found.detuning[pairOf(b)]);
    return senders.slice(0, 24);
  }

  /* The head's window: its mean weights by distance. */
  function distance() {
    const { weight } = A.byDistance(view.found, view.count), most = Math.max(...weight, 1e-12);
    const width = 360, height = 190, left = 36, foot = 26, top = 8;
    let far = 8;
    weight.forEach((w, d) => { if (w > 1e-4) far = Math.max(far, d + 2); });
    far = Math.min(far, view.count);
    const step = (width - left - 6) / far, wide = Math.max(step - (step > 3 ? 1 : 0), 0.5), parts = [];
    for (let d = 0; d < far; d++) {
      const h = (weight[d] / most) * (height - top - foot);
      if (h > 0) parts.push(D.bar(left + d * step, height - foot - h, wide, h, `${d}: ${short(weight[d])}`));
    }
    parts.push(D.line(left, height - foot, width - 6, height - foot, "axis"));
    parts.push(D.write(left, height - 9, "0", "start"), D.write(left - 4, top + 9, short(most, 2), "end"));
    parts.push(D.write(width - 6, height - 9, `${far - 1} tokens away`, "end"));
    D.put("distance", width, height, parts,
      "Mean weight by distance between the token that listens and the one it hears");
    at("distance-note").textContent = "The mean weight that a token gives to the one so many places away, "
      + `over the whole text. It is highest at ${weight.indexOf(Math.max(...weight))}.`;
  }

  /* The likeliest next tokens, and what this head does for them. */
  function next() {
    if (!view.data.next) return;
    const { state, data } = view, i = state.token, { top, came } = data.next, more = i < view.count - 1;
    const rows = top[i].map(([label, chance]) => `<tr><td>${D.escape(label)}</td>`
      + `<td>${chance.toFixed(3)}</td>`
      + `<td><span class="chance" style="width:${(chance * 7).toFixed(2)}em"></span></td></tr>`);
    const notes = [];
    if (came && more) notes.push(`What came, ${view.name(i + 1)}, had ${came[i].toFixed(3)}.`);
    if (data.off && data.off.length) {
      const before = data.layers.slice(0, state.layer).reduce((sum, layer) => sum + layer.heads.length, 0);
      const rises = data.off[before + state.head], mean = rises.reduce((a, b) => a + b, 0) / rises.length;
      const say = (x) => `${x >= 0 ? "rises" : "falls"} by ${short(Math.abs(x))} nats`;
      const here = more ? `; of the token that came here it ${say(rises[i])}` : "";
      notes.push(`Without this head the loss ${say(mean)} per token${here}.`);
    }
    notes.push("Of the model as it is: the sliders change the pictures, not what comes next.");
    at("next").innerHTML = '<div class="wide" tabindex="0" role="region" aria-label="Likeliest next tokens">'
      + `<table><caption>After ${D.escape(view.name(i))}</caption><thead><tr><th scope="col">token</th>`
      + `<th scope="col">probability</th><td></td></tr></thead><tbody>${rows.join("")}</tbody></table></div>`
      + `<div>${notes.map((note) => `<p class="soft">${D.escape(note)}</p>`).join("")}</div>`;
  }

  /* The densities of the layer's heads over training, where the run recorded them. */
  function history() {
    const points = view.data.history.filter((entry) => entry.density[view.state.layer]);
    if (points.length < 2) return;
    const width = Math.max(300, Math.min(720, at("history").clientWidth));
    const height = 170, left = 40, foot = 26, top = 10, last = points[points.length - 1].step || 1;
    const layer = points.map((entry) => entry.density[view.state.layer]);
    const most = Math.max(...layer.flat(), 1e-9);
    const X = (n) => left + (points[n].step / last) * (width - left - 10);
    const Y = (density) => height - foot - (density / most) * (height - top - foot);
    const parts = [D.line(left, height - foot, width - 10, height - foot, "axis")];
    parts.push(D.write(left - 4, top + 8, short(most, 2), "end"));
    parts.push(D.write(left - 4, height - foot, "0", "end"));
    parts.push(D.write(width - 10, height - 8, `step ${last}`, "end"));
    layer[0].forEach((_, h) => parts.push(D.path(layer.map((row, n) => [X(n), Y(row[h])]),
      h === view.state.head ? "curve" : "curve soft-line")));
    at("history").innerHTML = `<h3>Density over training, layer ${view.state.layer + 1}</h3>`
      + `<svg viewBox="0 0 ${width} ${height}" role="img" aria-label="Densities of this layer's heads over `
      + `training, the chosen head as a full line">${parts.join("")}</svg>`
      + '<p class="soft">On the run’s validation text. The full line is the chosen head.</p>';
  }

  return { cross, distance, history, margin, nearestSenders, next, pairs, phases, plane };
};
