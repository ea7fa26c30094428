// The results explorer: every number it shows is embedded in the page. No library, no network, no server.
"use strict";

(function () {
  const { element, drawn } = lab;
  const FAMILIES = ["none", "absolute", "rotary", "bias", "content", "hybrid"];
  const DASHES = { "-": "", "--": "7 4", ":": "2 3", "-.": "7 3 2 3" };

  const number = (value, digits) => value.toFixed(digits).replace("-", "−");

  // What can be shown: how a stored perplexity becomes the measure, and how the measure is written.
  const MEASURES = {
    perplexity: { name: "Perplexity", of: (p) => p, write: (v) => number(v, 1), log: true },
    bits: { name: "Bits per byte", of: (p, m) => Math.log(p) / Math.LN2 / m.bytes, write: (v) => number(v, 3), log: false },
    percent: { name: "% against the baseline", of: null, write: (v) => (v > 0 ? "+" : "") + number(v, 1) + " %", log: false },
  };
  const VIEWS = { overall: "overall", position: "by position in the window", epoch: "by epoch" };

  // A label in two lines of about the same length where it is longer than the room for it; "25 %" stays together.
  function broken(label, room) {
    const gaps = Array.from(label.matchAll(/ (?!%)/g), (gap) => gap.index);
    if (label.length <= room || !gaps.length) return [label];
    const longer = (gap) => Math.max(gap, label.length - gap - 1);
    const cut = gaps.reduce((best, gap) => (longer(gap) < longer(best) ? gap : best));
    return [label.slice(0, cut), label.slice(cut + 1)];
  }

  function start(root, data) {
    const state = { setting: 0, measure: "percent", view: "overall", off: new Set() };
    const say = element("p", { class: "explorer-value", role: "status", "aria-live": "polite" });
    const chart = element("div", { class: "explorer-chart" });
    const controls = element("form", { class: "explorer-controls", "aria-label": "What to show" });
    controls.addEventListener("submit", (event) => event.preventDefault());
    const boxes = element("div", { class: "explorer-models" }), chosen = element("summary");
    const choose = (text, off) => {
      const button = element("button", { type: "button" }, text);
      button.addEventListener("click", () => { state.off = off(); models(); draw(); });
      return button;
    };
    // Closed where the list would fill a phone's screens before the first mark.
    const choices = element("details", { class: "explorer-choice" }, chosen,
      choose("all", () => new Set()), choose("none", () => new Set(setting().models.map((model) => model.label))), boxes);
    choices.open = window.innerWidth > 576;
    root.replaceChildren(controls, choices, chart, say);

    const setting = () => data.settings[state.setting];
    const shown = () => setting().models.filter((model) => !state.off.has(model.label));

    function choice(name, key, options) {
      const select = element("select", { id: "explorer-" + key });
      for (const [value, text] of options) select.append(element("option", { value }, text));
      select.value = state[key];
      select.addEventListener("change", () => {
        state[key] = key === "setting" ? Number(select.value) : select.value;
        if (key === "setting") models();
        draw();
      });
      controls.append(element("label", { for: select.id }, name, select));
      return select;
    }

    function models() {
      boxes.replaceChildren();
      for (const family of FAMILIES.concat("unknown")) {
        const members = setting().models.filter((model) => (FAMILIES.includes(model.family) ? model.family : "unknown") === family);
        if (!members.length) continue;
        const group = element("fieldset", {}, element("legend", {}, family));
        for (const model of members) {
          const box = element("input", { type: "checkbox" });
          box.checked = !state.off.has(model.label);
          box.addEventListener("change", () => {
            if (box.checked) state.off.delete(model.label);
            else state.off.add(model.label);
            draw();
          });
          const key = drawn("svg", { width: 26, height: 10, "aria-hidden": "true", class: "explorer-key" },
            drawn("line", { x1: 1, x2: 25, y1: 5, y2: 5, stroke: model.colour, "stroke-width": 3, "stroke-dasharray": DASHES[model.dash] || "" }));
          const name = model.page ? element("a", { href: model.page }, model.label) : document.createTextNode(model.label);
          const label = element("label", {}, box, key, element("span", { class: "explorer-name" }, model.label));
          group.append(label);
          if (model.page) {
            name.textContent = "about";
            name.setAttribute("aria-label", "about " + model.label);
            group.append(name);
          }
        }
        boxes.append(group);
      }
    }

    // Points of a model under the chosen measure and view: {x, y, low, high, text}.
    function points(model) {
      const measure = MEASURES[state.measure];
      const base = setting().models.find((other) => other.label === data.baseline);
      const seeds = model.seeds + (model.seeds === 1 ? " seed" : " seeds");
      if (state.view === "overall") {
        if (state.measure === "percent") {
          if (!model.percent) return [];
          const [y, low, high] = model.percent;
          const found = model.differs ? "" : ", no difference found";
          return [{ x: 0, y, low, high, hollow: !model.differs, text: `${model.label}: ${measure.write(y)}, 95 % interval ${measure.write(low)} to ${measure.write(high)}${found}, ${seeds}` }];
        }
        const [y, low, high] = model.perplexity.map((p) => measure.of(p, model));
        return [{ x: 0, y, low, high, text: `${model.label}: ${measure.write(y)}, 95 % interval ${measure.write(low)} to ${measure.write(high)}, ${seeds}` }];
      }
      if (state.view === "position") {
        return model.positions.map(([from, to, p, low, high], nth) => {
          const where = to - from === 1 ? `position ${from}` : `positions ${from} to ${to - 1}`;
          const x = (from + to + 1) / 2;
          if (state.measure === "percent") {
            if (!base || !base.positions[nth]) return null;
            const y = 100 * (p / base.positions[nth][2] - 1);
            return { x, y, text: `${model.label}, ${where}: ${measure.write(y)}` };
          }
          const [y, l, h] = [p, low, high].map((value) => measure.of(value, model));
          return { x, y, low: l, high: h, text: `${model.label}, ${where}: ${measure.write(y)}, 95 % interval ${measure.write(l)} to ${measure.write(h)}` };
        }).filter(Boolean);
      }
      return model.epochs.map(([epoch, , heldout]) => {
        const p = Math.exp(heldout);
        if (state.measure === "percent") {
          const other = base && base.epochs.find(([at]) => at === epoch);
          if (!other) return null;
          const y = 100 * (p / Math.exp(other[2]) - 1);
          return { x: epoch, y, text: `${model.label}, epoch ${epoch}: ${measure.write(y)}` };
        }
        const y = measure.of(p, model);
        return { x: epoch, y, text: `${model.label}, epoch ${epoch}: ${measure.write(y)}` };
      }).filter(Boolean);
    }

    function ticks(low, high, log, most) {
      if (log) {
        const all = [];
        for (let e = -2; e < 6; e++) for (const m of [1, 1.5, 2, 3, 4, 5, 7]) all.push(m * 10 ** e);
        const inside = all.filter((v) => v >= low && v <= high);
        return inside.length > 8 ? inside.filter((v, nth) => nth % 2 === 0) : inside;
      }
      const step = 10 ** Math.floor(Math.log10((high - low) / 4 || 1));
      const wide = [1, 2, 5, 10].map((m) => m * step).find((s) => (high - low) / s <= (most || 7)) || 10 * step;
      const found = [];
      for (let v = Math.ceil(low / wide) * wide; v <= high + 1e-9; v += wide) found.push(Math.abs(v) < 1e-12 ? 0 : v);
      return found;
    }

    function mark(point, model, x, y, svg) {
      const dot = drawn("circle", {
        cx: x, cy: y, r: state.view === "overall" ? 5 : 3.5, stroke: model.colour, "stroke-width": 2, tabindex: "-1", role: "img", "aria-label": point.text,
        fill: point.hollow ? "#ffffff" : model.colour, class: "explorer-mark",
      });
      dot.addEventListener("focus", () => { say.textContent = point.text; });
      svg.append(dot);
    }

    function walk(svg) {
      const marks = Array.from(svg.querySelectorAll(".explorer-mark"));
      // Marks lie close: pointing anywhere tells of the nearest one.
      const point = (event) => {
        const area = svg.getBoundingClientRect(), scale = svg.viewBox.baseVal.width / area.width;
        const x = (event.clientX - area.left) * scale, y = (event.clientY - area.top) * scale;
        const far = (mark) => Math.hypot(mark.cx.baseVal.value - x, mark.cy.baseVal.value - y);
        const nearest = marks.reduce((best, mark) => (far(mark) < far(best) ? mark : best));
        for (const mark of marks) mark.classList.toggle("near", mark === nearest);
        say.textContent = nearest.getAttribute("aria-label");
      };
      if (marks.length) for (const event of ["pointermove", "pointerdown"]) svg.addEventListener(event, point);
      // One stop for the Tab key; arrow keys go from mark to mark.
      if (marks.length) marks[0].setAttribute("tabindex", "0");
      svg.addEventListener("keydown", (event) => {
        const at = marks.indexOf(document.activeElement);
        const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
        if (at < 0 || !step) return;
        event.preventDefault();
        const next = marks[(at + step + marks.length) % marks.length];
        marks[at].setAttribute("tabindex", "-1");
        next.setAttribute("tabindex", "0");
        next.focus();
      });
    }

    const title = (measure) => measure.name.replace("the baseline", data.baseline);

    function frame(title, width, height) {
      const svg = drawn("svg", { viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": title, class: "explorer-svg" });
      svg.append(drawn("text", { x: 0, y: 16, class: "explorer-title" }, title));
      return svg;
    }

    function overall(rows, measure, width) {
      const names = Math.min(190, 0.42 * width), height = 70 + 34 * rows.length;
      const values = rows.flatMap(({ points: [p] }) => [p.low, p.high, p.y]).filter(Number.isFinite);
      let low = Math.min(...values), high = Math.max(...values);
      if (state.measure === "percent") { low = Math.min(low, 0); high = Math.max(high, 0); }
      const pad = 0.06 * (high - low || 1);
      low -= pad; high += pad;
      const X = (v) => names + ((v - low) / (high - low)) * (width - names - 12);
      const svg = frame(`${title(measure)}, lower is better`, width, height);
      for (const tick of ticks(low, high, false, (width - names) / 62)) {
        svg.append(drawn("line", { x1: X(tick), x2: X(tick), y1: 28, y2: height - 28, class: tick === 0 ? "explorer-zero" : "explorer-grid" }));
        svg.append(drawn("text", { x: X(tick), y: height - 10, "text-anchor": "middle" }, measure.write(tick).replace(/\.0+(?= %|$)/, "")));
      }
      rows.sort((a, b) => a.points[0].y - b.points[0].y).forEach(({ model, points: [point] }, nth) => {
        const y = 46 + 34 * nth;
        const lines = broken(model.label, Math.floor((names - 10) / 7.4));
        lines.forEach((line, at) => {
          const down = y + 5 + 14 * (at - (lines.length - 1) / 2);
          svg.append(drawn("text", { x: names - 10, y: down, "text-anchor": "end" }, line));
        });
        if (Number.isFinite(point.low) && Number.isFinite(point.high)) {
          svg.append(drawn("line", { x1: X(point.low), x2: X(point.high), y1: y, y2: y, stroke: model.colour, "stroke-width": 3 }));
        }
        mark(point, model, X(point.y), y, svg);
      });
      return svg;
    }

    function lines(rows, measure, width) {
      const height = Math.max(300, Math.min(460, 0.62 * width)), left = 52, bottom = 44;
      const all = rows.flatMap((row) => row.points), log = measure.log;
      const ys = all.flatMap((p) => [p.y, p.low, p.high]).filter(Number.isFinite), xs = all.map((p) => p.x);
      const scale = log ? Math.log : (v) => v, back = log ? Math.exp : (v) => v;
      let low = scale(Math.min(...ys)), high = scale(Math.max(...ys));
      const pad = 0.05 * (high - low || 1);
      low -= pad; high += pad;
      const byPosition = state.view === "position", across = byPosition ? Math.log2 : (v) => v;
      const from = across(Math.min(...xs)), to = across(Math.max(...xs));
      const X = (v) => left + 8 + ((across(v) - from) / (to - from || 1)) * (width - left - 24);
      const Y = (v) => height - bottom - ((scale(v) - low) / (high - low)) * (height - bottom - 34);
      const svg = frame(`${title(measure)}, lower is better`, width, height);
      for (const tick of ticks(back(low), back(high), log)) {
        svg.append(drawn("line", { x1: left, x2: width - 8, y1: Y(tick), y2: Y(tick), class: tick === 0 ? "explorer-zero" : "explorer-grid" }));
        svg.append(drawn("text", { x: left - 6, y: Y(tick) + 5, "text-anchor": "end" }, log ? String(tick) : measure.write(tick).replace(" %", "")));
      }
      const stops = byPosition ? [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048] : ticks(from, to, false).filter(Number.isInteger);
      for (const stop of stops.filter((s) => s >= Math.min(...xs) && s <= Math.max(...xs) * 1.15)) {
        svg.append(drawn("text", { x: X(stop), y: height - 24, "text-anchor": "middle" }, String(stop)));
      }
      svg.append(drawn("text", { x: width - 8, y: height - 4, "text-anchor": "end" }, byPosition ? "tokens the model has seen" : "epoch"));
      for (const { model, points: own } of rows) {
        const banded = own.filter((p) => Number.isFinite(p.low) && Number.isFinite(p.high));
        if (banded.length > 1) {
          const edge = [...banded.map((p) => [X(p.x), Y(p.high)]), ...banded.reverse().map((p) => [X(p.x), Y(p.low)])];
          svg.append(drawn("polygon", { points: edge.map((at) => at.join(",")).join(" "), fill: model.colour, opacity: 0.12 }));
        }
        svg.append(drawn("polyline", {
          points: own.map((p) => `${X(p.x)},${Y(p.y)}`).join(" "), fill: "none", stroke: model.colour, "stroke-width": 2.5,
          "stroke-dasharray": DASHES[model.dash] || "",
        }));
      }
      for (const { model, points: own } of rows) for (const point of own) mark(point, model, X(point.x), Y(point.y), svg);
      return svg;
    }

    function draw() {
      const measure = MEASURES[state.measure];
      chosen.textContent = `Models: ${shown().length} of ${setting().models.length}`;
      const rows = shown().map((model) => ({ model, points: points(model) })).filter((row) => row.points.length);
      const width = Math.max(300, Math.min(820, chart.clientWidth || 640));
      if (!rows.length) {
        chart.replaceChildren(element("p", {}, state.measure === "percent" ? "Nothing to show: choose models other than the baseline." : "Nothing to show: choose a model."));
        say.textContent = "";
        return;
      }
      const svg = state.view === "overall" ? overall(rows, measure, width) : lines(rows, measure, width);
      chart.replaceChildren(svg);
      walk(svg);
      say.textContent = `${rows.length} ${rows.length === 1 ? "model" : "models"}: ${title(measure)}, ${VIEWS[state.view]}. Point at a mark for its value.`;
    }

    choice("Trained on ", "setting", data.settings.map((one, nth) => [nth, `${one.name} (${one.models.length} models)`]));
    choice("Measure ", "measure", Object.entries(MEASURES).map(([key, one]) => [key, one.name.replace("the baseline", data.baseline)]));
    choice("Show ", "view", Object.entries(VIEWS));
    models();
    draw();
    let width = 0;
    new ResizeObserver(() => {
      if (Math.abs(chart.clientWidth - width) > 1) { width = chart.clientWidth; draw(); }
    }).observe(root);
  }

  function ready() {
    const root = document.getElementById("explorer"), data = document.getElementById("explorer-data");
    if (root && data) start(root, JSON.parse(data.textContent));
  }

  lab.whenReady(ready);
})();
