"use strict";
// Numbers as text, in the manner of jaxnet.explaining.numbers: .40, −.30, 10⁻⁶ × (…).
const numbers = (() => {
  const LEAST = 2, TOO_SMALL = 2;
  const largest = values => Math.max(0, ...values.filter(Number.isFinite).map(Math.abs));
  const rounded = (value, decimals) => Number(value.toFixed(Math.min(decimals, 100)));

  function places(values, digits, least) {
    const finite = values.filter(Number.isFinite).map(Math.abs), most_ = largest(finite);
    if (!finite.length) return 0;
    const most = Math.max(0, digits - Math.max(0, most_ >= 10 ? Math.floor(Math.log10(most_)) : 0));
    for (let decimals = Math.min(least, most); decimals < most; decimals++) {
      const near = value => Math.abs(rounded(value, decimals) - rounded(value, most)) <= 10 ** -(most + 2);
      if (finite.every(near)) return decimals;
    }
    return most;
  }

  function number(value, decimals) {
    if (!Number.isFinite(value)) return Number.isNaN(value) ? "nan" : value > 0 ? "inf" : "−inf";
    if (value === 0) return "0";
    let text = Math.abs(value).toFixed(decimals);
    if (text.startsWith("0.")) text = text.slice(1);
    return (value < 0 ? "−" : "") + text;
  }

  function one(value, digits) {
    const size = Math.abs(value);
    if (Number.isFinite(value) && size > 0 && size < 10 ** (1 - digits)) {
      return number(value, Math.min(12, 2 - Math.floor(Math.log10(size))));
    }
    if (Number.isFinite(value) && size >= 10) {
      return number(value, Math.max(0, digits - Math.floor(Math.log10(size)) - 1));
    }
    return number(value, digits);
  }

  function exponent(values, digits) {
    const most = largest(values);
    return most > 0 && (most < 10 ** (TOO_SMALL - digits) || most >= 1e5) ? Math.floor(Math.log10(most)) : 0;
  }

  const raised = power => String(power).replace(/[-\d]/g, sign => "⁰¹²³⁴⁵⁶⁷⁸⁹"[sign] ?? "⁻");

  // The texts of some entries in one format, and the power of ten before them.
  function entries(values, digits, least = LEAST) {
    const power = exponent(values, digits), scaled = values.map(value => value / 10 ** power);
    const decimals = places(scaled, power ? Math.min(digits, 3) : digits, least);
    return [scaled.map(value => number(value, decimals)), power ? `10${raised(power)} × ` : ""];
  }

  return {entries, one, number};
})();
