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
          script.src = `${here}models/${name}.js`;
          script.onerror = () => failed(new Error(`${name} could not be loaded`));
          document.head.append(script);
        });
        waiting.set(name, one);
      }
      return waiting.get(name).promise;
    },
  };
})();
