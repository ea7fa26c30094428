// The results explorer: every number it shows is embedded in the page. No library, no network, no server.
// First what is shown (state, address, points), then how it is drawn, then the page.
"use strict";

(function () {
  const { element, drawn } = lab;

  const number = (value, digits) => value.toFixed(digits).replace("-", "−");

  const MEASURES = {
    percent: { name: "% against the baseline", write: (v) => (v > 0 ? "+" : "") + number(v, 1) + " %", log: false },
    perplexity: { name: "Perplexity", write: (v) => number(v, 1), log: true },
    bits: { name: "Bits per byte", write: (v) => number(v, 3), log: false },
  };
  const VIEWS = {
    overall: { name: "overall", axis: "" },
    position: { name: "by position", axis: "tokens the model has seen" },
    training: { name: "by training", axis: "tokens of training text" },
    epoch: { name: "by epoch", axis: "epoch" },
  };

  // --- What is shown --------------------------------------------------------------------------------------------------

  const settingOf = (data, state) => data.settings.find((one) => one.id === state.setting);
  const shownModels = (data, state) => settingOf(data, state).models.filter((model) => state.models.has(model.label));
  const seriesOf = (data, setting) =>
    data.settings.filter((one) => one.series === setting.series).sort((a, b) => a.tokens - b.tokens);

  // Whether a view has more to show of a setting than one point a model.
  function has(data, setting, view) {
    if (view === "training") return seriesOf(data, setting).length > 1;
    if (view === "epoch") return setting.models.some((model) => model.epochs.length > 1);
    return true;
  }

  // The state that an address asks for, and what it asks for that is not on record.
  function fromAddress(hash, data) {
    const asked = new URLSearchParams(hash.replace(/^#/, "")), missing = [];
    let setting = data.settings.find((one) => one.id === asked.get("setting"));
    if (!setting) {
      if (asked.get("setting")) missing.push("setting " + asked.get("setting"));
      setting = data.settings[0];
    }
    const known = setting.models.map((model) => model.label), named = asked.getAll("model");
    missing.push(...named.filter((label) => !known.includes(label)));
    let models = named.filter((label) => known.includes(label));
    if (asked.get("models") === "all") models = known;
    else if (!models.length && asked.get("models") !== "none") models = setting.first;
    const measure = Object.keys(MEASURES).includes(asked.get("measure")) ? asked.get("measure") : "percent";
    const view = Object.keys(VIEWS).includes(asked.get("view")) && has(data, setting, asked.get("view")) ? asked.get("view") : "overall";
    return { state: { setting: setting.id, measure, view, models: new Set(models) }, missing };
  }

  function toAddress(data, state) {
    const said = new URLSearchParams({ setting: state.setting, measure: state.measure, view: state.view });
    const all = settingOf(data, state).models, labels = shownModels(data, state).map((model) => model.label);
    if (!labels.length || labels.length === all.length) said.set("models", labels.length ? "all" : "none");
    else for (const label of labels) said.append("model", label);
    return "#" + said;
  }

  // A model's [value, low, high] at one place: `stored` has the measures, the baseline is at 0 % by definition.
  function values(data, state, model, stored) {
    if (state.measure === "percent" && model.label === data.baseline) return [0, null, null];
    return stored[state.measure] || [null, null, null];
  }

  // What is stored of a model in the view, as [{from, to, x, where, differs, perplexity, bits, percent}].
  function places(data, state, model) {
    const overall = (one) => ({ perplexity: one.perplexity, bits: one.bits, percent: one.percent, differs: one.differs });
    if (state.view === "overall") return [{ x: 0, where: "", ...overall(model) }];
    if (state.view === "training") {
      const same = seriesOf(data, settingOf(data, state)).map((one) => [one.tokens, one.models.find((other) => other.label === model.label)]);
      return same.filter(([, one]) => one).map(([tokens, one]) =>
        ({ from: tokens, to: tokens, x: tokens, where: `, ${number(tokens / 1e6, 1)} M training tokens`, ...overall(one) }));
    }
    if (state.view === "epoch") {
      return model.epochs.map(([epoch, ...rest]) =>
        ({ from: epoch, to: epoch, x: epoch, where: `, epoch ${epoch}`, perplexity: rest.slice(0, 3), percent: percentOf(rest, 3) }));
    }
    return model.positions.map(([start, end, bytes, ...rest]) => {
      const perplexity = rest.slice(0, 3), bits = perplexity.map((p) => p && Math.log(p) / Math.LN2 / bytes);
      const where = end - start === 1 ? `, position ${start}` : `, positions ${start} to ${end - 1}`;
      return { from: start, to: end - 1, x: (start + end + 1) / 2, where, perplexity, bits, percent: percentOf(rest, 3) };
    });
  }

  const percentOf = (row, from) => (row.length > from ? row.slice(from) : null);

  // A model's points under the chosen measure and view.
  function points(data, state, model) {
    return places(data, state, model).map((place) => {
      const [y, low, high] = values(data, state, model, place), write = MEASURES[state.measure].write;
      const judged = state.measure === "percent" && "differs" in place && model.label !== data.baseline;
      const seeds = model.seeds === 1 ? "one seed" : model.seeds + " seeds";
      let text = `${model.label}${place.where}: ${y === null ? "–" : write(y)}`;
      if (low !== null) text += `, 95 % interval ${write(low)} to ${write(high)}`;
      else text += state.measure === "percent" && model.label === data.baseline ? ", the baseline" : ", no interval";
      const hollow = judged && !place.differs;
      return { ...place, y, low, high, hollow, verdict: judged ? (hollow ? "no difference found" : y < 0 ? "lower" : "higher") : "",
        text: `${text}${hollow ? ", no difference found" : ""}, ${seeds}` };
    }).filter((point) => point.y !== null);
  }

  // What the intervals are over, for the line below the chart.
  function intervals(data, state) {
    if (state.view === "epoch") return "Intervals are 95 % over seeds; where there is one seed there is none. Losses are those of validation text.";
    if (state.measure === "percent") {
      const hollow = state.view === "position" ? "" : " Hollow: no difference found.";
      return `Intervals are 95 % over seeds and documents, corrected for all pairs of the setting's models.${hollow}`;
    }
    return "Intervals are 95 % over documents.";
  }

  // --- For download ---------------------------------------------------------------------------------------------------

  const COLUMNS = ["setting", "model", "family", "seeds", "measure", "view", "from", "to", "value", "low", "high", "verdict"];

  // One row for each point that is shown.
  function rows(data, state) {
    const setting = settingOf(data, state);
    return shownModels(data, state).flatMap((model) => points(data, state, model).map((point) => ({
      setting: setting.name, model: model.label, family: model.family, seeds: model.seeds, measure: measureName(data, state),
      view: VIEWS[state.view].name, from: point.from ?? null, to: point.to ?? null, value: point.y, low: point.low, high: point.high,
      verdict: point.verdict,
    })));
  }

  function csv(table) {
    const cell = (value) => (/[",\r\n]/.test(value) ? `"${value.replace(/"/g, '""')}"` : value);
    const line = (row) => COLUMNS.map((name) => cell(String(row[name] ?? ""))).join(",");
    return [COLUMNS.join(","), ...table.map(line)].join("\r\n") + "\r\n";
  }

  function json(data, state) {
    const [{ name }, { measure, view }] = [settingOf(data, state), state];
    return JSON.stringify({ setting: name, measure, view, baseline: data.baseline, intervals: intervals(data, state),
      address: toAddress(data, state), rows: rows(data, state) }, null, 1) + "\n";
  }

  function save(name, type, text) {
    const url = URL.createObjectURL(new Blob([text], { type })), link = element("a", { href: url, download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(url), 10_000);
  }

  // --- Drawing --------------------------------------------------------------------------------------------------------

  const DASHES = { "-": "", "--": "7 4", ":": "2 3", "-.": "7 3 2 3" };
  const around = (corners, radius, turn) => Array.from({ length: corners }, (_, nth) => {
    const angle = 2 * Math.PI * (nth / corners + turn), far = radius[nth % radius.length];
    return [far * Math.sin(angle), -far * Math.cos(angle)];
  });
  const PLUS = [[-1, -3], [1, -3], [1, -1], [3, -1], [3, 1], [1, 1], [1, 3], [-1, 3], [-1, 1], [-3, 1], [-3, -1], [-1, -1]]
    .map(([x, y]) => [x / 2.8, y / 2.8]);
  // matplotlib's marks of the same names, about a circle of radius 1.
  const SHAPES = {
    s: around(4, [1.25], 1 / 8), D: around(4, [1.25], 0), "^": around(3, [1.3], 0), v: around(3, [1.3], 1 / 2),
    P: PLUS, X: PLUS.map(([x, y]) => [(x - y) * Math.SQRT1_2, (x + y) * Math.SQRT1_2]), "*": around(10, [1.4, 0.6], 0),
  };

  function shape(mark, x, y, radius, attributes) {
    const corners = SHAPES[mark];
    if (!corners) return drawn("circle", { cx: x, cy: y, r: radius, ...attributes });
    const at = corners.map(([dx, dy]) => `${(x + radius * dx).toFixed(2)},${(y + radius * dy).toFixed(2)}`);
    return drawn("polygon", { points: at.join(" "), ...attributes });
  }

  // A model's line and mark, or a family's line, for legends.
  function key(model) {
    const line = { x1: 1, x2: 27, y1: 7, y2: 7, stroke: model.colour, "stroke-width": 2.5, "stroke-dasharray": DASHES[model.dash] || "" };
    const marks = model.mark ? [shape(model.mark, 14, 7, 4, { fill: model.colour })] : [];
    return drawn("svg", { width: 28, height: 14, "aria-hidden": "true", class: "explorer-key" }, drawn("line", line), ...marks);
  }

  // A label in two lines of about the same length where it is longer than the room for it; "25 %" stays together.
  function broken(label, room) {
    const gaps = Array.from(label.matchAll(/ (?!%)/g), (gap) => gap.index);
    if (label.length <= room || !gaps.length) return [label];
    const longer = (gap) => Math.max(gap, label.length - gap - 1);
    const cut = gaps.reduce((best, gap) => (longer(gap) < longer(best) ? gap : best));
    return [label.slice(0, cut), label.slice(cut + 1)];
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

  // The least and the greatest of all values and ends of intervals, with a little room.
  function limits(all, zero, scale) {
    const known = all.flatMap((p) => [p.y, p.low, p.high]).filter((v) => v !== null).concat(zero ? [0] : []).map(scale);
    const low = Math.min(...known), high = Math.max(...known), room = 0.05 * (high - low || 1);
    return [low - room, high + room];
  }

  const tickText = (state, tick) => MEASURES[state.measure].write(tick).replace(/\.0+(?= %|$)/, "");

  const gridLine = (at, zero) => drawn("line", { ...at, class: zero ? "explorer-zero" : "explorer-grid" });

  // Marks of all points, told of by `chart.marks`; `radius` is smaller where there are many.
  function mark(chart, point, model, x, y, radius) {
    const dot = shape(model.mark, x, y, radius, {
      stroke: model.colour, "stroke-width": 2, fill: point.hollow ? "#ffffff" : model.colour, class: "explorer-mark",
      tabindex: "-1", role: "img", "aria-label": point.text,
    });
    chart.marks.push({ dot, x, y, text: point.text });
    chart.svg.append(dot);
  }

  function newChart(title, width, height) {
    const svg = drawn("svg", { viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": title, class: "explorer-svg" });
    svg.append(drawn("text", { x: 0, y: 16, class: "explorer-title" }, title));
    return { svg, marks: [] };
  }

  // One row a model, lowest first.
  function drawRows(all, state, title, width) {
    const names = Math.min(190, 0.42 * width), height = 66 + 34 * all.length;
    const [low, high] = limits(all.flatMap((row) => row.points), state.measure === "percent", (v) => v);
    const X = (v) => names + ((v - low) / (high - low)) * (width - names - 12), chart = newChart(title, width, height);
    for (const tick of ticks(low, high, false, (width - names) / 62)) {
      chart.svg.append(gridLine({ x1: X(tick), x2: X(tick), y1: 26, y2: height - 26 }, tick === 0));
      chart.svg.append(drawn("text", { x: X(tick), y: height - 8, "text-anchor": "middle" }, tickText(state, tick)));
    }
    all.sort((a, b) => a.points[0].y - b.points[0].y).forEach(({ model, points: [point] }, nth) => {
      const y = 44 + 34 * nth, lines = broken(model.label, Math.floor((names - 10) / 7.4));
      lines.forEach((line, at) => {
        chart.svg.append(drawn("text", { x: names - 10, y: y + 5 + 14 * (at - (lines.length - 1) / 2), "text-anchor": "end" }, line));
      });
      if (point.low !== null) {
        chart.svg.append(drawn("line", { x1: X(point.low), x2: X(point.high), y1: y, y2: y, stroke: model.colour, "stroke-width": 3 }));
      }
      mark(chart, point, model, X(point.y), y, 5);
    });
    return chart;
  }

  // Where points stand along a line chart's horizontal axis, and what is written there.
  function horizontal(all, view, width, left) {
    const xs = all.map((p) => p.x), across = view === "epoch" ? (v) => v : Math.log2;
    const first = Math.min(...xs), last = Math.max(...xs), from = across(first), to = across(last);
    const X = (v) => left + 16 + (to === from ? 0.5 : (across(v) - from) / (to - from)) * (width - left - 40);
    if (view === "training") return { X, stops: [...new Set(xs)].map((v) => [v, number(v / 1e6, 1) + " M"]) };
    const stops = view === "epoch" ? ticks(from, to, false).filter(Number.isInteger) : Array.from({ length: 16 }, (_, n) => 2 ** n);
    return { X, stops: stops.filter((s) => s >= first && s <= last * 1.15).map((v) => [v, String(v)]) };
  }

  function drawAxes(chart, all, state, width, height) {
    const left = 52, bottom = 44, measure = MEASURES[state.measure];
    const scale = measure.log ? Math.log : (v) => v, back = measure.log ? Math.exp : (v) => v;
    const [low, high] = limits(all, state.measure === "percent", scale);
    const Y = (v) => height - bottom - ((scale(v) - low) / (high - low)) * (height - bottom - 34);
    for (const tick of ticks(back(low), back(high), measure.log)) {
      chart.svg.append(gridLine({ x1: left, x2: width - 8, y1: Y(tick), y2: Y(tick) }, tick === 0));
      const text = measure.log ? String(tick) : tickText(state, tick);
      chart.svg.append(drawn("text", { x: left - 6, y: Y(tick) + 5, "text-anchor": "end" }, text));
    }
    const { X, stops } = horizontal(all, state.view, width, left);
    for (const [at, text] of stops) chart.svg.append(drawn("text", { x: X(at), y: height - 24, "text-anchor": "middle" }, text));
    chart.svg.append(drawn("text", { x: width - 8, y: height - 4, "text-anchor": "end" }, VIEWS[state.view].axis));
    return { X, Y };
  }

  // One line a model. Intervals are a band, or, of few points, bars that stand side by side.
  function drawLines(all, state, title, width) {
    const height = Math.max(300, Math.min(400, 0.56 * width)), chart = newChart(title, width, height);
    const { X, Y } = drawAxes(chart, all.flatMap((row) => row.points), state, width, height);
    const step = Math.min(6, 40 / all.length);
    all.forEach(({ model, points: own }, nth) => {
      const bars = own.length < 5, aside = bars ? step * (nth - (all.length - 1) / 2) : 0, at = (p) => X(p.x) + aside;
      const known = own.filter((p) => p.low !== null);
      for (const p of bars ? known : []) {
        chart.svg.append(drawn("line", { x1: at(p), x2: at(p), y1: Y(p.low), y2: Y(p.high), stroke: model.colour, "stroke-width": 1.5 }));
      }
      if (!bars && known.length > 1) {
        const edge = known.map((p) => [at(p), Y(p.high)]).concat(known.map((p) => [at(p), Y(p.low)]).reverse());
        chart.svg.append(drawn("polygon", { points: edge.map((one) => one.join(",")).join(" "), fill: model.colour, opacity: 0.12, class: "explorer-band" }));
      }
      chart.svg.append(drawn("polyline", { points: own.map((p) => `${at(p)},${Y(p.y)}`).join(" "), fill: "none",
        stroke: model.colour, "stroke-width": 2, "stroke-dasharray": DASHES[model.dash] || "" }));
      own.shown = own.map((p) => [p, at(p), Y(p.y)]);
    });
    for (const { model, points: own } of all) for (const [point, x, y] of own.shown) mark(chart, point, model, x, y, 3.5);
    return chart;
  }

  // Pointing anywhere tells of the nearest mark: they lie close. One stop for the Tab key; arrow keys go from mark to mark.
  function walk({ svg, marks }, say) {
    if (!marks.length) return;
    const tell = (one) => {
      for (const other of marks) other.dot.classList.toggle("near", other === one);
      say.textContent = one.text;
    };
    const point = (event) => {
      const area = svg.getBoundingClientRect(), scale = svg.viewBox.baseVal.width / area.width;
      const x = (event.clientX - area.left) * scale, y = (event.clientY - area.top) * scale;
      const far = (one) => Math.hypot(one.x - x, one.y - y);
      tell(marks.reduce((best, one) => (far(one) < far(best) ? one : best)));
    };
    for (const event of ["pointermove", "pointerdown"]) svg.addEventListener(event, point);
    for (const one of marks) one.dot.addEventListener("focus", () => tell(one));
    marks[0].dot.setAttribute("tabindex", "0");
    svg.addEventListener("keydown", (event) => {
      const at = marks.findIndex((one) => one.dot === document.activeElement);
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (at < 0 || !step) return;
      event.preventDefault();
      const next = marks[(at + step + marks.length) % marks.length];
      marks[at].dot.setAttribute("tabindex", "-1");
      next.dot.setAttribute("tabindex", "0");
      next.dot.focus();
    });
  }

  // --- The page -------------------------------------------------------------------------------------------------------

  const measureName = (data, state) => MEASURES[state.measure].name.replace("the baseline", data.baseline);

  function draw(page) {
    const { data, state, parts } = page, models = shownModels(data, state), setting = settingOf(data, state);
    const all = models.map((model) => ({ model, points: points(data, state, model) })).filter((row) => row.points.length);
    parts.count.textContent = `Models: ${models.length} of ${setting.models.length}`;
    parts.note.textContent = all.length ? `Trained on ${setting.name}. ${intervals(data, state)}` : "";
    legend(page, all.map((row) => row.model));
    for (const button of parts.saves) button.disabled = !all.length;
    if (!all.length) {
      const why = !models.length ? "choose a model." : state.measure === "percent"
        ? `${data.baseline} was not trained in this setting.` : `${measureName(data, state)} is not on record ${VIEWS[state.view].name}.`;
      parts.chart.replaceChildren(element("p", {}, "Nothing to show: " + why));
      parts.say.textContent = page.missing;
      return;
    }
    const width = Math.max(300, Math.min(820, parts.chart.clientWidth || 640));
    const title = `${measureName(data, state)}, lower is better`;
    const chart = (state.view === "overall" ? drawRows : drawLines)(all, state, title, width);
    parts.chart.replaceChildren(chart.svg);
    walk(chart, parts.say);
    parts.say.textContent = page.missing || "Point at a mark for its value.";
  }

  // Of lines, the models; of rows, which have names, the families.
  function legend({ data, state, parts }, models) {
    const item = (key, text) => element("li", {}, key, text);
    const families = Object.keys(data.families).concat("unknown").filter((family) => models.some((model) => model.family === family));
    const swatch = (family) => key({ colour: data.families[family] || "#666666", dash: "-" });
    parts.legend.replaceChildren(...(state.view === "overall"
      ? families.map((family) => item(swatch(family), family)) : models.map((model) => item(key(model), model.label))));
  }

  // The boxes of all models, by family.
  function boxes(page) {
    const { data, state, parts } = page, all = settingOf(data, state).models;
    const groups = Object.keys(data.families).concat("unknown").map((family) => {
      const members = all.filter((model) => model.family === family);
      return element("fieldset", { class: members.length ? "" : "empty" }, element("legend", {}, family),
        ...members.flatMap((model) => {
          const box = element("input", { type: "checkbox" });
          box.checked = state.models.has(model.label);
          box.addEventListener("change", () => {
            if (box.checked) state.models.add(model.label);
            else state.models.delete(model.label);
            changed(page);
          });
          const about = model.page && element("a", { href: model.page, "aria-label": "about " + model.label }, "about");
          return [element("label", {}, box, key(model), element("span", {}, model.label)), about || element("span")];
        }));
    });
    parts.boxes.replaceChildren(...groups.filter((group) => !group.classList.contains("empty")));
  }

  // Everything as the state has it.
  function show(page) {
    const { data, state, parts } = page;
    for (const name of ["setting", "measure", "view"]) parts[name].value = state[name];
    for (const option of parts.view.options) option.hidden = option.disabled = !has(data, settingOf(data, state), option.value);
    boxes(page);
    draw(page);
  }

  // After a choice: the address says it, so that a link brings it back.
  function changed(page) {
    page.missing = "";
    page.address = toAddress(page.data, page.state);
    history.replaceState(null, "", page.address);
    draw(page);
  }

  function choose(page, name, value) {
    const { data, state } = page;
    state[name] = value;
    if (name === "setting") {
      const setting = settingOf(data, state), kept = setting.models.filter((model) => state.models.has(model.label));
      if (kept.length < 2) state.models = new Set(setting.first);
      if (!has(data, setting, state.view)) state.view = "overall";
    }
    changed(page);
    if (name === "setting") show(page);
  }

  function restore(page) {
    const { state, missing } = fromAddress(location.hash, page.data);
    page.state = state;
    page.missing = missing.length ? `Not on record any more: ${missing.join(", ")}.` : "";
    show(page);
  }

  function controls(page) {
    const { data, parts } = page, form = element("form", { class: "explorer-controls", "aria-label": "What to show" });
    form.addEventListener("submit", (event) => event.preventDefault());
    const choice = (text, name, options) => {
      const select = element("select", { id: "explorer-" + name });
      for (const [value, said] of options) select.append(element("option", { value }, said));
      select.addEventListener("change", () => choose(page, name, select.value));
      parts[name] = select;
      form.append(element("label", { for: select.id, class: "explorer-" + name }, text, select));
    };
    const count = (one) => (one.models.length === 1 ? "1 model" : one.models.length + " models");
    choice("Trained on", "setting", data.settings.map((one) => [one.id, `${one.name} (${count(one)})`]));
    choice("Measure", "measure", Object.entries(MEASURES).map(([name, one]) => [name, one.name.replace("the baseline", data.baseline)]));
    choice("Show", "view", Object.entries(VIEWS).map(([name, one]) => [name, one.name]));
    return form;
  }

  function buttons(page) {
    const { data, parts } = page, button = (text, act) => {
      const made = element("button", { type: "button" }, text);
      made.addEventListener("click", act);
      return made;
    };
    const select = (labels) => () => { page.state.models = new Set(labels(settingOf(data, page.state))); changed(page); boxes(page); };
    parts.selects = [button("first five", select((setting) => setting.first)),
      button("all", select((setting) => setting.models.map((model) => model.label))), button("none", select(() => []))];
    parts.saves = [button("CSV of what is shown", () => save("explorer.csv", "text/csv;charset=utf-8", csv(rows(data, page.state)))),
      button("JSON of what is shown", () => save("explorer.json", "application/json", json(data, page.state)))];
  }

  function start(root, data) {
    const parts = {
      count: element("summary"), boxes: element("div", { class: "explorer-models" }),
      chart: element("div", { class: "explorer-chart" }), legend: element("ul", { class: "explorer-legend" }),
      say: element("p", { class: "explorer-value", role: "status", "aria-live": "polite" }), note: element("p", { class: "explorer-note" }),
    };
    const page = { data, parts, missing: "" };
    buttons(page);
    root.replaceChildren(controls(page),
      element("details", { class: "explorer-choice" }, parts.count, ...parts.selects, parts.boxes),
      parts.chart, parts.say, parts.legend, parts.note, element("p", { class: "explorer-save" }, ...parts.saves));
    restore(page);
    // Of other addresses, headings of the page, nothing is to be restored.
    window.addEventListener("hashchange", () => { if (/^#(.*&)?(setting|measure|view|models?)=/.test(location.hash)) restore(page); });
    let width = parts.chart.clientWidth;
    new ResizeObserver(() => {
      if (Math.abs(parts.chart.clientWidth - width) > 1) { width = parts.chart.clientWidth; draw(page); }
    }).observe(root);
  }

  lab.explorer = { fromAddress, toAddress, rows, csv, json };
  lab.whenReady(() => {
    const root = document.getElementById("explorer"), data = document.getElementById("explorer-data");
    if (root && data) start(root, JSON.parse(data.textContent));
  });
})();
