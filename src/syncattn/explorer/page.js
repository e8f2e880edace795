"use strict";
/* What is shown and what changes it: the controls, the text, the heads. The numbers stand in #data. */
(() => {
  const A = SyncattnArithmetic, D = SyncattnDrawing;
  const at = (id) => document.getElementById(id);
  const data = JSON.parse(at("data").textContent), count = data.tokens.length;
  const state = { layer: 0, head: 0, token: count - 1, k: 0, alpha: 0, held: false }; // k, alpha: powers of 2
  const view = { data, count, state, found: null, one: null, name: (i) => `${i + 1} “${data.labels[i]}”` };
  const pictures = SyncattnPictures(view);
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const LONGEST = 60, STEP = 0.05; // of pairs in time, in units of 1 / kappa

  /* ---- numbers ---- */
  const prepared = data.layers.map((layer) => layer.heads.map(() => null));

  /* What a head is computed from; the detunings do not depend on the sliders. */
  function numbersOf(l, h) {
    if (prepared[l][h]) return prepared[l][h];
    const layer = data.layers[l], head = layer.heads[h];
    const receive = A.numbers(head.receive), send = head.send ? A.numbers(head.send) : receive;
    const kappa = A.numbers(head.kappa);
    prepared[l][h] = {
      receive, send,
      detuning: A.squaredDetuning(receive, send, layer.freqDim),
      allowed: A.allowedPairs(count, layer.causal, layer.selfCoupling, head.mask),
      kappa: kappa.length === count ? kappa : new Float64Array(count).fill(kappa[0]),
      phase: head.phase ? A.numbers(head.phase) : null,
      options: { ...layer, bandwidth: head.bandwidth },
    };
    return prepared[l][h];
  }

  function computed(l, h) {
    const one = numbersOf(l, h), factors = { coupling: 2 ** state.k, bandwidth: 2 ** state.alpha };
    return A.synchronize(one.detuning, one.allowed, one.kappa, one.options, factors);
  }

  const page = () => (dark.matches ? "dark" : "light");

  /* ---- the text ---- */
  const spans = [];

  function buildText() {
    const holder = at("text");
    data.tokens.forEach((token, i) => {
      const span = document.createElement("span");
      span.className = "token";
      span.textContent = token.replace(/\r\n|\n/g, "↵\n").replace(/\t/g, "⇥") || "·";
      span.setAttribute("role", "button");
      span.setAttribute("aria-label", `token ${i + 1}, ${data.labels[i]}`);
      span.tabIndex = -1;
      span.addEventListener("pointerenter", (event) => {
        if (event.pointerType === "mouse" && !state.held) choose(i);
      });
      span.addEventListener("click", () => hold(i));
      spans.push(span);
      holder.append(span);
    });
    holder.append(document.createElementNS("http://www.w3.org/2000/svg", "svg"));
    holder.lastChild.setAttribute("aria-hidden", "true");
    holder.addEventListener("keydown", onKey);
  }

  function onKey(event) {
    const steps = { ArrowRight: 1, ArrowDown: 10, ArrowLeft: -1, ArrowUp: -10, Home: -count, End: count };
    if (event.key === "Enter" || event.key === " ") hold(state.token);
    else if (event.key === "Escape") { state.held = false; drawToken(); }
    else if (event.key in steps) {
      choose(Math.min(Math.max(state.token + steps[event.key], 0), count - 1));
      spans[state.token].focus();
    } else return;
    event.preventDefault();
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

  /* The chosen token, whom it listens to, and lines between them whose width is the weight. */
  function drawText() {
    const i = state.token, lines = [], holder = at("text"), box = holder.getBoundingClientRect();
    const row = view.found.weight.subarray(i * count, (i + 1) * count), strongest = Math.max(...row);
    const top = (span) => { // the middle of its upper edge; of a token on two lines, of its first part
      const r = span.getClientRects()[0] || span.getBoundingClientRect();
      return [r.left - box.left + holder.scrollLeft + r.width / 2, r.top - box.top + holder.scrollTop + 2];
    };
    const [x0, y0] = top(spans[i]);
    spans.forEach((span, j) => {
      const w = row[j], heard = w > 0 && j !== i;
      span.classList.toggle("picked", j === i);
      span.classList.toggle("held", j === i && state.held);
      span.tabIndex = j === i ? 0 : -1;
      const fill = (0.12 + 0.4 * (w / strongest)).toFixed(3);
      span.style.background = heard ? `rgb(var(--lock-rgb) / ${fill})` : "";
      if (!heard) return;
      const [x, y] = top(span), rise = Math.min(26, 8 + Math.abs(x - x0) / 8 + Math.abs(y - y0) / 10);
      const points = [x0, y0, x0, y0 - rise, x, y - rise, x, y].map((n) => n.toFixed(1));
      const width = (0.5 + 6 * w).toFixed(2), opacity = (0.2 + 0.7 * (w / strongest)).toFixed(2);
      lines.push(`<path class="link" d="M${points.slice(0, 2).join(" ")}C${points.slice(2).join(" ")}" `
        + `stroke-width="${width}" opacity="${opacity}"/>`);
    });
    holder.lastChild.setAttribute("width", holder.clientWidth);
    holder.lastChild.setAttribute("height", 1);
    holder.lastChild.innerHTML = lines.join("");
  }

  /* The same in words. */
  function say() {
    const i = state.token, { found } = view, { density, partners } = A.summary(found), heard = [];
    for (let j = 0; j < count; j++) {
      const w = found.weight[i * count + j];
      if (w > 0) heard.push([w, j]);
    }
    heard.sort((a, b) => b[0] - a[0]);
    const first = heard.slice(0, 3).map(([w, j]) => `${view.name(j)} ${w.toFixed(3)}`).join(", ");
    const whom = first ? `: ${first}${heard.length > 3 ? " and others" : ""}` : "";
    const locks = `locks with ${found.locked[i]} of ${found.allowed[i]}`;
    at("said").textContent = `Token ${view.name(i)} ${locks}${whom}. `
      + `Head: density ${density.toFixed(4)}, ${partners.toFixed(2)} partners.`;
  }

  /* ---- pairs in time ---- */
  let motion = null;

  function stop() {
    if (motion) cancelAnimationFrame(motion.frame);
    motion = null;
    at("run").textContent = "Run";
  }

  function advance(time) {
    const i = state.token, { found } = view, kappa = found.kappa[i];
    while (motion.time < time - 1e-9) {
      motion.senders.forEach((j, n) => {
        // 1 / kappa is the unit of time, so that a weak and a strong coupling are watched alike
        const detuning = found.detuning[i * count + j];
        motion.psi[n] = A.pairStep(motion.psi[n], detuning, kappa, found.bandwidth, STEP / kappa);
      });
      motion.time += STEP;
    }
    pictures.pairs(motion);
  }

  function run() {
    if (motion && motion.frame) { stop(); pictures.pairs(null); return; }
    const senders = pictures.nearestSenders();
    motion = { senders, psi: new Float64Array(senders.length), time: 0, frame: 0 };
    if (still.matches) { advance(LONGEST); return; } // at once, where no motion is wanted
    at("run").textContent = "Stop";
    const tick = () => {
      advance(motion.time + 3 * STEP);
      const over = motion.time >= LONGEST;
      motion.frame = over ? 0 : requestAnimationFrame(tick);
      if (over) at("run").textContent = "Run again";
    };
    motion.frame = requestAnimationFrame(tick);
  }

  /* ---- all heads ---- */
  const small = [];
  let waiting = 0;

  function buildHeads() {
    data.layers.forEach((layer, l) => layer.heads.forEach((_, h) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(document.createElement("canvas"), document.createElement("span"));
      button.firstChild.setAttribute("aria-hidden", "true");
      button.addEventListener("click", () => pick(l, h));
      at("heads").append(button);
      small.push({ l, h, button });
    }));
  }

  function drawHead({ l, h, button }) {
    const chosen = l === state.layer && h === state.head, found = chosen ? view.found : computed(l, h);
    const { density, partners } = A.summary(found);
    D.matrix(button.firstChild, found, count, page());
    button.lastChild.innerHTML = `layer ${l + 1}, head ${h + 1}<br>density ${density.toFixed(3)}<br>`
      + `${partners.toFixed(1)} partners`;
    button.setAttribute("aria-pressed", String(chosen));
  }

  /* A few at a time, so that the sliders stay smooth. */
  function drawHeads() {
    clearTimeout(waiting);
    let n = 0;
    const go = () => {
      const until = performance.now() + 25;
      while (n < small.length && performance.now() < until) drawHead(small[n++]);
      if (n < small.length) waiting = setTimeout(go, 0);
    };
    go();
  }

  function pick(l, h) {
    state.layer = l;
    state.head = h;
    fillHeads();
    drawAll();
  }

  function fillHeads() {
    const heads = data.layers[state.layer].heads.map((_, h) => new Option(String(h + 1), String(h)));
    if (at("head").length !== heads.length) at("head").replaceChildren(...heads);
    at("layer").value = String(state.layer);
    at("head").value = String(state.head);
  }

  /* ---- together ---- */
  function drawToken() {
    drawText();
    pictures.cross();
    pictures.plane();
    pictures.margin();
    pictures.phases();
    pictures.pairs(motion);
    pictures.next();
    say();
  }

  function drawAll() {
    stop();
    view.one = numbersOf(state.layer, state.head);
    view.found = computed(state.layer, state.head);
    const head = data.layers[state.layer].heads[state.head];
    for (const [key, value] of [["k", head.coupling], ["alpha", head.bandwidth]]) {
      const factor = 2 ** state[key];
      at(`${key}-value`).textContent = `${D.short(value * factor)} (× ${factor.toFixed(2)})`;
      at(key).setAttribute("aria-valuetext", at(`${key}-value`).textContent);
    }
    D.matrix(at("matrix"), view.found, count, page());
    const zeros = `${(100 * (1 - A.summary(view.found).density)).toFixed(1)} % of the allowed pairs`;
    at("matrix").setAttribute("aria-label",
      `Weights of layer ${state.layer + 1}, head ${state.head + 1}: ${zeros} are exactly 0`);
    at("matrix-key").textContent = `Grey: an exact zero, ${zeros}. The colour is the weight's square root.`;
    drawToken();
    pictures.distance();
    pictures.history();
    drawHeads();
    remember();
  }

  /* What is shown stands in the address, so that it can be passed on. */
  function remember() {
    const { layer, head, token, k, alpha } = state;
    const shown = `#layer=${layer + 1}&head=${head + 1}&token=${token + 1}&k=${k}&alpha=${alpha}`;
    try {
      history.replaceState(null, "", shown);
    } catch { /* a frame in a notebook has no address of its own */ }
  }

  function recall() {
    const given = new URLSearchParams(location.hash.slice(1));
    const whole = (key, most, otherwise) => {
      const n = Number.parseInt(given.get(key), 10) - 1;
      return n >= 0 && n < most ? n : otherwise;
    };
    const real = (key) => Math.min(3, Math.max(-3, Number.parseFloat(given.get(key)) || 0));
    state.layer = whole("layer", data.layers.length, 0);
    state.head = whole("head", data.layers[state.layer].heads.length, 0);
    state.token = whole("token", count, count - 1);
    for (const key of ["k", "alpha"]) {
      state[key] = real(key);
      at(key).value = String(state[key]);
    }
  }

  function listen() {
    at("layer").addEventListener("change", () => pick(Number(at("layer").value), 0));
    at("head").addEventListener("change", () => pick(state.layer, Number(at("head").value)));
    for (const key of ["k", "alpha"]) {
      at(key).addEventListener("input", () => { state[key] = Number(at(key).value); drawAll(); });
    }
    at("reset").addEventListener("click", () => {
      state.k = state.alpha = 0;
      at("k").value = at("alpha").value = "0";
      drawAll();
    });
    at("near").addEventListener("change", pictures.plane);
    at("run").addEventListener("click", run);
    const rowUnder = (event) => {
      const box = at("matrix").getBoundingClientRect();
      return Math.min(Math.max(Math.floor(((event.clientY - box.top) / box.height) * count), 0), count - 1);
    };
    at("cross").addEventListener("pointermove", (event) => {
      const i = rowUnder(event);
      if (event.pointerType === "mouse" && !state.held && i !== state.token) choose(i);
    });
    at("cross").addEventListener("click", (event) => hold(rowUnder(event)));
    window.addEventListener("resize", drawText);
    window.addEventListener("hashchange", () => { recall(); fillHeads(); drawAll(); });
    dark.addEventListener("change", drawAll);
  }

  at("explorer").hidden = false;
  at("tables").open = false;
  at("next-card").hidden = !data.next;
  data.layers.forEach((layer, l) => at("layer").append(new Option(`${l + 1} (${layer.name})`, String(l))));
  buildText();
  buildHeads();
  recall();
  fillHeads();
  listen();
  drawAll();
})();
