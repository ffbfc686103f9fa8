"use strict";
// The exercise: an answer is looked up in its task's table; the hints are the program's, the vague first.
const exercise = (() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const number = text => text.trim() === "" ? NaN : Number(text.replace("−", "-").replace(",", "."));
  const hint = (hints, attempt) => hints[Math.min(attempt, hints.length - 1)];
  const matches = (values, answer) => values.map((each, i) => Math.abs(each - answer.value[i]) <= answer.off);

  // What is said of an answer, and whether it is right; a number is an answer's place, an array are numbers.
  function judge(task, given, attempt) {
    const known = Array.isArray(given)
      ? task.answers.find(each => each.value && matches(given, each).every(Boolean)) : task.answers[given];
    if (known && !known.hints.length) return [`Right. ${task.solution}`, true];
    if (known) return [hint(known.hints, attempt), false];
    const found = matches(given, task.answers[0]);
    return [`${found.filter(Boolean).length} of ${found.length} numbers are right. ${hint(task.hints, attempt)}`, false];
  }

  function given(form) {
    const picked = form.querySelector("input:checked");
    if (form.querySelector("[type=radio]")) return picked ? Number(picked.value) : null;
    const values = all("input", form).map(each => number(each.value));
    return values.every(Number.isFinite) ? values : null;
  }

  function start(tasks) {
    const attempts = tasks.map(() => 0), done = tasks.map(() => false);
    for (const form of all("[data-task]")) {
      const i = Number(form.dataset.task), said = form.querySelector(".verdict");
      form.addEventListener("submit", event => {
        event.preventDefault();
        const answer = given(form);
        if (answer === null) {
          said.textContent = form.querySelector("[type=radio]") ? "Choose one." : "Fill in a number everywhere.";
          return;
        }
        const [text, right] = judge(tasks[i], answer, attempts[i]);
        said.textContent = text;
        said.classList.toggle("good", right);
        if (!done[i] && !right) attempts[i]++;
        done[i] ||= right;
        const first = done.filter((each, k) => each && attempts[k] === 0).length;
        document.querySelector("#score").textContent = `${done.filter(Boolean).length} of ${tasks.length} done, ${first} right at once.`;
      });
    }
  }

  return {start, judge};
})();
