"use strict";
// Pictures: arrays as cells, blue below zero and red above; under the pointer, or the arrow keys, the numbers of a cell.
const pictures = (() => {
  const INK = [0, 0, 0], BELOW = [37, 110, 190], ABOVE = [206, 70, 50], FAINT = 0.7;
  const all = (selector, root) => [...root.querySelectorAll(selector)];
  const made = (tag, kind, text = "") => Object.assign(document.createElement(tag), {className: kind, textContent: text});
  const say = value => numbers.one(value, 4);
  const most = values => values.reduce((top, value) => Math.max(top, Math.abs(value)), 0) || 1;

  function decoded([shape, text]) {
    const bytes = Uint8Array.from(atob(text), sign => sign.charCodeAt(0));
    return {shape, data: new Float32Array(bytes.buffer)};
  }
  // An entry of an array; 0 outside of it.
  function entry({shape, data}, ...at) {
    let k = 0;
    for (let i = 0; i < shape.length; i++) {
      if (at[i] < 0 || at[i] >= shape[i]) return 0;
      k = k * shape[i] + at[i];
    }
    return data[k];
  }

  // A map of rows × columns in a holder; at(row, column) is called where the reader points.
  function map(holder, rows, columns, label, at) {
    const canvas = made("canvas", "pixels"), mark = made("span", "box");
    Object.assign(canvas, {width: columns, height: rows, tabIndex: at ? 0 : -1});
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", label);
    holder.style.setProperty("--cells", columns);
    holder.style.setProperty("--ratio", `${columns} / ${rows}`);
    mark.hidden = true;
    holder.append(canvas, mark);
    let now = [0, 0];
    const go = (row, column) => {
      now = [Math.min(rows - 1, Math.max(0, row)), Math.min(columns - 1, Math.max(0, column))];
      at(...now);
    };
    if (at) {
      const follow = event => {
        const box = canvas.getBoundingClientRect();
        go(Math.floor((event.clientY - box.top) / box.height * rows), Math.floor((event.clientX - box.left) / box.width * columns));
      };
      canvas.addEventListener("pointermove", follow);
      canvas.addEventListener("pointerdown", follow);
      canvas.addEventListener("keydown", event => {
        const step = {ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1]}[event.key];
        if (!step) return;
        event.preventDefault();
        go(now[0] + step[0], now[1] + step[1]);
      });
    }
    return {
      paint(values, top = most(values), ink = false) {  // ink: black on white, or white on black
        const image = new ImageData(columns, rows);
        canvas.classList.toggle("ink", ink);
        values.forEach((value, k) => {
          const share = Math.abs(value) / top;
          image.data.set([...(value < 0 ? BELOW : ink ? INK : ABOVE), Math.round(255 * share ** FAINT)], 4 * k);
        });
        canvas.getContext("2d").putImageData(image, 0, 0);
      },
      box(row, column, height = 1, width = 1) {  // what leaves the map is cut off
        const [top, left] = [Math.max(0, row), Math.max(0, column)];
        const [low, right] = [Math.min(rows, row + height), Math.min(columns, column + width)];
        mark.hidden = low <= top || right <= left;
        if (!mark.hidden) now = [top, left];
        const sides = {top: top / rows, left: left / columns, height: (low - top) / rows, width: (right - left) / columns};
        for (const [side, share] of Object.entries(sides)) mark.style[side] = `${100 * share}%`;
      },
      go,
    };
  }

  // The row and column of the largest entry.
  function largest(values, columns) {
    const sizes = values.map(Math.abs), k = sizes.indexOf(Math.max(...sizes));
    return [Math.floor(k / columns), k % columns];
  }

  // The entries of one channel.
  const part = ({shape: [rows, columns, channels], data}, channel) =>
    Array.from({length: rows * columns}, (_, k) => data[k * channels + channel]);

  // A choice among `count`, numbered from 1; nothing to choose of one.
  function pick(figure, label, count, chosen) {
    if (count < 2) return;
    const select = made("select", ""), holder = made("label", "", `${label} `);
    for (let i = 0; i < count; i++) select.append(new Option(`${i + 1} of ${count}`, i));
    select.addEventListener("change", () => chosen(Number(select.value)));
    holder.append(select);
    figure.querySelector("[data-picks]").append(holder);
  }

  // ------------------------------------------------------------------------------------------- the input, rows of W

  function input(figure, {x}) {
    const [rows, columns, channels] = x.shape;
    const light = Array.from({length: rows * columns}, (_, k) => x.data.slice(k * channels, (k + 1) * channels).reduce((a, b) => a + b) / channels);
    map(figure.querySelector("[data-map]"), rows, columns, `the input, ${rows} by ${columns}`).paint(light, most(light), light.every(value => value >= 0));
  }

  function rowsOfW(figure, {W, z, delta, b}, {sides: [rows, columns]}, x) {
    const said = figure.querySelector(".said"), size = rows * columns;
    const mode = () => figure.querySelector("input:checked").value;
    const kinds = {
      weights: (j, k) => W.data[j * size + k],
      products: (j, k) => W.data[j * size + k] * x.data[k],
      gradient: (j, k) => delta.data[j] * x.data[k],
    };
    const heads = {weights: () => "", products: j => ` z ${say(z.data[j])}`, gradient: j => ` δ ${say(delta.data[j])}`};
    const tiles = Array.from({length: W.shape[0]}, (_, j) => {
      const tile = made("figure", ""), head = made("figcaption", "");
      const holder = made("div", "map");
      tile.append(head, holder);
      figure.querySelector(".tiles").append(tile);
      const shown = map(holder, rows, columns, `row ${j + 1}`, (row, column) => {
        const k = row * columns + column, [w, into] = [W.data[j * size + k], x.data[k]];
        const back = delta.data[j];
        said.textContent = `Row ${j + 1}, pixel ${row + 1}, ${column + 1}: weight ${say(w)} × input ${say(into)} = ${say(w * into)}; ` +
          `all ${size} such products${b ? ` and the bias ${say(b.data[j])}` : ""} add up to z = ${say(z.data[j])}. ` +
          `Its gradient: δ ${say(back)} × input ${say(into)} = ${say(back * into)}.`;
        tiles.forEach((each, i) => each.shown.box(row, column, i === j ? 1 : 0));
      });
      return {shown, head};
    });
    const show = () => {
      const of = kinds[mode()], values = tiles.map((_, j) => Array.from({length: size}, (_, k) => of(j, k)));
      const top = most(values.flat());
      tiles.forEach(({shown, head}, j) => {
        shown.paint(values[j], top);
        head.textContent = `${j + 1}${heads[mode()](j)}`;
      });
    };
    for (const radio of all("input", figure)) radio.addEventListener("change", show);
    show();
  }

  // ------------------------------------------------------------------------------------------- a convolution's window

  function grid(title, values, columns, top = most(values.filter(each => each !== null))) {
    const figure = made("figure", ""), cells = made("div", "taps");
    cells.style.setProperty("--columns", columns);
    for (const value of values) {
      const cell = made("span", "", value === null ? "—" : say(value));
      const colour = value < 0 ? BELOW : ABOVE;
      if (value) cell.style.background = `rgb(${colour.join(" ")} / ${0.3 * Math.abs(value) / top})`;
      cells.append(cell);
    }
    figure.append(made("figcaption", "", title), cells);
    return figure;
  }
  const signs = (first, second, third) => [first, made("span", "sign", "×"), second, made("span", "sign", "="), third];
  const added = values => values.reduce((sum, value) => sum + (value ?? 0), 0);
  const counted = (n, words) => n === 1 ? "" : `; with the other ${n - 1} ${words}`;

  function convolution(figure, {a, W, z, delta, b, da}, {stride, dilation, before}) {
    const [outs, height, width, ins] = W.shape;
    const taps = Array.from({length: height * width}, (_, k) => [Math.floor(k / width), k % width]);
    let chosen = {in: 0, out: 0};
    const at = {forward: [0, 0], back: [0, 0]};
    const seen = (position, tap, axis) => stride[axis] * position + dilation[axis] * tap - before[axis];
    const holder = way => figure.querySelector(`[data-way=${way}]`);
    const maps = {};
    for (const [name, way, array, show] of [["a", "forward", a], ["z", "forward", z, forward], ["delta", "back", delta], ["da", "back", da, back]]) {
      if (array) maps[name] = map(figure.querySelector(`[data-map=${name}]`), array.shape[0], array.shape[1], name,
                                  show && ((...place) => { at[way] = place; show(); }));
    }
    function shown(way, grids, text) {
      holder(way).querySelector(".taps-row").replaceChildren(...grids);
      holder(way).querySelector(".said").textContent = text;
    }

    function forward() {
      const p = at.forward, w = taps.map(([u, v]) => entry(W, chosen.out, u, v, chosen.in));
      const see = channel => taps.map(([u, v]) => entry(a, seen(p[0], u, 0), seen(p[1], v, 1), channel));
      const patch = see(chosen.in), products = patch.map((value, k) => value * w[k]);
      maps.z.box(...p);
      maps.a.box(seen(p[0], 0, 0), seen(p[1], 0, 1), (height - 1) * dilation[0] + 1, (width - 1) * dilation[1] + 1);
      shown("forward", signs(grid("the patch", patch, width), grid("the kernel", w, width), grid("products", products, width)),
            `At ${p[0] + 1}, ${p[1] + 1} they add up to ${say(added(products))}${counted(ins, "input channels")}${b ? `${ins > 1 ? " and" : "; with"} the bias ${say(b.data[chosen.out])}` : ""}: ` +
            `${say(entry(z, ...p, chosen.out))}.`);
    }

    // The positions whose windows see this place, by the tap at which each does: the last tap belongs to the first.
    function back() {
      const p = at.back, turned = [...taps].reverse();
      const from = turned.map(([u, v]) => [[u, 0], [v, 1]].map(([tap, axis]) => (p[axis] + before[axis] - dilation[axis] * tap) / stride[axis]));
      const inside = from.map(([row, column]) => Number.isInteger(row) && Number.isInteger(column) && row >= 0 && column >= 0 && row < delta.shape[0] && column < delta.shape[1]);
      const errors = from.map((place, k) => inside[k] ? entry(delta, ...place, chosen.out) : null);
      const w = turned.map(([u, v]) => entry(W, chosen.out, u, v, chosen.in));
      const products = errors.map((value, k) => value === null ? null : value * w[k]);
      maps.da.box(...p);
      const there = from.filter((_, k) => inside[k]);
      const [top, left] = [0, 1].map(axis => Math.min(...there.map(place => place[axis])));
      const [low, right] = [0, 1].map(axis => Math.max(...there.map(place => place[axis])));
      maps.delta.box(top, left, there.length ? low - top + 1 : 0, right - left + 1);
      shown("back", signs(grid("the errors that it reached", errors, width), grid("the kernel, flipped", w, width), grid("products", products, width)),
            `At ${p[0] + 1}, ${p[1] + 1} they add up to ${say(added(products))}${counted(outs, "output channels")}: ${say(entry(da, ...p, chosen.in))}.`);
    }

    function show() {
      for (const [name, array, channel] of [["a", a, "in"], ["z", z, "out"], ["delta", delta, "out"], ["da", da, "in"]]) {
        if (array) maps[name].paint(part(array, chosen[channel]), most(array.data), name === "a" && array.data.every(value => value >= 0));
      }
      forward();
      if (da) back();
    }
    for (const [label, count, key] of [["input channel", ins, "in"], ["output channel", outs, "out"]]) {
      pick(figure, label, count, value => { chosen[key] = value; show(); });
    }
    at.forward = largest(part(z, 0), z.shape[1]);
    if (da) at.back = largest(part(da, 0), da.shape[1]);
    show();
  }

  // ------------------------------------------------------------------------------------------- attention

  const visible = label => ({" ": "␣", "\n": "⏎", "\t": "⇥"})[label] ?? label;

  function attention(figure, {P, dS}, {labels}) {
    const [heads, rows, columns] = P.shape, said = figure.querySelector(".said");
    let head = 0, place = largest([...dS.data.slice(0, rows * columns)], columns);
    const maps = {P, dS};
    const of = (array, row, column) => entry(array, head, row, column);
    const who = i => labels[i] === String(i + 1) ? labels[i] : `${i + 1} “${visible(labels[i])}”`;
    for (const [name, array] of Object.entries(maps)) {
      const holder = figure.querySelector(`[data-map=${name}]`);
      for (const side of ["across", "down"]) {
        const row = made("div", side);
        row.setAttribute("aria-hidden", "true");
        row.append(...labels.slice(0, side === "across" ? columns : rows).map(label => made("span", "", visible(label))));
        holder.before(row);
      }
      holder.parentElement.style.setProperty("--cells", columns);
      maps[name] = map(holder, rows, columns, `${name}, queries by keys`, (...at) => { place = at; point(); });
      maps[name].array = array;
    }
    function point() {
      const [row, column] = place;
      for (const each of Object.values(maps)) each.box(row, column);
      said.textContent = `Query ${who(row)} looks at key ${who(column)}: ${say(of(P, row, column))} of the whole; the error at its score is ${say(of(dS, row, column))}.`;
    }
    function show() {
      for (const {array, paint} of Object.values(maps)) {
        paint([...array.data.slice(head * rows * columns, (head + 1) * rows * columns)]);
      }
      point();
    }
    pick(figure, "head", heads, value => { head = value; show(); });
    show();
  }

  function start(data) {
    const arrays = Object.fromEntries(Object.entries(data.arrays).map(([name, each]) => [name, decoded(each)]));
    data.figures.forEach((each, i) => {
      const own = Object.fromEntries(Object.entries(each.arrays).map(([name, key]) => [name, arrays[key]]));
      const figure = document.querySelector(`[data-figure="${i}"]`);
      ({input, rows: rowsOfW, window: convolution, attention})[each.kind](figure, own, each, arrays["x.-1.0"]);
    });
    return arrays;
  }

  return start(JSON.parse(document.getElementById("pictures-data").textContent));
})();
