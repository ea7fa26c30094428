// Trained models that read a text in the page. Their weights stand beside this file as scripts (pe_core/site/browser_model.py) and
// are loaded when a page asks for them. No library, no network, no server: plain loops over Float32Array.
"use strict";

(function () {
  const root = typeof lab === "undefined" ? (globalThis.lab = {}) : lab;

  // --- bytes ------------------------------------------------------------------------------------------------------------------

  function bytes(text) {
    return Uint8Array.from(atob(text), (sign) => sign.charCodeAt(0)).buffer;
  }

  function matrix(part) {
    if (part.values) return new Float32Array(bytes(part.values));
    const whole = new Int8Array(bytes(part.bytes)), scales = new Float32Array(bytes(part.scales)), [, columns] = part.shape;
    return Float32Array.from(whole, (value, n) => value * scales[Math.floor(n / columns)]);
  }

  // --- tokens: byte-level BPE, as GPT-2's ---------------------------------------------------------------------------------------

  // Bytes that print stand for themselves; the others for the signs from 256 on, in their order.
  function signs() {
    const found = [];
    let other = 256;
    for (let byte = 0; byte < 256; byte += 1) {
      const prints = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
      found.push(String.fromCodePoint(prints ? byte : other));
      other += prints ? 0 : 1;
    }
    return found;
  }

  const WORDS = new RegExp(
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\p{White_Space}\\p{L}\\p{N}]+" +
      "|\\p{White_Space}+(?!\\P{White_Space})|\\p{White_Space}+", "gu");

  class Tokenizer {
    constructor(data) {
      this.tokens = data.tokens;
      this.ids = new Map(data.tokens.map((token, id) => [token, id]));
      this.ranks = new Map(data.merges.map((pair, rank) => [pair.join(" "), rank]));
      this.signs = signs();
      this.bytes = new Map(this.signs.map((sign, byte) => [sign, byte]));
    }

    encode(text) {
      const ids = [];
      for (const word of text.match(WORDS) || []) {
        let parts = Array.from(new TextEncoder().encode(word), (byte) => this.signs[byte]);
        while (parts.length > 1) {
          const ranks = parts.slice(1).map((right, n) => this.ranks.get(`${parts[n]} ${right}`) ?? Infinity);
          const best = Math.min(...ranks);
          if (best === Infinity) break;
          const at = ranks.indexOf(best);
          parts = [...parts.slice(0, at), parts[at] + parts[at + 1], ...parts.slice(at + 2)];
        }
        ids.push(...parts.map((part) => this.ids.get(part)));
      }
      return ids;
    }

    decode(ids) {
      const found = ids.flatMap((id) => Array.from(this.tokens[id], (sign) => this.bytes.get(sign) ?? 63));
      return new TextDecoder().decode(Uint8Array.from(found));
    }
  }

  // --- the model: GPT-NeoX's decoder, token by token ------------------------------------------------------------------------------

  // y = W x + b, W of rows × columns.
  function linear(weight, bias, x, rows) {
    const columns = x.length, y = new Float32Array(rows);
    for (let row = 0, at = 0; row < rows; row += 1) {
      let sum = bias ? bias[row] : 0;
      for (let column = 0; column < columns; column += 1, at += 1) sum += weight[at] * x[column];
      y[row] = sum;
    }
    return y;
  }

  function layerNorm(x, weight, bias, eps) {
    const mean = x.reduce((a, b) => a + b, 0) / x.length;
    const spread = Math.sqrt(x.reduce((a, b) => a + (b - mean) ** 2, 0) / x.length + eps);
    return x.map((value, n) => ((value - mean) / spread) * weight[n] + bias[n]);
  }

  // The error function to 1.5e-7 (Abramowitz and Stegun 7.1.26).
  function erf(x) {
    const t = 1 / (1 + 0.3275911 * Math.abs(x));
    const sum = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t;
    return Math.sign(x) * (1 - sum * Math.exp(-x * x));
  }

  const gelu = (x) => 0.5 * x * (1 + erf(x / Math.SQRT2));

  function softmax(scores) {
    const most = Math.max(...scores), parts = scores.map((score) => Math.exp(score - most));
    const sum = parts.reduce((a, b) => a + b, 0);
    return parts.map((part) => part / sum);
  }

  class Model {
    constructor(data) {
      this.about = data;
      this.bias = data.bias ? new Float32Array(bytes(data.bias)) : null;
      this.parts = Object.fromEntries(Object.entries(data.parts).map(([name, part]) => [name, matrix(part)]));
      this.vocabulary = data.parts["embed_in.weight"].shape[0];
      this.begin();
    }

    begin() {
      this.cache = Array.from({ length: this.about.layers }, () => ({ keys: [], values: [] }));
      this.positions = [];
    }

    // Pairs (m, m + R/2) of one head's query or key, turned by the angle of their position.
    turn(x, start, position) {
      const pairs = this.about.frequencies || [], half = pairs.length;
      for (let m = 0; m < half; m += 1) {
        const cos = Math.cos(position * pairs[m]), sin = Math.sin(position * pairs[m]);
        const first = x[start + m], second = x[start + half + m];
        x[start + m] = first * cos - second * sin;
        x[start + half + m] = second * cos + first * sin;
      }
    }

    // Read one token: logits of the next one, and each layer's and head's attention to all tokens so far.
    step(id, position) {
      const { layers, heads, hidden, eps, distances } = this.about, K = hidden / heads, attention = [];
      const part = (name) => this.parts[name];
      let x = part("embed_in.weight").slice(id * hidden, (id + 1) * hidden);
      this.positions.push(position);
      for (let layer = 0; layer < layers; layer += 1) {
        const of = (name) => part(`layers.${layer}.${name}`), cache = this.cache[layer];
        const normed = layerNorm(x, of("input_layernorm.weight"), of("input_layernorm.bias"), eps);
        const qkv = linear(of("attention.query_key_value.weight"), of("attention.query_key_value.bias"), normed, 3 * hidden);
        for (let head = 0; head < heads; head += 1) for (const which of [0, 1]) this.turn(qkv, (3 * head + which) * K, position);
        cache.keys.push(qkv);
        const mixed = new Float32Array(hidden), weights = [];
        for (let head = 0; head < heads; head += 1) {
          const at = 3 * head * K;
          const scores = cache.keys.map((key, j) => {
            let score = 0;
            for (let k = 0; k < K; k += 1) score += qkv[at + k] * key[at + K + k];
            const distance = Math.min(position - this.positions[j], distances - 1);
            return score / Math.sqrt(K) + (this.bias ? this.bias[head * distances + distance] : 0);
          });
          const shares = softmax(scores);
          shares.forEach((share, j) => {
            for (let k = 0; k < K; k += 1) mixed[head * K + k] += share * cache.keys[j][at + 2 * K + k];
          });
          weights.push(shares);
        }
        attention.push(weights);
        const attended = linear(of("attention.dense.weight"), of("attention.dense.bias"), mixed, hidden);
        const other = layerNorm(x, of("post_attention_layernorm.weight"), of("post_attention_layernorm.bias"), eps);
        const wide = linear(of("mlp.dense_h_to_4h.weight"), of("mlp.dense_h_to_4h.bias"), other, 4 * hidden).map(gelu);
        const made = linear(of("mlp.dense_4h_to_h.weight"), of("mlp.dense_4h_to_h.bias"), wide, hidden);
        x = x.map((value, n) => value + attended[n] + made[n]);
      }
      x = layerNorm(x, part("final_layer_norm.weight"), part("final_layer_norm.bias"), eps);
      return { logits: linear(part("embed_out.weight"), null, x, this.vocabulary), attention };
    }

    // A whole text from its beginning: what `step` gives for each token.
    read(ids, positions) {
      this.begin();
      return ids.map((id, n) => this.step(id, positions[n]));
    }
  }

  // --- scripts with weights -------------------------------------------------------------------------------------------------------

  const here = typeof document === "undefined" || !document.currentScript ? "" : document.currentScript.src.replace(/[^/]*$/, "");
  const waiting = new Map();

  root.models = {
    Tokenizer, Model, softmax,
    // Called by each of those scripts.
    loaded(data) {
      const made = data.name === "tokenizer" ? new Tokenizer(data) : new Model(data);
      if (waiting.has(data.name)) waiting.get(data.name).done(made);
      else root.models.last = made;
    },
    // The tokenizer or a model, by name.
    load(name) {
      if (!waiting.has(name)) {
        const one = {};
        one.promise = new Promise((done, failed) => {
          one.done = done;
          const script = document.createElement("script");
          script.src = `${here}models/${name}.mjs`;
          script.onerror = () => failed(new Error(`${name} could not be loaded`));
          document.head.append(script);
        });
        waiting.set(name, one);
      }
      return waiting.get(name).promise;
    },
  };
})();

