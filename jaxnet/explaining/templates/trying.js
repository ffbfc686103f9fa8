"use strict";
// A formula of one's own, judged at the page's numbers and at random ones: `W3.T @ delta3 * relu'(z2)`.
const trying = (() => {
  const WORD = /\s*(?:(\d+\.?\d*|\.\d+)|(\.T\b|ᵀ|\^T)|([A-Za-zδ∇σ∂][A-Za-z0-9_⁰¹²³⁴⁵⁶⁷⁸⁹]*(?:\/∂[a-z][0-9⁰¹²³⁴⁵⁶⁷⁸⁹]*)?)|(['′])|([-+*@/()⊙·−²]))/y;
  const DIGITS = "⁰¹²³⁴⁵⁶⁷⁸⁹";
  const size = m => `${m.length}×${m[0].length}`;
  const map = (m, f) => m.map((row, i) => row.map((each, j) => f(each, i, j)));
  const turned = m => m[0].map((_, j) => m.map(row => row[j]));
  const single = m => m.length === 1 && m[0].length === 1;

  function plain(name) {  // the network's own name: δ³ is delta3, ∇W³ dW3
    const text = name.replace(/[⁰-⁹¹²³]/g, sign => DIGITS.indexOf(sign));
    return text.replace(/^∂[CJ]\/∂|^∇/, "d").replace(/^(δ|dz)(?=\d|$)/, "delta").replace(/^σ$/, "sigmoid");
  }

  function words(text) {
    const found = [];
    WORD.lastIndex = 0;
    while (WORD.lastIndex < text.length) {
      const at = WORD.lastIndex, match = WORD.exec(text);
      if (!match) {
        if (text.slice(at).trim() === "") break;
        throw new Error(`“${text.slice(at).trim()[0]}” has no meaning in a formula.`);
      }
      const [, number, transpose, name, prime, sign] = match;
      found.push(number ? ["number", Number(number)] : transpose ? ["turn"] : name ? ["name", plain(name)] : prime ? ["prime"] : ["sign", sign]);
    }
    return found;
  }

  function evaluate(text, scope) {
    const list = words(text);
    let at = 0;
    const peek = (kind, value) => list[at]?.[0] === kind && (value === undefined || list[at][1] === value);
    const take = (kind, value) => peek(kind, value) && list[at++];
    const joined = (left, right, sign, f) => {
      if (single(left)) return map(right, each => f(left[0][0], each));
      if (single(right)) return map(left, each => f(each, right[0][0]));
      if (size(left) !== size(right)) throw new Error(`First misfit: ${size(left)} ${sign} ${size(right)} needs equal shapes.`);
      return map(left, (each, i, j) => f(each, right[i][j]));
    };
    const product = (left, right) => {
      if (single(left) || single(right)) return joined(left, right, "*", (a, b) => a * b);
      if (left[0].length !== right.length) {
        throw new Error(`First misfit: ${size(left)} @ ${size(right)} does not fit: the left one's columns (${left[0].length}) must be as many as the right one's rows (${right.length}).`);
      }
      return left.map(row => right[0].map((_, j) => row.reduce((sum, each, k) => sum + each * right[k][j], 0)));
    };

    function sum() {
      let value = term();
      for (let sign; (sign = take("sign", "+") || take("sign", "-") || take("sign", "−"));) {
        const other = term();
        value = joined(value, other, sign[1], (a, b) => sign[1] === "+" ? a + b : a - b);
      }
      return value;
    }
    function term() {
      let value = factor();
      for (;;) {
        if (take("sign", "*") || take("sign", "⊙")) value = joined(value, factor(), "*", (a, b) => a * b);
        else if (take("sign", "/")) value = joined(value, factor(), "/", (a, b) => a / b);
        else if (take("sign", "@") || take("sign", "·") || peek("name") || peek("number") || peek("sign", "(")) value = product(value, factor());
        else return value;
      }
    }
    function factor() {
      if (take("sign", "-") || take("sign", "−")) return map(factor(), each => -each);
      let value = atom();
      for (;;) {
        if (take("turn") || take("prime")) value = turned(value);
        else if (take("sign", "²")) value = map(value, each => each * each);
        else return value;
      }
    }
    function atom() {
      const word = list[at++];
      if (!word) throw new Error("The formula ends where a factor should follow.");
      if (word[0] === "number") return [[word[1]]];
      if (word[0] === "sign" && word[1] === "(") {
        const value = sum();
        if (!take("sign", ")")) throw new Error("A bracket is open.");
        return value;
      }
      if (word[0] !== "name") throw new Error(`“${word[1] ?? "ᵀ"}” stands where a factor should.`);
      const known = network.ACTIVATIONS[word[1]];
      if (known) {
        const slope = take("prime");
        if (!take("sign", "(")) throw new Error(`${word[1]} is a function: write ${word[1]}(…).`);
        const of = sum();
        take("sign", ")");
        return map(of, z => slope ? known[1](z, known[0](z, 0), 0) : known[0](z, 0));
      }
      if (!(word[1] in scope)) throw new Error(`The network has no ${word[1]}: there are ${Object.keys(scope).join(", ")}.`);
      return scope[word[1]];
    }
    const value = sum();
    if (at < list.length) throw new Error("The formula should end here, or an operator follow.");
    return value;
  }

  // The network's quantities by the names of formulas; vectors are columns, or rows where W is (in, out).
  function scopeOf(spec, first, rows) {
    const values = network.compute(spec), vector = v => rows ? [v] : v.map(each => [each]), found = {x: vector(spec.x), y: vector(spec.y)};
    const laid = W => rows ? turned(W) : W;
    spec.layers.forEach((layer, i) => {
      const n = layer.number + first, z = layer.kind === "dense", follows = spec.layers[i + 1]?.number === layer.number;
      found[`${z ? "z" : "a"}${n}`] = vector(values[`out.${i}`]);
      found[z ? `delta${n}` : `da${n}`] = vector(values[`err.${i}`]);
      if (z && !follows) found[`a${n}`] = found[`z${n}`];
      if (!z) return;
      found[`W${n}`] = laid(values[`W.${i}`]);
      found[`dW${n}`] = laid(values[`dW.${i}`]);
      if (layer.b) { found[`b${n}`] = vector(layer.b); found[`db${n}`] = vector(values[`db.${i}`]); }
    });
    found.dx = vector(values["err.-1"]);
    return found;
  }

  function elsewhere(spec, seed) {  // the same network at other numbers
    let state = seed;
    const draw = () => ((state = (state * 16807) % 2147483647) / 2147483647) * 3 - 1.2;
    const fresh = v => Array.isArray(v) ? v.map(fresh) : draw();
    const layers = spec.layers.map(layer => layer.kind === "dense" ? {...layer, W: fresh(layer.W), b: layer.b && fresh(layer.b)} : layer);
    const y = spec.y.map(() => Math.exp(draw())), all = y.reduce((sum, each) => sum + each, 0) + (y.length === 1);
    return {...spec, x: fresh(spec.x), y: y.map(each => each / all), layers};
  }

  const near = (a, b) => size(a) === size(b) && a.every((row, i) => row.every((each, j) => Math.abs(each - b[i][j]) <= 1e-6 * (Math.abs(b[i][j]) + 1e-3)));
  const shown = m => m.map(row => row.map(each => numbers.one(each, 4)).join("  ")).join(m[0].length > 1 && m.length > 1 ? "  │  " : "  ");

  function judge(text, spec, first, rows) {
    const scopes = [spec, elsewhere(spec, 7), elsewhere(spec, 11)].map(each => scopeOf(each, first, rows));
    let values;
    try {
      values = scopes.map(scope => evaluate(text.replace(/^[^=]*=(?!=)/, ""), scope));
    } catch (error) {
      return {right: false, said: error.message};
    }
    const same = key => scopes.filter((scope, i) => near(values[i], scope[key])).length;
    const backward = Object.keys(scopes[0]).sort((a, b) => b.startsWith("d") - a.startsWith("d"));
    const right = backward.find(key => same(key) === scopes.length);
    if (right) return {right: true, said: `Right: this is ${right}, ${size(values[0])}: (${shown(values[0])}).`};
    const chance = backward.find(key => near(values[0], scopes[0][key]));
    if (chance) return {right: false, said: `This is ${chance} here by chance, and not at other numbers.`};
    const other = backward.find(key => scopes.every((scope, i) => near(turned(values[i]), scope[key])));
    if (other) return {right: false, said: `The transpose of this is ${other}: ${size(values[0])} for ${size(scopes[0][other])}.`};
    const alike = backward.filter(key => size(scopes[0][key]) === size(values[0]));
    const like = alike.length ? `the shape of ${alike.join(", ")}` : "the shape of nothing here";
    return {right: false, said: `The shapes fit and give ${size(values[0])}, ${like}, but the value is none of them: (${shown(values[0])}).`};
  }

  function start(spec, first, rows) {
    const field = document.querySelector("#formula"), said = document.querySelector("#verdict");
    if (!field) return;
    const answer = () => {
      const {right, said: text} = field.value.trim() ? judge(field.value, spec, first(), rows()) : {said: ""};
      said.textContent = text;
      said.classList.toggle("good", Boolean(right));
    };
    field.addEventListener("input", answer);
    document.addEventListener("change", answer);
  }

  return {start, judge};
})();
