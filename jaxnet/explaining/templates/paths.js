"use strict";
// On the drawing: the paths of a chosen weight or unit with their products, and the error on its way back, step by step.
const paths = (() => {
  const all = selector => [...document.querySelectorAll(selector)];
  const one = selector => document.querySelector(selector);
  let chosen = null, now = null, timer = null;

  const columns = () => all(".edges").map(each => each.dataset.column);
  const unitsOf = item => all(`.unit[data-z="${item}"]`);
  const edgesOf = item => all(`.edge[data-e="${item}"]`);
  const inputs = item => now[`W.${item}`][0].length;
  const name = unit => unit.querySelector(".name").textContent;
  const source = (item, k) => unitsOf(columns()[columns().indexOf(String(item)) - 1])[k % inputs(item)];
  const target = (item, k) => unitsOf(item)[Math.floor(k / inputs(item))];
  const short = number => numbers.one(number, 3);
  const toCost = k => all(`.to-cost[data-k="${k}"]`);
  const outputs = () => unitsOf(columns().at(-1));
  const slopes = () => now[`err.${outputs()[0].dataset.out}`];  // of the cost by each output
  const added = texts => texts.join(" + ").replaceAll("+ −", "− ");

  function label(edge, text) {  // a product on an edge, nearer to its end than to the crowded middle
    const far = edge.matches(".to-cost") ? 0.4 : text.includes("×") ? 0.5 : 0.78;
    const at = axis => Number(edge.getAttribute(`${axis}1`)) * (1 - far) + Number(edge.getAttribute(`${axis}2`)) * far;
    const made = document.createElementNS(edge.namespaceURI, "text");
    made.setAttribute("class", "product");
    made.setAttribute("x", at("x"));
    made.setAttribute("y", at("y") + 3);
    made.textContent = text;
    edge.ownerSVGElement.append(made);
  }

  function clear() {
    all(".product").forEach(each => each.remove());
    all(".lit").forEach(each => each.classList.remove("lit"));
    one(".drawing")?.classList.remove("following");
  }

  // Every path from a unit to the layer above, and their sum; the one path of a weight, and its product.
  function show() {
    if (!one("#paths-said")) return;
    clear();
    if (!chosen || !now) return;
    const {kind, item, k} = chosen, lit = (...elements) => elements.forEach(each => each.classList.add("lit"));
    one(".drawing").classList.add("following");
    if (kind === "cost") {
      lit(one(".node.cost"), ...all(".node.target, .to-cost"), ...outputs());
      outputs().forEach((_, j) => label(toCost(j)[0], short(slopes()[j])));
      one("#paths-said").textContent = `${name(one(".node.cost"))} = ${short(now.C)} compares the output with the target. On each line stands how fast it rises with that output: ${slopes().map(short).join(", ")}.`;
      return;
    }
    if (kind === "target") {
      lit(one(".node.cost"), one(`.node.target[data-k="${k}"]`), ...toCost(k), outputs()[k]);
      label(toCost(k)[0], short(slopes()[k]));
      one("#paths-said").textContent = `${name(one(`.node.target[data-k="${k}"]`))} = ${short(now.y[k])} enters the cost beside ${name(outputs()[k])} = ${short(now[`out.${outputs()[k].dataset.out}`][k])}. There the slope of the cost is ${short(slopes()[k])}. Drag the target, and it changes.`;
      return;
    }
    if (kind === "weight") {
      const edge = edgesOf(item)[k], from = source(item, k), to = target(item, k);
      const a = (columns().indexOf(item) === 1 ? now.x : now[`out.${Number(item) - 1}`])[k % inputs(item)];
      const delta = now[`err.${item}`][Math.floor(k / inputs(item))], gradient = now[`dW.${item}`].flat()[k];
      lit(edge, from, to);
      label(edge, `${short(delta)} × ${short(a)}`);
      one("#paths-said").textContent = `This weight has one path: from ${name(from)} to ${name(to)}. Its gradient is δ there times the activation here, ${short(delta)} × ${short(a)} = ${short(gradient)}: no sum.`;
      return;
    }
    const next = columns()[columns().indexOf(item) + 1], unit = unitsOf(item)[k];
    lit(unit);
    if (next === undefined) {
      lit(one(".node.cost"), toCost(k)[0]);
      label(toCost(k)[0], short(slopes()[k]));
      one("#paths-said").textContent = `${name(unit)} is an output: its error comes from the cost alone, δ = ${short(now[`err.${item}`][k])}.`;
      return;
    }
    const terms = now[`W.${next}`].map((row, j) => [now[`err.${next}`][j], row[k]]);
    terms.forEach(([delta, weight], j) => {
      const edge = edgesOf(next)[j * inputs(next) + k];
      lit(edge, unitsOf(next)[j]);
      label(edge, short(delta * weight));
    });
    const total = terms.reduce((sum, [delta, weight]) => sum + delta * weight, 0);
    const products = added(terms.map(([delta, weight]) => `${short(delta)} × ${short(weight)}`));
    const gate = item === "-1" ? "" : closed(item, k, total);
    one("#paths-said").textContent = `${name(unit)} reaches the cost by ${terms.length} path${terms.length > 1 ? "s" : ""}, one by each unit above: ${products} = ${short(total)}.${gate}`;
  }

  function closed(item, k, total) {  // what the activation lets through
    const delta = now[`err.${item}`][k];
    if (delta === total) return "";
    if (delta === 0 && total !== 0) return " Its gate is closed: g′ = 0, so δ here is 0, and nothing goes further back.";
    return ` Times g′ that is δ = ${short(delta)}.`;
  }

  function choose(kind, item, k) {  // of kind null nothing is chosen
    stop();
    chosen = kind && {kind, item: String(item), k: Number(k ?? 0)};
    if (!chosen && one("#paths-said")) one("#paths-said").textContent = "";
    show();
  }

  // ------------------------------------------------------------------------------- the error on its way back

  let stage = -1;

  function stages() {  // the cost, its lines to the output; then of each layer δ at its units, and along its edges
    const last = columns().at(-1), gated = outputs()[0].dataset.out !== last, cost = name(one(".node.cost"));
    const found = [
      {units: [one(".node.cost")], edges: [], said: `The error starts at the cost: ∂${cost}/∂${cost} = 1.`},
      {units: all(".node.target"), edges: all(".to-cost"),
        said: `To the output: how fast ${cost} rises with each entry, given the target: ${slopes().map(short).join(", ")}.`},
    ];
    for (const item of columns().slice(1).reverse()) {
      const first = item === last;
      found.push({units: unitsOf(item), edges: [], item,
        said: first ? `At the output: ${gated ? "that slope times g′ is" : "no activation follows z, so that slope is"} δ at ${unitsOf(item).map(name).join(", ")}.`
          : `The gate: times g′, entry by entry, that is δ at ${unitsOf(item).map(name).join(", ")}. Where g′ is 0 nothing goes on.`});
      found.push({units: [], edges: edgesOf(item), item,
        said: "Back along every edge: each δ times the weight. What meets at a unit is added up: this is Wᵀδ."});
    }
    found.push({units: unitsOf("-1"), edges: [], item: "-1", said: "At the input: how fast the cost rises with x. The error has arrived."});
    return found;
  }

  function at(index) {
    const found = stages();
    chosen = null;
    clear();
    stage = Math.max(0, Math.min(found.length - 1, index));
    one(".drawing").classList.add("following");
    one('input[name="mode"][value="error"]').click();
    found.slice(0, stage + 1).forEach(({units, edges}, i) => {
      [...units, ...edges].forEach(each => each.classList.add("lit"));
      edges.forEach(edge => edge.classList.toggle("flowing", i === stage));
    });
    if (stage === 1) outputs().forEach((_, j) => label(toCost(j)[0], short(slopes()[j])));
    all(".flowing").forEach(edge => { if (!found[stage].edges.includes(edge)) edge.classList.remove("flowing"); });
    one("#forward .line.cost").classList.toggle("now", stage < 2);
    all("#backward .line").forEach(line => line.classList.toggle("now", line.dataset.item === found[stage].item
      && (line.classList.contains("dW") ? found[stage].edges.length > 0 : found[stage].units.length > 0)));
    one("#stage").value = stage;
    one("#paths-said").textContent = `${stage + 1} of ${found.length}. ${found[stage].said}`;
  }

  function stop() {
    clearInterval(timer);
    timer = null;
    if (one("#play")) one("#play").textContent = "Play";
    all(".flowing").forEach(each => each.classList.remove("flowing"));
    all(".line.now").forEach(each => each.classList.remove("now"));
  }

  function play() {
    if (timer) return stop();
    let next = stage >= stages().length - 1 ? 0 : stage + 1;
    one("#play").textContent = "Pause";
    at(next);
    timer = setInterval(() => (++next < stages().length ? at(next) : stop()), 1600);
  }

  function start() {
    if (!one("#play")) return;
    const still = matchMedia("(prefers-reduced-motion: reduce)");
    const motion = () => { one("#play").hidden = still.matches; if (still.matches) stop(); };
    still.addEventListener("change", motion);
    motion();
    one("#stage").max = stages().length - 1;
    one("#play").addEventListener("click", play);
    one("#stage").addEventListener("input", event => { const to = Number(event.target.value); stop(); at(to); });
    one("#stage-next").addEventListener("click", () => { stop(); at(stage >= stages().length - 1 ? 0 : stage + 1); });
    addEventListener("keydown", event => { if (event.key === "Escape") choose(null); });
    for (const edge of all(".edge")) edge.addEventListener("click", () => choose("weight", edge.dataset.e, edge.dataset.k));
    for (const unit of all(".unit, .node")) {
      const kind = ["cost", "target"].find(each => unit.matches(`.${each}`)) ?? "unit";
      unit.addEventListener("click", () => choose(kind, unit.dataset.z, unit.dataset.k));
      unit.addEventListener("keydown", event => {
        if (event.key !== "Enter" && event.key !== " ") return;
        event.preventDefault();
        choose(kind, unit.dataset.z, unit.dataset.k);
      });
    }
  }

  // ----------------------------------------------------------------------------------------- the guided walk

  function step(to) {  // shows a step of the walk, and what it is about in the drawing
    const steps = all("#walk li"), [units, edges] = JSON.parse(steps[to].dataset.lights);
    steps.forEach((each, i) => { each.hidden = i !== to; });
    one("#walk-at").textContent = `${to + 1} of ${steps.length}`;
    one("#walk-back").disabled = to === 0;
    one("#walk-next").disabled = to === steps.length - 1;
    choose(null);
    if (!units.length || !one(".drawing")) return;
    one(".drawing").classList.add("following");
    for (const [item, k] of units) unitsOf(item)[k].classList.add("lit");
    for (const [item, k, product] of edges) {
      edgesOf(item)[k].classList.add("lit");
      if (product) label(edgesOf(item)[k], product);
    }
  }

  function startWalk() {
    if (!one("#walk")) return;
    let now = 0;
    one("#walk-back").addEventListener("click", () => step(now = Math.max(0, now - 1)));
    one("#walk-next").addEventListener("click", () => step(now = Math.min(all("#walk li").length - 1, now + 1)));
    step(0);
    clear();  // lit from the first click on
  }

  function update(values) {
    now = values;
    if (chosen) show();
  }

  return {start, startWalk, update, choose};
})();
