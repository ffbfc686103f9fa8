"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const one = selector => document.querySelector(selector);
  const spec = data.spec, given = JSON.stringify(spec);
  let values = null, changed = false;

  // ---------------------------------------------------------------------------------------- numbers

  // The array that a field belongs to, and where in it: W.0 is the first layer's W.
  function place(name, k, of = spec) {
    const [what, item] = name.split(".");
    if (item === undefined) return [of[what], k];
    const array = of.layers[item][what];
    return what === "W" ? [array[Math.floor(k / array[0].length)], k % array[0].length] : [array, k];
  }
  const get = (name, k, of) => { const [array, i] = place(name, k, of); return array[i]; };
  const set = (name, k, value) => { const [array, i] = place(name, k); array[i] = value; };

  function derived(name) {  // what is part of another array
    const [kind, item, what, k] = name.split(".");
    if (kind === "why" && what === "delta") return values[`err.${item}`][k];
    if (kind === "slab") return spec.layers[item].W.map((row, i) => row.map((_, j) => i === Number(what) ? into(item)[j] : 0));
    return undefined;
  }
  const into = item => item === "0" ? spec.x : values[`out.${item - 1}`];
  const value = name => values[name] ?? derived(name);

  function show() {
    for (const element of all("[data-n]")) {
      const found = value(element.dataset.n);
      if (found !== undefined) element.textContent = numbers.one(found, Number(element.dataset.d));
    }
    for (const element of all("[data-a]")) {
      const found = value(element.dataset.a);
      if (found === undefined) continue;
      const flat = found.flat(2), {ix, d, l} = element.dataset;
      const shown = ix ? ix.split(",").map(i => flat[i]) : flat;
      const [texts, power] = numbers.entries(shown, Number(d), l === undefined ? undefined : Number(l));
      element.querySelector(".pow").textContent = power;
      all(".c", element).forEach((cell, i) => { cell.textContent = texts[i]; });
    }
  }

  // What is said of an activation's units at the numbers of now; the words are those of jaxnet.explaining.lines.
  function remark(name) {
    const [what, item] = name.split("."), layer = spec.layers[item], out = values[`out.${item}`];
    if (layer.name === "identity") return "";
    const slopes = into(item).map((z, i) => network.ACTIVATIONS[layer.name][1](z, out[i], layer.option));
    if (what === "slopes") return `as a matrix ${layer.name}′ = diag(${slopes.join(",")})`;
    const off = out.flatMap((a, i) => a === 0 && slopes[i] === 0 ? [i + 1] : []);
    if (!off.length) return "";
    if (off.length === out.length) return "all units are off";
    if (off.length > 6) return `${off.length} of ${out.length} units are off`;
    return off.length === 1 ? `unit ${off[0]} is off` : `units ${off.join(", ")} are off`;
  }

  function refresh(typed = null) {
    if (!spec) return;
    values = network.compute(spec);
    changed = JSON.stringify(spec) !== given;
    document.body.classList.toggle("changed", changed);
    one("#reset").hidden = !changed;
    show();
    for (const element of all("[data-remark]")) element.textContent = remark(element.dataset.remark);
    drawing.update(values);
    paths.update(values);
    for (const field of all("[data-f]")) {
      if (field !== typed) field.value = Number(get(field.dataset.f, field.dataset.k).toFixed(6));
    }
    follow();
    window.jaxnet = {values, spec};
    clearTimeout(waiting);
    waiting = setTimeout(keep, 300);
  }

  // ------------------------------------------------------------------------------- the address

  let waiting = null;

  function keep() {  // the numbers in the address
    clearTimeout(waiting);
    const first = JSON.parse(given), at = of => field => get(field.dataset.f, field.dataset.k, of);
    const hash = link.write(all("[data-f]"), at(spec), at(first));
    if (hash || location.hash.includes("=")) history.replaceState(null, "", hash ? `#${hash}` : location.pathname + location.search);
    one("#link-said").textContent = "";
  }

  function restore(hash) {  // the hash of the event: the numbers that wait to be kept may have replaced the address's
    let found;
    if (hash.includes("=")) clearTimeout(waiting);
    try {
      found = link.read(hash, all("[data-f]"));
    } catch (error) {
      one("#link-said").textContent = error.message;
      return;
    }
    if (!found) return;
    Object.assign(spec, JSON.parse(given));
    for (const [field, number] of found) set(field.dataset.f, field.dataset.k, number);
    refresh();
  }

  // ------------------------------------------------------------------------- fields, slider, drawing

  let chosen = null;

  function choose(field) {
    chosen = field;
    for (const each of all("[data-f]")) each.classList.toggle("now", each === field);
    for (const edge of all(".edge")) {
      edge.classList.toggle("now", field.dataset.f === `W.${edge.dataset.e}` && edge.dataset.k === field.dataset.k);
    }
    follow();
  }

  function follow() {
    if (!chosen) return;
    const slider = one("#slider"), now = get(chosen.dataset.f, chosen.dataset.k);
    const reach = Math.max(2, Math.ceil(Math.abs(now)), Number(slider.max));
    slider.min = -reach;
    slider.max = reach;
    slider.value = now;
    one("#chosen").textContent = `${chosen.labels[0].textContent.trim()} = ${numbers.number(now, 2)}`;
    const before = one("#cost-now").dataset.given;
    one("#cost-now").textContent = changed ? `cost ${before} → ${numbers.one(values.C, 4)}` : `cost ${before}`;
  }

  function change(field, number, typed = null) {
    if (!Number.isFinite(number)) return;
    set(field.dataset.f, field.dataset.k, number);
    refresh(typed);
  }

  function startFields() {
    values = network.compute(spec);
    window.jaxnet = {values, spec};
    paths.update(values);
    paths.start();
    trying.start(spec, () => Number(picked("numbering") ?? data.first.split(" ")[1]),
      () => (picked("lies") ?? data.first.split(" ")[2]) === "in-out");
    one("#cost-now").dataset.given = numbers.one(values.C, 4);
    for (const field of all("[data-f]")) {
      field.addEventListener("focus", () => {
        const [what, item] = field.dataset.f.split(".");
        choose(field);
        if (what === "W") paths.choose("weight", item, field.dataset.k);
        if (what === "x") paths.choose("unit", -1, field.dataset.k);
        if (what === "y") paths.choose("target", "", field.dataset.k);
      });
      field.addEventListener("input", () => { if (field.value !== "") change(field, Number(field.value), field); });
      field.addEventListener("blur", () => refresh());
      drawing.draggable(field, "x", 0.01, () => get(field.dataset.f, field.dataset.k), number => change(field, number));
    }
    one("#slider").addEventListener("input", event => change(chosen, Number(event.target.value)));
    one("#step").addEventListener("click", () => {  // W − ½ ∇W
      const less = (at, gradient) => Array.isArray(at) ? at.map((each, i) => less(each, gradient[i])) : at - gradient / 2;
      spec.layers.forEach((layer, i) => {
        for (const name of ["W", "b"]) if (layer[name]) layer[name] = less(layer[name], values[`d${name}.${i}`]);
      });
      refresh();
    });
    one("#reset").addEventListener("click", () => {
      const first = JSON.parse(given);
      Object.assign(spec, first);
      paths.choose(null);
      refresh();
      one("#slider").focus();
    });
    for (const edge of all(".edge")) {
      const field = one(`[data-f="W.${edge.dataset.e}"][data-k="${edge.dataset.k}"]`);
      drawing.draggable(edge, "y", 0.01, () => { choose(field); return get(field.dataset.f, field.dataset.k); },
        number => change(field, number));
    }
    for (const unit of all('.unit[data-z="-1"], .node.target')) {
      const name = unit.matches(".target") ? "y" : "x", field = one(`[data-f="${name}"][data-k="${unit.dataset.k}"]`);
      drawing.draggable(unit, "y", 0.02, () => { choose(field); return get(name, unit.dataset.k); },
        number => change(field, number));
    }
    one("#copy").addEventListener("click", () => { keep(); link.copy(one("#link-said")); });
    addEventListener("hashchange", event => restore(new URL(event.newURL).hash));
    document.body.classList.add("live");
    choose(one('[data-f^="W."]'));
    restore(location.hash);
  }

  // -------------------------------------------------------------------------- notations and layers

  const picked = name => one(`input[name="${name}"]:checked`)?.value;

  function write() {
    const name = ["notation", "numbering", "lies"].map(picked).join(" ");
    const texts = data.variants.of[name];
    for (const element of all("[data-s]")) element.innerHTML = data.variants.strings[texts[element.dataset.s]];
    document.body.dataset.lies = picked("lies");
    document.body.dataset.notation = picked("notation");
    symbols();
    suggest();
    if (changed) refresh();
    else follow();
  }

  function suggest() {  // a first formula, in the names and the layout of now
    const error = data.formulas?.names[picked("numbering") ?? data.first.split(" ")[1]].keys[0], W = error?.replace("delta", "W");
    if (error?.startsWith("delta")) one("#formula").placeholder = picked("lies") === "in-out" ? `${error} @ ${W}.T` : `${W}.T @ ${error}`;
  }

  function startChoices() {
    const [name, number, lies] = data.first.split(" ");
    for (const [group, now] of [["notation", name], ["numbering", number], ["lies", lies]]) {
      for (const radio of all(`input[name="${group}"]`)) {
        radio.checked = radio.value === now;
        radio.addEventListener("change", () => {
          if (group === "notation") one(`input[name="numbering"][value="${data.numbering[radio.value]}"]`).checked = true;
          write();
        });
      }
    }
    document.body.dataset.lies = lies;
    document.body.dataset.notation = name;
    for (const radio of all('input[name="layer"]')) radio.addEventListener("change", () => pick(radio.value));
    suggest();
    const start = picked("layer");
    if (start !== undefined) pick(start);
  }

  function pick(item) {
    for (const part of all("[data-layer]")) part.hidden = part.dataset.layer !== item;
    for (const edges of all(".edges")) edges.classList.toggle("asked", edges.dataset.column === item);
  }

  // --------------------------------------------------------------------------------------- the run

  function moment(index) {
    const frame = data.run[index];
    one("#moment-said").textContent = frame.said;
    for (const [name, source] of Object.entries(frame.maps)) {
      for (const image of all(`[data-h="${name}"]`)) image.src = source;
    }
    for (const mark of all("[data-m]")) mark.classList.toggle("now", mark.dataset.m === String(index));
    if (!spec || !Object.keys(frame.params).length) return;
    for (const [item, params] of Object.entries(frame.params)) Object.assign(spec.layers[item], structuredClone(params));
    refresh();
  }

  function startRun() {
    const slider = one("#moment");
    slider.addEventListener("input", () => moment(Number(slider.value)));
    for (const mark of all(`[data-m="${slider.value}"]`)) mark.classList.add("now");
  }

  // ------------------------------------------------------------- a symbol's every occurrence highlighted

  const highlight = key => {
    for (const each of all("math [data-k]")) each.classList.toggle("same", key !== "" && each.dataset.k === key);
  };

  function symbols() {  // those of the present notation, by the order in which they first stand in the equations
    const select = one("#mark"), found = new Map();
    for (const each of all("main .eq [data-k]")) {
      if (!found.has(each.dataset.k)) found.set(each.dataset.k, written(each));
    }
    select.replaceChildren(new Option("a symbol", ""), ...[...found].map(([key, text]) => new Option(text, key)));
    select.closest("label").hidden = found.size === 0;
  }

  function written(symbol) {  // W³ as W³, without the position that stands below it
    const parts = [...symbol.children], raised = {"msup": 1, "msubsup": 2}[symbol.localName];
    const digits = {0: "⁰", 1: "¹", 2: "²", 3: "³", 4: "⁴", 5: "⁵", 6: "⁶", 7: "⁷", 8: "⁸", 9: "⁹", ".": "·"};
    const above = raised ? (parts[raised].querySelector("mn, mtext") ?? parts[raised]).textContent : "";
    const up = /^[0-9.]+$/.test(above) ? above.replace(/[0-9.]/g, each => digits[each]) : above;
    return raised || symbol.localName === "msub" ? parts[0].textContent + up : symbol.textContent;
  }

  function startMarks() {
    symbols();
    const of = event => event.target.closest?.("math [data-k]");
    const chosenKey = () => one("#mark").value;
    document.addEventListener("pointerover", event => highlight(of(event)?.dataset.k ?? chosenKey()));
    document.addEventListener("click", event => {
      const symbol = of(event);
      if (symbol && [...one("#mark").options].some(each => each.value === symbol.dataset.k)) {
        one("#mark").value = chosenKey() === symbol.dataset.k ? "" : symbol.dataset.k;
        highlight(chosenKey());
      }
    });
    one("#mark").addEventListener("change", () => highlight(chosenKey()));
  }

  // What is wider than its place scrolls, by the keyboard too.
  function reachable() {
    for (const part of all(".eq, .value, .ends, .fact, .grid, .rows, .scroll, pre")) {
      if (part.scrollWidth > part.clientWidth + 1) part.tabIndex = 0;
      else part.removeAttribute("tabindex");
    }
  }

  startChoices();
  if (spec) startFields();
  paths.startWalk();
  if (data.run) startRun();
  exercise.start(data.tasks);
  startMarks();
  reachable();
  addEventListener("resize", reachable);
})();
