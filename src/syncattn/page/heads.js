"use strict";
/* A sentence whose tokens can be pointed at, and each head of each model as a small matrix beside it. */
(() => {
  const D = SyncattnDrawing, all = JSON.parse(document.getElementById("data").textContent).sentences;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const make = (kind, name = "") => Object.assign(document.createElement(kind), { className: name });

  function build(holder) {
    const data = all[Number(holder.dataset.sentence)], count = data.labels.length;
    const state = { model: 0, layer: 0, head: 0, token: count - 1, held: false };
    const text = make("div", "sentence"), said = make("p", "said"), spans = [], buttons = [];
    const rows = (one) => data.weights[one.model][one.layer][one.head];
    const name = (i) => `${i + 1} “${data.labels[i].trim() || data.labels[i]}”`;
    text.setAttribute("role", "group");
    text.setAttribute("aria-label", "The sentence, token by token; arrow keys go from one to the next");
    said.setAttribute("role", "status");

    const may = (one, i, j) => (j < i || (j > i && !data.causal) || (j === i && data.hearsItself[one.model]));
    const allowed = (one, i) => data.labels.filter((_, j) => may(one, i, j)).length;

    /* What arithmetic.js would have found, of weights that are known already. */
    function foundOf(one) {
      const weight = new Float64Array(count * count), pairs = new Uint8Array(count * count);
      let above = 0, all = 0;
      rows(one).forEach((row, i) => {
        all += allowed(one, i);
        row.forEach((w, j) => {
          weight[i * count + j] = w;
          pairs[i * count + j] = may(one, i, j) ? 1 : 0;
          above += w > 0 ? 1 : 0;
        });
      });
      return { weight, pairs, share: above / Math.max(all, 1) };
    }

    function say() {
      const row = rows(state)[state.token], strongest = Math.max(...row) || 1;
      const heard = row.map((w, j) => [w, j]).filter(([w]) => w > 0).sort((a, b) => b[0] - a[0]);
      const first = heard.slice(0, 3).map(([w, j]) => `${name(j)} ${w.toFixed(3)}`).join(", ");
      said.textContent = `${data.models[state.model]}, layer ${state.layer + 1}, head ${state.head + 1}: `
        + `token ${name(state.token)} listens to ${heard.length} of ${allowed(state, state.token)}`
        + `${first ? `: ${first}${heard.length > 3 ? " and others" : ""}` : ""}.`;
      spans.forEach((span, j) => {
        span.classList.toggle("picked", j === state.token);
        span.classList.toggle("held", j === state.token && state.held);
        span.tabIndex = j === state.token ? 0 : -1;
        const fill = (0.1 + 0.5 * (row[j] / strongest)).toFixed(3);
        span.style.background = row[j] > 0 && j !== state.token ? `rgb(var(--lock-rgb) / ${fill})` : "";
      });
      for (const { one, button } of buttons) {
        const is = ["model", "layer", "head"].every((key) => one[key] === state[key]);
        button.setAttribute("aria-pressed", String(is));
      }
    }

    function choose(token) {
      state.token = token;
      say();
    }

    function hold(token) {
      state.held = !(state.held && state.token === token);
      choose(token);
    }

    data.labels.forEach((label, i) => {
      const span = make("span", "token");
      span.textContent = label;
      span.setAttribute("role", "button");
      span.setAttribute("aria-label", `token ${i + 1}, ${label}`);
      span.addEventListener("pointerenter", (event) => {
        if (event.pointerType === "mouse" && !state.held) choose(i);
      });
      span.addEventListener("click", () => hold(i));
      spans.push(span);
      text.append(span);
    });
    text.addEventListener("keydown", (event) => {
      const steps = { ArrowRight: 1, ArrowDown: 10, ArrowLeft: -1, ArrowUp: -10, Home: -count, End: count };
      if (event.key === "Enter" || event.key === " ") hold(state.token);
      else if (event.key === "Escape") { state.held = false; say(); }
      else if (event.key in steps) {
        choose(Math.min(Math.max(state.token + steps[event.key], 0), count - 1));
        spans[state.token].focus();
      } else return;
      event.preventDefault();
    });

    for (const grid of holder.parentElement.querySelectorAll(".heads")) {
      const [model, layer] = [Number(grid.dataset.model), Number(grid.dataset.layer)];
      data.weights[model][layer].forEach((_, head) => {
        const one = { model, layer, head }, found = foundOf(one);
        const button = make("button"), canvas = make("canvas"), word = make("span");
        button.type = "button";
        canvas.setAttribute("aria-hidden", "true");
        button.append(canvas, word);
        button.addEventListener("click", () => { Object.assign(state, one); say(); });
        const draw = () => D.matrix(canvas, found, count, dark.matches ? "dark" : "light");
        word.textContent = `head ${head + 1} · ${Math.round(100 * found.share)} % above 0`;
        draw();
        dark.addEventListener("change", draw);
        buttons.push({ one, button });
        grid.append(button);
      });
    }
    holder.append(text, said);
    say();
  }

  document.querySelectorAll("[data-sentence]").forEach(build);
})();