// --- the page -----------------------------------------------------------------------------------------------------------------------

(function () {
  if (typeof document === "undefined") return;
  const { element } = lab, { softmax } = lab.models;
  const GAPS = [0, 32, 64, 128, 256, 512, 1024], MOST = 96, GOES_ON = 24;
  const TEXT = "The President said that the Congress of the United States will work with the people of this country. The Congress";
  let count = 0;

  const percent = (share) => `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %`;
  const visible = (token) => token.replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/^ /, "·") || "∅";

  // One model's column: what it predicts, how surprised it was, where its heads look.
  class Column {
    constructor(all, name, changed) {
      const id = `reader-${(count += 1)}`;
      this.name = name;
      this.select = element("select", { id });
      for (const model of all) this.select.append(element("option", { value: model.name }, model.label));
      this.select.value = name;
      this.select.addEventListener("change", () => { this.name = this.select.value; changed(); });
      this.note = element("p", { class: "reader-note", "aria-live": "polite" });
      this.bars = element("ol", { class: "reader-bars" });
      this.heat = element("div", { class: "reader-text" });
      this.look = element("div", { class: "reader-text" });
      this.more = element("p", { class: "reader-more" });
      this.goes = element("div", { hidden: "" }, element("h2", {}, "Goes on"), this.more);
      this.element = element("div", { class: "playground-panel" },
        element("div", { class: "playground-controls" }, element("label", { for: id }, "model", this.select)), this.note,
        element("h2", {}, "Next token"), this.bars, element("h2", {}, "How unexpected each token was"), this.heat,
        element("h2", {}, "Where the chosen head looks from the last token"), this.look, this.goes);
    }

    async read(tokenizer, ids, positions) {
      this.model = await lab.models.load(this.name);
      this.found = this.model.read(ids, positions);
      this.losses = ids.map((id, n) => (n ? -Math.log(softmax(this.found[n - 1].logits)[id]) : null));
      this.positions = positions;
      const mean = this.losses.slice(1).reduce((a, b) => a + b, 0) / Math.max(1, ids.length - 1);
      const label = this.select.selectedOptions[0].textContent;
      this.note.textContent = ids.length > 1
        ? `${label}: perplexity of this text ${Math.exp(mean).toFixed(1)} (${mean.toFixed(2)} nats a token).` : `${label}.`;
      this.goes.hidden = true; // of another text
      this.draw(tokenizer, ids);
    }

    draw(tokenizer, ids) {
      const shares = softmax(this.found[ids.length - 1].logits);
      const best = Array.from(shares, (share, id) => [share, id]).sort((a, b) => b[0] - a[0]).slice(0, 8);
      this.bars.replaceChildren(...best.map(([share, id]) => {
        const bar = element("span", { class: "reader-bar" });
        bar.style.width = `${Math.max(1, (100 * share) / best[0][0])}%`;
        return element("li", {}, element("code", {}, visible(tokenizer.decode([id]))), element("span", { class: "reader-track" }, bar),
          element("span", { class: "reader-share" }, percent(share)));
      }));
      this.shade(this.heat, tokenizer, ids, this.losses.map((loss) => (loss === null ? 0 : Math.min(1, loss / 10))),
        (n) => (this.losses[n] === null ? "nothing stands before it" : `${this.losses[n].toFixed(2)} nats`), "215, 80, 30");
    }

    attend(tokenizer, ids, layer, head) {
      const shares = this.found[ids.length - 1].attention[layer][head];
      this.shade(this.look, tokenizer, ids, shares, (n) => `${percent(shares[n])} of attention`, "0, 114, 178");
    }

    // Tokens on a ground as strong as their values, at most half the colour: text stays legible in both schemes. The numbers
    // are in each one's title.
    shade(place, tokenizer, ids, values, told, colour) {
      place.replaceChildren(...ids.map((id, n) => {
        const token = element("span", { title: told(n) }, tokenizer.decode([id]));
        token.style.backgroundColor = `rgba(${colour}, ${(0.5 * Math.max(0, Math.min(1, values[n]))).toFixed(3)})`;
        return token;
      }));
      place.setAttribute("aria-label", ids.map((id, n) => `${tokenizer.decode([id]).trim()}: ${told(n)}`).join("; "));
      place.setAttribute("role", "img");
    }

    // The likeliest token again and again, or one drawn by its probability.
    async goOn(tokenizer, ids, drawn) {
      let { logits } = this.found[ids.length - 1], last = this.positions[ids.length - 1];
      const made = [];
      this.goes.hidden = false;
      for (let n = 0; n < GOES_ON; n += 1) {
        const shares = softmax(logits);
        const id = drawn ? chosen(shares, drawn()) : shares.indexOf(Math.max(...shares));
        made.push(id);
        this.more.textContent = `…${tokenizer.decode(made)}`;
        last += 1;
        logits = this.model.step(id, last).logits;
        await new Promise((done) => setTimeout(done));
      }
      this.found = this.model.read(ids, this.positions); // what was made is not part of the text
    }
  }

  function chosen(shares, at) {
    let sum = 0;
    const found = shares.findIndex((share) => (sum += share) > at);
    return found < 0 ? shares.length - 1 : found;
  }

  // The same draws for both models, and every time.
  function draws(seed) {
    let state = seed;
    return () => {
      state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
      return state / 2 ** 32;
    };
  }

  function slider(label, most, changed) {
    const id = `reader-${(count += 1)}`, value = element("output", { for: id }, "0");
    const input = element("input", { type: "range", id, min: 0, max: most, step: 1, value: 0 });
    input.addEventListener("input", changed);
    return { input, value, element: element("label", { for: id }, element("span", {}, label, " ", value), input) };
  }

  function start(place) {
    const all = JSON.parse(place.querySelector("script").textContent);
    const text = element("textarea", { id: `reader-${(count += 1)}`, rows: 3, maxlength: 600, spellcheck: "false" });
    text.value = TEXT;
    let waiting = 0, tokenizer = null, ids = [], busy = Promise.resolve();
    const again = () => { clearTimeout(waiting); waiting = setTimeout(() => { busy = busy.then(read, read); }, 200); };
    const gap = slider("tokens between the first half and the rest", GAPS.length - 1, again);
    const attend = () => {
      layer.value.textContent = String(Number(layer.input.value) + 1);
      head.value.textContent = String(Number(head.input.value) + 1);
      for (const column of columns) if (column.found) column.attend(tokenizer, ids, Number(layer.input.value), Number(head.input.value));
    };
    const layer = slider("layer", 3, attend), head = slider("head", 3, attend);
    const columns = all.slice(0, 2).map((model) => new Column(all, model.name, again));
    const button = (label, drawn) => {
      const made = element("button", { type: "button", class: "reader-button" }, label);
      made.addEventListener("click", () => {
        busy = busy.then(async () => { for (const column of columns) await column.goOn(tokenizer, ids, drawn && draws(7)); });
      });
      return made;
    };
    const said = element("p", { class: "reader-note", role: "status" });

    async function read() {
      try {
        tokenizer = await lab.models.load("tokenizer");
        const whole = tokenizer.encode(text.value);
        ids = whole.slice(-MOST);
        const far = GAPS[Number(gap.input.value)], half = Math.floor(ids.length / 2);
        gap.value.textContent = String(far);
        gap.input.setAttribute("aria-valuetext", `${far} tokens`);
        said.textContent = !ids.length ? "Write something: at least one token is needed."
          : whole.length > MOST ? `${whole.length} tokens; the last ${MOST} are read.` : `${ids.length} tokens.`;
        if (!ids.length) return;
        for (const column of columns) await column.read(tokenizer, ids, ids.map((_, n) => n + (n >= half ? far : 0)));
        const about = columns[0].model.about;
        layer.input.max = about.layers - 1;
        head.input.max = about.heads - 1;
        attend();
        place.dataset.read = String(Number(place.dataset.read || 0) + 1);
      } catch (error) {
        said.textContent = `${error.message}.`;
      }
    }

    text.addEventListener("input", again);
    place.replaceChildren(
      element("label", { for: text.id, class: "reader-label" }, "text", text), said,
      element("div", { class: "playground-controls" }, gap.element, layer.element, head.element),
      element("div", { class: "playground-controls" }, button("Continue with the likeliest tokens"), button("Continue by chance", true)),
      element("div", { class: "playground-panels" }, ...columns.map((column) => column.element)));
    again();
  }

  lab.whenReady(() => document.querySelectorAll(".reader").forEach(start));
})();
