"use strict";
/* Charts of lines: uPlot draws, this makes them readable: by pointer, finger and arrow keys, in the legend
   and in a sentence; a click on a name of the legend switches its lines off. The numbers stand in #data. */
(() => {
  const charts = JSON.parse(document.getElementById("data").textContent).charts;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  /* 1500000 as 1.5M; 2048, a power of two, as it is. */
  function brief(x) {
    if (x > 1000 && Number.isInteger(Math.log2(x))) return String(x);
    for (const [size, sign] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
      if (Math.abs(x) >= size) return `${Number((x / size).toPrecision(4))}${sign}`;
    }
    return String(Number(x.toPrecision(4)));
  }

  /* The chart's lines on one axis, as uPlot wants them; edges of bands are lines of their own. */
  function aligned(chart) {
    const parts = [];
    for (const line of chart.lines) {
      parts.push({ line, edge: false, values: line.y });
      if (line.low) for (const values of [line.high, line.low]) parts.push({ line, edge: true, values });
    }
    const joined = uPlot.join(parts.map((part) => [part.line.x, part.values]));
    return { parts, joined };
  }

  function series(parts) {
    const side = dark.matches ? 1 : 0;
    return parts.map(({ line, edge }) => ({
      label: line.name, stroke: edge ? "transparent" : line.colour[side] + (line.pale ? "77" : ""),
      width: edge ? 0 : line.pale ? 1 : 2, dash: line.dashed ? [7, 4] : undefined, spanGaps: true,
      points: { show: !edge && !line.pale && line.x.length < 40, size: 5, fill: line.colour[side] },
    }));
  }

  function bands(parts) {
    const side = dark.matches ? 1 : 0, found = [];
    parts.forEach(({ line, edge }, n) => {
      if (!edge && line.low) found.push({ series: [n + 2, n + 3], fill: line.colour[side] + "30" });
    });
    return found;
  }

  /* The point of a line that is nearest to the place. */
  function nearest(values, index) {
    for (let far = 0; far < values.length; far++) {
      if (values[index - far] != null) return index - far;
      if (values[index + far] != null) return index + far;
    }
    return null;
  }

  function build(holder) {
    const chart = charts[Number(holder.dataset.chart)], { parts, joined } = aligned(chart);
    const names = [...new Set(chart.lines.map((line) => line.name))], off = new Set();
    const legend = document.createElement("ul"), read = document.createElement("p");
    const values = new Map();
    let plot = null, reading = null;
    legend.className = "legend";
    read.className = "read soft";
    read.setAttribute("role", "status");
    for (const name of names) {
      const line = chart.lines.find((one) => one.name === name && !one.pale) || chart.lines[0];
      const item = document.createElement("li"), button = document.createElement("button");
      const swatch = document.createElement("i"), value = document.createElement("b");
      button.type = "button";
      button.title = "Show or hide";
      swatch.className = line.dashed ? "dashed" : "";
      button.append(swatch, name, value);
      button.setAttribute("aria-pressed", "true");
      button.addEventListener("click", () => {
        if (!off.delete(name)) off.add(name);
        button.setAttribute("aria-pressed", String(!off.has(name)));
        parts.forEach((part, n) => {
          if (part.line.name === name) plot.setSeries(n + 1, { show: !off.has(name) });
        });
        say();
      });
      values.set(name, { value, swatch, line });
      item.append(button);
      legend.append(item);
    }

    /* What stands at the place that is pointed at, in the legend and in words. */
    function say() {
      const said = [];
      for (const [name, { value, line }] of values) {
        value.textContent = "";
        if (reading === null || off.has(name)) continue;
        const column = joined[1 + parts.findIndex((part) => part.line === line && !part.edge)];
        const at = nearest(column, reading);
        if (at === null) continue;
        value.textContent = column[at].toFixed(chart.digits);
        said.push(`${name} ${value.textContent}`);
      }
      read.textContent = said.length ? `At ${brief(joined[0][reading])} ${chart.x}: ${said.join(", ")}`
        : "Point at the lines or use the arrow keys to read them. A click on a name hides its lines. "
          + "Dragging magnifies; a double click shows all again.";
    }

    function options() {
      const side = dark.matches ? 1 : 0, width = holder.clientWidth;
      for (const { swatch, line } of values.values()) swatch.style.borderTopColor = line.colour[side];
      const axis = { stroke: () => css("--soft"), font: "12px system-ui, sans-serif",
        labelFont: "12px system-ui, sans-serif", grid: { stroke: () => css("--line"), width: 1 },
        ticks: { stroke: () => css("--line"), width: 1 } };
      return {
        width, height: Math.round(Math.min(340, Math.max(240, width * 0.5))),
        legend: { show: false },
        cursor: { y: false, dataIdx: (u, n, index) => nearest(u.data[n], index) ?? index,
          points: { show: (u, n) => !parts[n - 1].edge && !parts[n - 1].line.pale } },
        scales: { x: { time: false, distr: chart.log ? 3 : 1, log: 2 },
          y: chart.span ? { range: () => chart.span } : {} },
        axes: [
          { ...axis, label: chart.x, labelSize: 20, size: 32, space: 56,
            values: (u, ticks) => ticks.map((x) => (x === null ? "" : brief(x))) },
          { ...axis, label: chart.y, labelSize: 20, size: 50, values: (u, ticks) => ticks.map(brief) },
        ],
        series: [{}, ...series(parts).map((one, n) => ({ ...one, show: !off.has(parts[n].line.name) }))],
        bands: bands(parts),
        hooks: { setCursor: [(u) => {
          if (u.cursor.idx != null) { reading = u.cursor.idx; say(); }
        }] },
      };
    }

    function draw() {
      if (plot) plot.destroy();
      plot = new uPlot(options(), joined, holder);
      plot.root.querySelector("canvas").setAttribute("aria-hidden", "true");
      plot.over.addEventListener("pointermove", (event) => {
        if (event.pointerType !== "mouse") plot.setCursor({ left: event.offsetX, top: event.offsetY });
      });
    }

    holder.tabIndex = 0;
    holder.setAttribute("role", "group");
    holder.setAttribute("aria-label", `${chart.title}. ${chart.says} Arrow keys read the values.`);
    holder.addEventListener("keydown", (event) => {
      const beyond = joined[0].length, steps = { ArrowRight: 1, ArrowLeft: -1, Home: 1, End: -1 };
      const step = steps[event.key];
      if (!step) return;
      const stay = event.key.startsWith("Arrow") && reading !== null;
      event.preventDefault();
      const goal = reading = next(stay ? reading : step > 0 ? -1 : beyond, step);
      plot.setCursor({ left: plot.valToPos(joined[0][goal], "x"), top: 0 }, false);
      say();
    });

    /* The next place in a direction at which a line has a point that is read. */
    function next(from, step) {
      const isRead = ({ line, edge }) => !edge && !line.pale && !off.has(line.name);
      for (let n = from + step; n >= 0 && n < joined[0].length; n += step) {
        if (parts.some((part, k) => isRead(part) && joined[k + 1][n] != null)) return n;
      }
      return Math.min(Math.max(from, 0), joined[0].length - 1);
    }

    holder.after(legend, read);
    draw();
    say();
    dark.addEventListener("change", draw);
    let width = holder.clientWidth;
    new ResizeObserver(() => {
      if (holder.clientWidth !== width && holder.clientWidth > 0) { width = holder.clientWidth; draw(); }
    }).observe(holder);
  }

  for (const details of document.querySelectorAll("details.fallback")) details.open = false;
  document.querySelectorAll("[data-chart]").forEach(build);
})();
