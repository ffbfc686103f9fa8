"use strict";
// A formula of one's own, judged at the page's numbers and at random ones.
const trying = (() => {
  const {read, said, tables: of} = reading;

  // ---------------------------------------------------------------------------------------------- values

  class Misfit extends Error {}

  const number = m => typeof m === "number", single = m => number(m) || (m.length === 1 && m[0].length === 1);
  const one = m => number(m) ? m : m[0][0];
  const size = m => number(m) ? "1" : `${m.length}×${m[0].length}`;
  const map = (m, f) => number(m) ? f(m, 0, 0) : m.map((row, i) => row.map((each, j) => f(each, i, j)));
  const turned = m => number(m) ? m : m[0].map((_, j) => m.map(row => row[j]));
  const flat = m => number(m) ? [m] : m.flat();
  const identity = n => [...Array(n)].map((_, i) => [...Array(n)].map((_, j) => Number(i === j)));
  const like = (m, other) => single(m) ? map(other, () => one(m)) : m;  // a number as many times as the other has entries

  const SIGNS = {
    "*": (a, b) => a * b, "/": (a, b) => a / b, "+": (a, b) => a + b, "-": (a, b) => a - b, "**": (a, b) => a ** b,
    "<": (a, b) => Number(a < b), ">": (a, b) => Number(a > b), "<=": (a, b) => Number(a <= b), ">=": (a, b) => Number(a >= b),
  };

  function joined(sign, left, right) {
    if (size(left) !== size(right) && !single(left) && !single(right)) {
      throw new Misfit(`${size(left)} ${sign} ${size(right)} does not fit: ${of.signs[sign]} needs equal shapes`);
    }
    if (size(left) !== size(right)) [left, right] = single(left) ? [like(left, right), right] : [left, like(right, left)];
    return map(left, (a, i, j) => {
      const b = number(right) ? right : right[i][j];
      return Number.isNaN(a + b) ? NaN : SIGNS[sign](a, b);
    });
  }

  function times(left, right, beside) {
    if (number(left) || number(right)) {
      if (beside) return joined("*", left, right);
      throw new Misfit(`${size(left)} @ ${size(right)} does not fit: @ takes matrices; numbers are multiplied by *`);
    }
    const columns = left[0].length, rows = right.length, several = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;
    if (columns !== rows) {
      throw new Misfit(`${size(left)} @ ${size(right)} does not fit: ${several(columns, "column")} on the left, ${several(rows, "row")} on the right`);
    }
    return left.map(row => right[0].map((_, j) => row.reduce((sum, each, k) => sum + each * right[k][j], 0)));
  }

  function pseudoInverse(W) {  // of full rank, by the smaller of W Wᵀ and WᵀW
    if (W.length > W[0].length) return turned(pseudoInverse(turned(W)));
    const square = W.length === W[0].length ? W : times(W, turned(W));
    const inverse = turned(identity(W.length).map(unit => network.gauss(square, unit)));
    return square === W ? inverse : times(turned(W), inverse);
  }

  const entry = f => m => map(m, f);
  const FUNCTIONS = {
    exp: entry(Math.exp), log: entry(Math.log), ln: entry(Math.log), abs: entry(Math.abs), sign: entry(Math.sign),
    sqrt: entry(Math.sqrt), tanh: entry(Math.tanh), square: entry(each => each * each),
    outer: (u, v) => flat(u).map(a => flat(v).map(b => a * b)),
    diag: v => identity(flat(v).length).map((row, i) => row.map(each => each * flat(v)[i])),
    inv: pseudoInverse, pinv: pseudoInverse,
    clip: (e, t) => map(e, (each, i, j) => Math.min(Math.max(each, -like(t, e)[i][j]), like(t, e)[i][j])),
    top: v => { const most = flat(v).indexOf(Math.max(...flat(v))); let k = 0; return map(v, () => Number(k++ === most)); },
    maximum: (a, b) => { const [u, v] = [like(a, b), like(b, like(a, b))]; return map(u, (each, i, j) => Math.max(each, number(v) ? v : v[i][j])); },
    where: (on, a, b) => map(on, (each, i, j) => like(each ? a : b, on)[i][j]),
    softmax: (m, rows) => rows ? m.map(network.softmax) : turned(turned(m).map(network.softmax)),
    sum: (m, along) => along(m, list => list.reduce((total, each) => total + each, 0)),
    mean: (m, along) => along(m, list => list.reduce((total, each) => total + each, 0) / list.length),
    max: (m, along) => along(m, list => Math.max(...list)),
    reshape: () => null, ones: () => null,  // by their arguments, below
    ...Object.fromEntries(["asarray", "array", "copy", "int", "float", "astype", "int32", "int64", "float32", "float64"].map(name => [name, m => m])),
  };

  function literal(node) {
    if (node?.kind === "minus") return -literal(node.of);
    if (node?.kind === "list") return node.parts.map(literal);
    if (node?.kind === "number" || node?.kind === "constant") return node.value;
    throw new Error("a list holds numbers: [1, 1, 1], or rows of equally many");
  }

  const shaped = (list, rows, columns) => {
    const height = rows < 0 ? list.length / columns : rows, width = columns < 0 ? list.length / rows : columns;
    if (height * width !== list.length) throw new Error(`reshape cannot be taken like this: ${list.length} entries as ${rows}×${columns}`);
    return [...Array(height)].map((_, i) => list.slice(i * width, (i + 1) * width));
  };
  const vector = (list, rows) => rows ? [list] : list.map(each => [each]);

  function keyOf(name, scope) {
    if (Object.hasOwn(scope.values, name)) return name;
    if (Object.hasOwn(scope.others, name)) return scope.others[name];
    const alike = [...Object.keys(scope.values), ...Object.keys(scope.others)].filter(each => each.toLowerCase() === name.toLowerCase());
    return alike.length === 1 ? scope.others[alike[0]] ?? alike[0] : undefined;
  }

  function named(name, scope) {
    const key = keyOf(name, scope);
    if (key !== undefined && scope.values[key] !== undefined) return scope.values[key];
    if (name in of.functions || name.replace(of.slope, "") in network.ACTIVATIONS) {
      throw new Error(`the network has no ${name}: ${name} is a function: write ${name}(…)`);
    }
    const known = Object.keys(scope.values).filter(each => !each.includes(" "));
    const alike = known.filter(each => edits(name, each) <= Math.max(1, Math.floor(name.length / 3)));
    throw new Error(`the network has no ${name}: ${alike.length ? `did you mean ${alike.slice(0, 3).join(", ")}?` : `there are ${known.join(", ")}`}`);
  }

  function edits(a, b) {  // how many letters are put in, left out or changed from one name to another
    let row = [...b, ""].map((_, j) => j);
    for (const [i, letter] of [...a].entries()) {
      row = row.reduce((next, above, j) => [...next, j ? Math.min(above + 1, next[j - 1] + 1, row[j - 1] + (letter !== b[j - 1])) : i + 1], []);
    }
    return row[b.length];
  }

  function activation(base, args, scope) {  // a layer's own, or one of the table; s and g are that of the z they are taken of
    const own = Object.values(scope.activations);
    if (!/^[sg]\d*$/.test(base)) return own.find(each => each.name === base) ?? (base in network.ACTIVATIONS ? {name: base} : null);
    const z = args[0]?.kind === "name" ? keyOf(args[0].name, scope)?.toLowerCase() : "";
    if (z in scope.activations) return scope.activations[z];
    if (new Set(own.map(each => each.name)).size === 1) return own[0];
    throw new Error(`${base} is the activation of the z that it is taken of (${Object.keys(scope.activations).join(", ")}): name one`);
  }

  function called(node, scope) {
    const {name, options} = node;
    let {args} = node;
    const base = name.replaceAll(of.slope, ""), primes = name.split(of.slope).length - 1;
    if (primes > 1) throw new Error(`${base}' is the first derivative, and there is no second one`);
    if (["sum", "mean", "max", "reshape"].includes(name) || (name === "ones" && args.length)) return resized(name, args, options, scope);
    if (name === "astype") args = args.slice(0, 1);
    const layer = activation(base, args, scope);
    if (!layer && (!(base in of.functions) || primes)) throw new Error(`there is no function ${base}${primes ? "'" : ""}: there are ${Object.keys(network.ACTIVATIONS).join(", ")}, ${Object.keys(of.functions).join(", ")}`);
    const count = layer ? 1 : of.functions[base];
    if (args.length !== count || options.some(each => each.name !== "keepdims")) throw new Error(`${base} takes ${count}, got ${args.length} arguments`);
    const values = args.map(each => evaluate(each, scope));
    if (!layer) return FUNCTIONS[base](...values, scope.rows);
    const [g, slope] = network.ACTIVATIONS[layer.name];
    return map(values[0], z => primes ? slope(z, g(z, layer.option), layer.option) : g(z, layer.option));
  }

  function resized(name, args, options, scope) {
    let sizes = args.slice(name === "ones" ? 0 : 1).map(literal);
    const axis = options.filter(each => each.name === "axis").map(each => literal(each.value))[0] ?? sizes[0];
    sizes = Array.isArray(sizes[0]) ? sizes[0] : sizes;
    if (name === "ones") return sizes.length === 2 ? shaped(Array(sizes[0] * sizes[1]).fill(1), ...sizes) : vector(Array(sizes[0]).fill(1), scope.rows);
    const value = evaluate(args[0], scope);
    if (name === "reshape") return shaped(flat(value), sizes[0], sizes[1] ?? 1);
    if (axis !== undefined && ![-2, -1, 0, 1].includes(axis)) throw new Error(`${name} cannot be taken like this: there is no axis ${axis}`);
    return FUNCTIONS[name](value, (m, f) =>
      axis === undefined ? f(flat(m)) : axis % 2 === 0 ? [turned(m).map(f)] : m.map(row => [f(row)]));
  }

  function part(node, scope) {
    const value = evaluate(node.of, scope), asked = node.parts;
    if (asked.length !== 2 || number(value)) throw new Error(said("meaning", "this"));
    const fresh = asked.map(each => each.kind === "constant" && each.value === null);
    if (fresh.includes(true)) return fresh[0] === fresh[1] || !size(value).split("×").includes("1") ? value : vector(flat(value), fresh[0]);
    const taken = (list, each) => {
      if (each.kind === "slice") {
        const [start, stop, step] = each.ends.map(end => end === null ? undefined : literal(end));
        return list.slice(start, stop).filter((_, i) => i % (step ?? 1) === 0);
      }
      const found = list.at(literal(each));
      if (found === undefined) throw new Error("this part cannot be taken: there are fewer rows or columns");
      return [found];
    };
    return turned(taken(turned(taken(value, asked[0])), asked[1]));
  }

  function evaluate(node, scope) {
    switch (node.kind) {
      case "number": return node.value;
      case "shape": return shaped(Array(node.sizes[0] * node.sizes[1]).fill(NaN), ...node.sizes);
      case "name": return named(node.name, scope);
      case "turned": return node.of.kind === "list" ? evaluate(node.of, scope) : turned(evaluate(node.of, scope));
      case "minus": return map(evaluate(node.of, scope), each => -each);
      case "plus": return evaluate(node.of, scope);
      case "list": {
        const list = literal(node);
        if (!list.length) break;
        const rows = list.map(each => Array.isArray(each) ? each : [each]);
        if (rows.some(row => row.length !== rows[0].length || row.some(Array.isArray))) literal(null);
        return Array.isArray(list[0]) ? rows : vector(list, scope.rows);
      }
      case "joined": {
        const left = evaluate(node.left, scope), right = evaluate(node.right, scope);
        return node.sign === "@" || node.sign === "·" ? times(left, right, node.sign === "·") : joined(node.sign, left, right);
      }
      case "part": return part(node, scope);
      case "call": return called(node, scope);
    }
    throw new Error(said("meaning", "this"));
  }

  // -------------------------------------------------------------------------------- the network's quantities

  // By the names of formulas; vectors are columns, or rows where W is (in, out).
  function quantities(spec, first, rows) {
    const values = network.compute(spec), found = {x: vector(spec.x, rows), y: vector(spec.y, rows)}, activations = {};
    const laid = W => rows ? turned(W) : W;
    spec.layers.forEach((layer, i) => {
      const n = layer.number + first, z = layer.kind === "dense", follows = spec.layers[i + 1]?.number === layer.number;
      found[`${z ? "z" : "a"}${n}`] = vector(values[`out.${i}`], rows);
      found[z ? `delta${n}` : `da${n}`] = vector(values[`err.${i}`], rows);
      if (z && !follows) found[`a${n}`] = found[`z${n}`];
      if (layer.kind === "activation") activations[`z${n}`] = layer;
      if (!z) return;
      found[`W${n}`] = laid(values[`W.${i}`]);
      found[`dW${n}`] = laid(values[`dW.${i}`]);
      if (layer.b) { found[`b${n}`] = vector(layer.b, rows); found[`db${n}`] = vector(values[`db.${i}`], rows); }
    });
    return {values: {...found, dx: vector(values["err.-1"], rows), C: values.C}, activations, rows};
  }

  // A batch beside the example: X, Z2 and dZ2 side by side, and the gradients of its mean cost as "mean dW2".
  function withBatch(spec, scope, draw, first) {
    const drawn = [...Array(EXAMPLES - 1)].map(() => ({...spec, ...draw()}));
    const each = [spec, ...drawn].map(one => quantities(one, first, scope.rows).values), m = EXAMPLES, found = {m};
    for (const key of Object.keys(each[0])) {
      const all = each.map(values => values[key]);
      if (/^(d?[Wb]\d|C)/.test(key)) found[`mean ${key}`] = map(all[0], (_, i, j) => all.reduce((sum, one) => sum + (number(one) ? one : one[i][j]), 0) / m);
      else found[capital(key)] = scope.rows ? all.map(flat) : turned(all.map(flat));
    }
    return {...scope, values: {...scope.values, ...found}};
  }
  const EXAMPLES = 4, CANDIDATES = 24, DRAWS = 3;
  const upper = text => text[0].toUpperCase() + text.slice(1);
  const capital = key => {
    const text = key.replace("delta", "dz");
    return text[0] === "d" ? `d${upper(text.slice(1))}` : upper(text);
  };

  // The page's numbers, and three draws of others at which no layer's error is 0 where that can be.
  function scopes(spec, first, rows) {
    let state = 7;
    const draw = () => ((state = (state * 16807) % 2147483647) / 2147483647) * 3 - 1.2;
    const fresh = v => Array.isArray(v) ? v.map(fresh) : draw();
    const example = () => {
      const y = spec.y.map(() => Math.exp(draw())), all = y.reduce((sum, each) => sum + each, 0) + (y.length === 1);
      return {x: fresh(spec.x), y: y.map(each => each / all)};
    };
    const drawn = [...Array(CANDIDATES)].map(() => {
      const layers = spec.layers.map(layer => layer.kind === "dense" ? {...layer, W: fresh(layer.W), b: layer.b && fresh(layer.b)} : layer);
      const other = {...spec, ...example(), layers}, scope = quantities(other, first, rows);
      const moving = Object.keys(scope.values).filter(key => key.startsWith("d")).flatMap(key => flat(scope.values[key])).filter(each => each !== 0);
      return [moving.length, other, scope];
    }).sort((a, b) => b[0] - a[0]).slice(0, DRAWS).map(([, other, scope]) => [other, scope]);
    const {others, keys} = of.names[first];
    return [[spec, quantities(spec, first, rows)], ...drawn].map(([at, scope]) => ({...withBatch(at, scope, example, first), others, keys}));
  }

  // --------------------------------------------------------------------------------------------- judging

  function near(a, b) {
    if (size(a) !== size(b) && !(single(a) && single(b))) return false;
    const [found, expected] = [flat(a), flat(b)], most = Math.max(1e-30, ...expected.map(Math.abs));
    return found.every((each, i) => Math.abs(each - expected[i]) <= of.near * most);
  }
  const shown = m => number(m) ? numbers.one(m, 4) : m.map(row => row.map(each => numbers.one(each, 4)).join("  ")).join(m[0].length > 1 && m.length > 1 ? "  │  " : "  ");
  const names = node => node && typeof node === "object" ? [...(node.kind === "name" ? [node.name] : []), ...Object.values(node).flatMap(names)] : [];

  // What a formula may be, in the order of asking: [key, its value in each scope]; of a batch's names the batch's.
  function wantedOf(list, tree) {
    const used = names(tree).map(name => keyOf(name, list[0])), all = key => list.map(scope => scope.values[key]);
    if (!used.some(key => key === "m" || /^d?[A-Z]/.test(key ?? "") && !list[0].keys.includes(key) && !/^[WC]/.test(key))) {
      return list[0].keys.map(key => [key, all(key)]);
    }
    return list[0].keys.flatMap(key => {
      const mean = all(`mean ${key}`);
      if (mean[0] === undefined) return [[capital(key), all(capital(key))]];
      return key === "C" ? [[key, mean]] : [[key, mean], [key, mean.map((each, i) => map(each, entry => entry * list[i].values.m))]];
    }).filter(([, values]) => values[0] !== undefined);
  }

  function judge(text, spec, first, rows) {
    let tree, target, list, values, wanted;
    try {
      ({tree, target} = read(text));
      list = scopes(spec, first, rows);
      wanted = wantedOf(list, tree);
      const asked = target && keyOf(target, list[0]);
      if (target && !wanted.some(([key]) => key === asked)) named(asked ? "" : target, list[0]);
      values = list.map(scope => evaluate(tree, scope));
      if (JSON.stringify(tree).includes('"shape"')) return {verdict: "shapes", quantity: "", said: `The shapes fit and give ${size(values[0])}: whether the value is right they do not say.`};
      return compared(values, wanted, asked);
    } catch (error) {
      const words = error.message;
      if (error instanceof Misfit) return {verdict: "misfit", quantity: "", said: `First misfit: ${words}.`};
      return {verdict: "error", quantity: "", said: `${words.replace(/^(a|the|there|before|brackets|this) /, upper)}${words.endsWith("?") ? "" : "."}`};
    }
  }

  function compared(values, all, asked) {
    const wanted = all.filter(([key]) => !asked || key === asked), every = (of, f = m => m) => of.every((each, i) => near(f(values[i]), each));
    const answer = (verdict, quantity, text) => ({verdict, quantity, said: `${text}.`});
    const right = [...wanted, ...all].find(([, each]) => every(each));
    if (right && wanted.includes(right)) return answer("right", right[0], `Right: this is ${right[0]}, ${size(values[0])}: (${shown(values[0])})`);
    if (right) return answer("value", right[0], `The value is ${right[0]}, not ${asked}`);
    for (const [key, each] of wanted) {
      if (!number(values[0]) && every(each, turned)) {
        const isVector = size(values[0]).split("×").includes("1");
        return answer(isVector ? "right" : "value", key, isVector ? `Right in ${values[0].length === 1 ? "row, or numerator, layout" : "columns"}: its transpose is ${key}`
          : `The value is ${key} transposed, ${size(values[0])} for ${size(each[0])}`);
      }
      if (size(values[0]) === size(each[0]) && near(values[0], each[0]) && flat(each[0]).some(Boolean)) {
        return answer("value", key, `This is ${key} here by chance, and not at other numbers`);
      }
      const ratio = multiple(values, each);
      if (ratio) return answer("value", key, `The shapes fit, but the value is ${numbers.one(ratio, 4)} times ${key}`);
    }
    const alike = wanted.filter(([, each]) => size(each[0]) === size(values[0])).map(([key]) => key);
    const like = alike.length ? `the shape of ${[...new Set(alike)].join(", ")}` : "the shape of nothing here";
    return answer("value", "", `The shapes fit and give ${size(values[0])}, ${like}, but the value is none of them: (${shown(values[0])})`);
  }

  function multiple(values, expected) {  // the number that all of the expected value is multiplied by at every draw; 0 for none
    if (single(values[0]) || size(values[0]) !== size(expected[0])) return 0;
    const total = (a, b) => flat(a).reduce((sum, each, i) => sum + each * flat(b)[i], 0);
    const lengths = expected.map(each => total(each, each)), at = lengths.indexOf(Math.max(...lengths));
    const ratio = total(values[at], expected[at]) / lengths[at];
    return ratio && Number.isFinite(ratio) && values.every((each, i) => near(map(each, entry => entry / ratio), expected[i])) ? ratio : 0;
  }

  function start(spec, first, rows) {
    const field = document.querySelector("#formula"), verdict = document.querySelector("#verdict");
    if (!field) return;
    const answer = () => {
      const {said: text, verdict: found} = field.value.trim() ? judge(field.value, spec, first(), rows()) : {said: ""};
      verdict.textContent = text;
      verdict.classList.toggle("good", found === "right");
    };
    field.addEventListener("input", answer);
    document.addEventListener("change", answer);
  }

  return {start, judge, functions: Object.keys(FUNCTIONS)};
})();
