"use strict";
// The numbers that a reader changed, kept in the address: #W.2.0=.5&x.1=-2
const link = (() => {
  const name = field => `${field.dataset.f}.${field.dataset.k}`;

  function write(fields, now, given) {  // now, given: a field's number
    return fields.filter(field => now(field) !== given(field)).map(field => `${name(field)}=${now(field)}`).join("&");
  }

  // The fields with the numbers of an address; null where it holds none. An error names a part that fits no field.
  function read(hash, fields) {
    if (!hash.includes("=")) return null;
    const known = new Map(fields.map(field => [name(field), field]));
    return decodeURIComponent(hash.slice(1)).split("&").map(part => {
      const [key, text] = part.split("="), number = Number(text);
      if (!known.has(key) || text === "" || !Number.isFinite(number)) {
        throw new Error(`The link's “${part}” fits no number of this network: no number was changed.`);
      }
      return [known.get(key), number];
    });
  }

  async function copy(said) {
    try {
      await navigator.clipboard.writeText(location.href);
      said.textContent = "Copied: it opens the page with these numbers.";
    } catch {
      said.textContent = `The browser keeps its clipboard closed. The link is ${location.href}`;
    }
  }

  return {read, write, copy};
})();
