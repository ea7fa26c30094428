// The playground of encodings: everything it shows is embedded in the page (see pe_core/site/playground.py). No library, no
// network, no server.
"use strict";

(function () {
  const { element, drawn } = lab;
  const TRIANGLE = 32, DISTANCES = 128, NOTHING = -128;
  const DASHES = ["", "7 4", "2 3", "7 3 2 3"];
  const WIDTH = 460, HEIGHT = 190, LEFT = 46, BOTTOM = 34, TOP = 10;
  let count = 0;

  const written = (value) => String(parseFloat(value.toPrecision(2))).replace("-", "−");

  // Bytes in base64 as rows of numbers, one row a head; a key without any attention is NaN.
  function unpacked(text, heads, scale) {
    const bytes = Uint8Array.from(atob(text), (sign) => sign.charCodeAt(0));
    const all = Array.from(new Int8Array(bytes.buffer), (byte) => (byte === NOTHING ? NaN : (byte * scale) / 127));
    const size = all.length / heads;
    return Array.from({ length: heads }, (_, head) => all.slice(head * size, (head + 1) * size));
  }

  function shares(scores) {
    const known = scores.map((score) => (Number.isNaN(score) ? 0 : Math.exp(score)));
    const sum = known.reduce((a, b) => a + b, 0) || 1;
    return known.map((weight) => (100 * weight) / sum);
  }

  // One encoding with its sliders and pictures.
  class Panel {
    constructor(encodings, name, redraw) {
      this.encodings = encodings;
      this.redraw = redraw;
      this.id = `playground-${(count += 1)}`;
      this.controls = element("div", { class: "playground-controls" });
      this.curve = drawn("svg", { class: "playground-svg", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img" });
      this.canvas = element("canvas", { class: "playground-triangle", width: TRIANGLE, height: TRIANGLE, role: "img" });
      this.note = element("p", { class: "playground-note", "aria-live": "polite" });
      this.element = element("div", { class: "playground-panel" }, this.controls, this.curve, this.canvas, this.note);
      this.choose(name);
    }

    choose(name) {
      this.encoding = this.encodings.find((one) => one.name === name) || this.encodings[0];
      this.at = this.encoding.options.map((option) => option.default);
      this.head = 0;
      this.build();
    }

    build() {
      this.controls.replaceChildren();
      if (this.encodings.length > 1) {
        const select = element("select", { id: `${this.id}-encoding` });
        for (const one of this.encodings) select.append(element("option", { value: one.name }, one.title));
        select.value = this.encoding.name;
        select.addEventListener("change", () => { this.choose(select.value); this.redraw(); });
        this.controls.append(element("label", { for: select.id }, "encoding", select));
      }
      this.encoding.options.forEach((option, n) => {
        const id = `${this.id}-${n}`, value = element("output", { for: id }, option.values[this.at[n]]);
        const slider = element("input", { type: "range", id, min: 0, max: option.values.length - 1, step: 1, value: this.at[n] });
        const told = () => slider.setAttribute("aria-valuetext", option.values[this.at[n]]);
        slider.addEventListener("input", () => {
          this.at[n] = Number(slider.value);
          value.textContent = option.values[this.at[n]];
          told();
          this.redraw();
        });
        told();
        this.controls.append(element("label", { for: id }, element("span", {}, option.name, " ", value), slider));
      });
    }

    get setting() {
      return this.encoding.settings[this.at.join(",")];
    }

    read() {
      const setting = this.setting;
      if (!setting) return (this.scores = null);
      this.scores = unpacked(setting.curve, setting.heads, setting.scale);
      this.triangle = setting.triangle ? unpacked(setting.triangle, setting.heads, setting.scale) : null;
      return this.scores;
    }

    draw(low, high, limit, view) {
      this.curve.replaceChildren();
      this.canvas.hidden = !this.scores;
      if (!this.scores) {
        this.note.textContent = "The encoding refuses this combination.";
        return;
      }
      const x = (distance) => LEFT + (distance / (DISTANCES - 1)) * (WIDTH - LEFT - 8);
      const y = (value) => TOP + ((high - value) / (high - low || 1)) * (HEIGHT - TOP - BOTTOM);
      for (const value of [low, (low + high) / 2, high]) {
        this.curve.append(drawn("line", { class: "explorer-grid", x1: LEFT, x2: WIDTH - 8, y1: y(value), y2: y(value) }));
        this.curve.append(drawn("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, written(value)));
      }
      for (const distance of [0, 32, 64, 96, 127]) {
        this.curve.append(drawn("text", { x: x(distance), y: HEIGHT - BOTTOM + 18, "text-anchor": distance < 127 ? "middle" : "end" }, String(distance)));
      }
      const unit = view === "share" ? "attention by distance, %" : "score by distance, nats";
      this.curve.append(drawn("text", { x: WIDTH - 8, y: HEIGHT - 2, "text-anchor": "end" }, unit));
      const lines = this.values(view);
      lines.forEach((values, head) => {
        const points = values.map((value, distance) => [distance, value]).filter(([, value]) => !Number.isNaN(value));
        const path = points.map(([distance, value]) => `${x(distance).toFixed(1)},${y(value).toFixed(1)}`).join(" ");
        this.curve.append(drawn("polyline", {
          points: path, fill: "none", stroke: this.encoding.colour, "stroke-width": 2, "stroke-dasharray": DASHES[head % 4],
        }));
      });
      const far = this.scores.map((scores) => shares(scores).reduce((sum, share, distance) => sum + (share * distance) / 100, 0));
      const heads = far.map((mean, head) => `${far.length > 1 ? `head ${head + 1}` : "every head"} ${mean.toFixed(0)}`).join(", ");
      const said = `Mean distance looked back, of ${DISTANCES} tokens: ${heads}.`;
      this.note.textContent = said;
      this.curve.setAttribute("aria-label", `${this.encoding.title}: ${unit}. ${said}`);
      this.canvas.setAttribute("aria-label", `${this.encoding.title}: score of each key for each of ${TRIANGLE} queries, first head.`);
      this.paint(limit);
    }

    values(view) {
      return view === "share" ? this.scores.map(shares) : this.scores;
    }

    // The scores the triangle shows.
    near() {
      return this.triangle ? this.triangle[0] : this.scores[0].slice(0, TRIANGLE);
    }

    // The triangle of the first head: queries from top to bottom, keys from left to right; red is more, blue is less.
    paint(limit) {
      const context = this.canvas.getContext("2d"), image = context.createImageData(TRIANGLE, TRIANGLE);
      const scores = this.triangle ? this.triangle[0] : null;
      for (let i = 0, n = 0; i < TRIANGLE; i += 1) {
        for (let j = 0; j <= i; j += 1, n += 1) {
          const value = scores ? scores[n] : this.scores[0][i - j], part = Number.isNaN(value) ? -1 : value / limit;
          const [r, g, b] = part > 0 ? [200, 60, 50] : [40, 95, 170], k = Math.min(1, Math.abs(part)), at = 4 * (i * TRIANGLE + j);
          image.data.set([r, g, b].map((colour) => Math.round(245 + (colour - 245) * k)).concat(255), at);
        }
      }
      context.putImageData(image, 0, 0);
    }
  }

  function start(place) {
    const encodings = JSON.parse(place.querySelector("script").textContent);
    const panels = [], names = place.dataset.shown.split(" ");
    const select = element("select", { id: `playground-view-${(count += 1)}` });
    select.append(element("option", { value: "score" }, "score"), element("option", { value: "share" }, "share of attention"));
    // The same scale in all panels, or they could not be compared.
    const redraw = () => {
      const all = panels.flatMap((panel) => (panel.read() ? panel.values(select.value).flat() : [])).filter((v) => !Number.isNaN(v));
      const high = Math.max(0, ...all), low = Math.min(select.value === "share" ? 0 : -0.5, ...all);
      const near = panels.flatMap((panel) => (panel.read() ? panel.near() : [])).map(Math.abs).filter((v) => !Number.isNaN(v));
      const limit = Math.max(0.5, ...near);
      for (const panel of panels) panel.draw(low, high, limit, select.value);
    };
    select.addEventListener("change", redraw);
    for (const name of names) panels.push(new Panel(encodings, name, redraw));
    const view = element("div", { class: "playground-controls" }, element("label", { for: select.id }, "show", select));
    place.replaceChildren(view, element("div", { class: "playground-panels" }, ...panels.map((panel) => panel.element)));
    redraw();
  }

  lab.whenReady(() => document.querySelectorAll(".playground").forEach(start));
})();
