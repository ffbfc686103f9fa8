"use strict";
// The forward and the backward pass of a small network, in the notation of the page: z = W a + b, δ = Wᵀδ ⊙ g′(z).
const network = (() => {
  const sigma = z => 1 / (1 + Math.exp(-z));

  function erf(x) {
    if (Math.abs(x) > 4) return Math.sign(x);
    let term = x, sum = x;
    for (let n = 1; Math.abs(term) > 1e-17 && n < 200; n++) {
      term *= -x * x / n;
      sum += term / (2 * n + 1);
    }
    return 2 / Math.sqrt(Math.PI) * sum;
  }
  const Phi = z => (1 + erf(z / Math.SQRT2)) / 2;
  const phi = z => Math.exp(-z * z / 2) / Math.sqrt(2 * Math.PI);
  const ROOT = Math.sqrt(2 / Math.PI);
  const bend = z => Math.tanh(ROOT * (z + 0.044715 * z ** 3));

  // name: [g(z, option), g′(z, a, option)]
  const ACTIVATIONS = {
    identity: [z => z, () => 1],
    sigmoid: [sigma, (z, a) => a * (1 - a)],
    tanh: [Math.tanh, (z, a) => 1 - a * a],
    relu: [z => Math.max(z, 0), z => z > 0 ? 1 : 0],
    softplus: [z => Math.max(z, 0) + Math.log1p(Math.exp(-Math.abs(z))), sigma],
    silu: [z => z * sigma(z), z => sigma(z) * (1 + z * (1 - sigma(z)))],
    gelu: [z => z * Phi(z), z => Phi(z) + z * phi(z)],
    gelu_tanh: [z => z / 2 * (1 + bend(z)),
      z => (1 + bend(z)) / 2 + z / 2 * (1 - bend(z) ** 2) * ROOT * (1 + 3 * 0.044715 * z * z)],
    leaky_relu: [(z, slope) => z >= 0 ? z : slope * z, (z, a, slope) => z >= 0 ? 1 : slope],
    elu: [(z, alpha) => z > 0 ? z : alpha * Math.expm1(z), (z, a, alpha) => z > 0 ? 1 : a + alpha],
  };

  const sum = terms => terms.reduce((total, each) => total + each, 0);
  const dot = (u, v) => sum(u.map((each, i) => each * v[i]));
  const times = (W, a) => W.map(row => dot(row, a));                                    // W a
  const transposeTimes = (W, delta) => W[0].map((_, i) => sum(W.map((row, j) => row[i] * delta[j])));  // Wᵀδ
  const outer = (delta, a) => delta.map(d => a.map(each => d * each));                  // δ aᵀ
  const transpose = W => W[0].map((_, i) => W.map(row => row[i]));
  const length = v => Math.sqrt(dot(v, v));

  function softmax(z) {
    const most = Math.max(...z), powers = z.map(each => Math.exp(each - most)), all = sum(powers);
    return powers.map(each => each / all);
  }
  const inside = a => Math.min(Math.max(a, 2 ** -23), 1 - 2 ** -23);  // where the loss of probabilities is clipped
  const xlog = (x, y) => x === 0 ? 0 : x * Math.log(y);
  const errors = (x, y) => x.map((each, i) => each - y[i]);

  // name: [C(x, y), ∂C/∂x], x the network's output
  const LOSSES = {
    quadratic: [(x, y) => sum(errors(x, y).map(e => e * e)) / 2, errors],
    mean_squared_error: [(x, y) => sum(errors(x, y).map(e => e * e)) / x.length,
      (x, y) => errors(x, y).map(e => 2 * e / x.length)],
    mean_absolute_error: [(x, y) => sum(errors(x, y).map(Math.abs)) / x.length,
      (x, y) => errors(x, y).map(e => Math.sign(e) / x.length)],
    binary_cross_entropy: [
      (x, y) => sum(x.map((a, i) => {
        const c = inside(a);
        return -xlog(y[i], c) - xlog(1 - y[i], 1 - c) + (c - y[i]) / (c * (1 - c)) * (a - c);
      })),
      (x, y) => x.map((a, i) => (inside(a) - y[i]) / (inside(a) * (1 - inside(a))))],
    binary_cross_entropy_on_logits: [
      (x, y) => sum(x.map((z, i) => Math.max(z, 0) - z * y[i] + Math.log1p(Math.exp(-Math.abs(z))))),
      (x, y) => x.map((z, i) => sigma(z) - y[i])],
    softmax_cross_entropy: [
      (x, y) => {
        const most = Math.max(...x);
        return sum(y) * (most + Math.log(sum(x.map(z => Math.exp(z - most))))) - dot(y, x);
      },
      (x, y) => softmax(x).map((p, i) => sum(y) * p - y[i])],
  };

  function forwardOne(layer, x) {
    if (layer.kind === "dense") return times(layer.W, x).map((z, j) => z + (layer.b ? layer.b[j] : 0));
    if (layer.kind === "softmax") return softmax(x);
    return x.map(z => ACTIVATIONS[layer.name][0](z, layer.option));
  }

  function backwardOne(layer, x, out, delta) {
    if (layer.kind === "dense") return transposeTimes(layer.W, delta);
    if (layer.kind === "softmax") return out.map((p, i) => p * (delta[i] - dot(out, delta)));
    return delta.map((d, i) => d * ACTIVATIONS[layer.name][1](x[i], out[i], layer.option));
  }

  const run = (layers, x) => layers.reduce((value, layer) => forwardOne(layer, value), x);
  const cost = (spec, layers, x) => LOSSES[spec.loss][0](run(layers, x), spec.y);

  // All values by name: x, y, C, and of layer i out.i, err.i (∂C/∂out), W.i, b.i, dW.i, db.i; err.-1 is ∂C/∂x.
  function compute(spec) {
    const values = {x: spec.x, y: spec.y}, outs = [spec.x];
    for (const layer of spec.layers) outs.push(forwardOne(layer, outs.at(-1)));
    values.C = LOSSES[spec.loss][0](outs.at(-1), spec.y);
    let delta = LOSSES[spec.loss][1](outs.at(-1), spec.y);
    for (let i = spec.layers.length - 1; i >= 0; i--) {
      const layer = spec.layers[i];
      values[`out.${i}`] = outs[i + 1];
      values[`err.${i}`] = delta;
      if (layer.kind === "dense") {
        values[`W.${i}`] = layer.W;
        values[`dW.${i}`] = outer(delta, outs[i]);
        if (layer.b) { values[`b.${i}`] = layer.b; values[`db.${i}`] = delta; }
        Object.assign(values, sent(layer.W, delta, i));
      }
      delta = backwardOne(layer, outs[i], outs[i + 1], delta);
    }
    values["err.-1"] = delta;
    for (const asked of spec.asked) Object.assign(values, why(spec, asked, outs, values));
    return values;
  }

  // δ_j W_ji: what goes back along each edge.
  const sent = (W, delta, i) => ({[`sent.${i}`]: W.map((row, j) => row.map(w => w * delta[j]))});

  // Why Wᵀ?, at the dense layer asked.item and its unit asked.unit.
  function why(spec, {item, unit, by, step, v}, outs, values) {
    const rest = spec.layers.slice(item), W = rest[0].W, a = outs[item], delta = values[`err.${item}`];
    const back = transposeTimes(W, delta), other = solve(W, delta), at = `why.${item}.`;
    const raised = a.map((each, i) => i === unit ? each + by : each);
    const less = u => a.map((each, i) => each - (length(u) ? step * u[i] / length(u) : 0));
    const from = x => cost(spec, rest, x);
    const lengths = length(back) * length(other);
    return {
      [at + "back"]: back,
      [at + "dz"]: errors(forwardOne(rest[0], raised), forwardOne(rest[0], a)),
      [at + "column"]: W.map(row => row[unit]),
      [at + "moves"]: from(raised) - from(a),
      [at + "predicted"]: by * back[unit],
      [at + "terms"]: W.map((row, j) => row[unit] * delta[j]),
      [at + "total"]: back[unit],
      [at + "weight"]: delta[0] * a[unit],
      [at + "delta1"]: delta[0],
      [at + "input"]: a[unit],
      [at + "other"]: other,
      [at + "angle"]: lengths ? Math.acos(Math.min(1, Math.max(-1, dot(back, other) / lengths))) * 180 / Math.PI : NaN,
      [at + "lowers"]: from(a) - from(less(back)),
      [at + "otherLowers"]: from(a) - from(less(other)),
      [at + "adjoint"]: dot(delta, times(W, v)),
    };
  }

  // W⁻¹δ, or W⁺δ by the smaller of W Wᵀ and WᵀW; NaN where that is singular.
  function solve(W, delta) {
    const rows = W.length, columns = W[0].length;
    if (rows === columns) return gauss(W, delta);
    if (rows < columns) return transposeTimes(W, gauss(W.map(u => W.map(v => dot(u, v))), delta));
    const turned = transpose(W);
    return gauss(turned.map(u => turned.map(v => dot(u, v))), times(turned, delta));
  }

  function gauss(matrix, right) {
    const rows = matrix.map((row, i) => [...row, right[i]]), n = rows.length;
    for (let i = 0; i < n; i++) {
      const pivot = rows.slice(i).reduce((best, row, k) => Math.abs(row[i]) > Math.abs(rows[best][i]) ? i + k : best, i);
      [rows[i], rows[pivot]] = [rows[pivot], rows[i]];
      for (let j = 0; j < n; j++) {
        if (j === i) continue;
        const share = rows[j][i] / rows[i][i];
        rows[j] = rows[j].map((each, k) => each - share * rows[i][k]);
      }
    }
    return rows.map((row, i) => Math.abs(row[i]) > 1e-12 ? row[n] / row[i] : NaN);
  }

  return {compute, gauss, softmax, ACTIVATIONS, LOSSES};
})();
