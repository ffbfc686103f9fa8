"use strict";
// The words of a formula as a tree, by the tables and the steps of jaxnet.explaining.formulas.
const reading = (() => {
  const of = JSON.parse(document.getElementById("data").textContent).formulas;
  const said = (message, text = "") => of.messages[message].replace("{}", () => text);

  function plain(name) {  // the network's own name: δ³ is delta3
    const text = [...name].map(sign => of.digits[sign] ?? sign).join("");
    return of.spelled.reduce((found, [pattern, own]) => found.replace(new RegExp(pattern), own), text);
  }

  function split(text) {
    const pattern = new RegExp(of.words, "uy"), found = [];
    while (pattern.lastIndex < text.length) {
      const at = pattern.lastIndex, match = pattern.exec(text);
      if (!match) throw new Error(said("meaning", `'${text[at]}'`));
      if (of.keywords.includes(match[0])) throw new Error(said("meaning", match[0]));
      const [kind] = Object.entries(match.groups).find(([, each]) => each !== undefined);
      if (kind !== "blank") found.push({kind, text: of.readAs[match[0]] ?? match[0]});
    }
    return found;
  }

  function read(text) {
    if (text.length > of.longest) throw new Error(said("long", text.length));
    const words = split(text), constants = {None: null, True: true, False: false};
    let at = 0, depth = 0, target = "";
    const ahead = (word, further = 0) => words[at + further]?.text === word;
    const took = word => ahead(word) && Boolean(++at);
    const stopped = message => new Error(at < words.length ? said(message, `'${words[at].text}'`) : said("ends"));

    function expression(least) {
      if (at >= words.length) throw stopped("ends");
      let left;
      if (ahead("-") || ahead("+")) left = {kind: words[at++].text === "-" ? "minus" : "plus", of: expression(Math.max(least, of.unary))};
      else left = factor();
      for (let word; (word = words[at]);) {
        const beside = ["number", "shape", "name", "numbered", "open"].includes(word.kind);
        const binds = beside ? of.sideBySide : of.binds[word.text] ?? -1;
        if (binds < least) break;
        if (!beside) at++;
        const sign = beside ? "·" : word.text;
        left = {kind: "joined", sign, left, right: expression(sign === "/" ? of.divisor : sign === "**" ? of.power : binds + 1)};
      }
      return left;
    }
    function factor() {
      const {kind, text} = words[at];
      let found;
      if (kind === "shape") found = {kind, sizes: text.split(/[x×]/).map(Number)};
      else if (kind === "number") found = {kind, value: Number(text)};
      else if (text in constants) found = {kind: "constant", value: constants[text]};
      else if (kind === "name" || kind === "numbered") found = {kind: "name", name: plain(text)};
      else if (kind === "open") found = bracket(text);
      else throw stopped("factor");
      at++;
      for (let made; (made = behind(found)); at++) found = made;
      return found;
    }
    function behind(found) {
      const word = words[at], name = calledBy(found);
      if (!word) return null;
      if (word.kind === "prime" && name && ahead("(", 1)) return {...found, name: name + of.slope.repeat(word.text.length)};
      if (word.kind === "prime" || word.kind === "transpose") return {kind: "turned", of: found};
      if (word.kind === "square") return {kind: "joined", sign: "**", left: found, right: {kind: "number", value: Number(word.text)}};
      if (word.kind === "attribute") return {kind: "attribute", of: found, name: word.text.slice(1)};
      if (word.kind === "inverse") return {kind: "call", name: "inv", args: [found], options: []};
      if (word.text === "(" && name) return call(found, name);
      if (word.text === "[") {
        const inside = words.slice(at).map(each => each.text).join("").split("]")[0];
        return inside.includes(":") || inside.includes("None") ? {kind: "part", of: found, parts: parts("]")[0]} : null;
      }
      return null;
    }
    function call(found, name) {
      const list = parts(")")[0];
      let args = list.filter(each => each.kind !== "option"), root = found;
      while (root.kind === "attribute") root = root.of;
      if (found.kind === "attribute" && !of.libraries.includes(root.name)) args = [found.of, ...args];
      if (name in of.calls && args.length === 2) return {kind: "joined", sign: of.calls[name], left: args[0], right: args[1]};
      if (name === "transpose" && args.length === 1) return {kind: "turned", of: args[0]};
      return {kind: "call", name, args, options: list.filter(each => each.kind === "option")};
    }
    function bracket(opened) {
      const [list, comma] = parts(opened === "(" ? ")" : "]");
      return opened === "(" && list.length === 1 && !comma ? list[0] : {kind: "list", parts: list};
    }
    function parts(close) {
      if (++depth > of.deepest) throw stopped("deep");
      at++;
      const found = [];
      let comma = false;
      while (!ahead(close)) {
        if (found.length && !comma) throw at < words.length ? stopped("end") : new Error(said("open", close));
        found.push(part(close));
        comma = took(",");
      }
      depth--;
      return [found, comma || found.length > 1];
    }
    function part(close) {
      if (close === ")" && words[at]?.kind === "name" && ahead("=", 1)) {
        const name = words[at].text;
        at += 2;
        return {kind: "option", name, value: expression(0)};
      }
      const ends = [null];
      while (!(ahead(",") || ahead(close))) {
        if (close === "]" && took(":")) ends.push(null);
        else if (ends.at(-1) === null) ends[ends.length - 1] = expression(0);
        else break;
      }
      if (ends.length === 1 && ends[0] === null) throw stopped("factor");
      return ends.length === 1 ? ends[0] : {kind: "slice", ends};
    }

    if (["name", "numbered"].includes(words[0]?.kind) && ahead("=", 1)) {
      target = plain(words[0].text);
      at = 2;
    }
    const tree = expression(0);
    if (at < words.length) throw stopped(ahead("=") ? "target" : "end");
    return {tree, target};
  }

  const calledBy = found => found.kind === "attribute" || (found.kind === "name" &&
    (new RegExp(of.called).test(found.name) || found.name.endsWith(of.slope))) ? found.name : "";

  return {read, said, tables: of};
})();
