"use strict";
/* Draws the explorer. What it draws is computed by arithmetic.js, of the numbers in the element #data. */
(() => {
  const A = SyncattnArithmetic;
  const data = JSON.parse(document.getElementById("data").textContent);
  const count = data.tokens.length;
  const at = (id) => document.getElementById(id);
  const state = { layer: 0, head: 0, token: count - 1, k: 0, alpha: 0, held: false };
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  const dark = matchMedia("(prefers-color-scheme: dark)");

  /* ---- numbers ---- */
  const heads = data.layers.map((layer) => layer.heads.map(() => null));

  function prepared(l, h) {
    if (heads[l][h]) return heads[l][h];
    const layer = data.layers[l], head = layer.heads[h];
    const receive = A.numbers(head.receive), send = head.send ? A.numbers(head.send) : receive;
    const kappa = A.numbers(head.kappa);
    heads[l][h] = {
      receive, send,
      detuning: A.squaredDetuning(receive, send, layer.freqDim),
      allowed: A.allowedPairs(count, layer.causal, layer.selfCoupling, head.mask),
      kappa: kappa.length === count ? kappa : new Float64Array(count).fill(kappa[0]),
      phase: head.phase ? A.numbers(head.phase) : null,
      options: { bandwidth: head.bandwidth, frame: layer.frame, power: layer.power, edge: layer.edge, eps: layer.eps,
        topK: layer.topK },
    };
    return heads[l][h];
  }

  const factors = () => ({ coupling: 2 ** state.k, bandwidth: 2 ** state.alpha });

  function computed(l, h) {
    const one = prepared(l, h);
    return A.synchronize(one.detuning, one.allowed, one.kappa, one.options, factors());
  }

  let now = null; // of the chosen head
  const isLocked = (i, j) => now.margin[i * count + j] > 0;

  /* ---- small helpers ---- */
  const short = (x, digits = 3) => (x === 0 ? "0" : Math.abs(x) >= 1e4 || Math.abs(x) < 1e-3
    ? x.toExponential(1) : String(Number(x.toPrecision(digits))));
  const name = (i) => `${i + 1} “${data.labels[i]}”`;
  const escape = (text) => text.replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`);

  function svg(id, width, height, inside, description) {
    const element = at(id);
    element.setAttribute("viewBox", `0 0 ${width} ${height}`);
    element.setAttribute("aria-label", description);
    element.innerHTML = inside;
  }
  const line = (x1, y1, x2, y2, kind, more = "") =>
    `<line class="${kind}" x1="${x1.toFixed(2)}" y1="${y1.toFixed(2)}" x2="${x2.toFixed(2)}" y2="${y2.toFixed(2)}" ${more}/>`;
  const circle = (x, y, r, kind, title = "") =>
    `<circle class="${kind}" cx="${x.toFixed(2)}" cy="${y.toFixed(2)}" r="${r}">${title ? `<title>${escape(title)}</title>` : ""}</circle>`;
  const write = (x, y, text, anchor = "middle", kind = "") =>
    `<text x="${x.toFixed(1)}" y="${y.toFixed(1)}" text-anchor="${anchor}" class="${kind}">${escape(text)}</text>`;
  const path = (points, kind) =>
    `<path class="${kind}" d="M${points.map(([x, y]) => `${x.toFixed(2)} ${y.toFixed(2)}`).join("L")}"/>`;

  /* Weight 0..1 to a colour: one hue, lightness falling evenly on a light page and rising on a dark one. */
  const RAMPS = {
    light: [[222, 235, 247], [158, 198, 232], [83, 147, 207], [26, 92, 164], [6, 44, 98]],
    dark: [[38, 62, 92], [41, 98, 155], [66, 144, 210], [134, 193, 240], [224, 240, 255]],
  };
  const ZERO = { light: [236, 238, 241], dark: [42, 46, 53] };
  const NEVER = { light: [255, 255, 255], dark: [27, 30, 35] };

  function colours() {
    const ramp = RAMPS[dark.matches ? "dark" : "light"];
    return Array.from({ length: 256 }, (_, n) => {
      const x = (n / 255) * (ramp.length - 1), low = Math.min(Math.floor(x), ramp.length - 2);
      return ramp[low].map((c, k) => Math.round(c + (x - low) * (ramp[low + 1][k] - c)));
    });
  }

  function drawMatrix(canvas, found) {
    canvas.width = canvas.height = count;
    const context = canvas.getContext("2d"), image = context.createImageData(count, count);
    const page = dark.matches ? "dark" : "light", ramp = colours();
    for (let n = 0; n < count * count; n++) {
      const w = found.weight[n];
      const colour = w > 0 ? ramp[Math.min(255, Math.round(255 * Math.sqrt(w)))] : found.pairs[n] ? ZERO[page] : NEVER[page];
      image.data.set([...colour, 255], 4 * n);
    }
    context.putImageData(image, 0, 0);
  }

  /* ---- the text ---- */
  const spans = [];

  function buildText() {
    const holder = at("text");
    if (data.tokens.some((token) => token.length > 1)) holder.classList.add("words");
    data.tokens.forEach((token, i) => {
      const span = document.createElement("span");
      span.className = "token";
      span.textContent = token.replace(/\r\n|\n/g, "↵\n").replace(/\t/g, "⇥") || "·";
      span.setAttribute("role", "button");
      span.setAttribute("aria-label", `token ${i + 1}, ${data.labels[i]}`);
      span.tabIndex = -1;
      span.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && !state.held && choose(i));
      span.addEventListener("click", () => hold(i));
      spans.push(span);
      holder.append(span);
    });
    holder.append(document.createElementNS("http://www.w3.org/2000/svg", "svg"));
    holder.lastChild.setAttribute("aria-hidden", "true");
    holder.addEventListener("keydown", onKey);
  }

  function onKey(event) {
    const steps = { ArrowRight: 1, ArrowDown: 10, ArrowLeft: -1, ArrowUp: -10 };
    let next = state.token + (steps[event.key] || 0);
    if (event.key === "Home") next = 0;
    else if (event.key === "End") next = count - 1;
    else if (event.key === "Enter" || event.key === " ") { event.preventDefault(); return hold(state.token); }
    else if (event.key === "Escape") { state.held = false; return drawToken(); }
    else if (!(event.key in steps)) return;
    event.preventDefault();
    choose(Math.min(Math.max(next, 0), count - 1));
    spans[state.token].focus();
  }

  function hold(i) {
    state.held = !(state.held && state.token === i);
    choose(i);
  }

  function choose(i) {
    stop();
    state.token = i;
    drawToken();
    remember();
  }

  function drawText() {
    const i = state.token, lines = [];
    let strongest = 0;
    for (let j = 0; j < count; j++) strongest = Math.max(strongest, now.weight[i * count + j]);
    const holder = at("text"), box = holder.getBoundingClientRect();
    const middle = (span) => {
      const r = span.getClientRects()[0] || span.getBoundingClientRect();
      return [r.left - box.left + holder.scrollLeft + r.width / 2, r.top - box.top + holder.scrollTop + 2];
    };
    const [x0, y0] = middle(spans[i]);
    spans.forEach((span, j) => {
      const w = now.weight[i * count + j];
      span.classList.toggle("picked", j === i);
      span.classList.toggle("held", j === i && state.held);
      span.tabIndex = j === i ? 0 : -1;
      span.style.background = w > 0 && j !== i ? `rgb(var(--lock-rgb) / ${(0.12 + 0.4 * (w / strongest)).toFixed(3)})` : "";
      if (!(w > 0) || j === i) return;
      const [x, y] = middle(span), rise = Math.min(26, 8 + Math.abs(x - x0) / 8 + Math.abs(y - y0) / 10);
      lines.push(`<path class="link" d="M${x0.toFixed(1)} ${y0.toFixed(1)}C${x0.toFixed(1)} ${(y0 - rise).toFixed(1)} `
        + `${x.toFixed(1)} ${(y - rise).toFixed(1)} ${x.toFixed(1)} ${y.toFixed(1)}" stroke-width="${(0.5 + 6 * w).toFixed(2)}" `
        + `opacity="${(0.2 + 0.7 * (w / strongest)).toFixed(2)}"/>`);
    });
    const drawing = holder.lastChild;
    drawing.setAttribute("width", holder.clientWidth);
    drawing.setAttribute("height", 1);
    drawing.innerHTML = lines.join("");
  }

  function drawCross() {
    const i = state.token, size = 1000 / count, parts = [];
    for (let j = 0; j < count; j++) {
      const w = now.weight[i * count + j];
      // from the token's place on the diagonal along its row, then down to whom it hears
      if (w > 0 && j !== i) parts.push(line((j + 0.5) * size, (i + 0.5) * size, (j + 0.5) * size, (j + 0.5) * size,
        "link", `stroke-width="${(1 + 14 * w).toFixed(2)}" opacity="${(0.25 + 0.6 * w).toFixed(2)}"`));
    }
    parts.push(`<rect x="0" y="${i * size}" width="1000" height="${size}" fill="none" stroke="var(--pick)" stroke-width="3"/>`);
    parts.push(circle((i + 0.5) * size, (i + 0.5) * size, 9, "dot-pick"));
    svg("cross", 1000, 1000, parts.join(""), "");
  }

  /* ---- one head, one token ---- */
  function drawPlane() {
    const layer = data.layers[state.layer], head = layer.heads[state.head], one = prepared(state.layer, state.head);
    const m = layer.freqDim, i = state.token;
    const place = (points, n) => head.plane.map((axis) => axis.reduce((sum, a, c) => sum + a * points[n * m + c], 0));
    const radius = Math.sqrt(A.lockingRadius(now.kappa[i], now.bandwidth) ** 2 + now.nearest[i]);
    const mine = place(one.receive, i), senders = Array.from({ length: count }, (_, j) => place(one.send, j));
    let middle = mine, reach = 2.2 * Math.max(radius, 1e-9);
    const all = senders.concat([mine]);
    const low = [0, 1].map((c) => Math.min(...all.map((p) => p[c]))), high = [0, 1].map((c) => Math.max(...all.map((p) => p[c])));
    const whole = 0.54 * Math.max(high[0] - low[0], high[1] - low[1], 1e-9);
    if (!at("near").checked || reach > 1.5 * whole) {
      middle = [0, 1].map((c) => (low[c] + high[c]) / 2);
      reach = whole;
    }
    const size = 360, scale = size / 2 / reach;
    const to = ([x, y]) => [size / 2 + (x - middle[0]) * scale, size / 2 - (y - middle[1]) * scale];
    const [x0, y0] = to(mine), parts = [circle(x0, y0, (radius * scale).toFixed(2), "ring")], free = [], locked = [];
    let inside = 0, seen = 0;
    senders.forEach((p, j) => {
      if (!now.pairs[i * count + j]) return;
      const [x, y] = to(p), w = now.weight[i * count + j];
      seen += 1;
      if (x < 0 || x > size || y < 0 || y > size) return;
      inside += 1;
      if (w > 0) {
        locked.push(line(x0, y0, x, y, "link", `stroke-width="${(0.6 + 8 * w).toFixed(2)}" opacity="0.6"`));
        locked.push(circle(x, y, 5, "dot-lock", `${name(j)}, weight ${short(w)}`));
        if (w > 0.08) locked.push(write(x, y - 8, data.labels[j], "middle", "strong"));
      } else free.push(circle(x, y, 3.5, "dot-free", `${name(j)}, not locked`));
    });
    parts.push(...free, ...locked, circle(x0, y0, 6, "dot-pick", name(i)), write(x0, y0 + 18, data.labels[i], "middle", "strong"));
    svg("plane", size, size, parts.join(""),
      `Frequencies around token ${name(i)}: ${now.locked[i]} of ${now.allowed[i]} senders lock, within a locking radius of ${short(radius)}`);
    at("plane-note").textContent = `Two principal coordinates of ${m} (${Math.round(100 * head.share)} % of the variance). `
      + `Dashed: the locking radius, ${short(radius)}${layer.frame === "nearest" ? ", counted from the nearest sender on" : ""}. `
      + `Seen from here, points look nearer than they are. ${inside} of ${seen} senders are in the picture.`;
  }

  function drawMargin() {
    const i = state.token, kappa = now.kappa[i], alpha = now.bandwidth;
    const rho2 = A.lockingRadius(kappa, alpha) ** 2, width = 360, height = 260, left = 34, foot = 28, top = 10;
    const right = 2.5 * Math.max(rho2, 1e-12), floor = -1;
    const X = (d) => left + (d / right) * (width - left - 8), Y = (f) => top + ((1 - f) / (1 - floor)) * (height - top - foot);
    const grid = Array.from({ length: 121 }, (_, n) => (n / 120) * right);
    const clip = (f) => Math.max(f, floor);
    const parts = [line(left, Y(0), width - 8, Y(0), "axis"), line(left, top, left, height - foot, "axis")];
    for (const f of [-1, -0.5, 0, 0.5, 1]) parts.push(write(left - 5, Y(f) + 4, String(f), "end"));
    for (const part of [0, 1, 2]) parts.push(write(X(part * rho2), height - 10, part ? short(part * rho2) : "0", part ? "middle" : "start"));
    parts.push(write(width - 8, height - 10, "D", "end"), write(left + 6, Y(-0.85), "F", "start"));
    parts.push(line(X(rho2), top, X(rho2), height - foot, "ring"), write(X(rho2) + 5, top + 8, "locks up to here", "start"));
    parts.push(path(grid.map((d) => [X(d), Y(clip(A.marginOf(d, kappa, alpha)))]), "curve"));
    parts.push(path(grid.map((d) => [X(d), Y(Math.exp(-2 * alpha * d))]), "curve soft-line"));
    let beyond = 0;
    for (let j = 0; j < count; j++) {
      const n = i * count + j;
      if (!now.pairs[n]) continue;
      if (now.detuning[n] > right || now.margin[n] < floor) { beyond += 1; continue; }
      parts.push(circle(X(now.detuning[n]), Y(now.margin[n]), isLocked(i, j) ? 5 : 4, isLocked(i, j) ? "dot-lock" : "dot-free",
        `${name(j)}: D ${short(now.detuning[n])}, F ${short(now.margin[n])}`));
    }
    svg("margin", width, height, parts.join(""), `Margin of token ${name(i)} with each sender: ${now.locked[i]} above 0`);
    at("margin-note").textContent = `Filled: locked. Dashed grey: exp(-2 alpha D). ${beyond} pairs are further out.`
      + (now.nearest[i] > 0 ? ` D is counted from the nearest sender, ${short(now.nearest[i])}.` : "");
  }

  function around(radius, middle, angle) {
    return [middle + radius * Math.cos(angle), middle - radius * Math.sin(angle)];
  }

  function drawPhases() {
    const layer = data.layers[state.layer], one = prepared(state.layer, state.head), i = state.token;
    if (!one.phase) {
      svg("phases", 360, 40, write(180, 24, "This layer has no order parameter: r = 1."), "No order parameter");
      at("phases-note").textContent = "";
      return;
    }
    const seen = Array.from({ length: count }, (_, j) => !layer.causal || j <= i);
    if (layer.heads[state.head].mask) for (let j = 0; j < count; j++) seen[j] = seen[j] && (j === i || one.allowed[i * count + j] > 0);
    const { r, arrows } = A.orderParameter(one.phase, layer.phaseDim, seen), size = 300, c = size / 2, R = 120;
    const parts = [circle(c, c, R, "faint"), line(c - R, c, c + R, c, "faint"), line(c, c - R, c, c + R, "faint")];
    for (let j = 0; j < count; j++) {
      if (!seen[j]) continue;
      const [x, y] = around(R, c, one.phase[j * layer.phaseDim]);
      parts.push(circle(x, y, 4, j === i || !isLocked(i, j) ? "dot-free" : "dot-lock", name(j)));
    }
    parts.push(circle(...around(R, c, one.phase[i * layer.phaseDim]), 6, "dot-pick", name(i)));
    arrows.forEach(([x, y], p) => parts.push(line(c, c, c + R * x, c - R * y, "arrow", p ? 'opacity="0.35"' : "")));
    parts.push(write(c, size - 8, `r = ${r.toFixed(3)}`, "middle", "strong"));
    svg("phases", size, size, parts.join(""), `Phases of the tokens that token ${name(i)} sees; order parameter ${r.toFixed(3)}`);
    at("phases-note").textContent = `The arrow is the mean of all phases that the token sees${layer.phaseDim > 1
      ? ` (the first of ${layer.phaseDim}; r is the mean over them)` : ""}; its length r scales the coupling: `
      + `kappa = K r = ${short(now.kappa[i])}.`;
  }

  function drawDistance() {
    const found = A.byDistance(now, count), width = 360, height = 190, left = 36, foot = 26, top = 8;
    const far = Math.max(8, Math.min(count, found.weight.findLastIndex((w) => w > 1e-4) + 2)), most = Math.max(...found.weight, 1e-12);
    const step = (width - left - 6) / far, parts = [];
    for (let d = 0; d < far; d++) {
      const h = (found.weight[d] / most) * (height - top - foot);
      if (h > 0) parts.push(`<rect class="bar" x="${(left + d * step).toFixed(2)}" y="${(height - foot - h).toFixed(2)}" `
        + `width="${Math.max(step - (step > 3 ? 1 : 0), 0.5).toFixed(2)}" height="${h.toFixed(2)}"><title>${d}: ${short(found.weight[d])}</title></rect>`);
    }
    parts.push(line(left, height - foot, width - 6, height - foot, "axis"), write(left, height - 9, "0", "start"),
      write(width - 6, height - 9, `${far - 1} tokens away`, "end"), write(left - 4, top + 9, short(most, 2), "end"));
    svg("distance", width, height, parts.join(""), "Mean weight by distance between the token that listens and the one it hears");
    at("distance-note").textContent = `The mean weight that a token gives to the one so many places away, over the whole text. `
      + `It is highest at ${found.weight.indexOf(Math.max(...found.weight))}.`;
  }

  function drawNext() {
    if (!data.next) return;
    const i = state.token, rows = data.next.top[i].map(([label, chance]) => `<tr><td>${escape(label)}</td><td>${chance.toFixed(3)}</td>`
      + `<td><span class="chance" style="width:${(chance * 7).toFixed(2)}em"></span></td></tr>`);
    let text = `<div class="wide" tabindex="0" role="region" aria-label="Likeliest next tokens"><table><caption>After ${escape(name(i))}</caption>`
      + `<thead><tr><th scope="col">token</th><th scope="col">probability</th><th></th></tr></thead><tbody>${rows.join("")}</tbody></table></div>`;
    text += "<div>";
    if (data.next.came && i < count - 1) text += `<p class="soft">What came, ${escape(name(i + 1))}, had ${data.next.came[i].toFixed(3)}.</p>`;
    if (data.off && data.off.length) {
      let before = 0;
      for (let l = 0; l < state.layer; l++) before += data.layers[l].heads.length;
      const rises = data.off[before + state.head], mean = rises.reduce((a, b) => a + b, 0) / rises.length;
      const say = (x) => `${x >= 0 ? "rises" : "falls"} by ${short(Math.abs(x))} nats`;
      text += `<p class="soft">Without this head the loss ${say(mean)} per token${i < count - 1 ? `; of the token that came here it ${say(rises[i])}` : ""}.</p>`;
    }
    text += '<p class="soft">Of the model as it is: the sliders change the pictures, not what comes next.</p>';
    at("next").innerHTML = text + "</div>";
  }

  /* ---- Kuramoto's equation for the chosen token and each sender ---- */
  let motion = null;

  function stop() {
    if (motion) cancelAnimationFrame(motion.frame);
    motion = null;
    at("run").textContent = "Run";
  }

  const LONG = 60; // in units of 1 / kappa

  function nearestSenders() {
    const i = state.token, senders = [];
    for (let j = 0; j < count; j++) if (now.pairs[i * count + j] && j !== i) senders.push(j);
    senders.sort((a, b) => now.detuning[i * count + a] - now.detuning[i * count + b]);
    return senders.slice(0, 24);
  }

  function advance(time) {
    const i = state.token, kappa = now.kappa[i];
    while (motion.time < time - 1e-9) {
      motion.senders.forEach((j, n) => {
        // 1 / kappa is the unit of time, so that a weak and a strong coupling are watched alike
        motion.psi[n] = A.pairStep(motion.psi[n], now.detuning[i * count + j], kappa, now.bandwidth, 0.05 / kappa);
      });
      motion.time += 0.05;
    }
    drawPairs();
  }

  function run() {
    if (motion && motion.frame) return stop();
    motion = { senders: nearestSenders(), psi: new Float64Array(24), time: 0, frame: 0 };
    if (still.matches) { advance(LONG); return; }
    at("run").textContent = "Stop";
    const tick = () => {
      advance(motion.time + 0.15);
      if (motion.time < LONG) motion.frame = requestAnimationFrame(tick);
      else { motion.frame = 0; at("run").textContent = "Run again"; }
    };
    motion.frame = requestAnimationFrame(tick);
  }

  function drawPairs() {
    const i = state.token, size = 300, c = size / 2, R = 120, parts = [circle(c, c, R, "faint")];
    parts.push(line(c, c, c + R, c, "faint"), circle(c + R, c, 7, "dot-pick", name(i)));
    const shown = motion ? motion.senders : nearestSenders();
    shown.forEach((j) => {
      if (!isLocked(i, j)) return;
      const rest = A.restAngle(now.detuning[i * count + j], now.kappa[i], now.bandwidth);
      parts.push(line(...around(R - 2, c, rest), ...around(R + 10, c, rest), "tick"));
    });
    if (motion) shown.forEach((j, n) => {
      const [x, y] = around(R - 4 - 3 * (n % 8), c, motion.psi[n]);
      if (isLocked(i, j)) parts.push(line(c, c, x, y, "link", `opacity="0.35" stroke-width="${(1 + 6 * now.weight[i * count + j]).toFixed(2)}"`));
      parts.push(circle(x, y, 5, isLocked(i, j) ? "dot-lock" : "dot-free", name(j)));
    });
    const locked = shown.filter((j) => isLocked(i, j)).length;
    parts.push(write(c, size - 8, motion ? `time ${motion.time.toFixed(1)} / kappa` : "Run sets them off", "middle", "strong"));
    svg("pairs", size, size, parts.join(""), `${locked} locked pairs settle, ${shown.length - locked} drift`);
    at("pairs-note").textContent = "Each of the nearest senders alone with the token: psi' = sqrt(D) - kappa J sin psi, "
      + `the equation whose rest gives S. Filled ones settle at the marks, the others turn for ever.${motion ? ` Here: ${locked} and ${shown.length - locked}.` : ""}`;
  }

  /* ---- all heads ---- */
  const small = [];

  function buildHeads() {
    data.layers.forEach((layer, l) => layer.heads.forEach((_, h) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(document.createElement("canvas"), document.createElement("span"));
      button.addEventListener("click", () => pick(l, h));
      at("heads").append(button);
      small.push({ l, h, button });
    }));
  }

  function drawHead({ l, h, button }) {
    const found = l === state.layer && h === state.head ? now : computed(l, h), { density, partners } = A.summary(found);
    drawMatrix(button.firstChild, found);
    button.firstChild.setAttribute("aria-hidden", "true");
    button.lastChild.innerHTML = `layer ${l + 1}, head ${h + 1}<br>density ${density.toFixed(3)}<br>${partners.toFixed(1)} partners`;
    button.setAttribute("aria-pressed", String(l === state.layer && h === state.head));
  }

  let waiting = 0;
  function drawHeads() {
    clearTimeout(waiting);
    let n = 0;
    const go = () => { // a few at a time, so that sliders stay smooth
      const until = performance.now() + 25;
      while (n < small.length && performance.now() < until) drawHead(small[n++]);
      if (n < small.length) waiting = setTimeout(go, 0);
    };
    go();
  }

  function drawHistory() {
    const points = data.history.filter((entry) => entry.density && entry.density[state.layer]);
    if (points.length < 2) return;
    const width = Math.max(300, Math.min(720, at("history").clientWidth)), height = 170, left = 40, foot = 26, top = 10, last = points[points.length - 1].step || 1;
    const layer = points.map((entry) => entry.density[state.layer]), most = Math.max(...layer.flat(), 1e-9);
    const X = (n) => left + (points[n].step / last) * (width - left - 10), Y = (d) => height - foot - (d / most) * (height - top - foot);
    const parts = [line(left, height - foot, width - 10, height - foot, "axis"), write(left - 4, top + 8, short(most, 2), "end"),
      write(left - 4, height - foot, "0", "end"), write(width - 10, height - 8, `step ${last}`, "end")];
    layer[0].forEach((_, h) => h !== state.head && parts.push(path(layer.map((row, n) => [X(n), Y(row[h])]), "curve soft-line")));
    if (layer[0].length > state.head) parts.push(path(layer.map((row, n) => [X(n), Y(row[state.head])]), "curve"));
    at("history").innerHTML = `<h2 style="margin-top:1rem">Density over training, layer ${state.layer + 1}</h2>`
      + `<svg viewBox="0 0 ${width} ${height}" role="img" aria-label="Densities of this layer's heads over training, the chosen head as a full line">${parts.join("")}</svg>`
      + '<p class="soft">On the run’s validation text. The full line is the chosen head.</p>';
  }

  /* ---- together ---- */
  function say() {
    const i = state.token, { density, partners } = A.summary(now), best = [];
    for (let j = 0; j < count; j++) if (now.weight[i * count + j] > 0) best.push([now.weight[i * count + j], j]);
    best.sort((a, b) => b[0] - a[0]);
    const whom = best.slice(0, 3).map(([w, j]) => `${name(j)} ${w.toFixed(3)}`).join(", ");
    at("said").textContent = `Token ${name(i)} locks with ${now.locked[i]} of ${now.allowed[i]}`
      + `${whom ? `: ${whom}${best.length > 3 ? " and others" : ""}` : ""}. Head: density ${density.toFixed(4)}, ${partners.toFixed(2)} partners.`;
  }

  function drawToken() {
    drawText();
    drawCross();
    drawPlane();
    drawMargin();
    drawPhases();
    drawPairs();
    drawNext();
    say();
  }

  function drawAll() {
    stop();
    const head = data.layers[state.layer].heads[state.head], by = factors();
    now = computed(state.layer, state.head);
    at("k-value").textContent = `${short(head.coupling * by.coupling)} (× ${by.coupling.toFixed(2)})`;
    at("alpha-value").textContent = `${short(head.bandwidth * by.bandwidth)} (× ${by.bandwidth.toFixed(2)})`;
    at("k").setAttribute("aria-valuetext", at("k-value").textContent);
    at("alpha").setAttribute("aria-valuetext", at("alpha-value").textContent);
    drawMatrix(at("matrix"), now);
    const density = A.summary(now).density;
    at("matrix").setAttribute("aria-label", `Weights of layer ${state.layer + 1}, head ${state.head + 1}: ${(100 * density).toFixed(1)} % of the allowed pairs are not 0`);
    at("matrix-key").textContent = `Grey: an exact zero, ${(100 * (1 - density)).toFixed(1)} % of the allowed pairs. The colour is the weight's square root.`;
    drawToken();
    drawDistance();
    drawHistory();
    drawHeads();
    remember();
  }

  function pick(l, h) {
    state.layer = l;
    state.head = h;
    fillHeads();
    drawAll();
  }

  function fillHeads() {
    at("layer").value = String(state.layer);
    const wanted = data.layers[state.layer].heads.length;
    if (at("head").length !== wanted) at("head").replaceChildren(...Array.from({ length: wanted }, (_, h) => new Option(String(h + 1), String(h))));
    at("head").value = String(state.head);
  }

  /* What is shown stands in the address, so that it can be passed on. */
  function remember() {
    const { layer, head, token, k, alpha } = state;
    try {
      history.replaceState(null, "", `#layer=${layer + 1}&head=${head + 1}&token=${token + 1}&k=${k}&alpha=${alpha}`);
    } catch { /* a frame in a notebook has no address */ }
  }

  function recall() {
    const given = new URLSearchParams(location.hash.slice(1));
    const whole = (key, most, otherwise) => {
      const n = Number.parseInt(given.get(key), 10) - 1;
      return n >= 0 && n < most ? n : otherwise;
    };
    const real = (key) => Math.min(3, Math.max(-3, Number.parseFloat(given.get(key)) || 0));
    state.layer = whole("layer", data.layers.length, state.layer);
    state.head = whole("head", data.layers[state.layer].heads.length, 0);
    state.token = whole("token", count, state.token);
    state.k = real("k");
    state.alpha = real("alpha");
    at("k").value = String(state.k);
    at("alpha").value = String(state.alpha);
  }

  at("explorer").hidden = false;
  at("tables").open = false;
  if (!data.next) at("next-card").hidden = true;
  data.layers.forEach((layer, l) => at("layer").append(new Option(`${l + 1} (${layer.name})`, String(l))));
  buildText();
  buildHeads();
  recall();
  fillHeads();
  at("layer").addEventListener("change", () => pick(Number(at("layer").value), 0));
  at("head").addEventListener("change", () => pick(state.layer, Number(at("head").value)));
  for (const key of ["k", "alpha"]) at(key).addEventListener("input", () => { state[key] = Number(at(key).value); drawAll(); });
  at("reset").addEventListener("click", () => { state.k = state.alpha = 0; at("k").value = at("alpha").value = "0"; drawAll(); });
  at("near").addEventListener("change", drawPlane);
  at("run").addEventListener("click", run);
  const overMatrix = (event) => {
    const box = at("matrix").getBoundingClientRect(), i = Math.floor(((event.clientY - box.top) / box.height) * count);
    return Math.min(Math.max(i, 0), count - 1);
  };
  at("cross").addEventListener("pointermove", (event) => event.pointerType === "mouse" && !state.held && choose(overMatrix(event)));
  at("cross").addEventListener("click", (event) => hold(overMatrix(event)));
  window.addEventListener("resize", drawText);
  dark.addEventListener("change", drawAll);
  drawAll();
})();
