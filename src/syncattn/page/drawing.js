"use strict";
/* Strings of SVG, numbers as people read them, matrices as pictures: what all parts of the page draw with. */
const SyncattnDrawing = (() => {
  /* One hue, lightness falling evenly on a light page and rising on a dark one. */
  const RAMPS = {
    light: [[222, 235, 247], [158, 198, 232], [83, 147, 207], [26, 92, 164], [6, 44, 98]],
    dark: [[38, 62, 92], [41, 98, 155], [66, 144, 210], [134, 193, 240], [224, 240, 255]],
  };
  const ZERO = { light: [236, 238, 241], dark: [42, 46, 53] }; // may be heard, and weighs exactly 0
  const NEVER = { light: [255, 255, 255], dark: [27, 30, 35] }; // may not be heard

  function short(x, digits = 3) {
    if (x === 0) return "0";
    const far = Math.abs(x) >= 1e4 || Math.abs(x) < 1e-3;
    return far ? x.toExponential(1) : String(Number(x.toPrecision(digits)));
  }

  const escape = (text) => text.replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`);
  const at = (x) => x.toFixed(2);

  function line(x1, y1, x2, y2, kind, more = "") {
    return `<line class="${kind}" x1="${at(x1)}" y1="${at(y1)}" x2="${at(x2)}" y2="${at(y2)}" ${more}/>`;
  }

  function circle(x, y, r, kind, title = "") {
    const inside = title ? `<title>${escape(title)}</title>` : "";
    return `<circle class="${kind}" cx="${at(x)}" cy="${at(y)}" r="${at(r)}">${inside}</circle>`;
  }

  function bar(x, y, width, height, title) {
    return `<rect class="bar" x="${at(x)}" y="${at(y)}" width="${at(width)}" height="${at(height)}">`
      + `<title>${escape(title)}</title></rect>`;
  }

  function write(x, y, text, anchor = "middle", kind = "") {
    return `<text x="${at(x)}" y="${at(y)}" text-anchor="${anchor}" class="${kind}">${escape(text)}</text>`;
  }

  function path(points, kind) {
    return `<path class="${kind}" d="M${points.map(([x, y]) => `${at(x)} ${at(y)}`).join("L")}"/>`;
  }

  /* A line whose width is a weight. */
  const link = (x1, y1, x2, y2, width, opacity) =>
    line(x1, y1, x2, y2, "link", `stroke-width="${at(width)}" opacity="${at(opacity)}"`);

  const around = (radius, middle, angle) =>
    [middle + radius * Math.cos(angle), middle - radius * Math.sin(angle)];

  /* Put a picture into an svg element. */
  function put(id, width, height, parts, description) {
    const element = document.getElementById(id);
    element.setAttribute("viewBox", `0 0 ${width} ${height}`);
    if (description) element.setAttribute("aria-label", description);
    element.innerHTML = parts.join("");
  }

  function ramp(page) {
    const stops = RAMPS[page];
    return Array.from({ length: 256 }, (_, n) => {
      const x = (n / 255) * (stops.length - 1), low = Math.min(Math.floor(x), stops.length - 2);
      return stops[low].map((c, k) => Math.round(c + (x - low) * (stops[low + 1][k] - c)));
    });
  }

  /* A head's weights, one dot a pair; the colour is the weight's square root. page: "light" or "dark". */
  function matrix(canvas, found, count, page) {
    canvas.width = canvas.height = count;
    const context = canvas.getContext("2d"), image = context.createImageData(count, count);
    const colours = ramp(page);
    for (let n = 0; n < count * count; n++) {
      const w = found.weight[n], zero = found.pairs[n] ? ZERO[page] : NEVER[page];
      image.data.set(w > 0 ? colours[Math.min(255, Math.round(255 * Math.sqrt(w)))] : zero, 4 * n);
      image.data[4 * n + 3] = 255;
    }
    context.putImageData(image, 0, 0);
  }

  return { around, bar, circle, escape, line, link, matrix, path, put, short, write };
})();
