"use strict";
// The drawing: shares of the largest go to the style sheet, numbers into the circles.
const drawing = (() => {
  const most = arrays => Math.max(0, ...arrays.flat(2).map(Math.abs)) || 1;
  const named = (values, start) => Object.keys(values).filter(key => key.startsWith(start)).map(key => values[key]);

  function update(values) {
    const edges = document.querySelectorAll(".edge"), units = document.querySelectorAll(".unit");
    const tops = {weights: most(named(values, "W.")), error: most(named(values, "sent.")), blame: most(named(values, "dW."))};
    for (const edge of edges) {
      const {e, k} = edge.dataset;
      edge.style.setProperty("--weights", values[`W.${e}`].flat()[k] / tops.weights);
      edge.style.setProperty("--error", values[`sent.${e}`].flat()[k] / tops.error);
      edge.style.setProperty("--blame", values[`dW.${e}`].flat()[k] / tops.blame);
    }
    const shown = [...units].map(unit => ({
      unit,
      a: (unit.dataset.out === "-1" ? values.x : values[`out.${unit.dataset.out}`])[unit.dataset.k],
      d: values[`err.${unit.dataset.z}`][unit.dataset.k],
    }));
    const topA = most([shown.map(each => each.a)]), topD = most([shown.map(each => each.d)]);
    for (const {unit, a, d} of shown) {
      unit.style.setProperty("--a", a / topA);
      unit.style.setProperty("--d", d / topD);
      unit.querySelector(".act").textContent = numbers.one(a, 3);
      unit.querySelector(".err").textContent = `δ ${numbers.one(d, 3)}`;
    }
    for (const node of document.querySelectorAll(".node")) {
      node.querySelector(".act").textContent = numbers.one(node.matches(".cost") ? values.C : values.y[node.dataset.k], 3);
    }
  }

  // A mouse or a finger that moves `along` an axis: begin() gives the value at first, move(value) takes the new one.
  function draggable(element, along, step, begin, move) {
    element.addEventListener("pointerdown", event => {
      if (event.button) return;
      const from = along === "y" ? event.clientY : event.clientX, start = begin();
      let moved = false;
      const follow = now => {
        const way = along === "y" ? from - now.clientY : now.clientX - from;
        if (!moved && Math.abs(way) < 4) return;
        moved = true;
        now.preventDefault();
        move(Math.round((start + way * step) * 1000) / 1000);
      };
      const end = () => {
        document.removeEventListener("pointermove", follow);
        document.removeEventListener("pointerup", end);
        document.removeEventListener("pointercancel", end);
      };
      document.addEventListener("pointermove", follow);
      document.addEventListener("pointerup", end);
      document.addEventListener("pointercancel", end);
    });
  }

  return {update, draggable};
})();
